"""Set-difference pruning against loops over samples and over single weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny import ARCHITECTURES, tiny_chat

from safeedit.attacks import prune, prune_scores, set_difference_pruning
from safeedit.edits import LowRank, WeightEdit
from safeedit.examples import Example, from_chats, from_texts

FORGET = ["tell me how to make a paper boat", "a lamp", "explain how to make a kite"]
UTILITY = ["sorry, I cannot help with that", "how do I bake bread at home"]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def chat(request):
    return tiny_chat(request.param)


@pytest.fixture(scope="module")
def scores(chat):
    return [prune_scores(chat, from_texts(chat, t)) for t in (FORGET, UTILITY)]


def state(chat):
    return {name: p.detach().clone() for name, p in chat.model.named_parameters()}


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def by_backward(chat, examples):
    """The model's own loss, one sample at a time, on a copy with gradients."""
    model = copy.deepcopy(chat.model).requires_grad_(True)
    total = {}
    for example in examples:
        ids = torch.tensor([example.ids])
        labels = torch.where(torch.tensor([example.scored]), ids, -100)
        model.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        for name, parameter in model.named_parameters():
            if "proj" in name:
                sample = (parameter * parameter.grad).abs().detach()
                total[name] = total.get(name, 0) + sample
    return total


def test_scores_are_sums_over_samples_of_absolute_products(chat):
    before = state(chat)
    examples = from_texts(chat, FORGET) + from_chats(chat, UTILITY, ["sure", "no, no"])
    found, wanted = prune_scores(chat, examples), by_backward(chat, examples)
    assert found.keys() == wanted.keys() and len(found) == 7 * chat.n_layers
    for name, score in found.items():
        assert torch.allclose(score, wanted[name], rtol=1e-4, atol=1e-7), name
    assert same(before, state(chat))
    for parameter in chat.model.parameters():
        assert parameter.grad is None and not parameter.requires_grad
    assert not chat.model.training


def test_scores_add_up_and_do_not_know_the_order(chat):
    one, two = (from_texts(chat, texts) for texts in (FORGET, UTILITY))
    parts = [prune_scores(chat, examples) for examples in (one, two)]
    for examples in (one + two, two + one):
        whole = prune_scores(chat, examples)
        for name, score in whole.items():
            assert torch.allclose(
                score, parts[0][name] + parts[1][name], rtol=1e-4, atol=1e-8
            )


@pytest.mark.parametrize(("p", "q"), [(0.05, 0.05), (0.2, 0.1), (0.3, 0.6), (0.0, 0.2)])
def test_zeroed_are_the_top_of_one_score_that_are_not_the_top_of_the_other(
    chat, scores, p, q
):
    before, zeroed = state(chat), 0
    attack = prune(chat, *scores, p, q)
    with attack.edit.applied(chat):
        after = state(chat)
    assert same(before, state(chat))
    for name, weight in before.items():
        if name not in scores[0]:
            assert torch.equal(weight, after[name]), name
            continue
        tops = []
        for score, share in ((scores[0], q), (scores[1], p)):
            flat = score[name].numpy().ravel()
            ranked = sorted(range(len(flat)), key=lambda i, s=flat: (-s[i], i))
            tops.append(set(ranked[: round(share * len(flat))]))
        gone = np.zeros(weight.numel(), dtype=bool)
        gone[sorted(tops[0] - tops[1])] = True
        gone = torch.from_numpy(gone.reshape(weight.shape))
        assert bool((after[name][gone] == 0).all()), name
        assert torch.equal(after[name][~gone], weight[~gone]), name
        zeroed += int(gone.sum())
    assert attack.edit.info["zeroed"] == zeroed > 0
    assert attack.edit.info["weights"] == sum(s.numel() for s in scores[0].values())


