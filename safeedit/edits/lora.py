"""Low-rank adapters (LoRA) through peft, on a copy that shares the model's weights.

    W x  ->  W x + (alpha / r) B A x        (Hu et al. 2021, arXiv 2106.09685)

peft puts adapters into a model by replacing its layers. So it is given a twin: other
modules with the same weights in memory. The reader's model is never touched, whatever
happens, and only the adapters take more memory.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from safeedit.edits.low_rank import LowRank

ADAPTER = "default"  # peft's name of a single adapter


def twin(model: nn.Module) -> nn.Module:
    """A model of its own modules, in eval mode, on the weights of another.

    Its parameters take no gradients and share their memory with the model's.
    """
    memo: dict[int, object] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    return copy.deepcopy(model, memo).eval()


def linear_names(
    model: nn.Module, targets: Collection[str], parameters: Collection[str] | None
) -> list[str]:
    """Names of the linear layers of blocks that get adapters.

    Args:
        model: a causal language model.
        targets: last parts of names, such as "q_proj".
        parameters: names of weights to which the choice is limited; None: all.

    Raises:
        ValueError: a target that is no linear layer of the model.
    """
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name
    ]
    known = sorted({name.rpartition(".")[2] for name in linear})
    if odd := [target for target in targets if target not in known]:
        raise ValueError(f"lora_targets has {odd[0]!r}; this model has {known}")
    names = [name for name in linear if name.rpartition(".")[2] in targets]
    if parameters is not None:
        names = [name for name in names if f"{name}.weight" in parameters]
    if not names:
        raise ValueError(
            f"none of lora_targets {tuple(targets)} is among the weights that this "
            f"method trains, {sorted(parameters or [])[:3]}; add 'down_proj'"
        )
    return names


def add_adapters(
    model: nn.Module, names: Collection[str], rank: int, alpha: float, seed: int
) -> dict[str, Tensor]:
    """Put adapters into a model, in place: call it with a `twin`.

    Args:
        model: the twin.
        names: linear layers to adapt.
        rank: r.
        alpha: the change is alpha / r * B A.
        seed: of A, which is random; B starts at 0, so nothing changes yet.

    Returns:
        A and B of each layer in float32, by their names in the model.
    """
    from peft import LoraConfig, inject_adapter_in_model  # slow; few edits need it

    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules=list(names),
    )
    with torch.random.fork_rng():  # peft draws A from torch's global generator
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, model, adapter_name=ADAPTER)
    model.eval().requires_grad_(False)
    return {
        name: parameter.detach().float().clone()
        for name, parameter in model.named_parameters()
        if f".{ADAPTER}." in name
    }


def low_rank_changes(
    adapters: Mapping[str, Tensor], rank: int, alpha: float
) -> dict[str, LowRank | Tensor]:
    """Adapters as changes U V^T of weights, with U = alpha / r * B and V = A^T.

    Args:
        adapters: A (r, d_in) and B (d_out, r) by name, as from `add_adapters`.
        rank: r.
        alpha: as given there.

    Returns:
        The changes that are not 0, by the name of the weight.
    """
    changes: dict[str, LowRank | Tensor] = {}
    suffix = f".lora_B.{ADAPTER}.weight"
    for name, outer in adapters.items():
        if name.endswith(suffix) and bool(outer.any()):
            layer = name.removesuffix(suffix)
            inner = adapters[f"{layer}.lora_A.{ADAPTER}.weight"]
            u = outer.detach() * (alpha / rank)
            changes[f"{layer}.weight"] = LowRank(u, inner.detach().T.contiguous())
    return changes
