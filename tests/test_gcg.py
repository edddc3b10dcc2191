"""GCG: its loss and gradient against plain computations, its text, its bookkeeping."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from tiny import ARCHITECTURES, tiny_chat
from torch.nn.functional import cross_entropy, one_hot

from safeedit.attacks import GCGConfig, gcg
from safeedit.attacks.objective import Objective
from safeedit.attacks.suffix import allowed_tokens, make_slot, suffix_texts, typed

PROMPTS = [
    "how do I bake bread",
    "tell me how to make a paper boat and then a kite",
    "explain a lamp",
]
TARGETS = ["sure, here is a guide", "sure, a boat", "sure, here is a lamp to make"]
CONFIG = GCGConfig(
    num_steps=6, suffix_length=5, search_width=24, topk=32, eval_every=3, seed=1
)
NEVER = dict(judge=lambda index, prompt, response: False)


def plain_loss(chat, prompt, target):
    """Mean cross-entropy of the target, one unbatched pass over the typed prompt."""
    before = chat.encode(chat.render([prompt])).input_ids[0]
    whole = chat.encode([chat.render([prompt])[0] + target]).input_ids[0]
    n = len(before)
    assert torch.equal(whole[:n], before)
    with torch.no_grad():
        logits = chat.model(whole[None]).logits[0, n - 1 : -1]
    return float(cross_entropy(logits, whole[n:]))


def objective_of(chat, length=5, **kwargs):
    pairs = zip(PROMPTS, TARGETS, strict=True)
    slots = [make_slot(chat, p, t, "x", length) for p, t in pairs]
    return slots, Objective(chat, slots, kwargs.pop("batch_tokens", 200), **kwargs)


def exact(chat):
    """Float64 throughout: transformers' norms go through float32 on their own."""
    chat.model.double()
    for module in chat.model.modules():
        name = type(module).__name__
        if name.endswith("RMSNorm"):
            gain = module.weight + ("Gemma" in name)
            eps = module.eps if "Gemma" in name else module.variance_epsilon
            module.forward = lambda x, gain=gain, eps=eps: (
                gain * x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt()
            )
    return chat


def candidates(chat, slots, rows, seed=0):
    """Suffixes that differ from the start at random, later and later positions."""
    generator = torch.Generator().manual_seed(seed)
    good = allowed_tokens(chat, False).nonzero().squeeze(1)
    owner = torch.arange(rows) % len(slots)
    ids = torch.tensor([slot.start for slot in slots])[owner]
    for row in range(rows):
        place = row * ids.shape[1] // rows
        ids[row, place] = good[torch.randint(len(good), (), generator=generator)]
    return ids, owner


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_reported_loss_is_that_of_the_typed_prompt(arch):
    chat = tiny_chat(arch)
    result = gcg(chat, PROMPTS, TARGETS, CONFIG, **NEVER)
    for prompt, target, trace in zip(
        result.prompts, TARGETS, result.losses, strict=True
    ):
        assert trace[-1] == pytest.approx(plain_loss(chat, prompt, target), rel=1e-4)
        assert len(trace) == CONFIG.num_steps + 1
        assert all(a >= b for a, b in zip(trace, trace[1:], strict=False))
        assert trace[-1] < trace[0]
    assert result.steps == [6, 6, 6] and result.success == [False] * 3


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_shared_prefix_changes_no_loss(arch):
    chat = exact(tiny_chat(arch))
    slots, shared = objective_of(chat)
    _, full = objective_of(chat, prefix_cache=False)
    ids, owner = candidates(chat, slots, 20)
    before = shared.losses(ids, owner)
    start = torch.tensor([slot.start for slot in slots])
    slopes, losses = shared.gradient(start)  # from here on suffixes are shared too
    others, same = full.gradient(start)
    torch.testing.assert_close(slopes, others)
    torch.testing.assert_close(losses, same)
    torch.testing.assert_close(shared.losses(ids, owner), full.losses(ids, owner))
    torch.testing.assert_close(before, full.losses(ids, owner))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gradient_matches_finite_differences(arch):
    chat = exact(tiny_chat(arch))
    slots, objective = objective_of(chat)
    start = torch.tensor([slot.start for slot in slots])
    slopes, _ = objective.gradient(start)
    hot = one_hot(start, objective.table.shape[0]).double()
    owner, tail = torch.arange(3), objective.embed(objective.tail)
    step = 1e-5
    for place, token in ((0, 40), (2, 77), (4, 300)):
        ends = []
        for sign in (step, -step):
            moved = hot.clone()
            moved[:, place, token] += sign
            embeds = torch.cat([moved @ objective.table, tail], dim=1)
            ends.append(objective._forward(embeds, owner, objective.shared)[0])
        slope = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close(slopes[:, place, token], slope, rtol=1e-5, atol=1e-8)


def test_behaviours_together_and_one_by_one_agree():
    chat = exact(tiny_chat("llama"))
    together = gcg(chat, PROMPTS, TARGETS, CONFIG, **NEVER)
    # Behaviour i draws from (seed, i), so the first of a list is always the same.
    alone = gcg(chat, PROMPTS[:1], TARGETS[:1], CONFIG, **NEVER)
    assert alone.prompts[0] == together.prompts[0]
    assert alone.losses[0] == pytest.approx(together.losses[0])
    small = gcg(chat, PROMPTS, TARGETS, replace(CONFIG, batch_tokens=1), **NEVER)
    assert small.prompts == together.prompts


