"""What is forgotten, what is kept, and the settings of unlearning."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from safeedit.edits.losses import NORMALIZE
from safeedit.edits.smoothing import SmoothingConfig
from safeedit.finetuning import FinetuneConfig

GRADIENT_METHODS = ("graddiff", "npo", "dpo", "rmu")
CONSTRAINED_METHODS = ("pcr", "tsr", "arr")
RETAIN = ("nll", "kl")
METHODS = GRADIENT_METHODS + CONSTRAINED_METHODS
LINEAR = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)


@dataclass(frozen=True)
class UnlearnData:
    """Forget set and retain set: plain texts, and chats of (question, answer).

    Raises:
        ValueError: an empty forget or retain set, an empty text, or a row that is in
            both sets.
    """

    forget_texts: tuple[str, ...] = ()
    forget_chats: tuple[tuple[str, str], ...] = ()
    retain_texts: tuple[str, ...] = ()
    retain_chats: tuple[tuple[str, str], ...] = ()
    refusals: tuple[str, ...] = ()  # answers of somebody who does not know, for DPO

    def __post_init__(self) -> None:
        for name in ("forget_texts", "retain_texts", "refusals"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        for name in ("forget_chats", "retain_chats"):
            object.__setattr__(self, name, _chats(name, getattr(self, name)))
        for part in ("forget", "retain"):
            if not (getattr(self, f"{part}_texts") or getattr(self, f"{part}_chats")):
                raise ValueError(
                    f"the {part} set is empty; give {part}_texts or {part}_chats"
                )
        shared = _shared("texts", self.forget_texts, self.retain_texts)
        shared += _shared("chats", self.forget_chats, self.retain_chats)
        if shared:
            more = f", and {len(shared) - 4} more" if len(shared) > 4 else ""
            raise ValueError(
                f"forget set and retain set overlap in {len(shared)} rows: "
                f"{'; '.join(shared[:4])}{more}. Remove them from one of the two"
            )

    def digest(self) -> str:
        """Hash of the content, which tells one data set from another."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def sizes(self) -> dict[str, int]:
        """Number of rows of each part."""
        return {name: len(rows) for name, rows in asdict(self).items()}


