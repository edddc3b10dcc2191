"""What the searches for a suffix share: a behaviour's state, and the loop.

Behaviours are attacked side by side. Every few steps the answers to the best suffixes
so far are generated and judged; a behaviour that has succeeded leaves the batch. What
is done in a step is up to the attack: see `gcg` and `pgd`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from safeedit.attacks.objective import Objective
from safeedit.attacks.result import AttackResult
from safeedit.attacks.suffix import Slot, suffix_texts
from safeedit.chat import Chat, check_prompts
from safeedit.defenses import Defense, edit_of
from safeedit.judges import is_refusal

Judge = Callable[[int, str, str], bool]  # (index, prompt, response) -> success


class Settings(Protocol):
    """The part of a config that the loop reads."""

    @property
    def num_steps(self) -> int: ...
    @property
    def early_stop(self) -> bool: ...
    @property
    def eval_every(self) -> int: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def batch_tokens(self) -> int | None: ...
    @property
    def prefix_cache(self) -> bool: ...


@dataclass
class Search:
    """State of one behaviour."""

    index: int
    slot: Slot
    generator: torch.Generator
    best: Tensor  # ids, shape (length,)
    trace: list[float] = field(default_factory=list)  # best loss before and after steps
    steps: int = 0
    looked_at: tuple[int, ...] | None = None  # suffix whose answer was last judged
    response: str = ""
    success: bool = False


Some = TypeVar("Some", bound=Search)


def each_step(
    chat: Chat,
    searches: list[Some],
    config: Settings,
    judge: Judge | None,
    defense: Defense | None,
) -> Iterator[tuple[int, list[Some], Objective]]:
    """The steps of an attack; between them, and at the end, answers are judged.

    Args:
        chat, config, defense: as for `gcg`.
        searches: all behaviours; the body of the loop brings them forward.
        judge: as for `gcg`; None: success is no refusal by the string matcher.

    Yields:
        Number of the step, from 0; the behaviours that are still attacked; their loss.
    """
    live, objective = searches, None
    for step in range(config.num_steps + 1):
        if config.early_stop and step % config.eval_every == 0:
            _look(chat, live, config, judge, defense)
        staying = [s for s in live if not (config.early_stop and s.success)]
        if step == config.num_steps or not staying:
            break
        if objective is None or len(staying) < len(live):
            live, slots = staying, [search.slot for search in staying]
            objective = Objective(
                chat, slots, config.batch_tokens, edit_of(defense), config.prefix_cache
            )
        yield step, live, objective
    _look(chat, searches, config, judge, defense)


def _look(
    chat: Chat,
    searches: Sequence[Search],
    config: Settings,
    judge: Judge | None,
    defense: Defense | None,
) -> None:
    """Generate and judge answers to best suffixes that were not judged before."""
    due = [s for s in searches if s.looked_at != tuple(s.best.tolist())]
    if not due:
        return
    prompts = [s.slot.prompt + suffix_texts(chat, s.slot, s.best[None])[0] for s in due]
    answerer = chat if defense is None else defense
    answers = answerer.generate(prompts, max_new_tokens=config.max_new_tokens)
    judge = judge or (lambda index, prompt, response: not is_refusal(response))
    for search, prompt, answer in zip(due, prompts, answers, strict=True):
        search.looked_at = tuple(search.best.tolist())
        search.response = answer
        search.success = bool(judge(search.index, prompt, answer))


def pool_losses(objective: Objective, pools: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Losses of some suffixes of each behaviour, shapes (n_b, length) -> (n_b,)."""
    sizes, suffixes = [len(pool) for pool in pools], torch.cat(list(pools))
    owner = torch.arange(len(pools)).repeat_interleave(torch.tensor(sizes))
    return objective.losses(suffixes, owner.to(suffixes.device)).split(sizes)


def result_of(
    attack: str, chat: Chat, searches: Sequence[Search], began: float
) -> AttackResult:
    """What came of an attack that began at `began` (`time.perf_counter()`)."""
    texts = [suffix_texts(chat, s.slot, s.best[None])[0] for s in searches]
    return AttackResult(
        attack=attack,
        prompts=[s.slot.prompt + text for s, text in zip(searches, texts, strict=True)],
        suffixes=texts,
        responses=[search.response for search in searches],
        success=[search.success for search in searches],
        losses=[search.trace for search in searches],
        steps=[search.steps for search in searches],
        seconds=time.perf_counter() - began,
    )


def check_behaviours(prompts: Sequence[str], targets: Sequence[str]) -> None:
    """Raise ValueError unless there are prompts, and one target for each."""
    check_prompts(prompts)
    if isinstance(targets, str) or len(prompts) != len(targets):
        seen = "one string" if isinstance(targets, str) else f"{len(targets)} targets"
        raise ValueError(
            f"Got {len(prompts)} prompts and {seen}; give a list with one target for "
            "each prompt."
        )
