"""The list of bad inputs is the list that is run."""

from collections import Counter

from misuse import PAGE, cases, page


def test_the_page_lists_the_cases_that_are_run():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/misuse.py"


def test_there_are_enough_cases_and_none_is_there_twice():
    every = [one for rows in cases().values() for one in rows]
    assert len(every) >= 150
    twice = [what for what, n in Counter(one.what for one in every).items() if n > 1]
    assert twice == []
    # An error that says nothing in particular would pass any test.
    assert all(one.words and max(map(len, one.words)) > 3 for one in every)
    assert all(part for one in every for part in one.words)
