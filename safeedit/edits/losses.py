"""Losses of unlearning, as functions of log-probabilities or hidden states.

With l(x) = log p_theta(x) summed over the scored tokens of a sequence, l0(x) the same
under the start weights, n(x) the number of these tokens, s the logistic function:

    retain NLL    -sum l / sum n                 GA     +sum l / sum n
    retain KL     mean of KL(p0 || p) over the scored tokens
    NPO           -(2/b) mean log s(-b (l - l0))
    DPO           -mean log s(b [(l - l0)(chosen) - (l - l0)(rejected)])
    RMU           mean (h - c u)^2 on forget tokens; mean (h - h0)^2 on retain tokens

GradDiff is GA + gamma retain NLL; the other methods replace GA. All logarithms are
natural. No function here knows of a model: l is `token_log_probs(...).sum(dim=1)`.

GA and GradDiff: Yao et al. 2023; NPO: Zhang et al. 2024; DPO: Rafailov et al. 2023;
RMU: Li et al. 2024.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

NORMALIZE = ("sum", "mean")


def retain_nll(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """Mean negative log-likelihood of a token, over all tokens of the batch, in nats.

    Args:
        log_probs: log-probability of each sequence, shape (batch,), in nats.
        lengths: number of tokens behind each of them, shape (batch,).

    Returns:
        A scalar. Long sequences count for more, as in the usual training loss.

    Raises:
        ValueError: shapes that do not fit, or a sequence without tokens.
    """
    _sequences(log_probs=log_probs)
    _lengths(lengths, log_probs)
    return -log_probs.sum() / lengths.sum()


def retain_kl(log_probs: Tensor, start_log_probs: Tensor) -> Tensor:
    """Mean KL divergence of a token's distribution from that under the start weights.

    KL(p0 || p) in nats: the retain term of NPO's paper in its "KL" form. It keeps what
    the model would say, and how surely, where the NLL keeps the answer alone.

    Args:
        log_probs: log-probabilities of all tokens of the vocabulary at each scored
            place, shape (places, vocabulary), in nats.
        start_log_probs: the same under the start weights, held constant.

    Returns:
        A scalar, 0 at the start weights.

    Raises:
        ValueError: shapes that differ, or no places.
    """
    shape = tuple(log_probs.shape)
    if len(shape) != 2 or not shape[0] or log_probs.shape != start_log_probs.shape:
        raise ValueError(
            f"shapes are log_probs {shape}, start_log_probs "
            f"{tuple(start_log_probs.shape)}; give (places, vocabulary), the same for "
            "both, with at least one place"
        )
    return F.kl_div(
        log_probs, start_log_probs.detach(), reduction="batchmean", log_target=True
    )


def grad_ascent(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """Gradient ascent (GA): minus `retain_nll`, so that descent unlearns.

    It has no lower bound: the more is forgotten, the longer the steps (NPO's reason).
    Arguments, value and errors as in `retain_nll`.
    """
    return -retain_nll(log_probs, lengths)


def npo(
    log_probs: Tensor,
    ref_log_probs: Tensor,
    lengths: Tensor,
    beta: float,
    normalize: str = "sum",
) -> Tensor:
    """Negative preference optimization: -(2/beta) mean log s(-beta (l - l0)).

    As beta -> 0 it tends to gradient ascent but for the constant (2/beta) log 2, which
    is its value at the start weights. There, for any beta, its gradient is the gradient
    of mean l: with "sum" that is `grad_ascent`'s times the mean length; with "mean" it
    is `grad_ascent`'s where all lengths are equal, and otherwise differs from it in
    that each sequence, not each token, counts the same.

    Args:
        log_probs: of the forget sequences, shape (batch,), in nats.
        ref_log_probs: the same under the start weights, shape (batch,); a constant.
        lengths: tokens behind each of them, shape (batch,).
        beta: inverse temperature, per nat; larger stops sooner.
        normalize: "sum": l is of the whole sequence (Zhang et al. 2024, equation 3);
            "mean": l and l0 are divided by the length, so that beta acts on nats per
            token. Unlearn-Smooth (Fan et al. 2025) does so with the mean over all
            tokens of a batch, which is the same for batches of one.

    Returns:
        A scalar >= 0.

    Raises:
        ValueError: shapes that do not fit, a sequence without tokens, beta not > 0, or
            another normalization.
    """
    _sequences(log_probs=log_probs, ref_log_probs=ref_log_probs)
    _lengths(lengths, log_probs)
    _beta(beta)
    if normalize not in NORMALIZE:
        raise ValueError(f"normalize is {normalize!r}; use one of {NORMALIZE}")
    ratio = log_probs - ref_log_probs
    if normalize == "mean":
        ratio = ratio / lengths
    return -2 / beta * F.logsigmoid(-beta * ratio).mean()


def dpo(
    chosen: Tensor,
    ref_chosen: Tensor,
    rejected: Tensor,
    ref_rejected: Tensor,
    beta: float,
) -> Tensor:
    """Direct preference optimization: -mean log s(beta (margin of log ratios)).

    For unlearning, chosen is a refusal and rejected the true answer.

    Args:
        chosen: log-probabilities of the preferred answers, shape (batch,), in nats,
            summed over tokens (Rafailov et al. 2023, equation 7).
        ref_chosen: the same under the start weights; a constant.
        rejected: log-probabilities of the other answers to the same questions.
        ref_rejected: the same under the start weights; a constant.
        beta: inverse temperature, per nat.

    Returns:
        A scalar >= 0; log 2 at the start weights.

    Raises:
        ValueError: shapes that do not fit, or beta not > 0.
    """
    _sequences(
        chosen=chosen,
        ref_chosen=ref_chosen,
        rejected=rejected,
        ref_rejected=ref_rejected,
    )
    _beta(beta)
    margin = (chosen - ref_chosen) - (rejected - ref_rejected)
    return -F.logsigmoid(beta * margin).mean()


def rmu(hidden: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Representation misdirection: mean squared distance of forget tokens to a target.

    Li et al. 2024: target = c u, with u a fixed random unit vector of entries >= 0.

    Args:
        hidden: residual stream after the chosen block, shape (batch, length, d_model).
        target: the vector that all tokens are pulled to, shape (d_model,).
        mask: 1 or True on the tokens that count, shape (batch, length).

    Returns:
        A scalar: the mean over features and over the tokens that count.

    Raises:
        ValueError: shapes that do not fit, or a mask without a token.
    """
    if hidden.ndim != 3 or target.shape != hidden.shape[-1:]:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and target {tuple(target.shape)}; "
            "give (batch, length, d_model) and (d_model,)"
        )
    return _masked_mse(hidden, target, mask)


