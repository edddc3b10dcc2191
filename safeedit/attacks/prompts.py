"""Attacks without an optimiser: prefill, and the random suffix as a control.

A prefill attack starts the answer for the model ("Sure, here is") and lets it go on; it
needs access to the chat template and nothing else. The random suffix spends the tokens
of a GCG suffix without its gradient: what it achieves is not the merit of the search.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from safeedit.attacks.search import Judge, check_behaviours

# isort: split
from safeedit.attacks.result import AttackResult
from safeedit.attacks.suffix import allowed_tokens, make_slot, suffix_texts, typed
from safeedit.chat import Chat, check_prompts
from safeedit.judges import is_refusal


@dataclass(frozen=True)
class PrefillConfig:
    """Settings of the prefill attack."""

    text: str | None = None  # start of every answer; None: each behaviour's own target
    max_new_tokens: int = 64  # length of the continuation, tokens
    system: str | None = None  # system message in force during the attack


@dataclass(frozen=True)
class RandomSuffixConfig:
    """Settings of the random-suffix control, named as in `GCGConfig`."""

    suffix_length: int = 20  # tokens
    tries: int = 1  # suffixes tried on each behaviour; any success counts
    init: str = "x"  # word used to find the suffix's place; one token
    allow_non_ascii: bool = False  # may the suffix hold other characters
    banned_words: tuple[str, ...] = ()  # never in a suffix
    max_new_tokens: int = 64  # length of the judged answer, tokens
    seed: int = 0  # behaviour i draws from its own generator, seeded by (seed, i)

    def __post_init__(self) -> None:
        if self.tries < 1 or self.suffix_length < 1:
            raise ValueError(
                f"tries is {self.tries} and suffix_length is {self.suffix_length}; "
                "give at least 1 for both."
            )


def prefill(
    chat: Chat,
    prompts: Sequence[str],
    targets: Sequence[str],
    config: PrefillConfig = PrefillConfig(),
    judge: Judge | None = None,
    defense: Chat | None = None,
) -> AttackResult:
    """Force the start of each answer and judge the whole of it.

    Args:
        chat: model under attack.
        prompts: user turns.
        targets: starts of the answers, one each, used where `config.text` is None.
        config: settings.
        judge: judge(index, prompt, prefill + continuation) -> success; default: the
            continuation is not a refusal by the string matcher.
        defense: None, or anything with `Chat.generate`'s signature, prefill included.

    Returns:
        AttackResult; its responses contain the prefill, its prompts are unchanged.

    Raises:
        ValueError: no prompts, or not one target each.
    """
    check_behaviours(prompts, targets)
    began = time.perf_counter()
    starts = list(targets) if config.text is None else [config.text] * len(prompts)
    answers = (defense or chat).generate(
        list(prompts), config.max_new_tokens, system=config.system, prefill=starts
    )
    responses = [start + more for start, more in zip(starts, answers, strict=True)]
    judge = judge or (lambda index, prompt, response: not is_refusal(response))
    success = [
        bool(judge(index, prompt, response))
        for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]
    return AttackResult(
        attack="prefill",
        prompts=list(prompts),
        suffixes=[""] * len(prompts),
        responses=responses,
        success=success,
        prefills=starts,
        seconds=time.perf_counter() - began,
    )


def random_suffix(
    chat: Chat,
    prompts: Sequence[str],
    config: RandomSuffixConfig = RandomSuffixConfig(),
    judge: Judge | None = None,
    defense: Chat | None = None,
) -> AttackResult:
    """Append random allowed tokens, as many as GCG would optimise, and judge.

    Returns:
        AttackResult with the first successful suffix of each behaviour, else the last.

    Raises:
        ValueError: no prompts, or an `init` that makes no suffix of that length.
    """
    check_prompts(prompts)
    began = time.perf_counter()
    judge = judge or (lambda index, prompt, response: not is_refusal(response))
    mask = allowed_tokens(chat, config.allow_non_ascii, config.banned_words)
    vocabulary = mask.nonzero().squeeze(1)
    length = config.suffix_length
    slots = [make_slot(chat, prompt, "a", config.init, length) for prompt in prompts]
    suffixes, attacked = [""] * len(slots), list(prompts)
    responses, success = [""] * len(slots), [False] * len(slots)
    generators = [
        torch.Generator().manual_seed(config.seed * 1_000_003 + index)
        for index in range(len(slots))
    ]
    for _ in range(config.tries):
        due = [index for index in range(len(slots)) if not success[index]]
        for index in due:
            suffixes[index] = _draw(
                chat, slots[index], vocabulary, config, generators[index]
            )
            attacked[index] = slots[index].prompt + suffixes[index]
        if not due:
            break
        answers = (defense or chat).generate(
            [attacked[index] for index in due], config.max_new_tokens
        )
        for index, answer in zip(due, answers, strict=True):
            responses[index] = answer
            success[index] = bool(judge(index, attacked[index], answer))
    return AttackResult(
        attack="random-suffix",
        prompts=attacked,
        suffixes=suffixes,
        responses=responses,
        success=success,
        seconds=time.perf_counter() - began,
    )


def _draw(chat, slot, vocabulary, config: RandomSuffixConfig, generator) -> str:
    """A random suffix that survives being typed; 64 draws almost surely hold one."""
    for _ in range(50):
        shape = (64, config.suffix_length)
        picks = torch.randint(len(vocabulary), shape, generator=generator)
        ids = vocabulary[picks]
        good = typed(chat, [slot], [ids], config.banned_words)[0].nonzero()
        if len(good):
            return suffix_texts(chat, slot, ids[good[0]])[0]
    raise RuntimeError(
        f"No random suffix of {config.suffix_length} tokens survived tokenization in "
        "3200 draws; use a shorter suffix_length."
    )
