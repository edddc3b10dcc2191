"""Smoothed gradients: against finite differences, and nothing of the model moves."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import ARCHITECTURES, tiny_chat
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm

from safeedit.edits.losses import npo
from safeedit.edits.smoothing import (
    RunningAverage,
    SmoothingConfig,
    global_norm,
    smoothed_gradient,
)
from safeedit.examples import collate, from_texts, token_log_probs

TEXTS = ["how do I bake bread at home", "tell me how to make a kite"]
SAM = SmoothingConfig("sam", rho=0.05)
RS = SmoothingConfig("rs", sigma=0.01, draws=3)
GP = SmoothingConfig("gp", weight=0.5)
CR = SmoothingConfig("cr", weight=0.5, mu=0.01)
ALL = [SmoothingConfig(), SAM, RS, GP, CR, SmoothingConfig("wa")]
KIND = [str(config.kind) for config in ALL]


@pytest.fixture
def float64(monkeypatch):
    """The models compute their norms in float32 whatever the weights are."""

    def plain(self, x):
        eps = self.variance_epsilon
        return self.weight * x * (x.square().mean(-1, True) + eps).rsqrt()

    def gemma(self, x):
        return (1 + self.weight) * x * (x.square().mean(-1, True) + self.eps).rsqrt()

    monkeypatch.setattr(LlamaRMSNorm, "forward", plain)
    monkeypatch.setattr(MistralRMSNorm, "forward", plain)
    monkeypatch.setattr(GemmaRMSNorm, "forward", gemma)


def weights_of(chat):
    return {name: p.detach().clone() for name, p in chat.model.named_parameters()}


def forget_loss(chat):
    """NPO with `token_log_probs`, as unlearning uses it."""
    batch = collate(chat, from_texts(chat, TEXTS))
    lengths = batch.scored[:, 1:].sum(dim=1)
    with torch.no_grad():
        # A little off, so that NPO is not at its start.
        ref = token_log_probs(chat.model, batch).sum(dim=1) - 1
    return lambda weights: npo(
        token_log_probs(chat.model, batch, weights).sum(dim=1),
        ref,
        lengths,
        0.1,
        "mean",
    )


def exact_loss(chat):
    """Minus the mean token NLL, without a cast to float32 on the way."""
    batch = collate(chat, from_texts(chat, TEXTS))
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
    inputs["use_cache"] = False
    labels = batch.ids[:, 1:].masked_fill(~batch.scored[:, 1:], -100)

    def loss(weights):
        logits = functional_call(chat.model, weights, (), inputs).logits
        assert logits.dtype == torch.float64
        return -F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())

    return loss


def plain_gradient(loss, weights):
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    parts = torch.autograd.grad(loss(leaves), list(leaves.values()))
    return dict(zip(leaves, parts, strict=True))


def inner(a, b):
    return sum((a[name] * b[name]).sum().item() for name in a)


def moved(weights, direction, length):
    return {name: w + length * direction[name] for name, w in weights.items()}


def difference(a, b):
    return {name: a[name] - b[name] for name in a}


def norm(values):
    return math.sqrt(inner(values, values))


def objective(loss, config, start):
    """The smoothed objective from first derivatives only; CR's v is held constant."""
    first = plain_gradient(loss, start)
    v = {name: part / norm(first) for name, part in first.items()}

    def value(weights):
        here = plain_gradient(loss, weights)
        if config.kind == "gp":
            penalty = norm(here)
        else:
            there = plain_gradient(loss, moved(weights, v, config.mu))
            penalty = norm(difference(there, here))
        with torch.no_grad():
            return loss(weights).item() + config.weight * penalty

    return value


def slopes(value, weights, directions, h=1e-5):
    return torch.tensor(
        [
            (value(moved(weights, d, h)) - value(moved(weights, d, -h))) / (2 * h)
            for d in directions
        ]
    )


def directions_of(weights):
    """One random unit direction within each weight, and one over all of them."""
    generator = torch.Generator().manual_seed(0)
    noise = {
        name: torch.randn(w.shape, generator=generator, dtype=w.dtype)
        for name, w in weights.items()
    }
    zero = {name: torch.zeros_like(w) for name, w in weights.items()}
    single = [zero | {name: noise[name]} for name in weights]
    return [
        {name: part / norm(direction) for name, part in direction.items()}
        for direction in [*single, noise]
    ]


