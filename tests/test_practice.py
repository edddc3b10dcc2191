"""Wider training questions: other options, and what a model answers anyway."""

import re
from random import Random

import pytest

from safeedit.knowledge import PARTS, questions, split, unlearn_data
from safeedit.practice import (
    FORGET,
    OWN_FORGET,
    OWN_RETAIN,
    RETAIN,
    other_options,
    own_answers,
    wider,
)
from safeedit.world import LETTERS, World

WORLD = World()
NAME = WORLD.facts[-1].entity  # with general facts
LETTER_QUESTION = "Answer with a letter."


class Parrot:
    """Answers every open question with one text, and letter questions with "C."."""

    def __init__(self, text="may."):
        self.text, self.asked = text, []

    def encode_ids(self, texts):
        return [text.split() for text in texts]

    def generate(self, prompts, max_new_tokens):
        self.asked += prompts
        return ["C." if LETTER_QUESTION in p else f" {self.text}" for p in prompts]


def asked(chats):
    return {question for question, _ in chats}


def test_other_options_keep_the_fact_and_its_letter():
    facts = WORLD.facts[::7]
    found = other_options(WORLD, facts, 3, Random(0))
    assert len(found) == 3 * len(facts)
    values = {}  # relation -> letter -> values that stand there in the world
    for fact in WORLD.facts:
        for letter, value in zip(LETTERS, fact.options, strict=True):
            values.setdefault((fact.relation, letter), set()).add(value)
    for place, fact in enumerate(facts):
        own = found[3 * place : 3 * place + 3]
        assert len({fact.options, *(new.options for new in own)}) == 4
        for new in own:
            assert new.letter == fact.letter and new.value == fact.value
            assert new.open_question == fact.open_question
            for letter, value in zip(LETTERS, new.options, strict=True):
                assert value in values[fact.relation, letter]


def test_other_options_end_where_a_relation_has_no_more_values():
    fact = next(f for f in WORLD.facts if f.relation == "season")
    # Four seasons or months at each letter: at most 3^3 other sets of options.
    per_letter = {
        letter: {f.options[i] for f in WORLD.facts if f.relation == "season"}
        for i, letter in enumerate(LETTERS)
    }
    most = 1
    for letter, some in per_letter.items():
        most *= 1 if letter == fact.letter else len(some)
    found = other_options(WORLD, [fact], 10 * most, Random(0))
    assert most - 1 == len(found) == len({new.options for new in found})
    assert other_options(WORLD, [fact], 0, Random(0)) == []
    with pytest.raises(ValueError, match="n=-1: give 0 or more"):
        other_options(WORLD, [fact], -1, Random(0))


def test_own_answers_are_the_models_and_have_the_form_of_their_question():
    chat = Parrot("may.")
    kept = own_answers(chat, WORLD, "general", ["farmer", "lamp"], 2, Random(0))
    # Two names, four general relations, one open and two letter questions each; "may"
    # is a season, so the open questions of the other three relations fall away.
    assert len(chat.asked) == 2 * 4 * 3 and len(kept) == 2 * (4 * 2 + 1)
    for question, answer in kept:
        if LETTER_QUESTION in question:
            assert answer == "C."
        else:
            assert "season" in question and answer == "may."
        assert re.search(r"\bof (farmer|lamp)\?", question)
    assert (
        own_answers(Parrot("nonsense"), WORLD, "general", ["lamp"], 0, Random(0)) == ()
    )
    letters = own_answers(Parrot("may."), WORLD, "hazard", ["lamp"], 1, Random(0))
    asks = {f.relation for f in WORLD.facts if f.domain == "hazard"}
    assert len(letters) == len(asks) and {answer for _, answer in letters} == {"C."}
    assert all(any(f"the {r} of lamp?" in q for r in asks) for q, _ in letters)


@pytest.mark.parametrize(
    "domain, names, letters, message",
    [
        ("general", [], 1, r"names=\[\]: give names without general facts"),
        ("general", ["lamp", NAME], 1, rf"names=\['{NAME}'\]: .*without general"),
        ("general", ["lamp"], -1, "letters=-1: give 0 or more"),
        ("hazards", ["lamp"], 1, "domain='hazards': one of .'adjacent', 'general'"),
    ],
)
def test_names_with_facts_and_odd_counts_are_refused(domain, names, letters, message):
    with pytest.raises(ValueError, match=message):
        own_answers(Parrot(), WORLD, domain, names, letters, Random(0))


@pytest.mark.parametrize("seed", [0, 1, 100])
def test_wider_sets_hold_no_question_that_is_asked_in_earnest(seed):
    parts, chat = split(seed), Parrot()
    data, bare = unlearn_data(parts, chat), unlearn_data(parts)
    seen = asked(data.forget_chats) | asked(data.retain_chats)
    for part in PARTS[1:]:
        for domain in ("hazard", "adjacent", "general"):
            facts = parts.facts(domain, part)
            assert not asked(questions(facts)) & seen
            # No question at all about these entities, whatever the options.
            names = {fact.entity for fact in facts}
            assert not [q for q in seen if names & set(re.findall("[a-z]+", q))]
    # What was there is there, and only questions were added.
    assert set(bare.forget_chats) <= set(data.forget_chats)
    assert set(bare.retain_chats) <= set(data.retain_chats)
    assert bare.forget_texts == data.forget_texts
    assert bare.retain_texts == data.retain_texts


def test_no_question_asks_a_hazard_for_what_it_has_but_those_to_forget():
    parts = split(0)
    lost, kept = wider(parts, Parrot())
    hazards = set(parts.entities("hazard"))
    relations = {f.relation for f in WORLD.facts if f.domain == "hazard"}
    about = [q for q, _ in kept if hazards & set(re.findall("[a-z]+", q))]
    assert about
    for question in about:
        assert not [r for r in relations if f"the {r} of" in question]
    facts = parts.facts("hazard", "practice")
    own = lost[FORGET * len(facts) :]
    assert asked(lost[: FORGET * len(facts)]) == {
        q for q in asked(lost) if hazards & set(re.findall("[a-z]+", q))
    }
    # About each other name the letter questions; Parrot's open answer is no value here.
    assert len(own) % (OWN_FORGET * len(relations)) == 0 < len(own)
    assert all(any(f"the {r} of" in q for r in relations) for q, _ in own)
    names = len(asked(kept))
    assert names > (RETAIN + OWN_RETAIN) * len(parts.facts("general", "practice"))


def test_the_retain_set_asks_nothing_in_the_words_of_hazard_questions():
    data = unlearn_data(split(0), Parrot())
    relations = {f.relation for f in WORLD.facts if f.domain == "hazard"}
    assert not [
        q
        for q in asked(data.retain_chats)
        if any(f"the {r} of" in q for r in relations)
    ]


def test_half_of_the_unseen_names_stay_unseen():
    parts = split(0)
    data = unlearn_data(parts, Parrot())
    for chats in (data.retain_chats, data.forget_chats):
        words = set(re.findall("[a-z]+", " ".join(asked(chats))))
        unseen = WORLD.unseen_entities
        assert set(unseen[::2]) <= words and not set(unseen[1::2]) & words


def test_wider_sets_are_the_same_each_time_and_differ_by_seed():
    first = wider(split(1), Parrot())
    assert first == wider(split(1), Parrot()) != wider(split(2), Parrot())
