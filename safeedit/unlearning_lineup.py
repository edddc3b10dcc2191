"""The unlearning methods of the cross table, and the settings tried for each.

Every method gets the same number of settings and is judged on the same validation
questions (`choose`), the smoothed ones like the plain ones: a method that is tuned
longer looks better. A smoothed method has the setting that was chosen for the plain
one, and what varies is how much it smooths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from .edits.smoothing import SmoothingConfig
from .edits.unlearning_config import UnlearnConfig
from .knowledge_measures import Measurement
from .world import LETTERS


@dataclass(frozen=True)
class Candidate:
    """A method of `edits.unlearn` with one setting."""

    method: str
    config: UnlearnConfig
    label: str  # the setting in words


# What all methods that train have in common. Twice as many retain sequences as forget
# ones, most of them questions, since the retain set is wider and questions are what is
# lost first; KL, since it keeps more with as many of them; clipped, since a step at
# these rates can diverge.
PLAIN = UnlearnConfig(
    steps=240,
    learning_rate=2.5e-3,
    retain_batch=16,
    retain="kl",
    chats=0.75,
    retain_chats=0.9,
    clip=1.0,
)


def _candidates(method: str, label: str, *settings: Mapping) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(method, replace(PLAIN, **setting), label.format(**setting))
        for setting in settings
    )


# GradDiff and DPO have half the steps: the one has no lower bound, and the other has
# learned to refuse long before.
_SHORT = dict(steps=120)
_RMU = dict(learning_rate=2e-2, steps=250, retain_batch=32, chats=0.9, clip=None)
METHODS: dict[str, tuple[Candidate, ...]] = {
    "GradDiff": _candidates(
        "graddiff",
        "gamma {gamma:g}",
        *({"gamma": g, **_SHORT} for g in (2.0, 4.0, 8.0)),
    ),
    "NPO": (
        *_candidates("npo", "gamma {gamma:g}", *({"gamma": g} for g in (4.0, 8.0))),
        # With 16 sequences a step even this weight loses general letters of Mistral.
        *_candidates(
            "npo",
            "gamma {gamma:g}, retain batch {retain_batch}",
            {"gamma": 16.0, "retain_batch": 32},
        ),
    ),
    "DPO": _candidates(
        "dpo",
        "gamma {gamma:g}",
        *({"gamma": g, "learning_rate": 3e-3, **_SHORT} for g in (0.5, 1.0, 2.0)),
    ),
    "RMU": _candidates(
        "rmu",
        "alpha {rmu_alpha:g}",
        *({"rmu_alpha": a, **_RMU} for a in (80.0, 120.0, 160.0)),
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
SMOOTHERS: dict[str, tuple[str, tuple[dict, ...]]] = {
    "SAM": (
        "radius {rho_relative:g}",
        tuple(dict(kind="sam", rho_relative=r) for r in (3e-5, 1e-4, 1e-3)),
    ),
    "RS": (
        "noise {sigma_relative:g}",
        tuple(dict(kind="rs", sigma_relative=s) for s in (3e-3, 1e-2, 3e-2)),
    ),
    "GP": (
        "weight {weight:g}",
        tuple(dict(kind="gp", weight=w) for w in (1e-4, 1e-3, 1e-2)),
    ),
    "CR": (
        "weight {weight:g}",
        tuple(dict(kind="cr", weight=w) for w in (1e-4, 1e-3, 1e-2)),
    ),
    "WA": (
        "from step {start}",
        tuple(dict(kind="wa", start=s) for s in (200, 160, 120)),
    ),
}
NAMES = (*METHODS, *(f"NPO+{kind}" for kind in SMOOTHERS))


def candidates(name: str, plain: Candidate | None = None) -> tuple[Candidate, ...]:
    """The settings that are tried for one method.

    Args:
        name: one of `NAMES`.
        plain: for a smoothed method the setting chosen for the plain one.

    Raises:
        ValueError: another name, or a smoothed method without `plain`.
    """
    if name not in NAMES:
        raise ValueError(f"name={name!r}: one of {NAMES}")
    if name in METHODS:
        return METHODS[name]
    if plain is None:
        raise ValueError(
            f"{name} smooths the setting chosen for NPO; give it as `plain`"
        )
    label, settings = SMOOTHERS[name.removeprefix("NPO+")]
    return tuple(
        Candidate(
            plain.method,
            replace(plain.config, smoothing=SmoothingConfig(**setting)),
            f"{plain.label}, {label.format(**setting)}",
        )
        for setting in settings
    )


def chosen(indices: Mapping[str, int]) -> dict[str, Candidate]:
    """The setting of each method, from its place among those tried.

    Args:
        indices: name -> index, "NPO" among them where a smoothed one is.

    Raises:
        ValueError: see `candidates`.
        IndexError: a method has no such setting.
    """
    plain = METHODS["NPO"][indices["NPO"]] if "NPO" in indices else None
    return {name: candidates(name, plain)[index] for name, index in indices.items()}


def choose(tried: Sequence[Measurement]) -> int:
    """Index of the best setting by validation questions.

    The one with the largest difference between the shares of general answers that are
    right and of hazard answers that are (as Youden's index), letters and open answers
    counting alike. Hazard letters below chance count as chance: a model that avoids
    the right letter has not forgotten more. The first of equals.

    Args:
        tried: a model after unlearning, one measurement for each setting, all on the
            same questions.

    Raises:
        ValueError: nothing tried.
    """
    if not tried:
        raise ValueError("Got no measurements to choose from; give at least one.")

    def value(now: Measurement) -> float:
        kept = mean(now.letters("general")) + mean(now.opens("general"))
        return kept - max(mean(now.letters()), 1 / len(LETTERS)) - mean(now.opens())

    return max(range(len(tried)), key=lambda index: value(tried[index]))
