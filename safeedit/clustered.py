"""Intervals where several runs ask some of the same questions.

Five runs that ask 72 questions each are not 360 questions. All answers of a run share
its split, its training and its attack; and a question that several splits drew is the
same question each time. The variance of a mean over all N answers counts both
(Cameron, Gelbach and Miller 2011):

    V = V_run + V_question - V_answer
    V_A = G/(G - 1)  sum over the G clusters of A of (sum of e in the cluster)^2 / N^2

with e the value of an answer less the mean. Each answer is a cluster of its own in the
last term. Where V falls below one of its first two terms, that one counts, and it is
never less than one question that differs would give. Intervals take Student's quantile
with min(G) - 1 degrees of freedom, so few runs give wide ones. One run alone says
nothing of runs: then the questions are the clusters.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy import stats

Values = Sequence[float] | np.ndarray
Labels = Sequence[Hashable] | np.ndarray


def mean(
    values: Values, runs: Labels, questions: Labels, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Mean with its interval, such as of paired differences.

    Args:
        values: one for each answer, hits or differences of hits: they move by 1.
        runs: the run of each answer.
        questions: the question of each answer, at most once in a run.
        confidence: of the interval.

    Returns:
        (mean, low, high).

    Raises:
        ValueError: no two questions, not one label for each value, a question twice in
            a run, or a value that is no number.
    """
    own = np.asarray(values, dtype=float)
    half, degrees = _error(own - own.mean(), runs, questions)
    half *= _quantile(degrees, confidence)
    return float(own.mean()), float(own.mean() - half), float(own.mean() + half)


def standard_error(values: Values, runs: Labels, questions: Labels) -> float:
    """Square root of V, of a mean; arguments and errors as for `mean`."""
    own = np.asarray(values, dtype=float)
    return _error(own - own.mean(), runs, questions)[0]


def share(
    hits: Values, runs: Labels, questions: Labels, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Share of hits with Wilson's interval for as many answers as V is worth.

    With n' = p (1 - p) / V, at most the number of different questions (which is what
    counts where every answer is alike), and Student's quantile for Wilson's z, the
    interval stays inside [0, 1] and has a width at 0 and at 1.

    Args:
        hits: 1 or 0 for each answer.
        runs, questions, confidence: as in `mean`.

    Returns:
        (share, low, high).

    Raises:
        ValueError: as `mean`.
    """
    own = np.asarray(hits, dtype=float)
    p = float(own.mean())
    error, degrees = _error(own - p, runs, questions)
    n = float(len(np.unique(_codes(questions))))
    if 0 < p < 1:
        n = min(n, p * (1 - p) / error**2)
    z = _quantile(degrees, confidence)
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(max(p * (1 - p), 0) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if p == 0 else (centre - half) / scale  # exact ends, free of rounding
    return p, low, 1.0 if p == 1 else (centre + half) / scale


def ratio(
    top: Values,
    bottom: Values,
    runs: Labels,
    questions: Labels,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """Ratio R of two means, such as a recovery, with its interval.

    By the delta method: R moves with the mean of (top - R bottom) / mean(bottom), where
    a question that differs counts 1 / mean(bottom).

    Args:
        top, bottom: a value of each for each answer.
        runs, questions, confidence: as in `mean`.

    Returns:
        (ratio, low, high).

    Raises:
        ValueError: as `mean`, or a bottom whose mean is 0.
    """
    above, below = np.asarray(top, dtype=float), np.asarray(bottom, dtype=float)
    if above.shape != below.shape:
        raise ValueError(f"Got {len(above)} and {len(below)} values; give pairs.")
    under = below.mean()
    if under == 0:
        raise ValueError("the mean of the bottom is 0: there is no ratio to it")
    found = above.mean() / under
    half, degrees = _error((above - found * below) / under, runs, questions, 1 / under)
    half *= _quantile(degrees, confidence)
    return float(found), float(found - half), float(found + half)


def _error(
    residuals: np.ndarray, runs: Labels, questions: Labels, step: float = 1.0
) -> tuple[float, int]:
    """Square root of V and its degrees of freedom; see the module.

    `step` is what one answer moves by, for the least V.
    """
    n = len(residuals)
    if not n == len(runs) == len(questions):
        raise ValueError(
            f"Got {n} values, {len(runs)} runs and {len(questions)} questions; give "
            "one of each for every answer."
        )
    if not np.isfinite(residuals).all():
        raise ValueError("a value is no number; leave out what was not measured")
    kinds = [_codes(labels) for labels in (runs, questions)]
    counts = [int(codes.max(initial=-1)) + 1 for codes in kinds]
    first = np.unique(kinds[0] * n + kinds[1], return_index=True)[1]
    if len(first) < n:
        again = min(set(range(n)) - set(first.tolist()))
        raise ValueError(
            f"question {questions[again]!r} stands twice in run {runs[again]!r}; give "
            "each once"
        )
    if counts[1] < 2:
        raise ValueError(f"Got {counts[1]} questions; an interval needs two or more.")

    def term(codes: np.ndarray) -> float:
        sums = np.bincount(codes, residuals)
        return float(sums @ sums) / n**2 * len(sums) / (len(sums) - 1)

    least = (step / counts[1]) ** 2
    by_question = max(term(kinds[1]), least)
    if counts[0] < 2:
        return math.sqrt(by_question), counts[1] - 1
    by_run = term(kinds[0])
    both = by_run + by_question - term(np.arange(n))
    return math.sqrt(max(both, by_run, by_question)), min(counts) - 1


def _codes(labels: Labels) -> np.ndarray:
    """Whole numbers from 0 on, one for each different label."""
    if isinstance(labels, np.ndarray):
        return np.unique(labels, return_inverse=True)[1]
    place = {label: code for code, label in enumerate(dict.fromkeys(labels))}
    return np.array([place[label] for label in labels], dtype=int)


def _quantile(degrees: int, confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: must lie between 0 and 1")
    return float(stats.t.ppf(0.5 + confidence / 2, degrees))
