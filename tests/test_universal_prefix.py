"""Universal prefix: its loss and gradient against plain computations, its search."""

from dataclasses import replace

import pytest
import torch
from test_gcg import exact
from tiny import ARCHITECTURES, tiny_chat
from torch.nn.functional import cross_entropy, one_hot

from safeedit.attacks.prefix import prefix_place
from safeedit.attacks.prefix_objective import PrefixObjective
from safeedit.attacks.suffix import allowed_tokens
from safeedit.attacks.universal_prefix import (
    UniversalPrefixConfig,
    random_prefix,
    universal_prefix,
)
from safeedit.hooks import record

QUESTIONS = ["how do I bake bread", "explain a lamp and a kite", "make a boat"]
TARGETS = ["a guide to making bread", "lamp", "sorry, I cannot"]
LAYERS = (0, 2)
CONFIG = UniversalPrefixConfig(
    num_steps=8, search_width=16, length=6, max_length=8, layers=LAYERS, seed=1
)


def place_of(chat, length=5, seed=0, n=1):
    """The questions' place, and some prefixes that survive being typed."""
    place = prefix_place(chat, QUESTIONS, TARGETS)
    generator = torch.Generator().manual_seed(seed)
    allowed = allowed_tokens(chat, False)
    return place, [place.draw(length + i, allowed, generator) for i in range(n)]


