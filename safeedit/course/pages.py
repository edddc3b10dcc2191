"""What the course's pages show of the sources, as MyST Markdown: hours and plans.

`safeedit.sphinx.course` puts these texts into the book when it is built, so a plan
whose exercises do not fit its hour, or that names a section which is gone, ends the
build.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..provenance import ROOT
from .chapters import (
    Chapter,
    CourseError,
    Exercise,
    Part,
    find,
    find_part,
    read_status,
    spelled,
)

PLAN_KEYS = {"at", "minutes", "goal", "read", "exercises", "do"}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def part_hours(parts: Sequence[Part], caption: str, root: Path = ROOT) -> str:
    """The pages of one part with minutes to read, to solve, and to run.

    Raises:
        CourseError: no such part.
    """
    part = find_part(parts, caption)
    rows = []
    for page in part.content:
        seconds = read_status(root, page) if page.is_notebook else None
        number, solve = len(page.exercises), page.exercise_minutes
        rows.append(
            [
                page.link(),
                spelled(page.reading_minutes),
                f"{number} in {spelled(solve)}" if number else "none",
                spelled(page.reading_minutes + solve),
                "" if seconds is None else spelled(max(1, seconds / 60)),
            ]
        )
    head = ["page", "to read", "exercises", "together", "to run"]
    words = f"\n**All of this part: {spelled(part.minutes)}.**\n"
    return table(head, rows) + words


def all_hours(parts: Sequence[Part]) -> str:
    """One line for each part that has something to study."""
    rows, total = [], 0
    for part in parts:
        exercises = [e for page in part.content for e in page.exercises]
        if not part.caption or part.caption in ("Reference", "The course"):
            continue
        first = part.pages[0]
        total += part.minutes
        rows.append(
            [
                first.link(part.caption),
                str(len(part.chapters)),
                str(len(exercises)),
                spelled(part.minutes),
            ]
        )
    rows.append(["all", "", "", f"**{spelled(total)}**"])
    return table(["part", "notebooks", "exercises", "hours"], rows)


def plan(entries: Any, pages: Sequence[Chapter]) -> str:
    """A timetable: one row for each entry, its minutes held to its exercises.

    Args:
        entries: list of mappings with `at` (such as "9:00"), `goal` (what students can
            do at the end), and any of `minutes` (length; left out for work at home,
            whose time is the sum of its reading and exercises), `read` (pages as "02"
            or sections as "02#one-constraint-a-formula"), `exercises` ("02/1"), `do`
            (other work, in words).
        pages: all pages of the book.

    Raises:
        CourseError: an unknown key, page, section or exercise, or exercises that take
            longer than their entry.
    """
    if not isinstance(entries, list) or not entries:
        raise CourseError("a plan is a YAML list with one entry for each hour")
    rows, taught, home = [], 0, 0
    for entry in entries:
        cells, minutes, at_home = _plan_row(entry, pages)
        rows.append(cells)
        if at_home:
            home += minutes
        else:
            taught += minutes
    words = f"\nTogether {spelled(taught)} of class"
    words += f" and {spelled(home)} of work at home.\n" if home else ".\n"
    head = ["when", "at its end, students can", "material", "exercises"]
    return table(head, rows) + words


def _plan_row(
    entry: Mapping[str, Any], pages: Sequence[Chapter]
) -> tuple[list[str], int, bool]:
    """Cells of an entry, its minutes, and whether it is work at home."""
    at = entry.get("at")
    if not at or "goal" not in entry or set(entry) - PLAN_KEYS:
        raise CourseError(
            f"the plan's entry {dict(entry)} needs `at` and `goal`; allowed keys: "
            f"{sorted(PLAN_KEYS)}"
        )
    links, reading = [], 0
    for place in entry.get("read", []):
        name, _, section = str(place).partition("#")
        page = find(pages, name)
        code = f"{page.code} " if page.is_notebook else ""
        title = page.section(section) if section else page.title
        links.append(page.link(f"{code}{title}", section or None))
        reading += page.section_minutes(section) if section else page.reading_minutes
    tasks = [(name, *_exercise(name, pages)) for name in entry.get("exercises", [])]
    solving = sum(exercise.minutes for _, _, exercise in tasks)
    home = "minutes" not in entry
    minutes = reading + solving if home else int(entry["minutes"])
    if solving > minutes:
        raise CourseError(
            f"the plan's entry {at!r} has {minutes} minutes and exercises of "
            f"{solving}; leave one out or make it longer"
        )
    cells = [
        page.link(f"{page.code}, {exercise.number}", "exercises")
        + f" ({exercise.minutes} min)"
        for _, page, exercise in tasks
    ]
    others = [entry["do"]] if entry.get("do") else []
    row = [f"**{at}**, {spelled(minutes)}", entry["goal"]]
    row += ["; ".join(links + others), "; ".join(cells)]
    return row, minutes, home


def _exercise(name: str, pages: Sequence[Chapter]) -> tuple[Chapter, Exercise]:
    """The page and the exercise that a text such as "02/1" names."""
    code, _, number = str(name).partition("/")
    page = find(pages, code)
    for exercise in page.exercises:
        if str(exercise.number) == number:
            return page, exercise
    allowed = ", ".join(f"{page.code}/{e.number}" for e in page.exercises) or "none"
    raise CourseError(f"there is no exercise {name!r}; allowed: {allowed}")
