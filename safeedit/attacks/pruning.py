"""Set-difference pruning: zero the weights that only the unlearned behaviour needs.

Training can hide knowledge behind a few weights that suppress it. Those matter for the
loss on forget data and not for the loss on anything else, and can be told by the SNIP
score of a weight,

    S(w) = |w| * sum over samples of |d CE(sample) / d w|.

In each matrix the share q with the highest score on forget data is zeroed, but for the
weights among the share p with the highest score on utility data. The method is from
Wei et al., arXiv 2402.05162; Lucki et al., arXiv 2409.18025, attack unlearning with it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from safeedit.attacks.weights import (
    WeightAttack,
    check_examples,
    mean_nll,
    not_finite,
    provenance,
    released_weights,
)
from safeedit.chat import Chat
from safeedit.edits.low_rank import LowRank
from safeedit.edits.weight_edit import WeightEdit
from safeedit.examples import Example, collate


def prune_scores(
    chat: Chat, examples: Sequence[Example], progress: bool = False
) -> dict[str, Tensor]:
    """SNIP score |w| * sum_i |d CE_i / d w| of every linear weight in the blocks.

    The absolute value is of the gradient of one sample, so the samples go through the
    model one by one. One call serves any number of calls of `prune`.

    Args:
        chat: the attacked model; it is not changed.
        examples: samples; CE_i is the mean over the scored tokens of sample i, nats.
        progress: show a progress bar.

    Returns:
        name of the weight -> scores, float32, shape (d_out, d_in).

    Raises:
        ValueError: no examples, one without scored tokens, a low-rank edit in place, or
            a gradient that is not finite.
    """
    check_examples(chat, examples, "examples")
    weights = released_weights(chat)
    scores = {
        name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()
    }
    # These share the model's memory: they are read, and only their gradients are new.
    leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
    for index, example in enumerate(tqdm(examples, disable=not progress)):
        with torch.enable_grad():
            loss = mean_nll(chat.model, collate(chat, [example]), leaves)
        if not bool(torch.isfinite(loss)):
            raise ValueError(
                f"the loss of example {index} is {loss.item()}, so no weight can be "
                "ranked; attack a model whose training did not diverge"
            )
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        for name, gradient in zip(leaves, gradients, strict=True):
            scores[name] += gradient.float().abs()
    if bad := not_finite(scores):
        raise ValueError(
            f"a gradient of {bad} is not finite, so its weights cannot be ranked; "
            "load the model with dtype='float32'"
        )
    return {name: score * weights[name].float().abs() for name, score in scores.items()}


def prune(
    chat: Chat,
    forget_scores: Mapping[str, Tensor],
    utility_scores: Mapping[str, Tensor],
    p: float,
    q: float,
) -> WeightAttack:
    """Zero the top q by forget score that are not in the top p by utility score.

    Args:
        chat: the attacked model; it is not changed.
        forget_scores: of `prune_scores` on samples of what was unlearned.
        utility_scores: the same on samples of everything else.
        p: share of each matrix that is protected, 0 to 1. At 1 nothing is zeroed.
        q: share of each matrix that may be zeroed, 0 to 1. The published grid has both
            from .005 to .2, with p >= q.

    Returns:
        WeightAttack with a dense change for each matrix that loses a weight: minus the
        weight where it is zeroed, else 0. `edit.info` tells how many are "zeroed" of
        how many "weights". Its seconds do not contain the scores.

    Raises:
        ValueError: p or q outside [0, 1], or scores of another model.
    """
    for key, share in (("p", p), ("q", q)):
        if not (isinstance(share, int | float) and 0 <= share <= 1):
            raise ValueError(f"{key} is {share!r}; give a share from 0 to 1")
    began = time.perf_counter()
    weights = released_weights(chat)
    _check_scores("forget_scores", forget_scores, weights)
    _check_scores("utility_scores", utility_scores, weights)
    deltas: dict[str, LowRank | Tensor] = {}
    zeroed = 0
    for name, weight in weights.items():
        mask = _top(forget_scores[name], q) & ~_top(utility_scores[name], p)
        mask = mask.to(weight.device)
        if bool(mask.any()):
            deltas[name] = torch.where(mask, -weight, torch.zeros_like(weight))
            zeroed += int(mask.sum())
    info = provenance(chat, "set-difference-pruning", {"p": p, "q": q}, list(deltas))
    info |= {"zeroed": zeroed, "weights": sum(w.numel() for w in weights.values())}
    seconds = time.perf_counter() - began
    return WeightAttack("set-difference-pruning", WeightEdit(deltas, info), [], seconds)


def set_difference_pruning(
    chat: Chat,
    forget_examples: Sequence[Example],
    utility_examples: Sequence[Example],
    p: float,
    q: float,
) -> WeightAttack:
    """Score and prune in one call; for a grid of (p, q) use the two functions.

    Args:
        chat: the attacked model; it is not changed.
        forget_examples: samples of what was unlearned.
        utility_examples: samples of everything else.
        p, q: see `prune`.

    Returns:
        See `prune`; the seconds contain the scores.

    Raises:
        ValueError: see `prune_scores` and `prune`.
    """
    began = time.perf_counter()
    check_examples(chat, forget_examples, "forget_examples")
    check_examples(chat, utility_examples, "utility_examples")
    scores = [prune_scores(chat, e) for e in (forget_examples, utility_examples)]
    found = prune(chat, scores[0], scores[1], p, q)
    seconds = time.perf_counter() - began
    return WeightAttack(found.attack, found.edit, found.trajectory, seconds)


def _top(scores: Tensor, share: float) -> Tensor:
    """Where the highest scores of a matrix are, the share rounded to whole weights."""
    count = round(share * scores.numel())
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[scores.flatten().topk(count, sorted=False).indices] = True
    return mask.reshape(scores.shape)


def _check_scores(
    what: str, scores: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> None:
    if odd := sorted(scores.keys() ^ weights.keys()):
        raise ValueError(
            f"{what} and the model differ in the weights {odd[:4]}; compute them with "
            "prune_scores on this model"
        )
    for name, weight in weights.items():
        if scores[name].shape != weight.shape:
            raise ValueError(
                f"{what} of {name} have shape {tuple(scores[name].shape)}, the weight "
                f"{tuple(weight.shape)}; compute them with prune_scores on this model"
            )
