"""An edit as plain changes of weights, as a released model has them."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from safeedit.edits.low_rank import LowRank
from safeedit.edits.weight_edit import WeightEdit


def as_dense(edit: WeightEdit) -> WeightEdit:
    """The same edit with every low-rank change multiplied out.

    A low-rank change stands beside its weight while it is applied; an attack on weights
    (pruning, quantization) must meet it inside.

    Raises:
        ValueError: one change per prompt, which no single matrix holds.
    """
    if edit.batch is not None:
        raise ValueError(
            f"this edit holds a change for each of {edit.batch} prompts; take a shared "
            "one (scope='shared'), or one prompt with edit.select"
        )
    deltas: dict[str, LowRank | Tensor] = {
        name: delta.dense() if isinstance(delta, LowRank) else delta
        for name, delta in edit.deltas.items()
    }
    return replace(edit, deltas=deltas)
