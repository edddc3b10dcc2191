"""A change of a model's weights as a value: apply, revert, measure, save, merge.

Low-rank changes D = U V^T never touch the weights: a hook adds (h V) U^T to the
output of the layer, in float32 whatever the model's dtype, because rounding D
into bfloat16 weights can erase it. Dense changes are added to the weights and
reverted from copies.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from safeedit.edits.constraint import Constraint
from safeedit.edits.low_rank import LowRank
from safeedit.edits.merging import restore, rounded
from safeedit.edits.storage import (
    check_base,
    check_new,
    joined_base,
    read_tensors,
    write_checkpoint,
    write_tensors,
)
from safeedit.hooks import hooked


class EditNorm(float):
    """Frobenius norm of a whole edit: a number that also carries its parts.

    For an edit with one change per prompt the number is the mean over prompts.
    """

    per_layer: dict[str, float]  # parameter -> Frobenius norm (mean over prompts)
    per_prompt: Tensor  # (batch,) norm over all layers, or one entry
    relative: float | None  # to the norm of the touched weights together
    relative_per_layer: dict[str, float] | None  # to the norm of that weight


@dataclass(frozen=True)
class WeightEdit:
    """A mapping from parameter name to its change, with where it came from."""

    deltas: dict[str, LowRank | Tensor]  # dense: same shape as the parameter
    info: dict = field(default_factory=dict)  # provenance, writable as JSON
    constraint: Constraint | None = None  # what the edit promises, if it can say

    @property
    def batch(self) -> int | None:
        """Number of prompts with a change of their own, or None."""
        low_rank = [d for d in self.deltas.values() if isinstance(d, LowRank)]
        sizes = {d.batch for d in low_rank if d.batch is not None}
        if len(sizes) > 1:
            raise ValueError(f"this edit mixes batches of {sorted(sizes)} prompts")
        return sizes.pop() if sizes else None

    def select(self, rows: list[int] | Tensor) -> WeightEdit:
        """The edit of some prompts of a batch, in the order given."""
        if self.batch is None:
            raise ValueError("this edit is shared by all prompts; nothing to select")
        rows = torch.as_tensor(rows)
        deltas = {
            name: LowRank(d.U[rows], d.V[rows])
            if isinstance(d, LowRank) and d.batch
            else d
            for name, d in self.deltas.items()
        }
        return replace(self, deltas=deltas)

    @contextmanager
    def applied(self, chat, strict: bool = True) -> Iterator[None]:
        """Run the body with the edit in place; afterwards every weight is as before.

        Row i of a batched edit meets row i of every forward pass. Keep the prompts
        in the order in which the edit was made; `TestTimePCR.generate` sees to that
        by itself.

        Args:
            chat: a `Chat`, or anything with `.model`.
            strict: refuse a model whose touched weights are not those the edit was
                made for. Use False to try an edit on fine-tuned weights.

        Raises:
            ValueError: another base model, an unknown parameter, or a wrong shape;
                raised before anything is changed.
        """
        targets = self._targets(chat)
        if strict:
            check_base(self.info.get("base"), chat)
        hooks = [
            (module, _side_car(name, delta))
            for name, (module, delta) in targets.items()
            if isinstance(delta, LowRank)
        ]
        dense = [
            (module.get_parameter(name.rpartition(".")[2]), delta)
            for name, (module, delta) in targets.items()
            if isinstance(delta, Tensor)
        ]
        with ExitStack() as stack:
            for weight, delta in dense:
                stack.callback(restore, weight, weight.detach().clone())
                with torch.no_grad():
                    weight.add_(delta.to(weight))
            stack.enter_context(hooked(hooks))
            yield

    def _targets(self, chat) -> dict[str, tuple[nn.Module, LowRank | Tensor]]:
        """The module and the change of each name, shapes checked."""
        known = dict(chat.model.named_parameters())
        targets = {}
        for name, delta in self.deltas.items():
            if name not in known:
                raise ValueError(
                    f"the edit changes {name!r}, which this model does not have; its "
                    f"names look like {next(iter(known))!r}"
                )
            if tuple(delta.shape) != tuple(known[name].shape):
                raise ValueError(
                    f"the edit of {name} has shape {tuple(delta.shape)}, the weight "
                    f"{tuple(known[name].shape)}; was it made for another model?"
                )
            module = chat.model.get_submodule(name.rpartition(".")[0])
            if isinstance(delta, LowRank) and not isinstance(module, nn.Linear):
                raise ValueError(
                    f"{name} belongs to a {type(module).__name__}; a low-rank change "
                    "needs an nn.Linear, use a dense one"
                )
            targets[name] = (module, delta)
        return targets

    def norm(self, chat=None) -> EditNorm:
        """Frobenius norm of the edit; with a chat also relative to its weights.

        Returns:
            A float with `.per_layer`, `.per_prompt`, `.relative` and
            `.relative_per_layer` (the last two None without a chat).
        """
        norms = {name: delta.norm().double() for name, delta in self.deltas.items()}
        squares = sum((n**2 for n in norms.values()), torch.zeros(()).double())
        per_prompt = squares.sqrt().reshape(-1)
        result = EditNorm(per_prompt.mean())
        result.per_prompt = per_prompt
        result.per_layer = {name: float(n.mean()) for name, n in norms.items()}
        result.relative = result.relative_per_layer = None
        if chat is not None:
            self._targets(chat)
            weights = {
                name: float(chat.model.get_parameter(name).detach().float().norm())
                for name in norms
            }
            whole = sum(w**2 for w in weights.values()) ** 0.5
            result.relative = float(result) / whole if whole else 0.0
            result.relative_per_layer = {
                name: result.per_layer[name] / weights[name] for name in norms
            }
        return result

    def __mul__(self, factor: float) -> WeightEdit:
        if not math.isfinite(factor):
            raise ValueError(f"the factor is {factor!r}; give a finite number")
        deltas = {name: delta * factor for name, delta in self.deltas.items()}
        info = {**self.info, "scaled": self.info.get("scaled", 1.0) * factor}
        return WeightEdit(deltas, info, self.constraint)

    __rmul__ = __mul__

    def __add__(self, other: WeightEdit) -> WeightEdit:
        base = joined_base(self.info.get("base"), other.info.get("base"))
        deltas = dict(self.deltas)
        for name, delta in other.deltas.items():
            deltas[name] = _sum(name, deltas[name], delta) if name in deltas else delta
        info = {"method": "sum", "parts": [self.info, other.info]}
        return WeightEdit(deltas, info if base is None else {**info, "base": base})

    def randomised(self, seed: int = 0) -> WeightEdit:
        """Control: the same norms and the same inputs h, random output directions.

        Each change D is written as Q R with orthonormal columns Q, and Q is drawn anew.
        D^T D = R^T R stays, and with it every norm, and |D h| for every input h.

        Args:
            seed: of the directions; the same seed draws the same ones.

        Returns:
            An edit of the same kind: low-rank changes stay low-rank, dense ones dense.
        """
        generator = torch.Generator().manual_seed(seed)
        deltas: dict[str, LowRank | Tensor] = {}
        for name, delta in self.deltas.items():
            if isinstance(delta, LowRank):
                deltas[name] = LowRank(_turned(delta.U, generator), delta.V)
            else:  # a vector, such as a norm's scale, is one column
                columns = delta.float().reshape(len(delta), -1)
                turned = _turned(columns, generator).reshape(delta.shape)
                deltas[name] = turned.to(delta.dtype)
        return WeightEdit(deltas, {**self.info, "control": f"random direction {seed}"})

    def save(self, path: str | os.PathLike) -> Path:
        """Write the edit to one safetensors file: whole, or not at all."""
        path = Path(path)
        tensors: dict[str, Tensor] = {}
        for name, delta in self.deltas.items():
            if isinstance(delta, LowRank):
                tensors[f"{name}::U"], tensors[f"{name}::V"] = delta.U, delta.V
            else:
                tensors[f"{name}::dense"] = delta
        promise = None
        if self.constraint is not None:
            promise = {
                "texts": self.constraint.texts,
                "positions": self.constraint.positions,
                "eps": self.constraint.eps,
            }
            for layer, centres in self.constraint.centres.items():
                tensors[f"centres::{layer}"] = centres
        notes = {"info": self.info, "constraint": promise}
        write_tensors(path, tensors, notes)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike, chat=None) -> WeightEdit:
        """Read an edit back.

        Args:
            path: a file that `save` wrote.
            chat: if given, also check that the edit was made for this model.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a corrupt or truncated file, another kind of file, or an edit
                of another base model.
        """
        tensors, notes = read_tensors(Path(path))
        info, promise = notes["info"], notes["constraint"]
        deltas: dict[str, LowRank | Tensor] = {}
        centres: dict[int, Tensor] = {}
        for key, tensor in tensors.items():
            name, _, part = key.partition("::")
            if name == "centres":
                centres[int(part)] = tensor
            elif part == "dense":
                deltas[name] = tensor
            elif part == "U":
                deltas[name] = LowRank(tensor, tensors[f"{name}::V"])
        constraint = None
        if promise is not None:
            eps = {int(layer): value for layer, value in promise["eps"].items()}
            constraint = Constraint(
                promise["texts"], promise["positions"], centres, eps
            )
        edit = cls(deltas, info, constraint)
        if chat is not None:
            edit._targets(chat)
            check_base(info.get("base"), chat)
        return edit

    def merge(
        self,
        chat,
        folder: str | os.PathLike,
        tolerance: float = 0.01,
        files: Mapping[str, str] | None = None,
    ) -> dict:
        """Write the edited model as a Hugging Face folder, in the model's dtype.

        The promise of the edit is measured again in the rounded weights. The model
        in memory is left as it was.

        Args:
            chat: the base model.
            folder: a folder that does not exist yet.
            tolerance: how much of eps a margin may lose in rounding.
            files: more text files for the folder, name -> content.

        Returns:
            Smallest margin of each layer: {layer: {"before": ..., "exact": ...,
            "merged": ...}}; empty if the edit holds no constraint.

        Raises:
            FileExistsError: the folder exists.
            ValueError: one change per prompt, another base model, or a constraint
                lost in rounding; nothing is written.
        """
        folder = Path(folder)
        check_new(folder)
        with rounded(self, chat, tolerance) as found:
            notes = {"info": self.info, "margins": found.margins}
            write_checkpoint(chat, folder, notes, files)
        return found.margins


def _side_car(name: str, delta: LowRank):
    """A hook that adds D h to the output of its linear layer."""

    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        inputs = args[0]
        if delta.batch is not None and delta.batch != inputs.shape[0]:
            raise ValueError(
                f"the edit of {name} holds {delta.batch} prompts, the forward pass "
                f"{inputs.shape[0]}; run the same prompts in one batch, or take rows "
                "with edit.select"
            )
        here = LowRank(delta.U.to(output.device), delta.V.to(output.device))
        return (output + here.output_change(inputs)).to(output.dtype)

    return hook


def _turned(columns: Tensor, generator: torch.Generator) -> Tensor:
    """Columns of the same Gram matrix in a random subspace, (..., d_out, r)."""
    _, triangle = torch.linalg.qr(columns)
    drawn = torch.randn(columns.shape, generator=generator)
    basis, _ = torch.linalg.qr(drawn.to(columns.device))
    return basis @ triangle


def _sum(name: str, one: LowRank | Tensor, two: LowRank | Tensor) -> LowRank | Tensor:
    if isinstance(one, LowRank) and isinstance(two, LowRank):
        return one + two
    for part in (one, two):
        if isinstance(part, LowRank) and part.batch is not None:
            raise ValueError(f"{name}: cannot add one change per prompt to a dense one")
    one, two = (p.dense() if isinstance(p, LowRank) else p for p in (one, two))
    return one + two
