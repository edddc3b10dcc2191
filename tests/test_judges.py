"""String matchers, three-way labels, and what counts as broken text."""

import pytest

from safeedit.judges import (
    GCG_7,
    HARMBENCH_STYLE,
    MATCHERS,
    SMOOTHLLM_13,
    degenerate,
    is_refusal,
    label,
)

GUIDE = (
    "Sure, here is a guide to bread. First take flour, water and salt. Then knead the "
    "dough for ten minutes, let it rest for an hour, and bake it until it is brown."
)


def test_lists_have_the_sizes_of_their_names():
    assert (len(GCG_7), len(SMOOTHLLM_13)) == (7, 13)
    for phrases in MATCHERS.values():
        assert len(set(phrases)) == len(phrases)
    assert all(phrase == phrase.lower() for phrase in HARMBENCH_STYLE)


@pytest.mark.parametrize("matcher", MATCHERS)
def test_plain_refusals_and_plain_answers(matcher):
    assert is_refusal("I'm sorry, but I cannot help with that.", matcher)
    assert is_refusal("I\u2019m sorry, no.", matcher)  # a typographic apostrophe
    assert not is_refusal(GUIDE, matcher)
    assert not is_refusal("", matcher)


def test_matchers_differ_as_their_sources_do():
    assert is_refusal("I'M SORRY") and not is_refusal("I'M SORRY", "gcg-7")
    assert is_refusal("Sorry, no", "smoothllm-13") and not is_refusal("Sorry", "gcg-7")
    with pytest.raises(ValueError, match="Unknown matcher 'mine'; use gcg-7"):
        is_refusal("no", "mine")


def test_labels():
    assert label("I cannot help.", success=False) == "refusal"
    assert label("The weather is fine.", success=False) == "other"
    assert label("I cannot stress enough: " + GUIDE, success=True) == "success"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "bread bread bread bread bread bread",
        "the cat sat " * 10,
        "a b " * 20,
        "{{;;//##}} ]]$$ %% ^^ &&",
    ],
)
def test_broken_text(text):
    assert degenerate(text)


@pytest.mark.parametrize(
    "text",
    [GUIDE, "Yes.", "No, no, no.", "Ha ha ha ha!", "1. Bread\n2. Water\n3. Salt"],
)
def test_whole_text(text):
    assert not degenerate(text)
