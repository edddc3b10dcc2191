"""One unlearned model under attack: what its attackers have, and what is asked of it.

Every cell of the cross table is measured on the same evaluation questions, so that two
cells can be compared question by question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .chat import Chat
from .knowledge import Split
from .knowledge_measures import Measurement, letter_accuracy, open_accuracy
from .world import Fact


@dataclass(frozen=True)
class Size:
    """How much of everything; the defaults are the published ones."""

    samples: tuple[int, ...] = (20, 40, 60)  # relearning
    few: int = 10  # samples of the attack with few of them
    scored: int = 32  # samples for pruning, from each side
    shares: tuple[tuple[float, float], ...] = (
        (0.005, 0.005),
        (0.01, 0.01),
        (0.025, 0.025),
        (0.05, 0.05),
        (0.1, 0.05),
        (0.1, 0.1),
    )  # (p, q) of pruning
    prompts: int = 60  # for the directions of orthogonalization, from each side
    prefix_steps: int = 10
    prefix_width: int = 32
    jailbreaks: int = 16
    limit: int | None = None  # evaluation questions of each domain


ASKED = {"letter_accuracy": letter_accuracy, "open_accuracy": open_accuracy}
SMOKE = Size((4, 8), 2, 4, ((0.05, 0.05),), 8, 2, 4, 4, 12)


@dataclass(frozen=True)
class Bench:
    """One model under attack and what its attackers have.

    Attributes:
        chat: the model with the unlearning edit in place.
        original: the model before unlearning.
        split: who is in which part.
        size: how much of everything.
        learning_rate: of the attacks that train all weights. This and the next are
            the strongest of those tried that leave the base as it is.
        lora_rate: of the attacks that train LoRA factors.
    """

    chat: Chat
    original: Chat
    split: Split
    size: Size = Size()
    learning_rate: float = 2e-3
    lora_rate: float = 1e-2

    def measured(self, domains: Sequence[str] = ("hazard", "general")) -> Measurement:
        """Letters and open answers to evaluation questions of some domains."""
        asked = {domain: self.facts(domain, "evaluation") for domain in domains}
        facts = [fact for part in asked.values() for fact in part]
        values: dict[tuple[str, str], list[float]] = {}
        for metric, ask in ASKED.items():
            hits = list(map(float, ask(self.chat, facts)))
            for domain, part in asked.items():
                values[metric, domain], hits = hits[: len(part)], hits[len(part) :]
        return Measurement(values, [])

    def facts(self, domain: str, part: str) -> list[Fact]:
        """Facts of one domain and part, at most `size.limit`."""
        return self.split.facts(domain, part)[: self.size.limit]


@dataclass(frozen=True)
class Cell:
    """What one attack, or one stage of it, brought out.

    Attributes:
        attack: name of the column.
        measurement: hits on the evaluation questions.
        fair: whether an attacker can do it without the original model.
        chosen: what was chosen on validation questions, in words.
    """

    attack: str
    measurement: Measurement
    fair: bool = True
    chosen: str = ""
