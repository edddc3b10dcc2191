"""PCR at test time: an edit for each prompt, solved inside its own prefill.

Layers are edited front to back in one forward pass: a hook at each edited
down_proj solves for that pass's own h and o, adds D h to its output and lets the
pass go on. The key-value cache that results is the edited model's, so generation
goes on from it. No matrix of the weight's shape is ever made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from safeedit.edits.concepts import concept_vectors
from safeedit.edits.constraint import position_mask
from safeedit.edits.geometry import Projection, project_out
from safeedit.edits.low_rank import output_change
from safeedit.edits.pcr_config import PCRConfig, by_name, edited_layers, provenance
from safeedit.hooks import hooked, record


class TestTimePCR:
    """PCR prompt by prompt, as a wrapper of generation: prompts in, responses out.

    Attributes:
        chat, config: as given.
        layers: edited blocks, front to back.
        centres: layer -> concept vectors, (n, d_model).
        eps: layer -> radius; empty until calibrated.
        last: layer -> `Projection` of the latest solve, one row per position.
        details: layer -> for positions "prompt" the condition of the Gram matrix
            and the smallest realised margin of each prompt, (batch,) each.
        info: provenance, writable as JSON.
    """

    __test__ = False  # the name is no test case

    def __init__(self, chat, concepts, config: PCRConfig | None = None) -> None:
        """Make the concept vectors and, where the config allows it, set eps.

        Args:
            chat: the unedited model.
            concepts: words, or vectors used as they are: see `concept_vectors`.
            config: with neither `eps` nor `calibration` in it, call `calibrate`
                before use.
        """
        self.chat, self.config = chat, config or PCRConfig()
        if self.config.scope != "per_prompt":
            raise ValueError(
                'TestTimePCR edits prompt by prompt; for scope="shared" use pcr()'
            )
        self.layers = edited_layers(chat, self.config)
        self.centres = concept_vectors(
            chat,
            concepts,
            self.layers,
            self.config.provider,
            self.config.leading_space,
            self.config.rescale,
        )
        self.eps: dict[int, float] = {}
        self.last: dict[int, Projection] = {}
        self.details: dict[int, dict[str, Tensor]] = {}
        self.info = provenance(chat, self.config, self.layers, self.centres)
        if self.config.eps is not None:
            self.eps = {layer: float(self.config.eps) for layer in self.layers}
            self.info["eps"] = by_name(self.eps)
        elif self.config.calibration:
            self.calibrate(self.config.calibration)

    @torch.no_grad()
    def calibrate(self, prompts: Sequence[str]) -> dict[int, float]:
        """Set eps of each layer to eps_factor x the median nearest distance.

        Each layer is measured with the layers before it already edited.

        Returns:
            layer -> eps, also kept in `.eps` and `.info`.
        """
        texts = self.chat.render(list(prompts), self.config.system)
        before, medians = self.eps, {}
        self.eps = {}
        try:
            for layer in self.layers:  # those without eps yet are not edited
                _, outputs = measure(
                    self.chat,
                    texts,
                    layer,
                    self.config,
                    lambda: _Run(self, None).hooks(),
                )
                medians[layer] = median_nearest(outputs, self.centres[layer])
                self.eps[layer] = self.config.eps_factor * medians[layer]
        except BaseException:  # some layers with new eps and some without: neither
            self.eps = before
            raise
        self.info |= {
            "eps": by_name(self.eps),
            "median_distance": by_name(medians),
            "calibration_prompts": len(texts),
        }
        return dict(self.eps)

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 64,
        system: str | None = None,
        prefill: str | Sequence[str] | None = None,
    ) -> list[str]:
        """Answer each prompt with a model edited for that prompt."""
        self._ready()
        return self.chat.generate(
            prompts, max_new_tokens, system, prefill, around=self.applied
        )

    @contextmanager
    def applied(
        self, last_prompt: Tensor | None = None
    ) -> Iterator[dict[int, Factors | None]]:
        """Edit every forward pass of the body, each row for its own prompt.

        Differentiable in the hidden states: see `project_out`.

        Args:
            last_prompt: index of the last prompt token of each row, (batch,) or one
                for all. Then every forward pass holds full sequences and is solved
                anew. None: the first pass is a left-padded prefill and is solved at
                its last token; later passes continue it and reuse its edits.

        Yields:
            layer -> factors of the latest edit, None for an activation edit; filled
            as the passes run.
        """
        self._ready()
        run = _Run(self, last_prompt)
        with run.hooks():
            yield run.edits

    def _ready(self) -> None:
        if not self.eps:
            raise ValueError(
                "eps is not set: give PCRConfig(eps=...) or calibration=(...), or call "
                ".calibrate(prompts) first"
            )


class _Run:
    """The state of one `TestTimePCR.applied` block."""

    def __init__(self, owner: TestTimePCR, last_prompt: Tensor | None) -> None:
        self.owner, self.config = owner, owner.config
        self.last_prompt = last_prompt
        self.mask: Tensor | None = None
        self.edits: dict[int, Factors | None] = {}  # of the prefill, kept

    @contextmanager
    def hooks(self) -> Iterator[None]:
        decoder = self.owner.chat.model.model
        layers = self.owner.chat.down_projs
        pairs = [(layers[layer], self.hook(layer)) for layer in self.owner.eps]
        mask = [(decoder, self.note_mask)]
        with hooked(mask, pre=True, with_kwargs=True), hooked(pairs):
            yield

    def note_mask(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Padding is known to the decoder, not to its down_proj layers."""
        mask = kwargs.get("attention_mask")
        self.mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def hook(self, layer: int):
        def edit(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            if self.last_prompt is None and layer in self.edits:
                return self._go_on(layer, args[0], output)
            chosen = self._chosen(output)
            if self.config.kind == "activation":
                self.edits[layer] = None
                return self._move(layer, output, chosen)
            if self.config.positions == "last":
                delta = self._last_edit(layer, args[0], output, chosen)
            else:
                delta = self._joint_edit(layer, args[0], output, chosen)
            self.edits[layer] = delta
            return _with_change(output, delta, args[0])

        return edit

    def _go_on(self, layer: int, inputs: Tensor, output: Tensor) -> Tensor:
        """A pass that continues the prefill, usually by one token."""
        delta = self.edits[layer]
        if delta is not None:
            if delta.U.shape[0] != inputs.shape[0]:
                raise ValueError(
                    f"the prefill had {delta.U.shape[0]} prompts and this pass has "
                    f"{inputs.shape[0]}; open a new applied() for each batch"
                )
            return _with_change(output, delta, inputs)
        if self.config.positions in ("generated", "all"):
            everything = torch.ones_like(output[..., 0], dtype=torch.bool)
            return self._move(layer, output, everything)
        return output

    def _chosen(self, output: Tensor) -> Tensor:
        """Bool mask (batch, length) of the constrained positions."""
        batch, length = output.shape[:2]
        place = torch.arange(length, device=output.device)
        if self.last_prompt is None:
            last = torch.full((batch,), length - 1, device=output.device)
        else:
            last = torch.as_tensor(self.last_prompt, device=output.device).reshape(-1)
            if last.numel() not in (1, batch) or not 0 <= int(last.max()) < length:
                raise ValueError(
                    f"last_prompt has {last.numel()} entries up to {int(last.max())} "
                    f"for a forward pass of shape ({batch}, {length})"
                )
            last = last.expand(batch)
        seen = torch.ones(batch, length, dtype=torch.bool, device=output.device)
        if self.mask is not None and self.mask.shape == seen.shape:
            seen = self.mask.to(output.device).bool()
        if self.config.positions == "last":
            return place == last[:, None]
        if self.config.positions == "prompt":
            return seen & (place <= last[:, None])
        if self.config.positions == "generated":
            return seen & (place >= last[:, None])
        return seen

    def _solve(self, layer: int, points: Tensor) -> Tensor:
        """Displacements u of the given outputs, (positions, d_model)."""
        owner = self.owner
        result = project_out(
            points.double(),
            owner.centres[layer],
            owner.eps[layer],
            self.config.method,
            seed=self.config.seed,
        )
        owner.last[layer] = result.detach()
        if not self.config.random_direction:
            return result.displacement
        generator = torch.Generator().manual_seed(self.config.seed + 7919 * layer)
        # One direction per layer, so that it does not depend on the batch.
        drawn = torch.randn(points.shape[1], generator=generator)
        drawn = (drawn / drawn.norm()).to(result.displacement)
        return drawn * result.displacement.norm(dim=1, keepdim=True)

    def _move(self, layer: int, output: Tensor, chosen: Tensor) -> Tensor:
        """Activation edit: each chosen position by its own u."""
        points = output[chosen]
        if len(points) == 0:
            return output
        wide = _wide(output)
        moved = wide[chosen] + self._solve(layer, points).to(wide)
        return wide.index_put(chosen.nonzero(as_tuple=True), moved).to(output.dtype)

    def _last_edit(
        self, layer: int, inputs: Tensor, output: Tensor, chosen: Tensor
    ) -> Factors:
        """D = u h^T / ||h||^2 of each row, rank one."""
        h, u = _wide(inputs[chosen]), self._solve(layer, output[chosen])
        square = h.square().sum(1, keepdim=True)
        _check_inputs(square.squeeze(1), u, layer)
        v = h / square.clamp_min(torch.finfo(h.dtype).tiny)
        return Factors(u.to(h)[..., None], v[..., None])

    def _joint_edit(
        self, layer: int, inputs: Tensor, output: Tensor, chosen: Tensor
    ) -> Factors:
        """Least-norm D with D h_j = u_j at all chosen positions of each row."""
        u = torch.zeros_like(output, dtype=torch.float64)
        solved = self._solve(layer, output[chosen])
        u = u.index_put(chosen.nonzero(as_tuple=True), solved)
        h = inputs.double() * chosen[..., None]
        gram = h @ h.mT
        diagonal = gram.diagonal(dim1=1, dim2=2)
        _check_inputs(diagonal[chosen], solved, layer)
        damp = self.config.ridge * diagonal.sum(1) / chosen.sum(1).clamp_min(1)
        # Positions left out have h = 0: a 1 on their diagonal decouples them.
        extra = torch.where(chosen, damp[:, None], 1.0)
        dual = torch.linalg.solve(gram + torch.diag_embed(extra), h)
        delta = Factors(u.mT.to(_wide(inputs)), dual.mT.to(_wide(inputs)))
        self._note(layer, gram.detach(), chosen, output, (delta, inputs))
        return delta

    @torch.no_grad()
    def _note(self, layer, gram, chosen, output, change) -> None:
        """Condition of the joint solve, and the margins that it really gives."""
        owner = self.owner
        moved = (_wide(output) + change[0].output_change(change[1])).double()
        centres = owner.centres[layer].double()
        nearest = torch.cdist(moved, centres.expand(len(moved), -1, -1)).amin(2)
        margins = torch.where(chosen, nearest - owner.eps[layer], torch.inf).amin(1)
        values = torch.linalg.eigvalsh(gram)
        count = chosen.sum(1)
        smallest = values.gather(1, (values.shape[1] - count)[:, None]).squeeze(1)
        condition = values[:, -1] / torch.maximum(smallest, 1e-16 * values[:, -1])
        owner.details[layer] = {"condition": condition, "margins": margins}


def _wide(tensor: Tensor) -> Tensor:
    """At least float32, so that a bfloat16 model does not round the edit away."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class Factors:
    """As `LowRank`, in the dtype of the pass and with its autograd graph."""

    U: Tensor
    V: Tensor

    def output_change(self, inputs: Tensor) -> Tensor:
        return output_change(self.U, self.V, inputs)


def _with_change(output: Tensor, delta: Factors, inputs: Tensor) -> Tensor:
    return (_wide(output) + delta.output_change(inputs)).to(output.dtype)


def _check_inputs(squares: Tensor, moves: Tensor, layer: int) -> None:
    dead = (squares == 0) & (moves.detach().abs().amax(1) > 0)
    if bool(dead.any()):
        raise ValueError(
            f"the MLP intermediate h of layer {layer} is 0 at a violated position, so "
            "no change of down_proj moves its output; choose other layers"
        )


@torch.no_grad()
def measure(
    chat, texts: list[str], layer: int, config: PCRConfig, around
) -> tuple[Tensor, Tensor]:
    """h and o of one layer at the prompt positions of a config, with edits in place.

    Args:
        texts: rendered prompts.
        around: gives a context manager to run each batch in.

    Returns:
        (m, d_ff) and (m, d_model), positions of all prompts one after another.
    """
    where = "last" if config.positions in ("last", "generated") else "prompt"
    inputs, outputs = [], []
    for start in range(0, len(texts), chat.batch_size):
        batch = chat.encode(texts[start : start + chat.batch_size])
        with around(), record([chat.down_projs[layer]]) as captured:
            chat.model.model(**batch, use_cache=False)
        mask = position_mask(batch["attention_mask"], where)
        inputs.append(captured[0][0][mask])
        outputs.append(captured[0][1][mask])
    return torch.cat(inputs), torch.cat(outputs)


def median_nearest(outputs: Tensor, centres: Tensor) -> float:
    """Median over positions of the distance to the nearest concept."""
    nearest = torch.cdist(outputs.double(), centres.double()).amin(1)
    return float(nearest.quantile(0.5))
