"""The losses of an unlearning step as functions of weights, and the data of a step.

A step minimises forget + gamma retain. Both losses are evaluated with the weights
handed in (`torch.func.functional_call`), so a smoother can look at other weights than
the present ones without writing to a model. What a step sees depends on (seed, step)
alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from safeedit.edits import losses
from safeedit.edits.unlearning_config import UnlearnConfig, UnlearnData
from safeedit.examples import (
    Batch,
    Example,
    collate,
    from_chats,
    from_texts,
    scored_logits,
    take,
    token_log_probs,
)

T = TypeVar("T")
Weights = Mapping[str, Tensor]
Loss = Callable[[Weights], Tensor]


class Feed(Generic[T]):
    """Batches of texts and chats in a given ratio, as a function of the step.

    Args:
        texts, chats: what is drawn from; one of them may be empty.
        share: share of chats, over the run; batches differ by at most one.
        size: rows of a batch.
        seed: of the order; other feeds of a run need other ones, or their rows meet in
            the same pairs each round.
    """

    def __init__(
        self,
        texts: Sequence[T],
        chats: Sequence[T],
        share: float,
        size: int,
        seed: int | str,
    ) -> None:
        self.texts, self.chats, self.size, self.seed = texts, chats, size, seed
        self.share = share if texts and chats else float(bool(chats))

    def _chats_before(self, step: int) -> int:
        return math.floor(step * self.size * self.share + 1e-9)

    def __call__(self, step: int) -> list[T]:
        """The rows of a step, counted from 0."""
        before, after = self._chats_before(step), self._chats_before(step + 1)
        count, begun = after - before, step * self.size - before
        texts = take(self.texts, begun, self.size - count, f"{self.seed}-texts")
        return texts + take(self.chats, before, count, f"{self.seed}-chats")


class Problem:
    """What the methods share: their data, and the retain loss.

    Args:
        chat: whose tokenizer and device count.
        model: evaluates the losses; it is not changed.
        frozen: weights that stand in for the model's own and are not trained.
        data: forget and retain set.
        config: settings.
    """

    retain_weight: float

    def __init__(
        self,
        chat,
        model: nn.Module,
        frozen: Weights,
        data: UnlearnData,
        config: UnlearnConfig,
    ) -> None:
        self.chat, self.model, self.frozen = chat, model, dict(frozen)
        self.config, seed = config, config.seed
        size = config.retain_batch or config.batch_size
        self.retain_weight = config.gamma
        self.retain_feed = Feed(
            *examples_of(chat, data.retain_texts, data.retain_chats),
            config.retain_chats,
            size,
            f"{seed}-retain",
        )

    def log_probs(self, examples: Sequence[Example], weights: Weights) -> Sums:
        """Log-probability of each sequence, and its length."""
        batch = collate(self.chat, examples)
        weights = {**self.frozen, **weights}
        return Sums(token_log_probs(self.model, batch, weights), batch)

    def forget(self, step: int) -> Loss:
        """The forget loss of a step."""
        raise NotImplementedError

    def retain(self, step: int) -> Loss:
        """The retain loss of a step, without its weight, in nats per token."""
        examples = self.retain_feed(step)
        if self.config.retain == "kl":
            return self._retain_kl(collate(self.chat, examples))

        def loss(weights: Weights) -> Tensor:
            seen = self.log_probs(examples, weights)
            return losses.retain_nll(seen.log_probs, seen.lengths)

        return loss

    def _retain_kl(self, batch: Batch) -> Loss:
        def log_probs(weights: Weights) -> Tensor:
            weights = {**self.frozen, **weights}
            return scored_logits(self.model, batch, weights).log_softmax(-1)

        # Not kept from step to step: with a large vocabulary that would take gigabytes.
        with torch.no_grad():
            start = log_probs({})
        return lambda weights: losses.retain_kl(log_probs(weights), start)

    def notes(self) -> dict:
        """What the method has measured, for the edit's info."""
        return {}