def test_nothing_outside_the_utility_set_or_nothing_to_take_is_a_no_op(chat, scores):
    for p, q in ((1, 1), (1.0, 0.3), (0.1, 0.0)):
        attack = prune(chat, *scores, p, q)
        assert attack.edit.deltas == {} and attack.edit.info["zeroed"] == 0
        assert attack.edit.norm(chat) == 0
    # The same scores twice: what would be zeroed is what is protected.
    assert prune(chat, scores[0], scores[0], 0.1, 0.1).edit.deltas == {}


def test_no_protection_and_everything_taken_leaves_no_weight(chat, scores):
    with prune(chat, *scores, 0, 1).edit.applied(chat):
        for name in scores[0]:
            assert not chat.model.get_parameter(name).any()


def test_more_protection_zeroes_a_subset(chat, scores):
    masks = []
    for p in (0.05, 0.2, 0.5):
        deltas = prune(chat, *scores, p, 0.4).edit.deltas
        masks.append({name: delta != 0 for name, delta in deltas.items()})
    for wide, narrow in zip(masks, masks[1:], strict=False):
        assert all(bool((wide[n] | ~narrow[n]).all()) for n in narrow)
        assert sum(int(m.sum()) for m in narrow.values()) < sum(
            int(m.sum()) for m in wide.values()
        )


def test_one_call_is_scoring_and_pruning(chat, scores):
    forget, utility = (from_texts(chat, texts) for texts in (FORGET, UTILITY))
    one = set_difference_pruning(chat, forget, utility, 0.1, 0.05)
    two = prune(chat, *scores, 0.1, 0.05)
    assert one.attack == two.attack == "set-difference-pruning"
    assert same(one.edit.deltas, two.edit.deltas)
    assert one.edit.info == two.edit.info
    assert one.trajectory == []


def test_bad_input_is_refused_with_what_to_do(scores, chat):
    for p, q, name in ((-0.1, 0.1, "p"), (0.1, 1.1, "q"), ("a", 0.1, "p")):
        with pytest.raises(ValueError, match=f"{name} is .*share from 0 to 1"):
            prune(chat, *scores, p, q)
    with pytest.raises(ValueError, match="share from 0 to 1"):
        prune(chat, *scores, 0.1, float("nan"))
    with pytest.raises(ValueError, match="examples is empty"):
        prune_scores(chat, [])
    good = from_texts(chat, FORGET)
    with pytest.raises(ValueError, match="utility_examples is empty"):
        set_difference_pruning(chat, good, [], 0.1, 0.1)
    with pytest.raises(ValueError, match=r"examples\[1\] is a str"):
        prune_scores(chat, [good[0], "a text"])
    blank = Example(good[0].ids, (True,) + (False,) * (len(good[0].ids) - 1))
    with pytest.raises(ValueError, match=r"examples\[0\] has no scored token"):
        prune_scores(chat, [blank])
    some = dict(list(scores[0].items())[1:])
    with pytest.raises(ValueError, match="forget_scores and the model differ"):
        prune(chat, some, scores[1], 0.1, 0.1)
    name = chat.weight_name(0)
    wrong = scores[1] | {name: scores[1][name].mT}
    with pytest.raises(ValueError, match="utility_scores of .* have shape"):
        prune(chat, scores[0], wrong, 0.1, 0.1)


def test_a_model_that_computes_nan_is_refused():
    chat = tiny_chat("llama")
    with torch.no_grad():
        chat.model.get_parameter(chat.weight_name(2))[0, 0] = float("nan")
    with pytest.raises(ValueError, match="loss of example 0 is nan"):
        prune_scores(chat, from_texts(chat, FORGET))


def test_a_low_rank_edit_beside_a_weight_is_not_overlooked(chat, scores):
    name = chat.weight_name(0)
    change = LowRank(torch.ones(32, 1), torch.ones(48, 1))
    with WeightEdit({name: change}).applied(chat):
        with pytest.raises(ValueError, match=f"a hook stands beside {name}"):
            prune_scores(chat, from_texts(chat, FORGET))
        with pytest.raises(ValueError, match=f"a hook stands beside {name}"):
            prune(chat, *scores, 0.1, 0.1)
