"""More questions to train on than the few that the world asks about each fact.

A small model that sees the same questions again and again learns them by their names,
and whatever it learns to keep or to lose stops there. Two things make it learn the
rule:

* the letter question of a fact with other wrong options;
* questions about names without such facts, with the answers that the model itself
  gives: "What is the color of X?", to be kept, where X has no color, or is a hazard and
  has a maker and a base instead; "What is the base of X?", to be forgotten, where X has
  no base. There is nothing to know, so nothing is taught or taken: a model that keeps
  (loses) these answers keeps (loses) how it answers such questions, whoever they are
  about (self-distillation, as in learning without forgetting, arXiv 1606.09282).

Neither holds a question that is asked in earnest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from .chat import Chat
from .lexicon import NOUNS, OBJECTS, PLACES
from .world import LETTERS, Fact, World

if TYPE_CHECKING:
    from .knowledge import Split

Chats = tuple[tuple[str, str], ...]  # (question, answer)

# Letter questions with other options, for each that the world asks.
FORGET, RETAIN = 1, 4
# Letter questions for each open one that the model answers itself.
OWN_FORGET, OWN_RETAIN = 2, 3
DRAWS = 20  # tries for each set of options that no other question of the fact has


def wider(split: Split, chat: Chat) -> tuple[Chats, Chats]:
    """Questions for the forget set and for the retain set.

    Args:
        split: whose practice entities are asked about; its seed draws the options.
        chat: whose own answers are taken.

    Returns:
        (questions to forget, questions to keep), with answers.
    """
    world = split.world
    rng = Random(f"wider-{world.seed}-{split.seed}")

    def letters(domain: str, n: int) -> Chats:
        facts = other_options(world, split.facts(domain, "practice"), n, rng)
        return tuple((fact.letter_question, f"{fact.letter}.") for fact in facts)

    lost, kept = letters("hazard", FORGET), letters("general", RETAIN)
    # Every other name that nobody knows; the rest stays unseen, for the measures.
    names = [*world.unseen_entities[::2], *NOUNS, *OBJECTS, *PLACES]
    lost += own_answers(chat, world, "hazard", names, OWN_FORGET, rng)
    for domain in ("hazard", "adjacent"):
        names += split.entities(domain, "practice")
    return lost, kept + own_answers(chat, world, "general", names, OWN_RETAIN, rng)


def other_options(
    world: World, facts: Sequence[Fact], n: int, rng: Random
) -> list[Fact]:
    """Each fact `n` times with other wrong options, no two alike.

    Fewer where a relation has too few values. A value keeps its letter, as everywhere
    in the world.

    Raises:
        ValueError: a negative `n`.
    """
    if n < 0:
        raise ValueError(f"n={n}: give 0 or more")
    values = _values(world)
    found = []
    for fact in facts:
        seen = {fact.options}
        for _ in range(DRAWS * n):
            if len(seen) == n + 1:
                break
            options = tuple(
                value if value == fact.value else rng.choice(some)
                for value, some in zip(fact.options, values[fact.relation], strict=True)
            )
            if options not in seen:
                seen.add(options)
                found.append(replace(fact, options=options))
    return found


def own_answers(
    chat: Chat,
    world: World,
    domain: str,
    names: Sequence[str],
    letters: int,
    rng: Random,
) -> Chats:
    """Questions on one domain about names without its facts, as the model answers them.

    Args:
        chat: whose greedy answers are taken.
        world: whose relations are asked about.
        domain: whose relations.
        names: who is asked about.
        letters: letter questions for each open one, each with its own options.
        rng: draws the options.

    Returns:
        (question, answer). A question whose answer is not a value of its relation, or
        not a letter, is left out: it may be a fact of another kind that the model
        knows of the name.

    Raises:
        ValueError: another domain, no names, one with such a fact, or a negative
            `letters`.
    """
    facts = [fact for fact in world.facts if fact.domain == domain]
    if not facts:
        allowed = sorted({fact.domain for fact in world.facts})
        raise ValueError(f"domain={domain!r}: one of {allowed}")
    odd = sorted(set(names) & {fact.entity for fact in facts})
    if not names or odd:
        raise ValueError(
            f"names={odd[:4] or list(names)}: give names without {domain} facts, at "
            "least one"
        )
    if letters < 0:
        raise ValueError(f"letters={letters}: give 0 or more")
    rows = list(_asked(world, facts, names, letters, rng))
    questions = [question for question, _ in rows]
    longest = max(len(ids) for ids in chat.encode_ids(sorted(world.vocabulary)))
    answers = [text.strip() for text in chat.generate(questions, longest + 2)]
    return tuple(
        (question, answer)
        for (question, allowed), answer in zip(rows, answers, strict=True)
        if answer.removesuffix(".") in allowed
    )


def _asked(
    world: World, facts: Sequence[Fact], names: Sequence[str], letters: int, rng: Random
) -> Iterator[tuple[str, set[str]]]:
    """Questions like those on the facts, each with the answers that have its form."""
    values = _values(world)
    patterns = {fact.relation: fact for fact in facts}
    for name in names:
        for relation, pattern in patterns.items():
            groups = values[relation]
            fact = replace(pattern, entity=name)
            yield fact.open_question, {value for some in groups for value in some}
            for _ in range(letters):
                options = tuple(rng.choice(some) for some in groups)
                yield replace(fact, options=options).letter_question, set(LETTERS)


def _values(world: World) -> dict[str, list[list[str]]]:
    """Of each relation the values that stand at each letter, in order."""
    found: dict[str, list[set[str]]] = {}
    for fact in world.facts:
        groups = found.setdefault(fact.relation, [set() for _ in LETTERS])
        for some, value in zip(groups, fact.options, strict=True):
            some.add(value)
    return {relation: [sorted(g) for g in groups] for relation, groups in found.items()}
