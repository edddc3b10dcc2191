"""The unlearning methods of the cross table, and the settings tried for each.

Every method gets the same number of settings and is judged on the same validation
questions (`choose`), the smoothed ones like the plain ones: a method that is tuned
longer looks better. For the smoothers the setting that varies is how much they smooth;
the rest is that of plain NPO.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .edits.smoothing import SmoothingConfig
from .edits.unlearning_config import UnlearnConfig
from .knowledge_measures import Measurement
from .knowledge_statistics import utility_kept


@dataclass(frozen=True)
class Candidate:
    """A method of `edits.unlearn` with one setting."""

    method: str
    config: UnlearnConfig
    label: str  # the setting in words


# What all methods that train have in common. Twice as many retain sequences as forget
# ones, since the retain set is wider; clipped, since a step at these rates can diverge.
PLAIN = UnlearnConfig(retain_batch=16, clip=1.0)


def _candidates(method: str, label: str, *settings: Mapping) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(method, replace(PLAIN, **setting), label.format(**setting))
        for setting in settings
    )


def _smoothed(label: str, *settings: Mapping) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(
            "npo",
            replace(PLAIN, smoothing=SmoothingConfig(**setting)),
            label.format(**setting),
        )
        for setting in settings
    )


RATE = "rate {learning_rate:g}, gamma {gamma:g}"
METHODS: dict[str, tuple[Candidate, ...]] = {
    "GradDiff": _candidates(
        "graddiff",
        RATE,
        dict(learning_rate=2e-3, gamma=4.0),
        dict(learning_rate=3e-3, gamma=2.0),
        dict(learning_rate=3e-3, gamma=4.0),
    ),
    "NPO": _candidates(
        "npo",
        RATE + ", beta {beta:g}",
        dict(learning_rate=3e-3, gamma=2.0, beta=0.1),
        dict(learning_rate=3e-3, gamma=4.0, beta=0.1),
        dict(learning_rate=3e-3, gamma=2.0, beta=1.0, normalize="mean"),
    ),
    "DPO": _candidates(
        "dpo",
        RATE,
        dict(learning_rate=3e-3, gamma=0.5),
        dict(learning_rate=3e-3, gamma=2.0),
        dict(learning_rate=5e-3, gamma=1.0),
    ),
    "RMU": _candidates(
        "rmu",
        "rate {learning_rate:g}, alpha {rmu_alpha:g}",
        dict(learning_rate=2e-2, rmu_alpha=15.0, clip=None),
        dict(learning_rate=2e-2, rmu_alpha=30.0, clip=None),
        dict(learning_rate=1e-2, rmu_alpha=8.0, clip=None),
    ),
    "NPO+SAM": _smoothed(
        "radius {rho_relative:g}",
        dict(kind="sam", rho_relative=3e-5),
        dict(kind="sam", rho_relative=1e-4),
        dict(kind="sam", rho_relative=1e-3),
    ),
    "NPO+RS": _smoothed(
        "noise {sigma_relative:g}",
        dict(kind="rs", sigma_relative=3e-3),
        dict(kind="rs", sigma_relative=1e-2),
        dict(kind="rs", sigma_relative=3e-2),
    ),
    "NPO+GP": _smoothed(
        "weight {weight:g}",
        dict(kind="gp", weight=1e-4),
        dict(kind="gp", weight=1e-3),
        dict(kind="gp", weight=1e-2),
    ),
    "NPO+CR": _smoothed(
        "weight {weight:g}",
        dict(kind="cr", weight=1e-4),
        dict(kind="cr", weight=1e-3),
        dict(kind="cr", weight=1e-2),
    ),
    "NPO+WA": _smoothed(
        "from step {start}",
        dict(kind="wa", start=100),
        dict(kind="wa", start=75),
        dict(kind="wa", start=50),
    ),
    "TSR": _candidates(
        "tsr", "budget {budget:g}", *({"budget": b} for b in (0.02, 0.05, 0.2))
    ),
    "ARR": _candidates(
        "arr", "budget {budget:g}", *({"budget": b} for b in (0.02, 0.05, 0.2))
    ),
    "PCR": _candidates(
        "pcr", "radius {radius:g}", *({"radius": r} for r in (1.1, 2.0, 4.0))
    ),
}


def choose(base: Measurement, tried: Sequence[Measurement]) -> int:
    """Index of the best setting by validation questions.

    Of the settings that keep nine tenths of the general answers, letters and open ones
    each, the one that leaves least of the hazard answers (letters and open ones
    together); where none keeps them, the one that keeps most.

    Args:
        base: the model before unlearning.
        tried: the model after it, one measurement for each setting, same questions.

    Raises:
        ValueError: nothing tried.
    """
    if not tried:
        raise ValueError("Got no measurements to choose from; give at least one.")

    def value(now: Measurement) -> tuple[bool, float]:
        letters, opens = now.letters("general"), now.opens("general")
        kept = utility_kept(letters, base.letters("general")) and utility_kept(
            opens, base.opens("general")
        )
        if kept:
            return True, -(sum(now.letters()) + sum(now.opens()))
        return False, sum(letters) + sum(opens)

    return max(range(len(tried)), key=lambda index: value(tried[index]))
