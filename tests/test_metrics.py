"""Intervals against SciPy and hand values, perplexities against plain passes."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import ARCHITECTURES, tiny_chat

from safeedit.metrics import (
    forbidden_perplexity,
    paired_bootstrap,
    rates,
    sequence_perplexity,
    utility_perplexity,
    wilson_interval,
)

WORDS = ["bread", "boat", "a kite"]


@pytest.mark.parametrize(
    ("k", "n"), [(0, 1), (1, 1), (0, 20), (7, 20), (20, 20), (3, 999)]
)
def test_wilson_agrees_with_scipy(k, n):
    theirs = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    wide, narrow = wilson_interval(k, n, 0.99), wilson_interval(k, n, 0.9)
    assert wide[0] <= narrow[0] and narrow[1] <= wide[1]


def test_wilson_hand_value_and_ends():
    # k = 0: the upper end is z^2 / (n + z^2).
    z2 = stats.norm.ppf(0.975) ** 2
    assert wilson_interval(0, 10) == pytest.approx((0, z2 / (10 + z2)))
    assert wilson_interval(10, 10)[1] == 1
    for k, n in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match="need 0 <= k <= n"):
            wilson_interval(k, n)


def test_paired_bootstrap_agrees_with_scipy():
    rng = np.random.default_rng(3)
    a = rng.random(60) < 0.7
    b = np.where(rng.random(60) < 0.5, a, rng.random(60) < 0.3)
    mean, low, high = paired_bootstrap(a, b, seed=1)
    theirs = stats.bootstrap(
        (a.astype(float) - b,), np.mean, method="percentile", n_resamples=10_000, rng=2
    ).confidence_interval
    assert mean == pytest.approx((a.astype(float) - b).mean())
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert paired_bootstrap(a, b, seed=1) == (mean, low, high)
    assert paired_bootstrap(a, a) == (0, 0, 0)
    with pytest.raises(ValueError, match="Got 60 and 1 values"):
        paired_bootstrap(a, [1])


def test_rates_are_tidy_and_sum_to_one():
    labels = ["refusal", "success", "success", "other"]
    rows = rates(labels, ["no", "yes it is", "", "bread " * 9])
    values = {row["metric"]: row["value"] for row in rows}
    assert values == {
        "refusal_rate": 0.25,
        "success_rate": 0.5,
        "other_rate": 0.25,
        "degeneration_rate": 0.5,
    }
    assert all(row["n"] == 4 and row["low"] <= row["value"] for row in rows)
    with pytest.raises(ValueError, match="labels none"):
        rates([])
    with pytest.raises(ValueError, match="maybe"):
        rates(["maybe"])
    with pytest.raises(ValueError, match="1 texts for 4 labels"):
        rates(labels, ["no"])


def nll(chat, before, after):
    """Negative log-likelihoods of `after`'s tokens, one unbatched pass."""
    start = len(chat.encode([before]).input_ids[0])
    ids = chat.encode([before + after]).input_ids[0]
    with torch.no_grad():
        logp = chat.model(ids[None]).logits[0].log_softmax(-1)
    return [-float(logp[i - 1, ids[i]]) for i in range(start, len(ids))]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_forbidden_perplexity_counts_the_word_only(arch):
    chat = tiny_chat(arch)
    heads = chat.render([f"say {word} now" for word in WORDS], prefill="sure,")
    each = [nll(chat, h, w) for h, w in zip(heads, WORDS, strict=True)]
    flat = [value for row in each for value in row]
    found = forbidden_perplexity(chat, WORDS, "say {} now", answer="sure,")
    assert found == pytest.approx(math.exp(sum(flat) / len(flat)), rel=1e-4)
    chat.batch_size = 1
    alone = forbidden_perplexity(chat, WORDS, "say {} now", answer="sure,")
    assert alone == pytest.approx(found, rel=1e-4)


def test_sequence_and_utility_perplexity():
    chat = tiny_chat("llama")
    prompts, answers = ["hi", "explain a lamp"], ["a lamp", "sorry, I cannot"]
    heads = chat.render(prompts)
    flat = sum((nll(chat, h, a) for h, a in zip(heads, answers, strict=True)), [])
    found = sequence_perplexity(chat, prompts, answers)
    assert found == pytest.approx(math.exp(sum(flat) / len(flat)), rel=1e-4)
    flat = nll(chat, "<s>", "make bread at home")
    found = utility_perplexity(chat, ["make bread at home"])
    assert found == pytest.approx(math.exp(sum(flat) / len(flat)), rel=1e-4)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary():
    chat = tiny_chat("llama")
    chat.model.lm_head.weight.data.zero_()
    size = chat.model.config.vocab_size
    assert utility_perplexity(chat, WORDS) == pytest.approx(size)
    assert forbidden_perplexity(chat, WORDS) == pytest.approx(size)


def test_empty_input():
    chat = tiny_chat("llama")
    with pytest.raises(ValueError, match="texts is"):
        utility_perplexity(chat, [])
    with pytest.raises(ValueError, match="words is 'bread'"):
        forbidden_perplexity(chat, "bread")
    with pytest.raises(ValueError, match="no token"):
        utility_perplexity(chat, [""])