def rmu_retain(hidden: Tensor, frozen: Tensor, mask: Tensor) -> Tensor:
    """Mean squared distance of retain tokens to where the start weights put them.

    Args:
        hidden: residual stream after the chosen block, shape (batch, length, d_model).
        frozen: the same under the start weights, same shape; a constant.
        mask: 1 or True on the tokens that count, shape (batch, length).

    Returns:
        A scalar: the mean over features and over the tokens that count.

    Raises:
        ValueError: shapes that do not fit, or a mask without a token.
    """
    if hidden.ndim != 3 or frozen.shape != hidden.shape:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and frozen {tuple(frozen.shape)}; "
            "give (batch, length, d_model) for both"
        )
    return _masked_mse(hidden, frozen, mask)


def _masked_mse(hidden: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    if mask.shape != hidden.shape[:2]:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)} and hidden {tuple(hidden.shape)}; "
            f"give a mask of shape {tuple(hidden.shape[:2])}"
        )
    chosen = mask.bool()
    if not chosen.any():
        raise ValueError("the mask has no token; give at least one that counts")
    return (hidden - target)[chosen].square().mean()


def _sequences(**log_probs: Tensor) -> None:
    shapes = {name: tuple(value.shape) for name, value in log_probs.items()}
    first = next(iter(shapes.values()))
    if len(first) != 1 or first[0] == 0 or any(s != first for s in shapes.values()):
        seen = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"shapes are {seen}; give one summed log-probability for each sequence: "
            "(batch,), the same for all"
        )


def _lengths(lengths: Tensor, log_probs: Tensor) -> None:
    if lengths.shape != log_probs.shape:
        raise ValueError(
            f"lengths has shape {tuple(lengths.shape)}; give {tuple(log_probs.shape)}, "
            "the number of tokens of each sequence"
        )
    shortest = lengths.min().item()
    if shortest < 1:
        raise ValueError(
            f"lengths has {shortest:g}; every sequence needs at least one scored token"
        )


def _beta(beta: float) -> None:
    if not (isinstance(beta, int | float) and 0 < beta < math.inf):
        raise ValueError(f"beta is {beta!r}; it must be finite and > 0")
