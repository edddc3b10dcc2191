"""What a point-wise edit promises, in a form that can be measured again later.

An edit from calibration prompts promises ||o_j - c_i|| >= eps at the chosen
positions j of each edited layer. Rounding, quantisation, fine-tuning or another
edit may break that promise; `Constraint.margins` measures it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from safeedit.hooks import record


@dataclass(frozen=True)
class Constraint:
    """Rendered prompts, and per edited layer the concepts and the radius."""

    texts: list[str]  # prompts as rendered by the chat template
    positions: str  # "last" or "prompt"
    centres: dict[int, Tensor]  # layer -> concept vectors, (n, d_model)
    eps: dict[int, float]  # layer -> radius, in units of the MLP output

    @torch.no_grad()
    def margins(self, chat) -> dict[int, Tensor]:
        """Smallest ||o - c_i|| - eps of every position, in the model as it is now.

        Args:
            chat: the model, with whatever edit is in place.

        Returns:
            Per layer the margins of all positions, shape (positions,), float64;
            in the order of the prompts.
        """
        layers = sorted(self.centres)
        found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        for start in range(0, len(self.texts), chat.batch_size):
            batch = chat.encode(self.texts[start : start + chat.batch_size])
            with record([chat.down_projs[layer] for layer in layers]) as captured:
                chat.model.model(**batch, use_cache=False)
            where = position_mask(batch["attention_mask"], self.positions)
            for layer, (_, output) in zip(layers, captured, strict=True):
                points = output[where].double()
                centres = self.centres[layer].to(points)
                gaps = torch.cdist(
                    points, centres, compute_mode="donot_use_mm_for_euclid_dist"
                )
                found[layer].append(gaps.amin(1) - self.eps[layer])
        return {layer: torch.cat(parts) for layer, parts in found.items()}


def position_mask(attention_mask: Tensor, positions: str) -> Tensor:
    """Positions of a left-padded batch, as a bool mask (batch, length).

    Args:
        attention_mask: (batch, length), 0 on padding.
        positions: "last" for the last prompt token, "prompt" for all of them.
    """
    mask = attention_mask.bool()
    if positions == "prompt":
        return mask
    last = torch.zeros_like(mask)
    last[:, -1] = True
    return last
