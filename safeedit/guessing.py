"""What answers score that know nothing of whom the question is about.

With four options chance is a quarter only for answers, or right options, that are
spread evenly over the letters. A model that has never read of an entity still prefers
some letters, or some values for a relation, and so may the world. Both habits stay, and
what is known of the entities goes, when the right answers are dealt anew among the
questions on the same relation. On average over all ways to deal them

    chance = 1/N  sum over relations, letters of  said * right / questions

with the number of questions on the relation, of answers that are the letter, and of
questions whose right answer it is: the mean of a permutation test within strata.
"""

from __future__ import annotations

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
    questions: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """Share of right answers if the questions of each stratum were dealt anew.

    Args:
        said: the answers, of one model or of several.
        right: the right answer to each.
        strata: what else an answer may depend on, such as the relation asked about.
        questions: the question that each answers, if some answer the same one: they
            stay together, since two models may answer it alike without knowing. None:
            all are different.
        seed: of the deals that the range is taken from.
        resamples: number of these deals.
        confidence: share of the deals inside the range.

    Returns:
        (exact mean over all deals, low, high): a model whose accuracy lies inside has
        shown no knowledge of whom it was asked about.

    Raises:
        ValueError: not one of each for every answer, none, or a question with two
            right answers or strata.
    """
    asked = range(len(said)) if questions is None else questions
    if not len(said) == len(right) == len(strata) == len(asked) or not len(said):
        raise ValueError(
            f"Got {len(said)} answers, {len(right)} right ones, {len(strata)} strata "
            f"and {len(asked)} questions; give one of each for every answer."
        )
    truth: dict[Hashable, tuple[Hashable, Hashable]] = {}
    for question, stratum, answer in zip(asked, strata, right, strict=True):
        if truth.setdefault(question, (stratum, answer)) != (stratum, answer):
            raise ValueError(
                f"question {question!r} has stratum and right answer "
                f"{truth[question]} and {(stratum, answer)}; give each question one"
            )
    rng = np.random.default_rng(seed)
    mean, drawn = 0.0, np.zeros(resamples)
    letters = {one: code for code, one in enumerate({*said, *right})}
    for stratum in dict.fromkeys(strata):
        place = {
            question: index
            for index, question in enumerate(q for q in truth if truth[q][0] == stratum)
        }
        of = [(s, place[q]) for s, q in zip(said, asked, strict=True) if q in place]
        own = np.array([letters[answer] for answer, _ in of])
        where = np.array([index for _, index in of])
        codes = np.array([letters[truth[question][1]] for question in place])
        mean += sum((codes == answer).mean() for answer in own)
        deals = rng.permuted(np.tile(codes, (resamples, 1)), axis=1)
        drawn += (deals[:, where] == own).sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn / len(said), [tail, 1 - tail])
    return float(mean / len(said)), float(low), float(high)