class Sums:
    """Summed log-probabilities and lengths of sequences, each of shape (batch,)."""

    def __init__(self, log_probs: Tensor, batch: Batch) -> None:
        self.log_probs = log_probs.sum(1)
        self.lengths = batch.scored[:, 1:].sum(1)


class GradDiff(Problem):
    """Gradient ascent on the forget set."""

    def __init__(self, chat, model, frozen, data, config) -> None:
        super().__init__(chat, model, frozen, data, config)
        self.forget_feed = Feed(
            *examples_of(chat, data.forget_texts, data.forget_chats),
            config.chats,
            config.batch_size,
            config.seed,
        )

    def forget(self, step: int) -> Loss:
        examples = self.forget_feed(step)

        def loss(weights: Weights) -> Tensor:
            seen = self.log_probs(examples, weights)
            return losses.grad_ascent(seen.log_probs, seen.lengths)

        return loss


class NPO(GradDiff):
    """Negative preference optimization against the start weights."""

    def __init__(self, chat, model, frozen, data, config) -> None:
        super().__init__(chat, model, frozen, data, config)
        steps = range(config.steps)
        drawn = (example for step in steps for example in self.forget_feed(step))
        self.reference = _reference(self, drawn)

    def forget(self, step: int) -> Loss:
        examples, config = self.forget_feed(step), self.config
        reference = torch.stack([self.reference[example] for example in examples])

        def loss(weights: Weights) -> Tensor:
            seen = self.log_probs(examples, weights)
            return losses.npo(
                seen.log_probs,
                reference,
                seen.lengths,
                config.beta,
                config.normalize,
            )

        return loss


class DPO(Problem):
    """A refusal is preferred to the true answer; one refusal a question, drawn."""

    def __init__(self, chat, model, frozen, data, config) -> None:
        super().__init__(chat, model, frozen, data, config)
        for name in ("forget_chats", "refusals"):
            if not getattr(data, name):
                raise ValueError(
                    f'method "dpo" prefers refusals to answers, and {name} is empty; '
                    "give UnlearnData(forget_chats=..., refusals=...)"
                )
        rng = Random(f"{config.seed}-refusals")
        questions = [question for question, _ in data.forget_chats]
        refused = [rng.choice(data.refusals) for _ in questions]
        rejected = from_chats(chat, questions, [a for _, a in data.forget_chats])
        pairs = list(zip(from_chats(chat, questions, refused), rejected, strict=True))
        self.feed = Feed([], pairs, 1.0, config.batch_size, config.seed)
        steps = range(config.steps)
        drawn = (e for step in steps for pair in self.feed(step) for e in pair)
        self.reference = _reference(self, drawn)

    def forget(self, step: int) -> Loss:
        pairs, beta = self.feed(step), self.config.beta
        examples = [chosen for chosen, _ in pairs] + [other for _, other in pairs]
        reference = torch.stack([self.reference[example] for example in examples])

        def loss(weights: Weights) -> Tensor:
            now = self.log_probs(examples, weights).log_probs
            chosen, rejected = now.chunk(2)
            return losses.dpo(
                chosen, reference[: len(pairs)], rejected, reference[len(pairs) :], beta
            )

        return loss


def examples_of(
    chat, texts: Sequence[str], chats: Sequence[tuple[str, str]]
) -> tuple[list[Example], list[Example]]:
    """Texts and chats as tokens; either may be empty."""
    plain = from_texts(chat, texts) if texts else []
    pairs = [q for q, _ in chats], [a for _, a in chats]
    return plain, from_chats(chat, *pairs) if chats else []


@torch.no_grad()
def _reference(problem: Problem, drawn: Iterator[Example]) -> dict[Example, Tensor]:
    """Log-probability of each example under the start weights, once.

    Of all steps at once: a run that goes on from a checkpoint gets the same batches,
    and with them the same rounding.
    """
    distinct, size = list(dict.fromkeys(drawn)), problem.config.batch_size
    found: dict[Example, Tensor] = {}
    for start in range(0, len(distinct), size):
        some = distinct[start : start + size]
        sums = problem.log_probs(some, {}).log_probs
        found |= dict(zip(some, sums, strict=True))
    return found
