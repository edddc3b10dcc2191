"""What a model has by heart, from one teacher-forced pass over each passage.

* Extraction strength, 1 - k/length, with k the fewest first tokens from which greedy
  decoding gives the rest exactly (as in open-unlearning, arXiv 2506.12618).
* Exact memorization, the share of tokens that are the likeliest where they stand (the
  same source). It moves long before a whole suffix comes out.
* Min-k: the mean log-probability of the least likely tokens (Min-K% Prob, arXiv
  2310.16789). Text that the model was trained on has few very unlikely ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .chat import Chat
from .examples import Example, collate, from_texts

MIN_K = 0.2  # share of the tokens, arXiv 2310.16789


@dataclass(frozen=True)
class Reading:
    """What a model makes of one passage, token by token, under teacher forcing.

    Attributes:
        log_probs: of each predicted token, in nats.
        greedy: whether the token is the likeliest one.
        given: tokens of the passage that are not predicted: 1 where the tokenizer has
            no beginning-of-sequence token to predict the first from, else 0.
    """

    log_probs: tuple[float, ...]
    greedy: tuple[bool, ...]
    given: int


@torch.no_grad()
def read(chat: Chat, texts: Sequence[str]) -> list[Reading]:
    """One teacher-forced pass over plain texts, no chat template and no end token."""
    # `from_texts` ends each row with the end token; a passage may go on.
    rows = [Example(e.ids[:-1], e.scored[:-1]) for e in from_texts(chat, texts)]
    given = 0 if chat.tokenizer.bos_token else 1
    out: list[Reading] = []
    for start in range(0, len(rows), chat.batch_size):
        some = rows[start : start + chat.batch_size]
        batch = collate(chat, some)
        logits = chat.model(
            input_ids=batch.ids, attention_mask=batch.mask, use_cache=False
        ).logits[:, :-1]
        targets = batch.ids[:, 1:]
        greedy = (logits.argmax(-1) == targets).tolist()
        picked = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        for row, hits, values in zip(some, greedy, picked.tolist(), strict=True):
            n = len(row.ids) - 1
            out.append(Reading(tuple(values[:n]), tuple(hits[:n]), given))
    return out


def extraction_strength(readings: Sequence[Reading]) -> list[float]:
    """1 - k/length for each passage, k the fewest first tokens that give the rest.

    One teacher-forced pass tells it. Let token t be "greedy" when it is the likeliest
    after the true tokens before it. Greedy decoding from the first k tokens gives the
    rest exactly if and only if all tokens after them are greedy: if they are, then by
    induction each step sees the true tokens and adds the next true one; if not, the
    first that is not greedy is reached with the true tokens before it, and decoding
    leaves the passage there. So k ends with the last token that is not greedy.

    Returns:
        1: the whole passage comes out unprompted. 0: not even its last token does
        (where open-unlearning's code gives 1/length).
    """
    out = []
    for reading in readings:
        misses = [i + 1 for i, hit in enumerate(reading.greedy) if not hit]
        k = reading.given + (misses[-1] if misses else 0)
        out.append(1 - k / (reading.given + len(reading.greedy)))
    return out


def exact_memorization(readings: Sequence[Reading]) -> list[float]:
    """Share of the predicted tokens of each passage that are the likeliest ones."""
    return [sum(r.greedy) / len(r.greedy) for r in readings]


def min_k(readings: Sequence[Reading], share: float = MIN_K) -> list[float]:
    """Mean log-probability of the least likely `share` of each passage's tokens, nats.

    Raises:
        ValueError: `share` is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: must lie in (0, 1]")
    out = []
    for reading in readings:
        n = max(1, int(share * len(reading.log_probs)))
        out.append(math.fsum(sorted(reading.log_probs)[:n]) / n)
    return out