@dataclass(frozen=True)
class UnlearnConfig:
    """Settings of `unlearn`; of those named after a method only its own are read."""

    steps: int = 125  # updates, as Unlearn-Smooth (arXiv 2502.05374)
    learning_rate: float = 3e-3  # for stand-ins, with rmu and lora_rank 1e-2 to 2e-2;
    # 5e-6 (rmu: 5e-5) in the papers, for 7e9 weights
    batch_size: int = 8  # forget sequences a step
    retain_batch: int | None = None  # retain sequences a step; None: as many
    warmup: float = 0.1  # share of the steps in which the rate rises
    decay: str = "linear"  # or "constant"
    weight_decay: float = 0.0  # decoupled
    clip: float | None = None  # largest norm of the joint gradient
    gamma: float = 2.0  # weight of the retain loss; pcr, tsr, arr: see `unlearn`
    retain: str = "nll"  # retain loss: "nll" of the texts, or "kl" from the start
    # weights, which takes one more forward pass; rmu has its own
    chats: float = 0.5  # share of chats in a forget batch; DPO has chats only
    retain_chats: float = 0.5  # share of chats in a retain batch
    beta: float = 0.1  # npo, dpo: inverse temperature, per nat
    normalize: str = "sum"  # npo: "sum" (its paper) or "mean" over the tokens
    rmu_layer: int | None = None  # block whose output is misdirected; None: a third
    # of the depth, where it was best on the stand-ins (7 of 32 in its paper)
    rmu_layers: tuple[int, ...] | None = None  # blocks whose down_proj is trained;
    # None: that block and the two before it
    rmu_scale: float = 6.5  # c over the mean residual norm of retain tokens there
    rmu_alpha: float = 15.0  # weight of its retain loss, in place of gamma
    lora_rank: int | None = None  # None: full rank
    lora_alpha: float = 16.0  # the change is alpha / rank * B A
    lora_targets: tuple[str, ...] = LINEAR  # linear layers of the blocks
    smoothing: SmoothingConfig = field(default_factory=SmoothingConfig)
    prompts: int = 32  # pcr, tsr, arr: most forget questions, and most retain questions
    layers: int | tuple[int, ...] | None = None  # pcr, tsr, arr: as in PCRConfig
    radius: float = 1.1  # pcr: eps over the median distance to the nearest concept
    budget: float = 0.05  # tsr, arr: norm of the change over that of its weights
    tokens: tuple[str, ...] | None = None  # tsr, arr: first words, as in TSRConfig
    seed: int = 0  # of the order of data, and of every draw
    checkpoint_every: int = 25  # steps

    def __post_init__(self) -> None:
        _ = self.finetuning  # refuses what the training loop does not take
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps!r}; give a whole number >= 1")
        if self.normalize not in NORMALIZE:
            raise ValueError(f"normalize is {self.normalize!r}; use one of {NORMALIZE}")
        if self.retain not in RETAIN:
            raise ValueError(f"retain is {self.retain!r}; use one of {RETAIN}")
        for name in (
            "beta",
            "rmu_scale",
            "rmu_alpha",
            "lora_alpha",
            "radius",
            "budget",
        ):
            self._number(name, 0, math.inf, open_below=True)
        self._number("gamma", 0, math.inf)
        for name in ("chats", "retain_chats"):
            self._number(name, 0, 1)
        for name in ("lora_rank", "retain_batch", "prompts"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not ((name != "prompts" and value is None) or (whole and value >= 1)):
                raise ValueError(f"{name} is {value!r}; give a whole number >= 1")
        for name in ("rmu_layers", "lora_targets", "tokens"):
            value = getattr(self, name)
            if value is None and name != "lora_targets":
                continue
            if isinstance(value, str) or not isinstance(value, Sequence) or not value:
                raise ValueError(f"{name} is {value!r}; give a tuple, not empty")
            object.__setattr__(self, name, tuple(value))
        if self.smoothing.kind == "wa" and self.smoothing.start > self.steps:
            raise ValueError(
                f"weight averaging starts at step {self.smoothing.start}, after the "
                f"last of {self.steps}; give SmoothingConfig(kind='wa', start=...) "
                "with an earlier one"
            )

    @property
    def finetuning(self) -> FinetuneConfig:
        """The part of the settings that is the training loop's."""
        return FinetuneConfig(
            steps=self.steps,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            warmup=self.warmup,
            decay=self.decay,
            weight_decay=self.weight_decay,
            clip=self.clip,
            seed=self.seed,
            checkpoint_every=self.checkpoint_every,
        )

    def _number(
        self, name: str, low: float, high: float, open_below: bool = False
    ) -> None:
        value = getattr(self, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        inside = number and math.isfinite(value) and low <= value <= high
        if not inside or (open_below and value == low):
            bounds = f"> {low}" if open_below else f">= {low}"
            if high < math.inf:
                bounds = f"in [{low}, {high}]"
            raise ValueError(f"{name} is {value!r}; it must be finite and {bounds}")


def _texts(name: str, rows: Sequence[str]) -> tuple[str, ...]:
    if isinstance(rows, str):
        raise ValueError(f"{name} is one string, {rows[:40]!r}; give a tuple of texts")
    for index, row in enumerate(rows):
        if not isinstance(row, str) or not row.strip():
            raise ValueError(f"{name}[{index}] is {row!r}; give a text")
    return tuple(rows)


def _chats(name: str, rows: Sequence[Sequence[str]]) -> tuple[tuple[str, str], ...]:
    for index, row in enumerate(rows):
        pair = not isinstance(row, str) and len(row) == 2
        if not pair or not all(isinstance(t, str) and t.strip() for t in row):
            raise ValueError(
                f"{name}[{index}] is {row!r}; give a pair (question, answer) of texts"
            )
    return tuple((question, answer) for question, answer in rows)


def _shared(kind: str, forget: Sequence, retain: Sequence) -> list[str]:
    """Rows that are the same in both sets but for white space, in words."""

    def plain(row: str | tuple[str, str]) -> str:
        return "\n".join(
            " ".join(t.split()) for t in ([row, ""] if isinstance(row, str) else row)
        )

    places: dict[str, int] = {}
    for index, row in enumerate(retain):
        places.setdefault(plain(row), index)
    return [
        f"forget_{kind}[{index}] is retain_{kind}[{places[plain(row)]}], {row!r:.60}"
        for index, row in enumerate(forget)
        if plain(row) in places
    ]
