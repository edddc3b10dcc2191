"""Smoothing: look for weights around which the forget loss stays as low as at them.

Relearning is a small step in weight space, so a forget loss f that is low only at one
point is soon undone. Each smoother replaces grad f by the gradient of a flatter
objective (Fan et al. 2025, arXiv 2502.05374; the retain loss is left as it is):

    SAM   max over |e| <= rho of f(theta + e), at e = rho grad f / |grad f|
    RS    mean of f(theta + sigma z), z standard normal
    GP    f + w |grad f|
    CR    f + w |grad f(theta + mu v) - grad f(theta)|, v = grad f / |grad f|
    WA    f, and the result is the mean of several iterates (`RunningAverage`)

|.| is the 2-norm over all weights together. Losses are functions of the weights, so
nothing here ever writes into a weight: there is nothing to restore, and no rounding
from adding a perturbation and taking it off again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

KINDS = (None, "sam", "rs", "gp", "cr", "wa")

# A loss of weights by name, a scalar: it must go through `functional_call`.
Loss = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class SmoothingConfig:
    """Which smoother, and how strong; of the fields only its own are read."""

    kind: str | None = None  # None, "sam", "rs", "gp", "cr" or "wa"
    rho: float | None = None  # SAM: radius, 2-norm over all weights; .01 in the paper,
    # for 7e9 weights. None: from rho_relative
    rho_relative: float = (
        3e-5  # radius as a share of |theta|: near .01 on the stand-ins
    )
    sigma: float | None = None  # RS: std of the noise of each weight; 1e-4 in the
    # paper. None: from sigma_relative
    sigma_relative: float = 3e-3  # std as a share of the root mean square weight, so
    # the noise's norm is about this share of |theta|
    draws: int = 3  # RS: noise draws a step, as in the paper
    weight: float = 1e-3  # GP, CR: weight w of the penalty; 10 in the paper's scripts,
    # without effect in its code, which drops the penalty's gradient: on the stand-ins
    # that gradient is hundreds of times the loss's
    mu: float = 0.01  # CR: length of the step that the curvature is taken over
    start: int = 100  # WA: first step whose weights enter the mean, as in the paper
    every: int = 5  # WA: and each so many steps later

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; use one of {KINDS}")
        for name in ("rho", "rho_relative", "sigma", "sigma_relative", "weight", "mu"):
            value = getattr(self, name)
            if value is None and name in ("rho", "sigma"):
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and 0 < value < math.inf):
                raise ValueError(
                    f"{name} is {value!r}; it must be finite and > 0 (for no smoothing "
                    "use kind=None)"
                )
        for name, least in (("draws", 1), ("start", 0), ("every", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole and value >= least):
                raise ValueError(f"{name} is {value!r}; give a whole number >= {least}")

    def averages(self, step: int) -> bool:
        """Whether the weights after so many steps enter the mean of WA."""
        late = step - self.start
        return self.kind == "wa" and late >= 0 and late % self.every == 0


def smoothed_gradient(
    loss: Loss, weights: Mapping[str, Tensor], config: SmoothingConfig, seed: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradient of the smoothed forget objective; the weights are only read.

    SAM: the gradient at the perturbed weights, the perturbation held constant (Foret
    et al. 2021). RS: the mean gradient over the draws. GP and CR: the exact gradient,
    second derivatives included. CR's direction v is held constant: its own dependence
    on the weights is left out, as Moosavi-Dezfooli et al. 2019 do. None and WA: the
    plain gradient. Where the gradient is zero there is no direction: SAM's perturbation
    is then zero, and so are the gradients of GP's and CR's penalties.

    Gradient evaluations a step: one for None and WA, two for SAM, `draws` for RS (and
    one forward pass), about three for GP and five for CR. GP and CR need attention with
    a second derivative, so they run with torch's "math" kernel, which keeps the matrix
    of all pairs of positions in memory.

    Args:
        loss: the forget loss as a function of the weights. It is called several times,
            and has to be the same function each time: one batch, no dropout.
        weights: by name, floating point; of any shapes.
        config: the smoother.
        seed: of the noise of RS in this step; another step needs another seed.

    Returns:
        The loss at the unperturbed weights, a detached scalar, and the gradient by
        name. A weight that the loss does not depend on has gradient zero.

    Raises:
        ValueError: no weights, a loss that is not a scalar, or one that depends on
            none of the weights.
    """
    if not weights:
        raise ValueError("weights is empty; give at least one weight to differentiate")
    leaves = {
        name: weight.detach().requires_grad_() for name, weight in weights.items()
    }
    with torch.enable_grad():
        if config.kind == "sam":
            return _sam(loss, leaves, config)
        if config.kind == "rs":
            return _rs(loss, leaves, config, seed)
        if config.kind in ("gp", "cr"):
            # The fused kernels of attention have no second derivative.
            with sdpa_kernel(SDPBackend.MATH):
                return _penalized(loss, leaves, config)
        value = _evaluate(loss, leaves)
        return value.detach(), _grad(value, leaves)