def test_a_seed_fixes_the_result_and_another_changes_it():
    chat = tiny_chat("llama")
    first, again, other = (
        gcg(chat, PROMPTS, TARGETS, replace(CONFIG, seed=seed), **NEVER)
        for seed in (1, 1, 2)
    )
    assert first.prompts == again.prompts and first.losses == again.losses
    assert first.prompts != other.prompts


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_prompts_tokenize_to_what_was_scored(arch):
    chat = tiny_chat(arch)
    pairs = zip(PROMPTS, TARGETS, strict=True)
    slots = [make_slot(chat, p, t, "x", 5) for p, t in pairs]
    pools = [
        candidates(chat, slots, 60, seed)[0][i::3] for i, seed in enumerate((1, 2, 3))
    ]
    masks = typed(chat, slots, pools)
    assert 0 < sum(int(mask.sum()) for mask in masks) < 60
    for slot, pool, mask in zip(slots, pools, masks, strict=True):
        texts = suffix_texts(chat, slot, pool)
        for ids, text, keep in zip(pool.tolist(), texts, mask.tolist(), strict=True):
            (again,) = chat.encode_ids(chat.render([slot.prompt + text]))
            assert (again == slot.prefix + ids + slot.post) == keep


def test_banned_words_and_characters_stay_out():
    chat = tiny_chat("llama")
    config = replace(CONFIG, banned_words=("bread", "a"))
    result = gcg(chat, PROMPTS, TARGETS, config, **NEVER)
    for suffix in result.suffixes:
        assert "a" not in suffix.lower()
        assert suffix.isascii() and suffix.isprintable()
    mask = allowed_tokens(chat, allow_non_ascii=False)
    assert not mask[torch.tensor(chat.tokenizer.all_special_ids)].any()
    with pytest.raises(ValueError, match="ban fewer words"):
        allowed_tokens(chat, False, ("",))


def test_a_behaviour_leaves_when_the_judge_is_satisfied():
    chat = tiny_chat("llama")
    seen = []

    def judge(index, prompt, response):
        seen.append((index, prompt))
        assert prompt.startswith(PROMPTS[index])
        looks = [i for i, _ in seen].count(index)
        return index == 0 or (index == 1 and looks == 2)

    result = gcg(chat, PROMPTS, TARGETS, CONFIG, judge)
    assert result.success == [True, True, False]
    assert result.steps[0] == 0 and result.steps[2] == CONFIG.num_steps
    assert 0 < result.steps[1] <= CONFIG.num_steps
    assert [len(trace) for trace in result.losses] == [
        0,
        result.steps[1] + 1,
        result.steps[2] + 1,
    ]
    assert len(seen) == len(set(seen)), "the same prompt was judged twice"
    assert result.responses[2] == chat.generate(result.prompts[2:], 64)[0]


def test_two_positions_can_change_in_one_step():
    chat = tiny_chat("llama")
    config = replace(CONFIG, n_replace=2)
    result = gcg(chat, PROMPTS, TARGETS, config, **NEVER)
    assert all(trace[-1] < trace[0] for trace in result.losses)


class Shift:
    """A stand-in for a defense: adds a vector that depends on the last prompt token."""

    def __init__(self, chat):
        self.chat, self.calls = chat, []

    @contextmanager
    def applied(self, last_prompt):
        def shift(module, args, output):
            at = last_prompt
            if at is None:
                at = torch.full((len(output),), output.shape[1] - 1)
            if output.shape[1] > 1:
                self.calls.append(output.shape)
                self.edit = 0.5 * output[torch.arange(len(output)), at].tanh()[:, None]
            return output + self.edit

        handle = self.chat.down_projs[1].register_forward_hook(shift)
        try:
            yield
        finally:
            handle.remove()

    def generate(self, prompts, max_new_tokens=64):
        return self.chat.generate(
            prompts, max_new_tokens, around=lambda: self.applied(None)
        )


def test_adaptive_attack_scores_each_candidate_under_its_own_edit():
    chat = tiny_chat("llama")
    shift = Shift(chat)
    result = gcg(chat, PROMPTS, TARGETS, CONFIG, defense=shift, **NEVER)
    assert result.attack == "gcg-adaptive"
    assert result.responses == shift.generate(result.prompts)
    for prompt, target, trace in zip(
        result.prompts, TARGETS, result.losses, strict=True
    ):
        last = chat.encode(chat.render([prompt])).input_ids.shape[1] - 1
        with shift.applied(torch.tensor([last])):
            expected = plain_loss(chat, prompt, target)
        assert trace[-1] == pytest.approx(expected, rel=1e-4)
        assert abs(expected - plain_loss(chat, prompt, target)) > 1e-3


def test_adaptive_gradient_goes_through_the_edit():
    chat = exact(tiny_chat("llama"))
    slots, objective = objective_of(chat, defense=Shift(chat))
    start = torch.tensor([slot.start for slot in slots])
    slopes, _ = objective.gradient(start)
    hot = one_hot(start, objective.table.shape[0]).double()
    owner, tail = torch.arange(3), objective.embed(objective.tail)
    ends = []
    for sign in (1e-5, -1e-5):
        moved = hot.clone()
        moved[:, 3, 99] += sign
        embeds = torch.cat([moved @ objective.table, tail], dim=1)
        ends.append(objective._forward(embeds, owner, None)[0])
    torch.testing.assert_close(
        slopes[:, 3, 99], (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-8
    )
