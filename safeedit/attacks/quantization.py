"""Quantization: does forgetting survive the rounding that users do to save memory?

Symmetric round-to-nearest, the plain scheme behind 8- and 4-bit weights: each output
channel, or each group of inputs of one, has a scale s, and a weight w becomes

    q = s * clip(round(w / s), -m, m),   m = 2^(bits - 1) - 1,   s = max|w| / m.

An unlearning that moved weights by less than s / 2 is rounded away, and what it hid can
come back (Zhang et al., arXiv 2410.16454). Rounded are the linear weights inside the
blocks; embeddings, output head and norms stay, as the usual loaders leave them.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from safeedit.attacks.weights import (
    WeightAttack,
    not_finite,
    provenance,
    released_weights,
)
from safeedit.chat import Chat
from safeedit.edits.low_rank import LowRank
from safeedit.edits.weight_edit import WeightEdit

BITS = range(2, 9)


@torch.no_grad()
def quantize(chat: Chat, bits: int = 8, group: int | None = None) -> WeightAttack:
    """Round the linear weights of the blocks to few levels.

    Args:
        chat: the attacked model; it is not changed.
        bits: 2 to 8; there are 2^bits - 1 levels, symmetric about 0.
        group: neighbouring inputs that share a scale; None: all inputs of a channel.

    Returns:
        WeightAttack whose edit, once applied, leaves exactly the dequantized weights:
        its dense changes q - w have no rounding error in the weights' dtype.

    Raises:
        ValueError: other bits, a group that does not divide an input width, a weight
            that is not finite, or a low-rank edit in place.
    """
    began = time.perf_counter()
    if not isinstance(bits, int) or isinstance(bits, bool) or bits not in BITS:
        raise ValueError(f"bits is {bits!r}; give a whole number from 2 to 8")
    weights = released_weights(chat)
    widths = sorted({weight.shape[1] for weight in weights.values()})
    whole = isinstance(group, int) and not isinstance(group, bool) and group >= 1
    if group is not None and not (whole and all(w % group == 0 for w in widths)):
        raise ValueError(
            f"group is {group!r}; give a number that divides the input widths {widths} "
            "of the layers, or None for one scale per output channel"
        )
    if bad := not_finite(weights):
        raise ValueError(
            f"{bad} holds nan or infinite entries, which no scale fits; attack a model "
            "whose training did not diverge"
        )
    deltas: dict[str, LowRank | Tensor] = {
        name: rounded_to_levels(weight, bits, group) - weight
        for name, weight in weights.items()
    }
    config = {"bits": bits, "group": group}
    info = provenance(chat, "quantization", config, list(deltas))
    seconds = time.perf_counter() - began
    return WeightAttack("quantization", WeightEdit(deltas, info), [], seconds)


def rounded_to_levels(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    """Dequantized weights s * clip(round(w / s), -m, m), in the dtype of the weight.

    The scale is kept in that dtype too, as quantized checkpoints keep it. Then q - w is
    exact: where w is not rounded to 0, w / q lies between 1/2 and 2, and the difference
    of two such floating-point numbers is one (Sterbenz's lemma).

    Args:
        weight: shape (d_out, d_in).
        bits: 2 to 8.
        group: a divisor of d_in; None: d_in.

    Returns:
        Shape (d_out, d_in).
    """
    most = 2 ** (bits - 1) - 1
    rows = weight.reshape(len(weight), -1, group or weight.shape[1])
    scale = (rows.abs().amax(-1, keepdim=True).float() / most).to(weight.dtype)
    scale = scale.clamp_min(torch.finfo(weight.dtype).tiny)  # for a row of zeros
    codes = (rows.float() / scale.float()).round().clamp(-most, most)
    return (codes * scale.float()).to(weight.dtype).reshape(weight.shape)
