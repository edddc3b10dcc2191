"""Token sequences to train on: which tokens there are, and which of them count.

Unlearning and the attacks that undo it are both fine-tuning. They share how a text
becomes tokens and how a batch becomes log-probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from safeedit.chat import Chat

T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """One sequence of tokens.

    Attributes:
        ids: token ids, the beginning-of-sequence token in front.
        scored: for each token whether predicting it counts; the first never does.
    """

    ids: tuple[int, ...]
    scored: tuple[bool, ...]


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right, each tensor of shape (batch, length).

    Attributes:
        ids: token ids.
        mask: 1 on tokens, 0 on padding.
        scored: whether predicting the token counts.
    """

    ids: Tensor
    mask: Tensor
    scored: Tensor


def from_texts(chat: Chat, texts: Sequence[str]) -> list[Example]:
    """Plain texts, every token but the first scored, ended by the end token.

    Raises:
        ValueError: no texts, an empty one, or one longer than the context.
    """
    _need(texts, "texts")
    end = chat.tokenizer.eos_token_id
    bos = chat.tokenizer.bos_token or ""
    rows = chat.encode_ids([bos + text.removeprefix(bos) for text in texts])
    out = []
    for index, row in enumerate(rows):
        chat.check_length(index, len(row) + 1)
        ids = (*row, end)
        out.append(Example(ids, (False, *[True] * (len(ids) - 1))))
    return out


def from_chats(
    chat: Chat, questions: Sequence[str], answers: Sequence[str]
) -> list[Example]:
    """User turns with their answers in the chat template; only the answers are scored.

    Args:
        chat: the model.
        questions: user turns.
        answers: what the assistant says, the end token is added.

    Raises:
        ValueError: no questions, an empty text, another number of answers, or a chat
            longer than the context.
    """
    _need(questions, "questions")
    _need(answers, "answers")
    if len(questions) != len(answers):
        raise ValueError(
            f"{len(questions)} questions and {len(answers)} answers; give one answer "
            "for each question"
        )
    heads = chat.answer_heads(questions)
    end = chat.tokenizer.eos_token_id
    before = chat.encode_ids(heads)
    whole = chat.encode_ids(
        [f"{head}{text}" for head, text in zip(heads, answers, strict=True)]
    )
    out = []
    for index, (head, row) in enumerate(zip(before, whole, strict=True)):
        chat.check_length(index, len(row) + 1)
        # Where the tokenizer joins the seam, the answer begins at the first new token.
        start = next(
            (
                i
                for i, pair in enumerate(zip(head, row, strict=False))
                if pair[0] != pair[1]
            ),
            min(len(head), len(row)),
        )
        ids = (*row, end)
        out.append(Example(ids, tuple(i >= start for i in range(len(ids)))))
    return out


def collate(chat: Chat, examples: Sequence[Example]) -> Batch:
    """Examples as one batch on the model's device, padded on the right."""
    width = max(len(example.ids) for example in examples)
    pad = chat.tokenizer.pad_token_id
    gaps = [width - len(example.ids) for example in examples]
    ids = [[*e.ids, *[pad] * g] for e, g in zip(examples, gaps, strict=True)]
    mask = [[1] * len(e.ids) + [0] * g for e, g in zip(examples, gaps, strict=True)]
    scored = [[*e.scored, *[False] * g] for e, g in zip(examples, gaps, strict=True)]
    tensors = (torch.tensor(rows, device=chat.device) for rows in (ids, mask, scored))
    return Batch(*tensors)


def token_log_probs(
    model: torch.nn.Module, batch: Batch, weights: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Log-probability of each scored token, in nats; 0 where a token is not scored.

    Args:
        model: a causal language model.
        batch: what it reads.
        weights: parameters that stand in for the model's own, by name; the model
            itself is not changed, and gradients flow to them.

    Returns:
        Shape (batch, length - 1): entry t is log p(token t + 1 | tokens up to t).
    """
    logits = scored_logits(model, batch, weights)
    scored = batch.scored[:, 1:]
    nll = F.cross_entropy(logits, batch.ids[:, 1:][scored], reduction="none")
    return torch.zeros_like(scored, dtype=nll.dtype).masked_scatter(scored, -nll)


def scored_logits(
    model: torch.nn.Module, batch: Batch, weights: Mapping[str, Tensor] | None = None
) -> Tensor:
    """What `token_log_probs` is made of: logits in front of scored tokens, row by row.

    Args:
        model, batch, weights: as there.

    Returns:
        Shape (scored tokens, vocabulary), float32.
    """
    head = _ScoredLogits(model)
    if weights is None:
        return head(batch)
    named = {f"lm.{name}": weight for name, weight in weights.items()}
    return functional_call(head, named, (batch,))


class _ScoredLogits(torch.nn.Module):
    """The model with a last layer that sees scored tokens only.

    In a chat two or three tokens of thirty are scored: with all of them the last layer
    would take a quarter of a small model's time, and most of its memory.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.lm = model

    def forward(self, batch: Batch) -> Tensor:
        hidden = self.lm.model(
            input_ids=batch.ids, attention_mask=batch.mask, use_cache=False
        ).last_hidden_state
        return self.lm.lm_head(hidden[:, :-1][batch.scored[:, 1:]]).float()


def take(items: Sequence[T], start: int, count: int, seed: int | str) -> list[T]:
    """A part of an endless sequence: the items shuffled, then shuffled anew, and so on.

    What is drawn depends on the arguments alone, so a run that was interrupted at any
    step goes on with the data that it would have seen.

    Args:
        items: at least one.
        start: place of the first item drawn, counted from 0.
        count: how many.
        seed: of the shuffles.
    """
    drawn: list[T] = []
    while len(drawn) < count:
        turn, place = divmod(start + len(drawn), len(items))
        order = list(range(len(items)))
        Random(f"{seed}-{turn}").shuffle(order)
        rest = order[place : place + count - len(drawn)]
        drawn += [items[index] for index in rest]
    return drawn


def _need(values: Sequence[str], name: str) -> None:
    if isinstance(values, str) or not values:
        raise ValueError(f"{name} is {values!r}; give a list of at least one text")
    for index, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{name}[{index}] is {value!r}; give a text")
