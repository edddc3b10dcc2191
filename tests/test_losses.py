"""Losses of unlearning: worked by hand, their limits, and finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from safeedit.edits.losses import (
    dpo,
    grad_ascent,
    npo,
    retain_kl,
    retain_nll,
    rmu,
    rmu_retain,
)

LENGTHS = torch.tensor([4, 7, 2])


def normal(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def log_probs(seed=0):
    return -normal(3, seed=seed, scale=5.0).abs()


def gradient(function, x):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


def test_mean_over_tokens_by_hand():
    values, lengths = torch.tensor([-2.0, -10.0]), torch.tensor([1, 5])
    assert retain_nll(values, lengths).item() == pytest.approx(12 / 6)
    assert grad_ascent(values, lengths).item() == pytest.approx(-12 / 6)


def test_kl_by_hand_and_as_torch_has_it():
    start = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
    now = torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]])
    # First place: 1/2 log 2 - 1/4 log 2; second place: the same, so nothing.
    assert retain_kl(now.log(), start.log()).item() == pytest.approx(math.log(2) / 8)
    logits, others = normal(5, 7), normal(5, 7, seed=1)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=others),
        torch.distributions.Categorical(logits=logits),
    )
    got = retain_kl(logits.log_softmax(-1), others.log_softmax(-1))
    torch.testing.assert_close(got, kl.mean())


def test_kl_has_its_minimum_at_the_start_and_holds_the_start_constant():
    start = normal(3, 4).requires_grad_()
    now = normal(3, 4, seed=1).requires_grad_()
    retain_kl(now.log_softmax(-1), start.log_softmax(-1)).backward()
    assert start.grad is None and bool(now.grad.any())
    same = gradient(lambda x: retain_kl(x.log_softmax(-1), x.log_softmax(-1)), start)
    torch.testing.assert_close(same, torch.zeros_like(same))


@pytest.mark.parametrize("normalize", ["sum", "mean"])
def test_npo_by_hand(normalize):
    # One sequence of 2 tokens that became e^-3 times as likely.
    ratio = -3.0 if normalize == "sum" else -1.5
    beta = 0.5
    expected = (2 / beta) * math.log(1 + math.exp(beta * ratio))
    value = npo(
        torch.tensor([-7.0]), torch.tensor([-4.0]), torch.tensor([2]), beta, normalize
    )
    assert value.item() == pytest.approx(expected)


@pytest.mark.parametrize("normalize", ["sum", "mean"])
@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_npo_at_the_start_weights(normalize, beta):
    ref = log_probs()
    value = npo(ref, ref, LENGTHS, beta, normalize)
    assert value.item() == pytest.approx(2 / beta * math.log(2))
    got = gradient(lambda x: npo(x, ref, LENGTHS, beta, normalize), ref)
    if normalize == "sum":  # GA's, times the mean length, whatever the lengths
        ascent = gradient(lambda x: grad_ascent(x, LENGTHS), ref)
        torch.testing.assert_close(got, ascent * LENGTHS.double().mean())
    else:  # each sequence counts the same: GA's where the lengths are equal
        equal = torch.tensor([5, 5, 5])
        got = gradient(lambda x: npo(x, ref, equal, beta, normalize), ref)
        ascent = gradient(lambda x: grad_ascent(x, equal), ref)
        torch.testing.assert_close(got, ascent)


@pytest.mark.parametrize("normalize", ["sum", "mean"])
def test_npo_tends_to_gradient_ascent(normalize):
    x, ref = log_probs(1), log_probs(2)
    equal = torch.tensor([5, 5, 5])
    scale = 5 if normalize == "sum" else 1  # the whole sequence or a token of it
    ascent = scale * (grad_ascent(x, equal) - grad_ascent(ref, equal))
    slope = gradient(lambda v: scale * grad_ascent(v, equal), x)
    errors, slopes = [], []
    for beta in (1e-1, 1e-2, 1e-3, 1e-4):
        value = npo(x, ref, equal, beta, normalize) - 2 / beta * math.log(2)
        errors.append((value - ascent).abs().item())
        got = gradient(lambda v, b=beta: npo(v, ref, equal, b, normalize), x)
        slopes.append((got - slope).norm().item())
    for series in (errors, slopes):  # both errors are of first order in beta
        assert series[-1] < 2e-3 * series[0]
        assert series == sorted(series, reverse=True)


def test_npo_forgets_with_bounded_steps_where_ascent_does_not():
    ref = torch.zeros(1, dtype=torch.float64)
    far, length = ref - 200, torch.tensor([1])
    steep = gradient(lambda x: npo(x, ref, length, 0.1), far).abs()
    assert steep < 1e-8
    assert gradient(lambda x: grad_ascent(x, length), far).abs() == 1


def test_dpo_by_hand():
    # Log ratios: chosen 1 and -2, rejected -3 and 0; margins 4 and -2.
    value = dpo(
        torch.tensor([-1.0, -5.0]),
        torch.tensor([-2.0, -3.0]),
        torch.tensor([-6.0, -4.0]),
        torch.tensor([-3.0, -4.0]),
        beta=0.5,
    )
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert value.item() == pytest.approx(expected)


def test_dpo_at_the_start_weights_and_its_direction():
    chosen, rejected = log_probs(1), log_probs(2)
    at_start = dpo(chosen, chosen, rejected, rejected, 0.1)
    assert at_start.item() == pytest.approx(math.log(2))
    up = gradient(lambda x: dpo(x, chosen, rejected, rejected, 0.1), chosen)
    down = gradient(lambda x: dpo(chosen, chosen, x, rejected, 0.1), rejected)
    torch.testing.assert_close(up, torch.full_like(up, -0.1 / 2 / 3))
    torch.testing.assert_close(down, -up)


def test_rmu_by_hand():
    hidden = torch.tensor([[[1.0, 2.0], [0.0, 0.0]], [[3.0, 0.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 1], [1, 0]])
    # Squares of the distances to (1, 0): 0 + 4, 1 + 0, 4 + 0; 3 tokens, 2 features.
    target = torch.tensor([1.0, 0.0])
    assert rmu(hidden, target, mask).item() == pytest.approx(9 / 6)
    frozen = hidden + torch.tensor([1.0, -2.0])
    assert rmu_retain(hidden, frozen, mask).item() == pytest.approx(2.5)
    assert rmu_retain(hidden, frozen, mask.bool()).item() == pytest.approx(2.5)


def test_rmu_pulls_only_the_tokens_that_count():
    hidden, mask = normal(2, 3, 4), torch.tensor([[1, 1, 0], [0, 1, 0]])
    target = normal(4, seed=1)
    got = gradient(lambda x: rmu(x, target, mask), hidden)
    assert (got[mask == 0] == 0).all()
    torch.testing.assert_close(got[mask == 1], (hidden - target)[mask == 1] * 2 / 12)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: retain_nll(x, LENGTHS),
        lambda x: grad_ascent(x, LENGTHS),
        lambda x: npo(x, log_probs(3), LENGTHS, 0.3),
        lambda x: npo(x, log_probs(3), LENGTHS, 0.3, "mean"),
        lambda x: dpo(x, log_probs(3), log_probs(4), log_probs(5), 0.3),
        lambda x: dpo(log_probs(4), log_probs(5), x, log_probs(3), 0.3),
    ],
)
def test_gradients_of_sequences_match_finite_differences(function):
    assert torch.autograd.gradcheck(function, log_probs().requires_grad_())


def test_gradients_of_kl_match_finite_differences():
    start = normal(3, 4, seed=1).log_softmax(-1)
    assert torch.autograd.gradcheck(
        lambda x: retain_kl(x.log_softmax(-1), start), normal(3, 4).requires_grad_()
    )


def test_gradients_of_hidden_states_match_finite_differences():
    mask = torch.tensor([[1, 0, 1], [1, 1, 0]])
    hidden = normal(2, 3, 4).requires_grad_()
    target, frozen = normal(4, seed=1), normal(2, 3, 4, seed=2)
    assert torch.autograd.gradcheck(lambda x: rmu(x, target, mask), hidden)
    assert torch.autograd.gradcheck(lambda x: rmu_retain(x, frozen, mask), hidden)


def test_extreme_values_stay_finite():
    low, high = torch.tensor([-1e4]), torch.tensor([0.0])
    one = torch.tensor([1])
    for value in (
        npo(low, high, one, 1.0),
        npo(high, low, one, 1.0),
        dpo(high, low, low, high, 1.0),
        dpo(low, high, high, low, 1.0),
    ):
        assert torch.isfinite(value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, n: retain_nll(x[:, None], n), "one summed log-probability"),
        (lambda x, n: retain_nll(x[:0], n[:0]), "one summed log-probability"),
        (lambda x, n: retain_nll(x, n[:2]), r"lengths has shape \(2,\); give \(3,\)"),
        (lambda x, n: grad_ascent(x, n * 0), "lengths has 0; every sequence needs"),
        (lambda x, n: npo(x, x[:2], n, 0.1), r"ref_log_probs \(2,\)"),
        (lambda x, n: npo(x, x, n, 0.0), "beta is 0.0; it must be finite and > 0"),
        (lambda x, n: npo(x, x, n, math.nan), "beta is nan"),
        (lambda x, n: npo(x, x, n, 0.1, "max"), "normalize is 'max'; use one of"),
        (lambda x, n: dpo(x, x, x, x[:1], 0.1), r"ref_rejected \(1,\)"),
        (lambda x, n: dpo(x, x, x, x, -1), "beta is -1"),
    ],
)
def test_bad_sequences(call, message):
    with pytest.raises(ValueError, match=message):
        call(log_probs(), LENGTHS)


@pytest.mark.parametrize("shapes", [((3,), (3,)), ((0, 4), (0, 4)), ((3, 4), (3, 5))])
def test_kl_of_odd_shapes_is_refused(shapes):
    with pytest.raises(ValueError, match=r"give \(places, vocabulary\), the same"):
        retain_kl(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda h, m: rmu(h[0], h[0, 0], m), "hidden has shape"),
        (lambda h, m: rmu(h, h[0, 0, :2], m), r"target \(2,\)"),
        (lambda h, m: rmu(h, h[0, 0], m[:, :1]), r"give a mask of shape \(2, 3\)"),
        (lambda h, m: rmu(h, h[0, 0], m * 0), "the mask has no token"),
        (lambda h, m: rmu_retain(h, h[:1], m), r"frozen \(1, 3, 4\)"),
        (lambda h, m: rmu_retain(h, h, m * 0), "the mask has no token"),
    ],
)
def test_bad_hidden_states(call, message):
    with pytest.raises(ValueError, match=message):
        call(normal(2, 3, 4), torch.ones(2, 3))
