"""Greedy coordinate gradient (GCG): search a suffix that makes the model comply.

Each step takes the gradient of the target loss with respect to the one-hot suffix,
draws `search_width` single-token changes among the `topk` most promising tokens of each
position, scores them all, and moves to the best.

Zou et al. 2023, "Universal and Transferable Adversarial Attacks on Aligned Language
Models", arXiv 2307.15043, algorithm 1. Behaviours are attacked side by side; one that
has succeeded leaves the batch.

The attack can know a defense (adaptive attack). It then searches inside the words that
the defense puts around the request, scores each candidate under the edit that it would
cause, and, where the defense draws at random, chooses among the best few candidates by
their mean loss over random copies (`smoothed`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from safeedit.attacks.objective import Objective
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
class GCGConfig:
    """Settings of GCG, in the names of the papers."""

    num_steps: int = 250  # steps for each behaviour; 500 in the paper, 250 in nanoGCG
    suffix_length: int = 20  # tokens; the paper's 20
    search_width: int = 512  # candidates a step; the paper's B
    topk: int = 256  # tokens considered at each position; the paper's k
    n_replace: int = 1  # positions changed in each candidate
    init: str = "x"  # word repeated as the first suffix; one token
    allow_non_ascii: bool = False  # may the suffix hold other characters
    banned_words: tuple[str, ...] = ()  # never in a suffix, e.g. the asked keyword
    early_stop: bool = True  # a behaviour leaves once the judge says success
    eval_every: int = 10  # steps between two looks at the answer; 50 in the paper
    max_new_tokens: int = 64  # length of the judged answer, tokens
    batch_tokens: int | None = None  # tokens in one pass (memory); None: by device
    prefix_cache: bool = True  # share the prefix's keys and values
    shortlist: int = 16  # candidates rescored in each step, for a random defense
    draws: int = 8  # random copies of each of them
    seed: int = 0  # behaviour i draws from its own generator, seeded by (seed, i)

    def __post_init__(self) -> None:
        least = {"num_steps": 0, "suffix_length": 1, "search_width": 1, "topk": 1}
        least |= {"n_replace": 1, "eval_every": 1, "max_new_tokens": 1}
        least |= {"shortlist": 1, "draws": 1}
        if self.batch_tokens is not None:
            least["batch_tokens"] = 1
        for name, low in least.items():
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= low):
                raise ValueError(f"{name} is {value!r}; give a whole number >= {low}.")
        if self.n_replace > self.suffix_length:
            raise ValueError(
                f"n_replace is {self.n_replace}; give 1 to suffix_length = "
                f"{self.suffix_length}."
            )


@dataclass(kw_only=True)
class _Search(Search):
    """State of one behaviour."""

    current: Tensor  # ids, shape (length,); may be worse than the best

    def move(self, candidate: Tensor, loss: float) -> None:
        """Go to a candidate, as the paper does also where the loss rises."""
        self.current = candidate
        if loss < self.trace[-1]:
            self.best = candidate
        self.trace.append(min(loss, self.trace[-1]))

    def move_on_average(self, candidates: Tensor, means: Tensor) -> None:
        """As `move`, by mean losses; the first candidate is the best so far.

        Each step has other random copies, so its means compare with one another but
        not with those of earlier steps.
        """
        winner = 1 + int(means[1:].argmin())
        if self.steps == 1:
            self.trace = [float(means[0])]
        self.current = candidates[winner]
        if means[winner] < means[0]:
            self.best = candidates[winner]
        self.trace.append(float(means.min()))


def gcg(
    chat: Chat,
    prompts: Sequence[str],
    targets: Sequence[str],
    config: GCGConfig = GCGConfig(),
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
        defense: None, or a defense that the attack knows (adaptive attack): it is in
            place for the gradient and for every candidate as far as it offers the
            methods of `Defense`, and the defended answer is judged.

    Returns:
        AttackResult with the best suffix of each behaviour and its trajectory; its
        prompts are what a user types, without the words of a defense. Under a random
        defense a loss is a mean over the copies of its own step and may rise.

    Raises:
        ValueError: no prompts, not one target each, an `init` that makes no suffix of
            the wanted length, or a prompt that is too long with suffix and target.
    """
    check_behaviours(prompts, targets)
    began = time.perf_counter()
    allowed = allowed_tokens(chat, config.allow_non_ascii, config.banned_words)
    allowed = allowed.to(chat.device)
    render = None if defense is None else partial(seen_through, defense)
    length = config.suffix_length
    slots = make_slots(chat, prompts, targets, config.init, length, render)
    searches = []
    for index, slot in enumerate(slots):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + index)
        start = torch.tensor(slot.start, device=chat.device)
        searches.append(_Search(index, slot, generator, start, current=start))
    for _, live, objective in each_step(chat, searches, config, judge, defense):
        _step(chat, objective, live, allowed, config, defense)
    attack = "gcg" if defense is None else "gcg-adaptive"
    return result_of(attack, chat, searches, began)


def _step(
    chat: Chat,
    objective: Objective,
    live: list[_Search],
    allowed: Tensor,
    config: GCGConfig,
    defense: Defense | None,
) -> None:
    """One GCG step for every live behaviour."""
    current = torch.stack([search.current for search in live])
    slopes, losses = objective.gradient(current)
    pools = []
    for search, slope, loss in zip(live, slopes, losses.tolist(), strict=True):
        if not search.trace:
            search.trace = [loss]
        pools.append(_sample(search, slope, allowed, config))
    keep = typed(chat, [s.slot for s in live], pools, config.banned_words)
    pools = [pool[mask.to(pool.device)] for pool, mask in zip(pools, keep, strict=True)]
    scores = pool_losses(objective, pools)
    for search, pool, score in zip(live, pools, scores, strict=True):
        search.steps += 1
        if len(pool) and is_random(defense):
            some = pool[score.argsort()[: config.shortlist]]
            some = torch.cat([search.best[None], some])
            copies = (config.draws, f"{config.seed}-{search.index}-{search.steps}")
            means = smoothed_losses(
                chat, defense, search.slot, some, *copies, objective.batch_tokens
            )
            search.move_on_average(some, means)
        elif len(pool):
            winner = int(score.argmin())
            search.move(pool[winner], float(score[winner]))
        else:  # every draw fell to the round trip; the next step draws again
            search.trace.append(search.trace[-1])


def _sample(
    search: _Search, slope: Tensor, allowed: Tensor, config: GCGConfig
) -> Tensor:
    """Draw distinct candidates around the current suffix, shape (<= width, length)."""
    length = len(search.current)
    topk = min(config.topk, int(allowed.sum()))
    best = (-slope).masked_fill(~allowed, float("-inf")).topk(topk, dim=1).indices
    width, random = config.search_width, search.generator
    places = torch.rand(width, length, generator=random).argsort(dim=1)
    places = places[:, : config.n_replace].to(best.device)
    picks = torch.randint(topk, places.shape, generator=random).to(best.device)
    drawn = search.current.repeat(width, 1)
    drawn.scatter_(1, places, best[places, picks])
    drawn = torch.unique(drawn, dim=0)
    return drawn[(drawn != search.current).any(dim=1)]
