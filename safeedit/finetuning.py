"""One training loop for unlearning and for the attacks that undo it: AdamW on a dict.

The loop knows no model. It is given weights by name and a function that says which
way they shall go, so losses can be perturbed, joined and logged by their owners, and
the model that the weights came from is never written to. The weights are float32
masters: a bfloat16 weight would round most small steps away.

A run is a function of its settings: what step t sees depends on (seed, t) alone. So a
run that was killed continues from its checkpoint to the same bits, on the same machine
and with as many threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from safeedit.checkpoints import Checkpoint

Parameters = Mapping[str, Tensor]  # by name, as in model.named_parameters()
Gradient = Callable[[int, Parameters], tuple[dict[str, Tensor], dict[str, float]]]

DECAYS = ("linear", "constant")


@dataclass(frozen=True)
class FinetuneConfig:
    """How long and how fast to train."""

    steps: int  # updates
    learning_rate: float  # of AdamW, at its peak
    batch_size: int  # sequences in a batch
    warmup: float = 0.1  # share of the steps in which the rate rises from 0
    decay: str = "linear"  # to 0 at the last step, or "constant"
    weight_decay: float = 0.0  # decoupled, as a rate
    clip: float | None = None  # largest gradient norm, over all weights together
    seed: int = 0  # of the order of the data
    checkpoint_every: int = 50  # steps

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("batch_size", 1), ("checkpoint_every", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole and value >= least):
                raise ValueError(f"{name} is {value!r}; give a whole number >= {least}")
        if not (_is_number(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(
                f"learning_rate is {self.learning_rate!r}; it must be finite and > 0, "
                "for instance 1e-3 for a stand-in, 1e-5 for a model of billions"
            )
        if not (_is_number(self.warmup) and 0 <= self.warmup <= 1):
            raise ValueError(
                f"warmup is {self.warmup!r}; give a share of the steps in [0, 1]"
            )
        if self.decay not in DECAYS:
            raise ValueError(f"decay is {self.decay!r}; use one of {DECAYS}")
        if not (_is_number(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(
                f"weight_decay is {self.weight_decay!r}; it must be finite and >= 0"
            )
        if self.clip is not None and not (_is_number(self.clip) and self.clip > 0):
            raise ValueError(
                f"clip is {self.clip!r}; give a norm > 0, or None for no limit"
            )

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        rising = round(self.warmup * self.steps)
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        if self.decay == "constant":
            return self.learning_rate
        return self.learning_rate * (self.steps - step) / (self.steps - rising)


class Diverged(RuntimeError):
    """A loss or a gradient is not finite any more.

    Attributes:
        step: the step, counted from 0, whose loss or gradient it is.
        name: which one, a logged value or "gradient".
        value: what it is, nan or inf.
        trajectory: the rows of the steps before.
        edit: the change up to the last good state, where the caller has made one.
    """

    def __init__(
        self, step: int, name: str, value: float, rate: float, trajectory: list[dict]
    ) -> None:
        super().__init__(
            f"step {step}: {name} is {value}. The run is stopped at the last weights "
            f"whose losses and gradients are finite. Next step: a lower learning_rate "
            f"(now {rate:g}), or a limit on the gradient norm with clip"
        )
        self.step, self.name, self.value = step, name, value
        self.trajectory = trajectory
        self.edit: Any = None


def finetune(
    masters: dict[str, Tensor],
    gradient: Gradient,
    config: FinetuneConfig,
    *,
    checkpoint: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    state: dict[str, Tensor] | None = None,
    progress: bool = False,
    after_step: Callable[[int, Parameters], None] | None = None,
) -> list[dict]:
    """Train weights with AdamW, in place.

    Args:
        masters: float32 weights by name. They end trained; after `Diverged`, at the
            last state in which all losses and gradients were finite.
        gradient: called with the step, counted from 0, and the weights; gives the
            gradient of each weight, and values to log, such as the losses. It must
            depend on nothing else that changes, and not write to the weights.
        config: settings.
        checkpoint: file that holds the state of the run, for a run that is killed. If
            it is there, the run goes on from it, to the same result bit for bit.
        settings: what else the run depends on, as JSON; a checkpoint of other settings
            is refused.
        state: what else `after_step` carries from step to step. It is kept in the
            checkpoint, and filled from there.
        progress: show a progress bar.
        after_step: called with the step and the weights after each update.

    Returns:
        One row for each step: "step", "learning_rate", the logged values and
        "gradient_norm" at the weights before the update, and "change_norm", the norm
        of the whole change since the start, after it.

    Raises:
        Diverged: a logged value or a gradient is nan or infinite.
        ValueError: weights that are not float32, a gradient of other names, or a
            checkpoint of another run.
    """
    for name, master in masters.items():
        if master.dtype != torch.float32:
            raise ValueError(
                f"{name} is {master.dtype}; give float32 masters, made with "
                "weight.detach().float().clone()"
            )
    start = {name: master.detach().clone() for name, master in masters.items()}
    previous = {name: master.detach().clone() for name, master in masters.items()}
    optimizer = torch.optim.AdamW(
        list(masters.values()),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    file = None
    trajectory: list[dict] = []
    if checkpoint is not None:
        run = asdict(config) | {"settings": dict(settings or {})}
        del run["checkpoint_every"]  # changes how often it is written, not what
        file = Checkpoint(Path(checkpoint), run, start)
        trajectory, bad = file.read(masters, optimizer, state)
        if bad is not None:
            value, rate = float(bad["value"]), config.learning_rate
            raise Diverged(bad["step"], bad["name"], value, rate, trajectory)
    bar = tqdm(initial=len(trajectory), total=config.steps, disable=not progress)
    with bar, torch.no_grad():
        for step in range(len(trajectory), config.steps):
            with torch.enable_grad():
                gradients, values = gradient(step, masters)
            if gradients.keys() != masters.keys():
                odd = sorted(gradients.keys() ^ masters.keys())
                raise ValueError(f"weights and gradients differ in the names {odd[:4]}")
            size = _norm(gradients)
            for name, value in {**values, "gradient": size}.items():
                if not math.isfinite(value):
                    for key, master in masters.items():
                        master.copy_(previous[key])
                    diverged = {"step": step, "name": name, "value": repr(value)}
                    if file is not None:
                        file.write(masters, None, trajectory, None, diverged)
                    rate = config.learning_rate
                    raise Diverged(step, name, value, rate, trajectory)
            # Written only now: weights are known to be good once their loss is.
            if file is not None and step and step % config.checkpoint_every == 0:
                file.write(masters, optimizer, trajectory, state)
            short = 1.0 if config.clip is None else config.clip / max(size, config.clip)
            for name, master in masters.items():
                previous[name].copy_(master)
                master.grad = gradients[name].to(master) * short
            rate = config.rate(step)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            change = _norm({n: master - start[n] for n, master in masters.items()})
            trajectory.append(
                {"step": step, "learning_rate": rate}
                | {name: float(value) for name, value in values.items()}
                | {"gradient_norm": size, "change_norm": change}
            )
            bar.update()
            bar.set_postfix({k: f"{v:.3g}" for k, v in values.items()}, refresh=False)
            if after_step is not None:
                after_step(step, masters)
        if file is not None and config.steps:
            file.write(masters, optimizer, trajectory, state)
    return trajectory


def _norm(tensors: Parameters) -> float:
    """Euclidean norm of all tensors together."""
    parts = [torch.linalg.vector_norm(t, dtype=torch.float64) for t in tensors.values()]
    return float(torch.stack(parts).norm()) if parts else 0.0


def _is_number(value: object) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and math.isfinite(value)  # type: ignore[arg-type]
