"""Chance level of given answers: by hand, by all deals, and on the stand-ins."""

from itertools import permutations
from statistics import mean

import pytest

import safeedit
from safeedit.guessing import chance, letters_said
from safeedit.knowledge import split
from safeedit.knowledge_measures import letter_accuracy


def test_the_mean_is_that_of_all_deals():
    said, right, strata = "AABCAB", "ABBCBA", "xxxxyy"
    scores = [
        sum(a == b for a, b in zip([*first, *second], right, strict=True)) / 6
        for first in permutations(said[:4])
        for second in permutations(said[4:])
    ]
    value, low, high = chance(said, right, strata, resamples=4000)
    assert value == pytest.approx(mean(scores))
    assert min(scores) <= low <= value <= high <= max(scores)


def test_one_letter_for_all_is_right_as_often_as_it_is_the_answer():
    # By hand: 3 of 8 right answers are A, and no deal changes that.
    found = chance("A" * 8, "AAABCDBC", ["color"] * 8)
    assert found == pytest.approx((3 / 8, 3 / 8, 3 / 8))


def test_a_habit_of_each_relation_stays_and_knowledge_goes():
    right = "ABAB" * 10
    relation = ["color", "home"] * 20  # A is always the color, B always the home
    assert chance(right, right, relation)[0] == 1
    assert chance(right, right, ["any"] * 40)[0] == pytest.approx(0.5)


def test_even_answers_have_a_chance_of_one_in_four_and_a_range_around_it():
    value, low, high = chance("ABCD" * 25, "AABBCCDD" * 12 + "ABCD", ["x"] * 100)
    assert value == pytest.approx(0.25)
    # Binomial spread of 100 answers: 0.25 plus or minus 0.085.
    assert 0.14 < low < 0.2 and 0.3 < high < 0.36


def test_answers_to_the_same_question_stay_together():
    """By all deals: two models that answer alike, and a question that only one had."""
    said, asked = "AABBA", "kkllm"
    right = {"k": "A", "l": "B", "m": "A"}
    scores = [
        mean(
            a == dict(zip("klm", deal, strict=True))[q]
            for a, q in zip(said, asked, strict=True)
        )
        for deal in permutations("ABA")
    ]
    found = chance(said, [right[q] for q in asked], "xxxxx", asked, resamples=4000)
    assert found[0] == pytest.approx(mean(scores))
    assert found[1:] == pytest.approx((min(scores), max(scores)))


def test_letters_said_are_those_that_accuracy_counts():
    chat = safeedit.load("standin-gemma-oracle")
    facts = split(0).facts("hazard", "validation")
    said = letters_said(chat, facts)
    hits = [int(a == f.letter) for a, f in zip(said, facts, strict=True)]
    assert hits == letter_accuracy(chat, facts)


def test_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="Got 2 answers, 1 right ones, 2 strata"):
        chance("AB", "A", "xx")
    with pytest.raises(ValueError, match="question 1 has stratum and right answer"):
        chance("AB", "AB", "xx", [1, 1])
    with pytest.raises(ValueError, match="Got 0 answers"):
        chance("", "", "")
    with pytest.raises(ValueError, match="prompts"):
        letters_said(safeedit.load("standin-gemma-oracle"), [])
