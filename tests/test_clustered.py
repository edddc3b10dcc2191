"""Two-way clustered intervals: known special cases, coverage, and bad input."""

import numpy as np
import pytest
from scipy import stats

from safeedit import clustered
from safeedit.metrics import wilson_interval


def crossed(runs, questions):
    """Labels of a full table: every run asks every question."""
    return np.repeat(np.arange(runs), questions), np.tile(np.arange(questions), runs)


def test_no_question_repeated_and_balanced_is_students_interval_over_runs():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 40)) + rng.normal(size=(5, 1))
    runs = np.repeat(np.arange(5), 40)
    found = clustered.mean(values.ravel(), runs, np.arange(200))
    wanted = stats.ttest_1samp(values.mean(axis=1), 0).confidence_interval()
    assert found == pytest.approx((values.mean(), wanted.low, wanted.high))


def test_answers_that_repeat_count_once():
    """A model that is not trained anew gives every run the same answers."""
    own = np.random.default_rng(1).normal(size=30)
    runs, questions = crossed(5, 30)
    value, low, high = clustered.mean(np.tile(own, 5), runs, questions)
    error = own.std(ddof=1) / np.sqrt(30)
    assert value == pytest.approx(own.mean())
    assert high - value == pytest.approx(stats.t.ppf(0.975, 4) * error)
    assert value - low == pytest.approx(high - value)


def test_a_case_by_hand():
    """Two runs, two questions, values 0 2 / 2 4: e = -2 0 0 2, N = 4.

    By run: sums -2, 2; by question: -2, 2; both 2/1 * 8/16 = 1. Answers:
    4/3 * 8/16 = 2/3. V = 1 + 1 - 2/3.
    """
    value, low, _ = clustered.mean([0, 2, 2, 4], [0, 0, 1, 1], "abab")
    assert value == 2
    assert value - low == pytest.approx(stats.t.ppf(0.975, 1) * np.sqrt(4 / 3))


def test_one_run_has_its_questions_only():
    own = [0.0, 1.0, 1.0, 3.0]
    value, low, high = clustered.mean(own, [7] * 4, "abcd")
    wanted = stats.ttest_1samp(own, 0).confidence_interval()
    assert (low, high) == pytest.approx((wanted.low, wanted.high))


@pytest.mark.parametrize("effect", ["none", "run", "question", "both"])
def test_covers_the_truth(effect):
    """Of 400 samples at least nine tenths of the intervals hold the true mean."""
    rng = np.random.default_rng(2)
    runs, questions = crossed(5, 40)
    held = 0
    for _ in range(400):
        values = rng.normal(size=200)
        if effect in ("run", "both"):
            values += rng.normal(size=5)[runs]
        if effect in ("question", "both"):
            values += rng.normal(size=40)[questions]
        _, low, high = clustered.mean(values, runs, questions)
        held += low <= 0 <= high
    assert held >= 360


def test_plain_pooling_would_not_cover():
    """The check of the check above: run effects make N independent answers a lie."""
    rng = np.random.default_rng(3)
    runs, _ = crossed(5, 40)
    held = 0
    for _ in range(400):
        values = rng.normal(size=200) + rng.normal(size=5)[runs]
        held += abs(stats.ttest_1samp(values, 0).statistic) < 1.97
    assert held < 200


def test_share_has_a_width_at_its_ends_and_stays_inside():
    runs, questions = crossed(5, 30)
    value, low, high = clustered.share(np.ones(150), runs, questions)
    z = stats.t.ppf(0.975, 4)
    assert (value, high) == (1, 1)
    assert low == pytest.approx(30 / (30 + z * z))  # Wilson, 30 of 30
    assert clustered.share(np.zeros(150), runs, questions)[:2] == (0, 0)
    one = clustered.share(np.eye(1, 150).ravel(), runs, questions)
    assert 0 < one[1] < one[0] < one[2] < 1


def test_share_is_wilson_for_as_many_answers_as_the_runs_are_worth():
    """By hand: runs of 100 different questions with 20, 40, 60 and 80 hits."""
    hits = np.concatenate([np.arange(100) < k for k in (20, 40, 60, 80)])
    value, low, high = clustered.share(hits, np.repeat(range(4), 100), range(400))
    variance = np.var([0.2, 0.4, 0.6, 0.8], ddof=1) / 4
    n, z = 0.25 / variance, stats.t.ppf(0.975, 3)  # n is 15 of 400
    root = z * np.sqrt(0.25 / n + z * z / (4 * n * n))
    ends = [(0.5 + z * z / (2 * n) + sign * root) / (1 + z * z / n) for sign in (-1, 1)]
    assert (value, low, high) == pytest.approx((0.5, *ends))


def test_where_no_answer_differs_one_question_might():
    runs, questions = crossed(5, 50)
    value, low, high = clustered.mean(np.ones(250), runs, questions)
    half = stats.t.ppf(0.975, 4) / 50
    assert (value, low, high) == pytest.approx((1, 1 - half, 1 + half))
    found = clustered.ratio(np.ones(250), np.full(250, 0.5), runs, questions)
    assert found == pytest.approx((2, 2 - 2 * half, 2 + 2 * half))


def test_share_of_independent_answers_is_near_wilson():
    hits = np.random.default_rng(4).random(400) < 0.3
    value, low, high = clustered.share(hits, [0] * 400, range(400))
    assert (low, high) == pytest.approx(wilson_interval(hits.sum(), 400), abs=1e-3)
    assert value == hits.mean()


def test_ratio_agrees_with_a_bootstrap_over_runs_and_is_scale_free():
    rng = np.random.default_rng(5)
    runs = np.repeat(np.arange(12), 50)
    bottom = rng.random(600) + 0.5
    top = 0.4 * bottom + rng.normal(size=600) * 0.2 + rng.normal(size=12)[runs] * 0.1
    value, low, high = clustered.ratio(top, bottom, runs, np.arange(600))
    assert value == pytest.approx(top.sum() / bottom.sum())
    drawn = rng.integers(12, size=(4000, 12))
    sums = np.array(
        [[top[runs == r].sum(), bottom[runs == r].sum()] for r in range(12)]
    )
    again = sums[drawn].sum(axis=1)
    error = (again[:, 0] / again[:, 1]).std()
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 11) * error, rel=0.15)
    scaled = clustered.ratio(3 * top, 3 * bottom, runs, np.arange(600))
    assert scaled == pytest.approx((value, low, high))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="twice in run 0"):
        clustered.mean([1, 2], [0, 0], ["a", "a"])
    with pytest.raises(ValueError, match="2 values, 1 runs and 2 questions"):
        clustered.mean([1, 2], [0], ["a", "b"])
    with pytest.raises(ValueError, match="needs two"):
        clustered.share([1], [0], ["a"])
    with pytest.raises(ValueError, match="mean of the bottom is 0"):
        clustered.ratio([1, 1], [-1, 1], [0, 0], ["a", "b"])
    with pytest.raises(ValueError, match="a value is no number"):
        clustered.mean([1, np.nan], [0, 0], ["a", "b"])
    with pytest.raises(ValueError, match="confidence=95"):
        clustered.mean([1, 2], [0, 0], ["a", "b"], confidence=95)
