"""The course's pages against the sources: minutes, plans, quizzes, ideas, terms."""

import re
import subprocess

import pytest
import yaml

from safeedit.course import chapters as course
from safeedit.course import idea_map, pages
from safeedit.records import ROOT

PARTS = course.read_parts(ROOT)
PAGES = [page for part in PARTS for page in part.pages]
CHAPTERS = course.notebooks(PARTS)
QUIZZES = [page for page in PAGES if page.name.startswith("quiz-")]
LINK = re.compile(r"\[[^\]]+\]\(([^)#]+)#([\w-]+)\)")

TINY = """---
safeedit: {}
---

(tiny)=
# A tiny chapter

:::{admonition} What you will learn
:class: tip
- one thing, told over
  two lines;
- another.
:::

Ten words that are read as they stand in here. See {ref}`other` and {eq}`eq-far`.

## First: a part, `code`

$$
a = b
$$ (eq-near)

```{code-cell} ipython3
from safeedit import metrics
from safeedit.edits import (
    pcr,
)
```

### Below it

## Exercises

:::{admonition} Exercise 1: by hand (difficulty 1/5, importance 2/5, 7 minutes)
:class: note
Many words that do not count as reading at all, however many there are of them.
:::

```{code-cell} ipython3
:tags: [solution]

secret = 1
```
"""


def make(tmp_path, text=TINY):
    path = tmp_path / "notebooks" / "src" / "99_tiny.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return course.read_chapter(path)


def test_chapter_is_read(tmp_path):
    page = make(tmp_path)
    assert (page.code, page.label, page.title) == ("99", "tiny", "A tiny chapter")
    assert page.learn == ["one thing, told over two lines;", "another."]
    assert page.exercises == [course.Exercise(1, "by hand", 1, 2, 7)]
    assert page.headings == {
        "first-a-part-code": "First: a part, `code`",
        "below-it": "Below it",
        "exercises": "Exercises",
    }
    assert page.modules == ["safeedit.edits", "safeedit.metrics"]
    assert page.mentions == {"other", "eq-far"}
    assert page.labels == {"tiny", "eq-near"}
    assert page.reading_minutes == 5  # a formula, a cell, and fewer than 80 words


def test_minutes_grow_with_words_and_not_with_exercises(tmp_path):
    extra = "word " * 80 * 10
    longer = make(tmp_path, TINY.replace("Ten words", extra + "Ten words"))
    assert longer.reading_minutes == 15  # 10 more, rounded up with the old ones
    boxed = make(tmp_path, TINY.replace("Many words", extra + "Many words"))
    assert boxed.reading_minutes == 5
    assert longer.section_minutes("first-a-part-code") == 5


@pytest.mark.parametrize(
    "change",
    [("(difficulty 1/5, ", "("), ("7 minutes", "minutes")],
    ids=["no difficulty", "no minutes"],
)
def test_broken_exercise_box_is_refused(tmp_path, change):
    with pytest.raises(course.CourseError, match="is no exercise; want"):
        _ = make(tmp_path, TINY.replace(*change)).exercises


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.name)
def test_chapter_has_what_every_chapter_has(page):
    assert 3 <= len(page.learn) <= 5
    assert 2 <= len(page.exercises) <= 4
    assert [e.number for e in page.exercises] == list(range(1, len(page.exercises) + 1))
    assert 3 <= len(page.takeaway) <= 4
    assert "**Further reading.**" in page.prose


def test_minutes_are_those_of_the_boxes():
    """Counted by another tool, over the files."""
    found = subprocess.run(
        ["grep", "-hoE", r"importance ./5, [0-9]+ minutes?\)", "-r"]
        + [str(page.path) for page in CHAPTERS],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    total = sum(int(n) for n in re.findall(r" (\d+) minutes?\)", found))
    assert total == sum(page.exercise_minutes for page in CHAPTERS) > 0


@pytest.mark.parametrize("part", PARTS[:-1], ids=lambda part: part.caption)
def test_hours_of_a_part_are_the_sum_of_its_lines(part):
    text = pages.part_hours(PARTS, part.caption)
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]

    def minutes(cell):
        hours, rest = re.search(r"(\d+) h", cell), re.search(r"(\d+) min", cell)
        return 60 * int(hours[1] if hours else 0) + int(rest[1] if rest else 0)

    rows = [cells for cells in lines if "{doc}" in cells[0]]
    assert len(rows) == len(part.content)
    total = re.search(r"\*\*All of this part: (.+)\.\*\*", text)
    assert sum(minutes(cells[3]) for cells in rows) == minutes(total[1])
    assert all(minutes(c[1]) + minutes(c[2]) == minutes(c[3]) for c in rows)


