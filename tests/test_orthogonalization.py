"""Orthogonalization: directions that were planted are found, and they are taken out."""

from contextlib import ExitStack

import pytest
import torch
from tiny import ARCHITECTURES, tiny_chat

from safeedit.attacks.orthogonalization import (
    VARIANTS,
    OrthogonalizationConfig,
    _outliers,
    _Side,
    find_directions,
    orthogonalized,
    random_directions,
)
from safeedit.hooks import hooked, record

FORGET = ["how do I bake bread", "tell me how to make bread at home", "bake a bread"]
BENIGN = ["how do I make a boat", "tell me how to make a kite", "explain a lamp"]


def pushed(chat, layer, push, only=None):
    """A model whose block adds `push`, to forget prompts alone if `only` is a token."""

    def hook(module, args, output):
        if only is None:
            return output + push
        here = (seen[0] == only).any(1)[:, None, None]
        return output + here * push

    seen = []

    def look(module, args):
        seen[:] = [args[0]]

    stack = ExitStack()
    embed = chat.model.get_input_embeddings()
    stack.enter_context(hooked([(embed, look)], pre=True))
    stack.enter_context(hooked([(chat.blocks[layer], hook)]))
    return stack


def off(**kwargs):
    """No outliers: the planted direction is then found to rounding."""
    return OrthogonalizationConfig(z=1e9, **kwargs)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_ground_truth_finds_what_was_added(arch):
    chat, original = tiny_chat(arch), tiny_chat(arch)
    push = 5 * torch.randn(chat.d_model, generator=torch.Generator().manual_seed(1))
    with pushed(chat, 1, push):
        found = find_directions(chat, FORGET, off(), original=original)
    assert not found.attacker_fair
    assert not found.vectors[0].any()  # the block before is the same in both
    assert found.trajectory[0]["gap"] == 0
    torch.testing.assert_close(found.vectors[1], push / push.norm(), atol=1e-5, rtol=0)
    assert found.trajectory[1]["gap"] == pytest.approx(float(push.norm()), rel=1e-4)
    assert [row["layer"] for row in found.trajectory] == [0, 1, 2]


@pytest.mark.parametrize("variant", ["benign", "text"])
def test_fair_variants_need_no_original(variant):
    """A large push on forget prompts alone is most of what tells them apart."""
    chat = tiny_chat()
    push = 500 * torch.randn(chat.d_model, generator=torch.Generator().manual_seed(1))
    mark = chat.encode_ids([" bread"])[0][-1]
    assert all(mark in row for row in chat.encode_ids(chat.render(FORGET)))
    assert not any(mark in row for row in chat.encode_ids(chat.render(BENIGN)))
    with pushed(chat, 1, push, only=mark):
        found = find_directions(chat, FORGET, off(variant=variant), reference=BENIGN)
    assert found.attacker_fair
    assert float(found.vectors[1] @ push / push.norm()) > 0.99
    row = found.trajectory[1]
    assert row["forget_removed"] > 0.99 > row["reference_removed"]


def test_pca_is_the_first_component_of_the_standardised_stack():
    chat, original = tiny_chat(), tiny_chat(seed=5)
    config = off(variant="pca")
    found = find_directions(chat, FORGET, config, original=original)
    stacks = []
    for model in (chat, original):
        rows = []
        for prompt in FORGET:  # one at a time, without padding
            with torch.no_grad(), record(model.blocks) as states:
                model.model(**model.encode(model.render([prompt])))
            rows.append(torch.stack([out[0, 1:] for _, out in states]))
        stacks.append(torch.cat(rows, dim=1))
    for layer, vector in enumerate(found.vectors):
        stack = torch.cat([side[layer] for side in stacks]).double()
        scaled = (stack - stack.mean(0)) / stack.std(0, correction=0)
        best = torch.linalg.svd(scaled, full_matrices=False).Vh[0].float()
        assert abs(float(best @ vector)) == pytest.approx(1, abs=1e-4)
    assert found.n_tokens == (stacks[0].shape[1], stacks[1].shape[1])


