"""What answers score that know nothing of whom the question is about.

With four options chance is a quarter only for answers, or right options, that are
spread evenly over the letters. A model that has never read of an entity still prefers
some letters, or some values for a relation, and so may the world. Both habits stay, and
what is known of the entities goes, when the answers are dealt anew among the questions
on the same relation. On average over all ways to deal them

    chance = 1/N  sum over relations, letters of  said * right / questions

with the number of questions on the relation, of those answered with the letter, and of
those whose right answer it is: the mean of a permutation test within strata.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from .attacks.logit_lens import STAGES, logit_lens
from .chat import Chat
from .knowledge_measures import letter_ids
from .world import LETTERS, Fact


def letters_said(chat: Chat, facts: Sequence[Fact]) -> list[str]:
    """The likeliest of the four letters for each letter question.

    Args:
        chat: the model, edited or not.
        facts: what to ask, at least one.

    Raises:
        ValueError: as `logit_lens`, whose last read-out is the model's own answer.
    """
    prompts = [fact.letter_question for fact in facts]
    ids = letter_ids(chat, chat.render(prompts[:1])[0]) if prompts else []
    seen = logit_lens(chat, prompts, ids)
    return [LETTERS[i] for i in seen.predictions[-1, STAGES.index("block")].tolist()]


def chance(
    said: Sequence[Hashable],
    right: Sequence[Hashable],
    strata: Sequence[Hashable],
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """Share of right answers if those of each stratum were dealt anew.

    Args:
        said: a model's answer to each question.
        right: the right answer to each.
        strata: what else the answer may depend on, such as the relation asked about.
        seed: of the deals that the range is taken from.
        resamples: number of these deals.
        confidence: share of the deals inside the range.

    Returns:
        (exact mean over all deals, low, high): a model whose accuracy lies inside has
        shown no knowledge of whom it was asked about.

    Raises:
        ValueError: not one of each for every question, or none.
    """
    if not len(said) == len(right) == len(strata) or not len(said):
        raise ValueError(
            f"Got {len(said)} answers, {len(right)} right ones and {len(strata)} "
            "strata; give one of each for every question."
        )
    rng = np.random.default_rng(seed)
    mean, drawn = 0.0, np.zeros(resamples)
    for stratum in dict.fromkeys(strata):
        pairs = [
            (one, other)
            for one, other, of in zip(said, right, strata, strict=True)
            if of == stratum
        ]
        answers, truth = (Counter(column) for column in zip(*pairs, strict=True))
        mean += sum(answers[a] * truth[a] for a in answers) / len(pairs)
        code = {answer: place for place, answer in enumerate({**answers, **truth})}
        mine, theirs = (
            np.array([code[x] for x in column]) for column in zip(*pairs, strict=True)
        )
        deals = rng.permuted(np.tile(mine, (resamples, 1)), axis=1)
        drawn += (deals == theirs).sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn / len(said), [tail, 1 - tail])
    return mean / len(said), float(low), float(high)