def test_parts_with_chapters_begin_with_an_introduction_and_end_with_a_quiz():
    for part in PARTS[1:]:  # the start has none
        if part.chapters:
            assert part.pages[0].name.startswith("part-"), part.caption
            assert part.pages[-1].name.startswith("quiz-"), part.caption
            assert "Before you start" in part.pages[0].headings.values()
            assert len(part.pages[0].learn) >= 3
            hours = f"```{{safeedit-hours}} {part.caption}\n"
            assert hours in part.pages[0].text


@pytest.mark.parametrize("quiz", QUIZZES, ids=lambda page: page.name)
def test_quiz_answers_point_to_sections_that_exist(quiz):
    questions = re.findall(r"^\*\*(\d+)\.\*\* ", quiz.text, re.M)
    answers = re.findall(
        r"^:::\{dropdown\} Answer (\d+)\n(.*?)^:::$", quiz.text, re.M | re.S
    )
    assert 6 <= len(questions) <= 10
    assert questions == [n for n, _ in answers]
    assert questions == [str(i) for i in range(1, len(questions) + 1)]
    for number, answer in answers:
        links = LINK.findall(answer)
        assert links, f"answer {number} names no section"
        for file, section in links:
            name = re.sub(r"\.(ipynb|md)$", "", file.rpartition("/")[2])
            course.find(PAGES, name).section(section)  # raises if it is gone


def plans():
    text = (ROOT / "book" / "teach.md").read_text(encoding="utf-8")
    return [
        yaml.safe_load(body)
        for body in re.findall(r"```\{safeedit-plan\}\n(.*?)```", text, re.S)
    ]


def test_plans_are_one_day_and_four_weeks():
    made = [pages.plan(plan, PAGES) for plan in plans()]
    assert len(made) == 5
    assert "Together 6 h 45 min of class" in made[0]
    assert all("Together 4 h of class and" in week for week in made[1:])
    for plan in plans():
        assert all(entry["goal"] for entry in plan)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"minutes": 5}, "leave one out"),
        ({"exercises": ["02/9"]}, "no exercise '02/9'"),
        ({"read": ["02#gone"]}, "no section #gone"),
        ({"read": ["77"]}, "names 0 pages"),
        ({"goal_": "x"}, "allowed keys"),
    ],
    ids=["too short", "no exercise", "no section", "no page", "unknown key"],
)
def test_plan_that_does_not_hold_is_refused(change, words):
    entry = {"at": "9:00", "minutes": 60, "goal": "g", "exercises": ["02/1"]}
    pages.plan([entry], PAGES)
    with pytest.raises(course.CourseError, match=re.escape(words)):
        pages.plan([entry | change], PAGES)


def test_ideas_are_found_in_every_form():
    for term, text in [
        ("relearning attack", "Two relearning attacks"),
        ("over-refusal", "An over refusal"),
        ("static replay", "Static\nreplays"),
        ("logit lens", "The logit lens"),
    ]:
        assert idea_map.pattern(term).search(text), term
    assert not idea_map.pattern("PCR").search("pcr and PCRConfig")
    assert not idea_map.pattern("scope").search("microscopes")


def test_every_term_of_the_glossary_is_used_and_they_are_in_order():
    uses = idea_map.idea_uses(CHAPTERS)
    assert [idea[0] for idea, used in uses if not used] == []
    first = [idea[0].lower() for idea in idea_map.glossary()]
    assert first == sorted(first) and len(set(first)) == len(first)


def test_every_acronym_of_the_chapters_is_in_the_glossary():
    known = {term for idea in idea_map.glossary() for term in idea}
    known |= {"GPU", "CPU", "GB", "MB", "ROC", "NAME"}  # everyday, or explained there
    known |= {"CVXPY", "SLSQP"}  # names of solvers, explained there
    missing = {}
    for page in CHAPTERS:
        text = re.sub(
            r"\{[\w:]+\}`[^`]*`|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$",
            " ",
            page.prose,
            flags=re.S,
        )
        for word in re.findall(r"\b[A-Z][A-Za-z]*[A-Z][A-Za-z]*\b", text):
            if word not in known and word.removesuffix("s") not in known:
                missing.setdefault(word, page.name)
    assert missing == {}


def test_map_knows_who_imports_what():
    """Against a search of the files by another tool."""
    table = idea_map.modules_table(CHAPTERS)
    (line,) = [x for x in table.splitlines() if x.startswith("| `attacks.simplex` |")]
    found = subprocess.run(
        ["grep", "-l", "from safeedit.attacks.simplex import"]
        + [str(page.path) for page in CHAPTERS],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert line.count("{doc}") == len(found) > 0
    assert "safeedit-map" in (ROOT / "book" / "map.md").read_text(encoding="utf-8")


def test_every_source_of_a_notebook_can_be_linked():
    for page in CHAPTERS:
        assert re.fullmatch(r"[\w-]+", page.label or ""), page.name
        for anchor in page.headings:
            assert page.link(None, anchor).endswith(f"#{anchor})")
