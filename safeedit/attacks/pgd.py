"""Projected gradient descent (PGD) on relaxed prompts.

The suffix is a point X of a product of simplexes (`RelaxedSuffixes`) and the model
reads X E. Each step is one gradient, without a search over candidates: about as dear as
scoring a handful of suffixes. Every few steps the point is read out as tokens, and it
is the loss of those, typed and tokenized again, that counts.

Geisler et al. 2024, "Attacking Large Language Models with Projected Gradient Descent",
arXiv 2402.09154. Behaviours are attacked side by side; one that has succeeded leaves
the batch.

Ours are the scaling of Adam (see `relaxed`) and two additions that can be switched
off: columns of X are only tokens that cannot merge with their neighbors (`separate`),
and a read-out also tries the best suffix with some of its tokens drawn anew from the
rows of X (`samples`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch

from safeedit.attacks.objective import Objective
from safeedit.attacks.relaxed import RelaxedSuffixes, separate_tokens
from safeedit.attacks.result import AttackResult
from safeedit.attacks.search import (
    Judge,
    Search,
    check_behaviours,
    each_step,
    pool_losses,
    result_of,
)
from safeedit.attacks.smoothed import smoothed_losses
from safeedit.attacks.suffix import allowed_tokens, make_slots, typed
from safeedit.chat import Chat
from safeedit.defenses import Defense, is_random, seen_through


@dataclass(frozen=True)
class PGDConfig:
    """Settings of PGD; the defaults in brackets are those of the authors' code."""

    num_steps: int = 500  # steps for each behaviour [5,000]
    suffix_length: int = 20  # tokens [25, and 25 before the request]
    learning_rate: float = 0.11  # of Adam, in probability [0.11]
    schedule: Literal["constant", "cosine"] = "constant"  # ["cosine"]
    constant_steps: int = 100  # before the cosine starts [100]
    period: int = 60  # steps of one cosine, after which it starts anew [60]
    final_rate: float = 0.325  # learning rate at the end of a cosine [0.325]
    clip: float = 20.0  # largest gradient norm of one token's row [20]
    entropy: float = 0.4  # pull to the corners: share of the Gini index cut [0.4]
    anneal: int = 250  # steps over which the pull grows from 0 [250]
    read_every: int = 5  # steps between two read-outs [1]
    patience: int = 100  # steps without a better read-out, then back to the best [100]
    separate: bool = True  # only tokens that begin with a space [False]
    samples: int = 16  # variations tried in each read-out [0]
    share: float = 0.25  # of their tokens, drawn from X; the rest are the best's
    init: str = "x"  # word repeated as the suffix to beat; one token
    allow_non_ascii: bool = False  # may the suffix hold other characters
    banned_words: tuple[str, ...] = ()  # never in a suffix, e.g. the asked keyword
    early_stop: bool = True  # a behaviour leaves once the judge says success
    eval_every: int = 10  # steps between two looks at the answer
    max_new_tokens: int = 64  # length of the judged answer, tokens
    batch_tokens: int | None = None  # tokens in one pass (memory); None: by device
    prefix_cache: bool = True  # share the prefix's keys and values
    draws: int = 8  # random copies of each read-out, for a random defense
    seed: int = 0  # behaviour i starts at its own point, drawn by (seed, i)

    def __post_init__(self) -> None:
        least = {"num_steps": 0, "suffix_length": 1, "constant_steps": 0, "period": 1}
        least |= {"anneal": 1, "read_every": 1, "patience": 1, "eval_every": 1}
        least |= {"max_new_tokens": 1, "draws": 1, "samples": 0}
        if self.batch_tokens is not None:
            least["batch_tokens"] = 1
        for name, low in least.items():
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= low):
                raise ValueError(f"{name} is {value!r}; give a whole number >= {low}.")
        for name in ("learning_rate", "final_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; give a finite number > 0."
                )
        for name in ("entropy", "share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; give a share in [0, 1]."
                )
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(
                f"schedule is {self.schedule!r}; give 'constant' or 'cosine'."
            )

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if self.schedule == "constant" or step < self.constant_steps:
            return self.learning_rate
        phase = (step - self.constant_steps) % self.period / self.period
        part = (1 + math.cos(math.pi * phase)) / 2
        return self.final_rate + (self.learning_rate - self.final_rate) * part


@dataclass
class _Search(Search):
    """State of one behaviour."""

    relaxed: list[float] = field(default_factory=list)  # loss of X before each step
    better_at: int = 0  # step of the latest improvement or return