def global_norm(values: Mapping[str, Tensor]) -> Tensor:
    """2-norm over the entries of all tensors together, a scalar."""
    # Of norms, not the root of a sum of squares: its derivative at zero is 0, not NaN.
    norms = [torch.linalg.vector_norm(value) for value in values.values()]
    return torch.linalg.vector_norm(torch.stack(norms))


def _sam(
    loss: Loss, leaves: dict[str, Tensor], config: SmoothingConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    value = _evaluate(loss, leaves)
    gradient = _grad(value, leaves)
    norm = global_norm(gradient)
    if norm == 0:  # flat here: no direction is worse than another
        return value.detach(), gradient
    rho = config.rho or config.rho_relative * global_norm(leaves).item()
    worst = _shifted(leaves, gradient, rho / norm)
    return value.detach(), _grad(_evaluate(loss, worst), worst)


def _rs(
    loss: Loss, leaves: dict[str, Tensor], config: SmoothingConfig, seed: int
) -> tuple[Tensor, dict[str, Tensor]]:
    sigma = config.sigma
    if sigma is None:
        count = sum(leaf.numel() for leaf in leaves.values())
        rms = global_norm(leaves).item() / math.sqrt(count)
        sigma = config.sigma_relative * rms
    with torch.no_grad():
        value = _evaluate(loss, leaves)
    # On the weights' device: billions of normal numbers take minutes on a CPU.
    device = next(iter(leaves.values())).device
    generator = torch.Generator(device).manual_seed(seed)
    total = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    for _ in range(config.draws):
        noise = {
            name: torch.randn(
                leaf.shape, generator=generator, dtype=leaf.dtype, device=device
            )
            for name, leaf in leaves.items()
        }
        nearby = _shifted(leaves, noise, sigma)
        for name, part in _grad(_evaluate(loss, nearby), nearby).items():
            total[name] += part / config.draws
    return value, {name: part.detach() for name, part in total.items()}


def _penalized(
    loss: Loss, leaves: dict[str, Tensor], config: SmoothingConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """GP and CR: the penalty is a function of gradients, which stay in the graph."""
    value = _evaluate(loss, leaves)
    gradient = _grad(value, leaves, create_graph=True)
    norm = global_norm(gradient)
    if config.kind == "gp":
        penalty = norm
    elif norm == 0:  # no direction v
        penalty = torch.zeros_like(norm)
    else:
        step = config.mu / norm.detach()
        ahead = {
            name: leaf + step * gradient[name].detach() for name, leaf in leaves.items()
        }
        far = _grad(_evaluate(loss, ahead), leaves, create_graph=True)
        penalty = global_norm({name: far[name] - gradient[name] for name in leaves})
    return value.detach(), _grad(value + config.weight * penalty, leaves)


def _shifted(
    leaves: dict[str, Tensor], direction: Mapping[str, Tensor], length: Tensor | float
) -> dict[str, Tensor]:
    """New leaves at theta + length * direction; theta itself is not written to."""
    return {
        name: (leaf.detach() + length * direction[name]).requires_grad_()
        for name, leaf in leaves.items()
    }


def _evaluate(loss: Loss, weights: Mapping[str, Tensor]) -> Tensor:
    value = loss(weights)
    if value.ndim != 0:
        raise ValueError(
            f"the loss has shape {tuple(value.shape)}; return a scalar, such as a mean"
        )
    if torch.is_grad_enabled() and not value.requires_grad:
        raise ValueError(
            "the loss depends on none of the weights; evaluate the model through "
            "torch.func.functional_call(model, weights, ...)"
        )
    return value


def _grad(
    value: Tensor, weights: Mapping[str, Tensor], create_graph: bool = False
) -> dict[str, Tensor]:
    parts = torch.autograd.grad(
        value,
        list(weights.values()),
        create_graph=create_graph,
        materialize_grads=True,
    )
    return dict(zip(weights, parts, strict=True))


@dataclass
class RunningAverage:
    """Mean of weights along training (WA), kept in the dtype of the first ones.

    Attributes:
        count: how many have been added. Both fields may be stored and given back.
        values: their mean by name, or None before the first.
    """

    count: int = 0
    values: dict[str, Tensor] | None = None

    def add(self, weights: Mapping[str, Tensor]) -> None:
        """Add one set of weights, which is copied.

        Raises:
            ValueError: other names or shapes than before.
        """
        if self.values is None:
            self.values = {name: w.detach().clone() for name, w in weights.items()}
            self.count = 1
            return
        before = {name: tuple(value.shape) for name, value in self.values.items()}
        now = {name: tuple(weight.shape) for name, weight in weights.items()}
        if before != now:
            other = sorted(
                name for name in {*before, *now} if before.get(name) != now.get(name)
            )
            raise ValueError(
                f"weights {other[:3]} have other shapes than in the mean so far, or "
                "are in one of the two only; add the same weights each time"
            )
        self.count += 1
        for name, value in self.values.items():
            value += (weights[name].detach() - value) / self.count

    def mean(self) -> dict[str, Tensor]:
        """A copy of the mean, by name.

        Raises:
            ValueError: nothing was added.
        """
        if self.values is None:
            raise ValueError(
                "no weights were added to the mean; let WA start before the last step"
            )
        return {name: value.clone() for name, value in self.values.items()}
