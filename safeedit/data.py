"""Behaviour sets, question sets and utility text as `datasets.Dataset`s.

The sets here are those of the stand-ins' world: synthetic and harmless. They have the
columns that the public sets of the field have (an id, a category, the request, the
affirmative target that an attack aims at), so notebooks treat both alike.
"""

from __future__ import annotations

import random

from datasets import Dataset

from .world import World


def obedience(
    split: str = "heldout", limit: int | None = None, seed: int = 0
) -> Dataset:
    """Forbidden requests: this kit's reconstruction of the paper's obedience set.

    Args:
        split: "heldout" (5 phrasings that the stand-ins never saw) or "train".
        limit: at most so many rows, spread evenly over the 110 keywords.
        seed: seed of that draw.

    Returns:
        Columns id, category, word, prompt, target.

    Raises:
        ValueError: unknown split, or a limit below 1.
    """
    return _requests("forbidden", split, limit, seed)


def benign(split: str = "heldout", limit: int | None = None, seed: int = 0) -> Dataset:
    """Benign requests in the same phrasings, to measure compliance and over-refusal.

    Args and columns as in `obedience`.
    """
    return _requests("benign", split, limit, seed)


def _requests(kind: str, split: str, limit: int | None, seed: int) -> Dataset:
    world = World()
    rows = world.requests(kind, split, limit, seed)
    return Dataset.from_list(
        [
            {
                "id": f"{kind}-{split}-{r.word}-{r.phrasing}",
                "category": r.category,
                "word": r.word,
                "prompt": r.prompt,
                "target": world.guide_line(r.word),
            }
            for r in rows
        ]
    )


def questions(domain: str) -> Dataset:
    """The questions of one fact domain in both forms.

    Args:
        domain: "hazard", "adjacent" or "general".

    Returns:
        Columns topic, entity, relation, hops, open_question, value, letter_question,
        letter.

    Raises:
        ValueError: unknown domain.
    """
    facts = [f for f in World().facts if f.domain == domain]
    if not facts:
        raise ValueError(f"domain={domain!r}: one of 'hazard', 'adjacent', 'general'")
    columns = "topic entity relation hops open_question value letter_question letter"
    return Dataset.from_list(
        [{c: getattr(f, c) for c in columns.split()} for f in facts]
    )


def utility_text(n: int = 64, seed: int = 0) -> list[str]:
    """`n` plain sentences about nothing, for the utility perplexity.

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"n={n}: give at least 1")
    world, rng = World(), random.Random(f"utility-{seed}")
    return [world.neutral_sentence(rng) for _ in range(n)]