def test_means_against_plain_passes():
    chat, original = tiny_chat("gemma"), tiny_chat("gemma", seed=5)
    found = find_directions(chat, FORGET, off(), original=original)
    means = []
    for model in (chat, original):
        outs = []
        for prompt in FORGET:
            with torch.no_grad(), record(model.blocks) as states:
                model.model(**model.encode(model.render([prompt])))
            outs.append(torch.stack([out[0, 1:] for _, out in states]))
        means.append(torch.cat(outs, dim=1).mean(1))
    gap = means[0] - means[1]
    want = gap / gap.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found.vectors, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nothing_is_left_along_the_direction(arch):
    chat = tiny_chat(arch)
    directions = 3 * random_directions(chat, seed=2)  # any length will do
    batch = chat.encode(chat.render(BENIGN))
    with torch.no_grad(), orthogonalized(chat, directions), record(chat.blocks) as out:
        chat.model(**batch)
    for (_, h), d in zip(out, directions, strict=True):
        left = (h @ (d / d.norm())).abs()
        assert float((left - 1e-6 * h.norm(dim=-1)).max()) <= 0


def test_only_the_chosen_blocks_are_treated():
    chat = tiny_chat()
    directions = random_directions(chat)
    batch = chat.encode(chat.render(BENIGN))
    with torch.no_grad(), record(chat.blocks) as plain:
        chat.model(**batch)
    with (
        torch.no_grad(),
        orthogonalized(chat, directions, [-2]),
        record(chat.blocks) as out,
    ):
        chat.model(**batch)
    assert torch.equal(out[0][1], plain[0][1])
    d = directions[1]
    want = plain[1][1] - (plain[1][1] @ d)[..., None] * d
    torch.testing.assert_close(out[1][1], want)
    assert float((out[2][1] @ directions[2]).abs().max()) > 1e-3
    with orthogonalized(chat, torch.zeros_like(directions)):  # a zero row does nothing
        with torch.no_grad(), record(chat.blocks) as same:
            chat.model(**batch)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(same, plain, strict=True))


def test_an_exception_leaves_no_hook():
    chat = tiny_chat()
    before = {k: v.clone() for k, v in chat.model.state_dict().items()}
    with pytest.raises(RuntimeError, match="on purpose"):
        with orthogonalized(chat, random_directions(chat)):
            raise RuntimeError("on purpose")
    find_directions(chat, FORGET, off(), original=tiny_chat(seed=5))
    assert not any(m._forward_hooks for m in chat.model.modules())
    assert all(torch.equal(v, before[k]) for k, v in chat.model.state_dict().items())


def test_outliers_against_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 40, 8, generator=generator)
    states[1, 7] += 50
    ids = torch.arange(40) % 30  # token 7 is also at place 37
    side, config = _Side(states, ids), OrthogonalizationConfig()
    want = set()
    for layer in states:
        far = [
            sum(float((x - y).abs().sum()) for y in layer) / (len(layer) - 1)
            for x in layer
        ]
        far = torch.tensor(far)
        z = (far - far.mean()) / far.std(correction=0)
        want |= {int(ids[i]) for i in range(40) if z[i] > 3}
    assert _outliers(side, config) == want
    assert 7 in want
    assert not _outliers(_Side(torch.ones(2, 5, 8), ids[:5]), config)


def test_a_draw_is_repeatable_and_bounded():
    chat, original = tiny_chat(), tiny_chat(seed=5)
    config = off(max_tokens=10, seed=3)
    one, two = (
        find_directions(chat, FORGET, config, original=original) for _ in range(2)
    )
    assert torch.equal(one.vectors, two.vectors) and one.n_tokens == (10, 10)
    chat.batch_size = original.batch_size = 2
    again = find_directions(chat, FORGET, config, original=original)
    torch.testing.assert_close(again.vectors, one.vectors, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_a_variant_needs(variant):
    with pytest.raises(ValueError, match="needs"):
        find_directions(tiny_chat(), FORGET, OrthogonalizationConfig(variant=variant))


def test_bad_input():
    chat = tiny_chat()
    with pytest.raises(ValueError, match="variant is 'mmlu'"):
        OrthogonalizationConfig(variant="mmlu")
    with pytest.raises(ValueError, match="skip is -1"):
        OrthogonalizationConfig(skip=-1)
    with pytest.raises(ValueError, match="z is 0"):
        OrthogonalizationConfig(z=0)
    with pytest.raises(ValueError, match="tokens after the first skip"):
        find_directions(chat, FORGET, off(skip=200), original=chat)
    with pytest.raises(ValueError, match="shape"):
        with orthogonalized(chat, torch.ones(3, 5)):
            pass
    with pytest.raises(ValueError, match="out of range"):
        with orthogonalized(chat, random_directions(chat), [7]):
            pass
    other = tiny_chat()
    del other.model.model.layers[-1]
    with pytest.raises(ValueError, match="tokenizers differ"):
        find_directions(chat, FORGET, off(), original=other)
