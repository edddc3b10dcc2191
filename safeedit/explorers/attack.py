"""GCG on one prompt, step by step: the suffix, the loss and the answer.

A search tells its losses and its last suffix. What lies between is told to its judge:
with a look after every step the judge meets each suffix that was the best so far.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from safeedit.attacks import GCGConfig, gcg
from safeedit.chat import Chat
from safeedit.metrics import token_nlls

from .frames import Cell, Frames, FramesExplorer


@dataclass(frozen=True)
class AttackStep:
    """The best suffix after some steps of a search, and what it does."""

    step: int  # steps made; 0: before the first
    suffix: str  # what is appended to the request
    loss: float  # of the target after it, nats per token
    response: str  # the model's answer to request and suffix
    label: str  # "refusal" | "success" | "other"


def attack_steps(
    chat: Chat,
    prompt: str,
    target: str,
    config: GCGConfig,
    label: Callable[[str], str],
) -> list[AttackStep]:
    """Run GCG on one prompt to its last step and keep what it passed.

    Args:
        chat: model under attack.
        prompt: the request.
        target: first words of the answer that the attack asks for.
        config: settings; `eval_every` becomes 1, and the search does not stop early.
        label: labels an answer, such as `Judge.label` with its word filled in.

    Returns:
        One entry for each step, and one for the start: `config.num_steps` + 1.

    Raises:
        ValueError: as `gcg`, or `num_steps` is 0.
    """
    if config.num_steps < 1:
        raise ValueError("num_steps is 0; there is nothing to follow: give at least 1")
    seen: list[tuple[str, str]] = []

    def look(index: int, attacked: str, response: str) -> bool:
        seen.append((attacked, response))
        return False  # a success would end the search

    every = replace(config, eval_every=1, early_stop=True)
    losses = gcg(chat, [prompt], [target], every, look).losses[0]
    texts = [attacked for attacked, _ in seen]
    nlls = token_nlls(chat, chat.answer_heads(texts), [target] * len(texts))
    own = [sum(row) / len(row) for row in nlls]
    steps, place = [], 0
    for step, loss in enumerate(losses):
        # A lower loss is a new suffix, or rounding where the search came back to its
        # best: the loss of the next suffix that was looked at tells which.
        if place + 1 < len(seen) and step and loss < losses[step - 1]:
            here, there = (abs(mean - loss) for mean in own[place : place + 2])
            place += there < here
        attacked, response = seen[place]
        suffix = attacked.removeprefix(prompt)
        steps.append(AttackStep(step, suffix, loss, response, label(response)))
    return steps


class AttackExplorer(FramesExplorer):
    """A slider over the steps of an attack.

    Args:
        steps: see `attack_steps`.
        title: names the explorer to a screen reader.
    """

    def __init__(
        self, steps: Sequence[AttackStep], title: str = "GCG step by step"
    ) -> None:
        if not steps:
            raise ValueError("there are no steps; give at least one")
        self.steps = list(steps)
        rows, before = [], self.steps[0].suffix
        for step in self.steps:
            frame: dict[str, Cell] = {
                "suffix": changed(before, step.suffix),
                "loss": step.loss,
                "answer": step.response,
                "verdict": step.label,
            }
            rows.append(frame)
            before = step.suffix
        positions = [str(step.step) for step in self.steps]
        super().__init__(Frames(title, {"step": positions}, rows, [0], "loss"))


def changed(before: str, after: str) -> list[str]:
    """Cut a text into pieces, of which every second one is new in it.

    Args:
        before: the text that it came from.
        after: the text to cut.

    Returns:
        Pieces that join to `after`; the first is not new, and may be empty.
    """
    old, new = (re.findall(r"\s*\S+|\s+$", text) for text in (before, after))
    pieces = [""]
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    for kind, _, _, start, end in matcher.get_opcodes():
        words = "".join(new[start:end])
        fresh = kind != "equal"
        if not words:
            continue
        if (len(pieces) % 2 == 0) == fresh:
            pieces[-1] += words
        else:
            pieces.append(words)
    return pieces
