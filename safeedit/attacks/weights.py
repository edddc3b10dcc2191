"""What attacks on weights share: which weights, which loss, where an edit comes from.

Whoever has the weights of a released model can train them, zero them or round them. All
three attacks work on the linear layers inside the blocks, as the published ones do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from safeedit.chat import Chat
from safeedit.edits.storage import base_fingerprint
from safeedit.edits.weight_edit import WeightEdit
from safeedit.examples import Batch, Example, token_log_probs


@dataclass(frozen=True)
class WeightAttack:
    """Outcome of an attack by somebody who has the weights.

    Attributes:
        attack: name of the attack, as in the `attack` column of a record.
        edit: what the attacker changed, on top of the attacked model. Apply it inside
            the edit under attack and do not add the two: it was made for weights that
            hold that edit already.
        trajectory: one row for each step of an attack that trains, else empty.
        seconds: wall time of the attack, s.
    """

    attack: str
    edit: WeightEdit
    trajectory: list[dict]
    seconds: float


def block_linears(chat: Chat) -> dict[str, nn.Linear]:
    """The linear layers inside the blocks, by the name of their weight.

    In the families of the kit these are q, k, v, o, gate, up and down. Embeddings, the
    output head and the scales of the norms are none of them.
    """
    inside = {id(module) for block in chat.blocks for module in block.modules()}
    return {
        f"{name}.weight": module
        for name, module in chat.model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in inside
    }


def released_weights(chat: Chat) -> dict[str, Tensor]:
    """The weights of `block_linears`, as somebody who downloads the model gets them.

    Returns:
        name -> the model's own tensor, shape (d_out, d_in), without gradient.

    Raises:
        ValueError: a hook stands beside a layer, as a low-rank edit does while it is
            applied. Its change is not in the weight, where the attack looks.
    """
    linears = block_linears(chat)
    for name, module in linears.items():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(
                f"a hook stands beside {name}, so this tensor is not what the model "
                "computes with; make each low-rank change D of the edit dense "
                "(D.dense()) before you apply it, then attack"
            )
    return {name: module.weight.detach() for name, module in linears.items()}


def mean_nll(
    model: nn.Module, batch: Batch, weights: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Mean negative log-likelihood of the scored tokens of a batch, nats per token.

    Args:
        model: a causal language model.
        batch: what it reads.
        weights: parameters in place of the model's own, as in `token_log_probs`.
    """
    log_probs = token_log_probs(model, batch, weights)
    return -log_probs.sum() / batch.scored[:, 1:].sum()


def check_examples(chat: Chat, examples: Sequence[Example], name: str) -> None:
    """Raise ValueError for no examples, or one on which no loss can be computed."""
    if not examples:
        raise ValueError(
            f"{name} is empty; give at least one, made with from_texts or from_chats"
        )
    for index, example in enumerate(examples):
        if not isinstance(example, Example):
            raise ValueError(
                f"{name}[{index}] is a {type(example).__name__}; give an Example, made "
                "with from_texts or from_chats"
            )
        if not any(example.scored[1:]):
            raise ValueError(
                f"{name}[{index}] has no scored token after its first, so there is "
                "nothing to learn from it; mark tokens in `scored`"
            )
        chat.check_length(index, len(example.ids))


def provenance(chat: Chat, attack: str, config: dict, names: Sequence[str]) -> dict:
    """Where the edit of an attack comes from, writable as JSON.

    Args:
        chat: the attacked model, as it is now.
        attack: name of the attack.
        config: its settings.
        names: the weights that it changed.
    """
    return {
        "method": attack,
        "model": chat.name,
        "revision": chat.revision,
        "dtype": str(chat.dtype),
        "config": config,
        "base": base_fingerprint(chat, list(names)),
    }


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor with an entry that is nan or infinite, else None."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            return name
    return None
