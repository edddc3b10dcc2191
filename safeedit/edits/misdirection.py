"""RMU: representation misdirection for unlearning (Li et al. 2024, WMDP).

    forget = mean |h - c u|^2 / d,    retain = mean |h - h0|^2 / d

h is the residual stream behind one block, h0 the same under the start weights, u a
fixed random direction. Only down_proj of that block and of a few before it is trained.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call

from safeedit.edits import losses
from safeedit.edits.unlearning_config import UnlearnConfig
from safeedit.edits.unlearning_problem import (
    Feed,
    Loss,
    Problem,
    Weights,
    examples_of,
)
from safeedit.examples import Batch, collate

MEASURED = 8  # batches; the mean norm is then known to a few percent


class RMU(Problem):
    """Hidden states of forget tokens go to c u, those of retain tokens stay.

    Only the blocks up to the chosen one are run. u is drawn uniformly on [0, 1)^d and
    normalised; c is a multiple of the mean residual norm of retain tokens. The first
    token does not count: it is the same in every text, and a sink of attention.
    """

    def __init__(self, chat, model, frozen, data, config) -> None:
        super().__init__(chat, model, frozen, data, config)
        self.retain_weight = config.rmu_alpha
        self.layer = rmu_layers(chat, config)[0]
        self.forget_feed = Feed(
            *examples_of(chat, data.forget_texts, data.forget_chats),
            config.chats,
            config.batch_size,
            config.seed,
        )
        self.trunk = _trunk(model.model, self.layer)
        generator = torch.Generator().manual_seed(config.seed)
        direction = torch.rand(chat.d_model, generator=generator)
        direction = (direction / direction.norm()).to(chat.device)
        with torch.no_grad():
            lengths = [
                hidden[mask].float().norm(dim=-1)
                for hidden, mask in (
                    self.hidden(collate(chat, self.retain_feed(step)), {})
                    for step in range(MEASURED)
                )
            ]
        self.norm = float(torch.cat(lengths).mean())
        self.target = config.rmu_scale * self.norm * direction

    def hidden(self, batch: Batch, weights: Weights) -> tuple[Tensor, Tensor]:
        """Residual stream after the block, (batch, length, d_model), and its mask."""
        named = {**self.frozen, **weights}
        inner = {
            name: named[f"model.{name}"]
            for name, _ in self.trunk.named_parameters()
            if f"model.{name}" in named
        }
        out = functional_call(
            self.trunk,
            inner,
            (),
            {
                "input_ids": batch.ids,
                "attention_mask": batch.mask,
                "use_cache": False,
            },
        )
        counts = batch.mask.bool()
        counts[:, 0] = False
        return out.last_hidden_state, counts

    def forget(self, step: int) -> Loss:
        batch = collate(self.chat, self.forget_feed(step))

        def loss(weights: Weights) -> Tensor:
            hidden, mask = self.hidden(batch, weights)
            return losses.rmu(hidden.float(), self.target, mask)

        return loss

    def retain(self, step: int) -> Loss:
        """Mean squared change of the hidden states of retain tokens."""
        batch = collate(self.chat, self.retain_feed(step))
        with torch.no_grad():
            before, mask = self.hidden(batch, {})

        def loss(weights: Weights) -> Tensor:
            hidden, _ = self.hidden(batch, weights)
            return losses.rmu_retain(hidden.float(), before.float(), mask)

        return loss

    def notes(self) -> dict:
        return {
            "rmu_layer": self.layer,
            "residual_norm": self.norm,
            "c": self.config.rmu_scale * self.norm,
        }


def rmu_layers(chat, config: UnlearnConfig) -> tuple[int, list[int]]:
    """The misdirected block, and the blocks whose down_proj is trained.

    Raises:
        ValueError: a block that the model does not have, or a trained one behind the
            misdirected one, which would get no gradient.
    """
    layer = config.rmu_layer if config.rmu_layer is not None else chat.n_layers // 3
    chat.weight_name(layer)  # refuses a block that does not exist
    layer %= chat.n_layers
    trained = config.rmu_layers
    if trained is None:
        return layer, list(range(max(0, layer - 2), layer + 1))
    for other in trained:
        chat.weight_name(other)
    blocks = sorted({other % chat.n_layers for other in trained})
    if blocks[-1] > layer:
        raise ValueError(
            f"rmu_layers are {trained}, and the misdirected block is {layer}: block "
            f"{blocks[-1]} comes after it and would learn nothing; use 0 to {layer}"
        )
    return layer, blocks


def _trunk(decoder: nn.Module, layer: int) -> nn.Module:
    """The decoder up to one block, without the last norm; its modules are shared."""
    trunk = copy.copy(decoder)
    blocks = nn.ModuleList(list(decoder.layers)[: layer + 1])  # type: ignore[arg-type]
    parts = {"layers": blocks, "norm": nn.Identity()}
    trunk._modules = {**decoder._modules, **parts}
    return trunk