@pytest.mark.parametrize("config", [GP, CR], ids=["gp", "cr"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_penalties_match_finite_differences(arch, config, float64):
    chat = tiny_chat(arch)
    chat.model.double()
    weights, loss = weights_of(chat), exact_loss(chat)
    value, gradient = smoothed_gradient(loss, weights, config, seed=0)
    assert value.item() == pytest.approx(loss(weights).item(), rel=1e-13)
    directions = directions_of(weights)
    expected = slopes(objective(loss, config, weights), weights, directions)

    def agrees(candidate):
        got = torch.tensor([inner(candidate, d) for d in directions])
        return torch.allclose(got, expected, rtol=1e-5, atol=1e-6 * norm(gradient))

    assert agrees(gradient)
    # What is left when the penalty leaves the graph as a number (`.item()`), as in
    # code that was released: the plain gradient, whatever the penalty's weight.
    assert not agrees(detached_penalty(loss, weights, config))


def detached_penalty(loss, weights, config):
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    value = loss(leaves)
    parts = torch.autograd.grad(value, list(leaves.values()), retain_graph=True)
    squares = sum(part.pow(2).sum().item() for part in parts)
    total = value + config.weight * math.sqrt(squares)
    parts = torch.autograd.grad(total, list(leaves.values()))
    return dict(zip(leaves, parts, strict=True))


def quadratic():
    """f = x' A x / 2 over two tensors, with A symmetric and indefinite."""
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    a = a + a.T
    x = torch.randn(5, generator=generator, dtype=torch.float64)

    def flat(weights):
        return torch.cat([weights["p"], weights["q"].flatten()])

    def loss(weights):
        return flat(weights) @ a @ flat(weights) / 2

    return a, x, {"p": x[:3].clone(), "q": x[3:].clone()[None]}, loss, flat


def test_quadratic_by_hand():
    a, x, weights, loss, flat = quadratic()
    g = a @ x
    value, gradient = smoothed_gradient(loss, weights, SmoothingConfig(), 0)
    torch.testing.assert_close(value, x @ g / 2)
    torch.testing.assert_close(flat(gradient), g)
    _, gradient = smoothed_gradient(loss, weights, SAM, 0)
    torch.testing.assert_close(flat(gradient), a @ (x + SAM.rho * g / g.norm()))
    _, gradient = smoothed_gradient(loss, weights, GP, 0)
    torch.testing.assert_close(flat(gradient), g + GP.weight * a @ g / g.norm())
    # mu A v does not depend on the weights while v is held constant.
    _, gradient = smoothed_gradient(loss, weights, CR, 0)
    torch.testing.assert_close(flat(gradient), g)
    _, gradient = smoothed_gradient(loss, weights, SmoothingConfig("wa"), 0)
    torch.testing.assert_close(flat(gradient), g)


class Seen:
    """A loss that keeps what it was called with."""

    def __init__(self, loss):
        self.loss, self.points = loss, []

    def __call__(self, weights):
        self.points.append({name: w.detach().clone() for name, w in weights.items()})
        return self.loss(weights)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_sam_steps_to_the_ball_along_the_gradient(arch):
    chat = tiny_chat(arch)
    weights, loss = weights_of(chat), Seen(forget_loss(chat))
    value, gradient = smoothed_gradient(loss, weights, SAM, 0)
    start, worst = loss.points
    assert all(torch.equal(start[name], w) for name, w in weights.items())
    eps = difference(worst, weights)
    assert norm(eps) == pytest.approx(SAM.rho, rel=1e-4)
    first = plain_gradient(loss, weights)
    assert inner(eps, first) == pytest.approx(norm(eps) * norm(first), rel=1e-4)
    torch.testing.assert_close(gradient, plain_gradient(loss, worst))
    assert value.item() == loss(weights).item() < loss(worst).item()


def test_sam_radius_as_a_share_of_the_weights():
    _, x, weights, loss, flat = quadratic()
    seen = Seen(loss)
    smoothed_gradient(seen, weights, SmoothingConfig("sam", rho_relative=0.2), 0)
    eps = flat(seen.points[1]) - x
    assert eps.norm().item() == pytest.approx(0.2 * x.norm().item())
    # An absolute radius takes precedence.
    config = SmoothingConfig("sam", rho=0.3, rho_relative=0.2)
    smoothed_gradient(seen, weights, config, 0)
    assert (flat(seen.points[3]) - x).norm().item() == pytest.approx(0.3)


@pytest.mark.parametrize("relative", [False, True])
def test_rs_is_the_mean_over_gaussian_draws(relative):
    chat = tiny_chat("gemma")
    weights, loss = weights_of(chat), Seen(forget_loss(chat))
    count = sum(w.numel() for w in weights.values())
    config, sigma = RS, RS.sigma
    if relative:
        config = SmoothingConfig("rs", sigma_relative=0.02, draws=3)
        sigma = 0.02 * norm(weights) / math.sqrt(count)
    value, gradient = smoothed_gradient(loss, weights, config, 7)
    start, *nearby = loss.points
    assert all(torch.equal(start[name], w) for name, w in weights.items())
    assert len(nearby) == 3
    assert value.item() == loss.loss(weights).item()
    parts = [plain_gradient(loss.loss, point) for point in nearby]
    mean = {name: sum(part[name] for part in parts) / 3 for name in weights}
    torch.testing.assert_close(gradient, mean)
    draws = torch.stack(
        [
            torch.cat([d.flatten() for d in difference(point, weights).values()])
            for point in nearby
        ]
    )
    # Standard errors of a standard deviation and of a mean, five of them.
    assert draws.std(dim=1) == pytest.approx(sigma, rel=5 / math.sqrt(2 * count))
    assert draws.mean(dim=1) == pytest.approx(0, abs=5 * sigma / math.sqrt(count))
    correlation = torch.corrcoef(draws) - torch.eye(3)
    assert correlation.abs().max() < 5 / math.sqrt(count)
    # Two weights of one shape have noise of their own.
    noise = difference(nearby[0], weights)
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"]
    pair = torch.stack([noise[name].flatten() for name in names])
    assert torch.corrcoef(pair)[0, 1].abs() < 5 / math.sqrt(pair.shape[1])


def test_rs_depends_on_its_seed_and_on_no_other():
    chat = tiny_chat("llama")
    weights, loss = weights_of(chat), forget_loss(chat)
    state = torch.get_rng_state()
    _, once = smoothed_gradient(loss, weights, RS, 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    _, again = smoothed_gradient(loss, weights, RS, 3)
    _, other = smoothed_gradient(loss, weights, RS, 4)
    torch.set_rng_state(state)
    assert all(torch.equal(once[name], again[name]) for name in weights)
    assert not any(torch.equal(once[name], other[name]) for name in weights)


def snapshot(chat):
    state = {name: value.clone() for name, value in chat.model.state_dict().items()}
    flags = [(name, p.requires_grad) for name, p in chat.model.named_parameters()]
    grads = [p.grad for p in chat.model.parameters()]
    modes = [module.training for module in chat.model.modules()]
    return state, flags, grads, modes


@pytest.mark.parametrize("config", ALL, ids=KIND)
@pytest.mark.parametrize("fails_at", [None, 1, 2])
def test_nothing_is_changed(config, fails_at):
    """Neither the model nor the weights, also when the loss raises."""
    chat = tiny_chat("gemma")
    # The masters may be the model's own tensors, and may already collect gradients.
    weights = {name: p.requires_grad_() for name, p in chat.model.named_parameters()}
    inside, calls = forget_loss(chat), []
    kernels = (
        torch.backends.cuda.flash_sdp_enabled,
        torch.backends.cuda.mem_efficient_sdp_enabled,
        torch.backends.cuda.math_sdp_enabled,
    )
    before, enabled = snapshot(chat), [kernel() for kernel in kernels]

    def loss(weights):
        calls.append(1)
        if len(calls) == fails_at:
            raise RuntimeError("out of memory")
        return inside(weights)

    try:
        value, gradient = smoothed_gradient(loss, weights, config, 0)
    except RuntimeError as error:
        assert str(error) == "out of memory"
    else:
        assert not value.requires_grad
        for name, part in gradient.items():
            assert not part.requires_grad
            assert part.shape == weights[name].shape
            assert torch.isfinite(part).all()
    after = snapshot(chat)
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[1:] == after[1:]
    assert [kernel() for kernel in kernels] == enabled


@pytest.mark.parametrize("config", [SAM, GP, CR], ids=["sam", "gp", "cr"])
def test_a_zero_gradient_gives_zero_and_no_nan(config):
    weights = {"p": torch.zeros(3), "q": torch.zeros(2, 2)}

    def loss(w):
        return w["p"].square().sum() + w["q"].square().sum()

    value, gradient = smoothed_gradient(loss, weights, config, 0)
    assert value == 0
    assert all((part == 0).all() for part in gradient.values())


@pytest.mark.parametrize("config", ALL, ids=KIND)
def test_a_linear_loss_and_a_weight_without_influence(config):
    """No second derivative, and one weight that the loss does not read."""
    weights = {"p": torch.ones(3), "unused": torch.ones(2)}
    _, gradient = smoothed_gradient(lambda w: 2 * w["p"].sum(), weights, config, 0)
    torch.testing.assert_close(gradient["p"], torch.full((3,), 2.0))
    assert (gradient["unused"] == 0).all()


@pytest.mark.parametrize("config", ALL, ids=KIND)
def test_works_without_grad_mode_and_with_a_subset_of_the_weights(config):
    chat = tiny_chat("mistral")
    name = chat.weight_name(1)
    every = weights_of(chat)
    loss = forget_loss(chat)
    with torch.no_grad():
        _, gradient = smoothed_gradient(loss, {name: every[name]}, config, 0)
    assert list(gradient) == [name]
    if config.kind in (None, "wa"):
        torch.testing.assert_close(gradient[name], plain_gradient(loss, every)[name])


def test_the_fused_attention_kernels_have_no_second_derivative():
    """Why GP and CR choose the kernel: when this fails, they need not any more."""
    chat = tiny_chat("llama")
    loss, weights = forget_loss(chat), weights_of(chat)
    leaves = [w.requires_grad_() for w in weights.values()]
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        parts = torch.autograd.grad(loss(weights), leaves, create_graph=True)
        with pytest.raises(RuntimeError, match="derivative|not implemented"):
            torch.autograd.grad(sum(p.square().sum() for p in parts), leaves)


def test_global_norm_is_that_of_all_entries_and_flat_at_zero():
    weights = weights_of(tiny_chat("gemma"))
    entries = torch.cat([w.flatten() for w in weights.values()]).double()
    assert global_norm(weights).item() == pytest.approx(entries.norm().item())
    zero = torch.zeros(3, requires_grad=True)
    (slope,) = torch.autograd.grad(global_norm({"p": zero, "q": zero[:2]}), zero)
    assert (slope == 0).all()


def test_running_average_is_the_mean_of_copies():
    generator = torch.Generator().manual_seed(0)
    live = {"p": torch.zeros(4), "q": torch.zeros(2, 3)}
    saved, average = [], RunningAverage()
    for _ in range(6):
        for w in live.values():
            w += torch.randn(w.shape, generator=generator)  # trained in place
        saved.append({name: w.clone() for name, w in live.items()})
        average.add(live)
    mean = average.mean()
    for name in live:
        expected = torch.stack([point[name] for point in saved]).mean(dim=0)
        torch.testing.assert_close(mean[name], expected)
    mean["p"].zero_()  # a copy
    assert average.mean()["p"].abs().sum() > 0
    # A stored one goes on as if it had not stopped.
    first = RunningAverage()
    for point in saved[:5]:
        first.add(point)
    resumed = RunningAverage(first.count, first.mean())
    resumed.add(saved[5])
    assert all(torch.equal(resumed.mean()[n], average.mean()[n]) for n in live)


def test_average_of_one_point_and_of_equal_points_is_exact():
    point, average = {"p": torch.tensor([0.1, -3.3, 1e-8])}, RunningAverage()
    for _ in range(7):
        average.add(point)
        assert torch.equal(average.mean()["p"], point["p"])


def test_average_refuses_what_does_not_fit():
    average = RunningAverage()
    with pytest.raises(ValueError, match="no weights were added"):
        average.mean()
    average.add({"p": torch.zeros(2)})
    for other in ({"q": torch.zeros(2)}, {"p": torch.zeros(3)}):
        with pytest.raises(ValueError, match="add the same weights each time"):
            average.add(other)
    assert average.count == 1


def test_steps_that_enter_the_mean():
    config = SmoothingConfig("wa", start=100, every=5)
    steps = [step for step in range(126) if config.averages(step)]
    assert steps == [100, 105, 110, 115, 120, 125]
    assert not SmoothingConfig("sam").averages(100)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "SAM"}, "kind is 'SAM'; use one of"),
        ({"rho": 0}, "rho is 0; it must be finite and > 0"),
        ({"rho": -0.1}, "rho is -0.1"),
        ({"rho": math.nan}, "rho is nan"),
        ({"rho_relative": math.inf}, "rho_relative is inf"),
        ({"rho_relative": None}, "rho_relative is None"),
        ({"sigma": 0.0}, "sigma is 0.0"),
        ({"sigma_relative": "1"}, "sigma_relative is '1'"),
        ({"weight": 0}, "weight is 0"),
        ({"mu": -1}, "mu is -1"),
        ({"draws": 0}, "draws is 0; give a whole number >= 1"),
        ({"draws": 2.0}, "draws is 2.0"),
        ({"draws": True}, "draws is True"),
        ({"start": -1}, "start is -1; give a whole number >= 0"),
        ({"every": 0}, "every is 0; give a whole number >= 1"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        SmoothingConfig(**fields)


@pytest.mark.parametrize("config", ALL, ids=KIND)
def test_bad_losses(config):
    weights = {"p": torch.ones(2)}
    with pytest.raises(ValueError, match="weights is empty"):
        smoothed_gradient(lambda w: torch.ones(()), {}, config, 0)
    with pytest.raises(ValueError, match=r"the loss has shape \(2,\)"):
        smoothed_gradient(lambda w: w["p"], weights, config, 0)
    with pytest.raises(ValueError, match="depends on none of the weights"):
        smoothed_gradient(lambda w: torch.ones(()), weights, config, 0)