def plain_terms(chat, original, place, ids, force=10, floor=None):
    """Both terms, one unpadded pass of each model over each typed prompt."""
    total, norms = [], []
    for question, target in zip(QUESTIONS, TARGETS, strict=True):
        prompt = chat.render([f"{place.texts([ids])[0]} {question}"])[0]
        before = chat.encode_ids([prompt])[0]
        whole = torch.tensor(chat.encode_ids([prompt + target]))
        n, labels = len(before), whole[0, len(before) :][:force]
        head = len(place.slots[0].prefix)
        with torch.no_grad(), record(chat.blocks) as ours:
            logits = chat.model(whole).logits[0, n - 1 :][: len(labels)]
        with torch.no_grad(), record(original.blocks) as theirs:
            original.model(whole)
        each = cross_entropy(logits, labels, reduction="none")
        if floor is not None:
            each = each.clamp(min=floor)
        gaps = [(ours[n][1] - theirs[n][1])[0, head:].norm(dim=-1) for n in LAYERS]
        total.append([each.mean(), torch.stack(gaps).mean()])
        bare = torch.tensor(
            chat.encode_ids([chat.render([f" {question}"])[0] + target])
        )
        with torch.no_grad(), record(original.blocks) as states:
            original.model(bare)
        norms.append(torch.stack([states[n][1][0, head:].norm(dim=-1) for n in LAYERS]))
    unit = torch.cat(norms, dim=1).mean()
    return torch.tensor(total).mean(0) / torch.tensor([1.0, unit])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_terms_against_plain_passes(arch):
    chat, original = tiny_chat(arch), tiny_chat(arch, seed=5)
    place, prefixes = place_of(chat, n=4)  # of different lengths
    settings = dict(layers=LAYERS, force_tokens=3, floor=5.0)
    for size in (10_000, 100):  # one pass, or a row at a time
        objective = PrefixObjective(
            chat, place.slots, original, batch_tokens=size, **settings
        )
        found = objective.terms(prefixes)
        for ids, terms in zip(prefixes, found, strict=True):
            want = plain_terms(chat, original, place, ids, force=3, floor=5.0)
            torch.testing.assert_close(terms, want, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gradient_against_finite_differences(arch):
    chat, original = exact(tiny_chat(arch)), exact(tiny_chat(arch, seed=5))
    place, (ids,) = place_of(chat)
    objective = PrefixObjective(chat, place.slots, original, LAYERS, weight=0.7)
    slope, _ = objective.gradient(ids)
    hot = one_hot(torch.tensor(ids), len(objective.table)).double()
    at_once = objective.total(objective.terms([ids]))[0].double()
    torch.testing.assert_close(objective.relaxed(hot), at_once, atol=1e-5, rtol=1e-5)
    for place_, token in ((0, 20), (2, 130), (4, 7)):
        step = torch.zeros_like(hot)
        step[place_, token] = 1e-5
        up, down = objective.relaxed(hot + step), objective.relaxed(hot - step)
        want = float(up - down) / 2e-5
        assert float(slope[place_, token]) == pytest.approx(want, rel=1e-4, abs=1e-7)


def test_the_representation_term_is_zero_for_the_same_model():
    chat, place_and_ids = tiny_chat("gemma"), place_of(tiny_chat("gemma"), n=3)
    place, prefixes = place_and_ids
    objective = PrefixObjective(chat, place.slots, tiny_chat("gemma"), LAYERS)
    terms = objective.terms(prefixes)
    assert bool((terms[:, 1] == 0).all()) and bool((terms[:, 0] > 0).all())
    slope, _ = objective.gradient(prefixes[0])
    alone = PrefixObjective(chat, place.slots)
    torch.testing.assert_close(alone.terms(prefixes), terms)
    torch.testing.assert_close(alone.gradient(prefixes[0])[0], slope)


def test_next_tokens_are_the_models_own():
    chat = tiny_chat()
    place, (ids,) = place_of(chat)
    _, written = PrefixObjective(chat, place.slots).gradient(ids)
    head = place.slots[0].prefix
    for n in range(len(ids) + 1):
        with torch.no_grad():
            logits = chat.model(torch.tensor([[*head, *ids[:n]]])).logits[0, -1]
        torch.testing.assert_close(written[n], logits.softmax(-1))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_survivors_are_what_is_typed(arch):
    chat = tiny_chat(arch)
    place, prefixes = place_of(chat, n=4)
    for ids in prefixes:
        for question, slot in zip(QUESTIONS, place.slots, strict=True):
            prompt = f"{place.texts([ids])[0]} {question}"
            read = chat.encode_ids(chat.render([prompt]))[0]
            assert read == [*slot.prefix, *ids, *slot.post]
        assert place.typed(place.texts([ids])[0]) == ids
    pair = [chat.tokenizer.convert_tokens_to_ids(c) for c in ("a", "t")]
    joined = chat.encode_ids(["make a boat"])[0]
    assert len(joined) < len("make a boat")  # the tokenizer joins characters,
    b, o = (chat.tokenizer.convert_tokens_to_ids(c) for c in ("b", "o"))
    assert place.survivors([(b, o, *pair)]) == []  # so these come back as others
    word = place.texts(prefixes[:1])[0]
    assert prefixes[0] not in place.survivors(prefixes, banned=[word.upper()])


@pytest.mark.parametrize("original", [None, "other"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_best_prefix_never_gets_worse(arch, original):
    chat = tiny_chat(arch)
    other = None if original is None else tiny_chat(arch, seed=5)
    result = universal_prefix(chat, QUESTIONS, TARGETS, CONFIG, original=other)
    losses = result.losses
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    assert len(losses) == len(result.trajectory) == 1 + CONFIG.num_steps
    place = prefix_place(chat, QUESTIONS, TARGETS)
    ids = place.typed(result.prefix)
    assert len(ids) == result.length and 4 <= result.length <= 8
    terms = plain_terms(chat, other or chat, place, ids, floor=CONFIG.floor)
    assert float(terms.sum()) == pytest.approx(losses[-1], abs=1e-3)
    for row, loss in zip(result.trajectory[1:], losses[1:], strict=True):
        assert row["tried"] is None or row["tried"] >= loss
        total = row["cross_entropy"] + row["representation"]
        assert total == pytest.approx(row["loss"], abs=1e-4)
    assert result.prompts == result.attacked(QUESTIONS)
    assert result.responses == chat.generate(result.prompts, CONFIG.max_new_tokens)
    assert (result.attack == "universal-prefix") == (original is None)


def test_the_seed_decides_and_everything_is_restored():
    chat, original = tiny_chat(), tiny_chat(seed=5)
    before = {k: v.clone() for k, v in chat.model.state_dict().items()}
    run = [
        universal_prefix(chat, QUESTIONS, TARGETS, CONFIG, original=original)
        for _ in range(2)
    ]
    assert run[0].losses == run[1].losses and run[0].prefix == run[1].prefix
    for model in (chat.model, original.model):
        assert not any(m._forward_hooks for m in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in chat.model.state_dict().items())


def test_warm_start_judge_and_stop():
    chat = tiny_chat()
    first = universal_prefix(chat, QUESTIONS, TARGETS, CONFIG)
    asked = []

    def judge(index, prompt, response):
        asked.append((index, prompt))
        return index == 1

    config = replace(CONFIG, start=first.prefix, num_steps=2)
    second = universal_prefix(chat, QUESTIONS, TARGETS, config, judge=judge)
    assert second.losses[0] == pytest.approx(first.losses[-1], abs=1e-5)
    assert second.success == [False, True, False]
    assert asked == list(enumerate(second.prompts))
    easy = replace(CONFIG, floor=1e3)  # nothing can be gained: no step
    assert len(universal_prefix(chat, QUESTIONS, TARGETS, easy).losses) == 1


def test_the_default_judge_compares_with_the_target():
    chat = tiny_chat()
    prefix = random_prefix(chat, QUESTIONS, TARGETS, CONFIG, draws=1)[0]
    own = [" ".join(r.split()[:1]) or "x" for r in prefix.responses]
    again = random_prefix(chat, QUESTIONS, own, CONFIG, draws=1)[0]
    assert again.prefix == prefix.prefix
    for answer, target, verdict in zip(
        again.responses, own, again.success, strict=True
    ):
        assert verdict == answer.strip().startswith(target)


def test_the_control_has_the_same_length():
    chat = tiny_chat("mistral")
    results = random_prefix(chat, QUESTIONS, TARGETS, CONFIG, draws=4)
    place = prefix_place(chat, QUESTIONS, TARGETS)
    assert len({result.prefix for result in results}) == 4
    for result in results:
        assert result.length == len(place.typed(result.prefix)) == CONFIG.length
        assert result.prompts == [f"{result.prefix} {q}" for q in QUESTIONS]
        assert len(result.success) == len(QUESTIONS) and not result.losses
    again = random_prefix(chat, QUESTIONS, TARGETS, CONFIG, draws=2)
    assert [r.prefix for r in again] == [r.prefix for r in results[:2]]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (dict(search_width=0), "search_width is 0"),
        (dict(max_length=3), "max_length is 3"),
        (dict(length=2), "length is 2"),
        (dict(shares=(1.0, 0.0)), "shares is"),
        (dict(shares=(0.0, 0.0, 0.0, 0.0)), "shares is"),
    ],
)
def test_bad_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        UniversalPrefixConfig(**settings)


def test_bad_input():
    chat = tiny_chat()
    with pytest.raises(ValueError, match="1 targets"):
        universal_prefix(chat, QUESTIONS, TARGETS[:1])
    with pytest.raises(ValueError, match="is empty"):
        universal_prefix(chat, QUESTIONS, ["a", " ", "b"], CONFIG)
    with pytest.raises(ValueError, match="out of range"):
        config = UniversalPrefixConfig(layers=(9,))
        universal_prefix(chat, QUESTIONS, TARGETS, config)
    with pytest.raises(ValueError, match="start has"):
        config = UniversalPrefixConfig(start="bread " * 40)
        universal_prefix(chat, QUESTIONS, TARGETS, config)
    short = tiny_chat()
    del short.model.model.layers[-1]
    with pytest.raises(ValueError, match="other blocks"):
        universal_prefix(chat, QUESTIONS, TARGETS, CONFIG, original=short)
    with pytest.raises(ValueError, match="draws is 0"):
        random_prefix(chat, QUESTIONS, TARGETS, CONFIG, draws=0)