def pgd(
    chat: Chat,
    prompts: Sequence[str],
    targets: Sequence[str],
    config: PGDConfig = PGDConfig(),
    judge: Judge | None = None,
    defense: Defense | None = None,
) -> AttackResult:
    """Search for each prompt a suffix after which the model starts with its target.

    Args:
        chat: model under attack.
        prompts: user turns, one for each behaviour.
        targets: first words of the answer that the attack asks for, one each.
        config: settings.
        judge: judge(index, attacked prompt, response) -> success; default: the response
            is not a refusal by the string matcher.
        defense: None, or a defense that the attack knows (adaptive attack), as in
            `gcg`: the gradient goes through its edit and its wrapping; under a random
            defense read-outs are compared by their mean loss over random copies.

    Returns:
        AttackResult with the best suffix read out for each behaviour. `losses` are of
        discrete suffixes and start at that of `init`; `relaxed_losses` are of the
        relaxed point before each step.

    Raises:
        ValueError: no prompts, not one target each, an `init` that makes no suffix of
            the wanted length, or a prompt that is too long with suffix and target.
    """
    check_behaviours(prompts, targets)
    began = time.perf_counter()
    render = None if defense is None else partial(seen_through, defense)
    length = config.suffix_length
    slots = make_slots(chat, prompts, targets, config.init, length, render)
    searches = []
    for index, slot in enumerate(slots):
        # The draws of the samples are no continuation of the one that made the start.
        generator = torch.Generator().manual_seed(~(config.seed * 1_000_003 + index))
        start = torch.tensor(slot.start, device=chat.device)
        searches.append(_Search(index, slot, generator, start))
    allowed = allowed_tokens(chat, config.allow_non_ascii, config.banned_words)
    if config.separate:
        allowed = separate_tokens(chat, slots[0], allowed)
    relaxed = RelaxedSuffixes(
        chat,
        slots,
        allowed,
        config.learning_rate,
        config.seed,
        entropy=config.entropy,
        anneal=config.anneal,
        clip=config.clip,
        banned_words=config.banned_words,
    )
    held = searches  # whose suffixes are in `relaxed`
    for step, live, objective in each_step(chat, searches, config, judge, defense):
        if len(live) < len(held):
            staying = {search.index for search in live}
            relaxed.keep([row for row, s in enumerate(held) if s.index in staying])
            held = live
        if step == 0:
            first = pool_losses(objective, [search.best[None] for search in live])
            for search, loss in zip(live, first, strict=True):
                search.trace = [float(loss)]
        slope, losses = objective.slope(relaxed.embeddings())
        relaxed.step(slope, config.rate(step))
        for search, loss in zip(live, losses.tolist(), strict=True):
            search.steps += 1
            search.relaxed.append(loss)
            search.trace.append(search.trace[-1])
        if (step + 1) % config.read_every == 0 or step + 1 == config.num_steps:
            _read(chat, objective, relaxed, live, config, defense)
    attack = "pgd" if defense is None else "pgd-adaptive"
    result = result_of(attack, chat, searches, began)
    result.relaxed_losses = [search.relaxed for search in searches]
    return result


def _read(
    chat: Chat,
    objective: Objective,
    relaxed: RelaxedSuffixes,
    live: list[_Search],
    config: PGDConfig,
    defense: Defense | None,
) -> None:
    """Read the relaxed suffixes out, keep what is better, return where nothing is."""
    read = relaxed.read_out()
    pools = [ids[None] for ids in read]
    if config.samples:
        shape = (config.samples, config.suffix_length, 2)
        draws = [torch.rand(shape, generator=search.generator) for search in live]
        best = torch.stack([search.best for search in live])
        drawn = relaxed.draw(best, torch.stack(draws), config.share)
        keep = typed(chat, relaxed.slots, list(drawn), config.banned_words)
        pools = [
            torch.cat([pool, more[mask.to(more.device)]])
            for pool, more, mask in zip(pools, drawn, keep, strict=True)
        ]
    scores = pool_losses(objective, pools)
    for row, (search, pool, score) in enumerate(zip(live, pools, scores, strict=True)):
        new, loss, best_loss = (
            pool[score.argmin()],
            float(score.min()),
            search.trace[-1],
        )
        if is_random(defense):  # other copies in each read-out: compare anew
            seed = f"{config.seed}-{search.index}-{search.steps}"
            best_loss, loss = smoothed_losses(
                chat,
                defense,
                search.slot,
                torch.stack([search.best, new]),
                config.draws,
                seed,
                objective.batch_tokens,
            ).tolist()
        if loss < best_loss:
            search.best, search.better_at = new, search.steps
        elif search.steps - search.better_at >= config.patience:
            search.better_at = search.steps
            if search.best.tolist() != search.slot.start:
                relaxed.put(row, search.best)
        search.trace[-1] = min(loss, best_loss)
