"""What the measured hits and scores of several models say together.

Recovery compares an attacked model with a base that has the knowledge and with an
oracle that never saw it, all three after the same attack:

    recovery = (accuracy - oracle) / (base - oracle)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from .metrics import paired_bootstrap


def recovery(
    attacked: Sequence[float],
    oracle: Sequence[float],
    base: Sequence[float],
    seed: int = 0,
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """Share of the knowledge that an attack brings back, with a bootstrap interval.

    0: no better than a model that never knew; 1: as good as the one that never forgot.
    Questions are resampled, with all three models' hits on them together.

    Args:
        attacked: hit (1) or miss (0) of the attacked unlearned model on each question.
        oracle: the same of the oracle after the same attack.
        base: the same of the base model after the same attack.
        seed: of the resampling.
        resamples: bootstrap samples.
        confidence: of the interval.

    Returns:
        (recovery, low, high), not clipped to [0, 1].

    Raises:
        ValueError: not the same number of questions, none, or base and oracle cannot
            be told apart on them: recovery is then not defined.
    """
    if not len(attacked) == len(oracle) == len(base) or not len(base):
        raise ValueError(
            f"Got {len(attacked)}, {len(oracle)} and {len(base)} hits of the attacked "
            "model, the oracle and the base; give one of each for every question."
        )
    gap, least, _ = paired_bootstrap(base, oracle, seed, resamples, confidence)
    if least <= 0:
        raise ValueError(
            f"On these {len(base)} questions the base is {gap:+.3f} above the oracle, "
            f"with {least:+.3f} still in the interval: recovery is not defined where "
            "the two cannot be told apart. Use more questions, or a base that knows "
            "more."
        )
    hits = np.array([attacked, oracle, base], dtype=float)
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(base), size=(resamples, len(base)))
    a, o, b = (row[draws].mean(axis=1) for row in hits)
    # Fewer resamples than the tail holds have no gap; they have no ratio either.
    ratios = (a - o)[b > o] / (b - o)[b > o]
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    mean_a, mean_o, mean_b = hits.mean(axis=1)
    return float((mean_a - mean_o) / (mean_b - mean_o)), float(low), float(high)


def utility_kept(
    after: Sequence[float], before: Sequence[float], share: float = 0.9
) -> bool:
    """Whether accuracy on general questions is at least `share` of what it was.

    The gate of methods and attacks: one that wrecks the model shows nothing.

    Args:
        after: hits on the general questions after the method or the attack.
        before: hits of the model before, on the same questions.
        share: of the accuracy before, in (0, 1].

    Raises:
        ValueError: not the same questions, none, no hit before, or `share` outside
            (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: must lie in (0, 1]")
    if len(after) != len(before) or not len(before):
        raise ValueError(
            f"Got {len(after)} hits after and {len(before)} before; measure both on "
            "the same questions."
        )
    if not sum(before):
        raise ValueError(
            f"None of the {len(before)} answers before was right, so there is no "
            "utility to keep; check the model and the questions."
        )
    return sum(after) >= share * sum(before) - 1e-9  # room for the product's rounding


def auc(
    members: Sequence[float], others: Sequence[float], confidence: float = 0.95
) -> tuple[float, float, float]:
    """Area under the ROC curve of a score, with a score interval.

    P(score of a member > score of another) + P(equal) / 2 over all pairs. The interval
    holds every area A with |area - A| <= z sqrt(V(A)), V the variance of Hanley and
    McNeil 1982 at A:

        V(A) = A (1 - A) (1 + (m - 1)(1 - A)/(2 - A) + (n - 1) A/(1 + A)) / (m n)

    the analogue of Wilson's interval (Newcombe 2006). A bootstrap, or DeLong's
    variance, gives no width where the scores separate wholly, as memorised passages do.

    Args:
        members: scores of m texts that training held; high means "member".
        others: scores of n texts that it did not hold.
        confidence: of the interval.

    Returns:
        (area, low, high), each in [0, 1].

    Raises:
        ValueError: no scores on one side.
    """
    m, n = len(members), len(others)
    if not m or not n:
        raise ValueError(f"Got {m} and {n} scores; give at least one of each.")
    gaps = np.subtract.outer(
        np.asarray(members, dtype=float), np.asarray(others, dtype=float)
    )
    area = float((gaps > 0).mean() + (gaps == 0).mean() / 2)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)

    def outside(a: float) -> bool:
        terms = 1 + (m - 1) * (1 - a) / (2 - a) + (n - 1) * a / (1 + a)
        return abs(area - a) > z * math.sqrt(a * (1 - a) * terms / (m * n))

    ends = []
    for end in (0.0, 1.0):
        inner, outer = area, end
        for _ in range(60):  # bisection, to the precision of a float
            middle = (inner + outer) / 2
            inner, outer = (inner, middle) if outside(middle) else (middle, outer)
        ends.append(inner if outside(outer) else outer)
    return area, ends[0], ends[1]
