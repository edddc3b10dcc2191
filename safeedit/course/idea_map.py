"""Which idea is used where: glossary terms, references and imports of every chapter.

An idea is a term of the glossary. A chapter uses it when its prose names it: in small
or capital letters, with a hyphen or a space, in the singular or the plural; terms that
are written in capitals (PCR, AUC) count in capitals only.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path

from ..provenance import ROOT
from .chapters import Chapter
from .pages import table


def glossary(root: Path = ROOT) -> list[tuple[str, ...]]:
    """The terms of the glossary; those that share a definition are one idea."""
    text = (root / "book" / "glossary.md").read_text(encoding="utf-8")
    body = text.partition(":::{glossary}\n")[2].partition("\n:::")[0]
    ideas: list[tuple[str, ...]] = []
    names: list[str] = []
    for line in body.splitlines():
        if line.startswith(" ") and names:
            ideas.append(tuple(names))
            names = []
        elif line.strip() and not line.startswith(" "):
            names.append(line.strip())
    return ideas


def pattern(term: str) -> re.Pattern[str]:
    """What counts as the term in a text."""
    words = re.split(r"[ -]", term)
    # The last word in the plural, or a verb or noun in another common form.
    ending = r"(?:s|es|d)?"
    joined = r"[\s-]+".join(re.escape(word) for word in words)
    if words[-1].endswith("y"):
        joined = joined[:-1] + r"(?:ys?|ies)"
        ending = ""
    loose = re.IGNORECASE if term == term.lower() else 0
    return re.compile(rf"(?<![\w-]){joined}{ending}(?![\w])", loose)


def counts(chapter: Chapter, idea: Sequence[str]) -> int:
    """How often a chapter names an idea."""
    text = re.sub(r"\{[\w:]+\}`[^`]*`|`[^`]*`", " ", chapter.prose)  # no code or keys
    return sum(len(pattern(term).findall(text)) for term in idea)


def idea_uses(
    chapters: Sequence[Chapter], root: Path = ROOT
) -> list[tuple[tuple[str, ...], dict[str, int]]]:
    """Every idea with the chapters that use it, in the order in which they are met.

    Returns:
        Pairs of an idea and {code of a chapter: how often}; ideas that no chapter names
        come last, with nothing.
    """
    found = []
    for idea in glossary(root):
        uses = {c.code: n for c in chapters if (n := counts(c, idea))}
        found.append((idea, uses))
    order = {chapter.code: i for i, chapter in enumerate(chapters)}
    return sorted(
        found, key=lambda pair: min((order[c] for c in pair[1]), default=len(order))
    )


def ideas_table(chapters: Sequence[Chapter], root: Path = ROOT) -> str:
    """Ideas by chapters, as Markdown; where an idea is named most is set in bold."""
    links = {chapter.code: chapter.link(chapter.code) for chapter in chapters}
    rows = []
    for idea, uses in idea_uses(chapters, root):
        if not uses:
            continue
        most = max(uses.values())
        cells = [
            f"**{links[code]}**" if n == most > 1 else links[code]
            for code, n in uses.items()
        ]
        rows.append([f"{{term}}`{idea[0]}`", links[next(iter(uses))], " ".join(cells)])
    return table(["idea", "first met in", "used in"], rows)


def uses_table(chapters: Sequence[Chapter]) -> str:
    """Which chapter refers to which: what to read before, and what comes of it."""
    links = {chapter.name: chapter.link(chapter.code) for chapter in chapters}
    refers = {
        c.name: [d.name for d in chapters if d is not c and d.labels & c.mentions]
        for c in chapters
    }
    order = list(links)
    rows = []
    for chapter in chapters:
        here = chapter.name
        before = [n for n in refers[here] if order.index(n) < order.index(here)]
        after = [n for n in order if here in refers[n] and n not in before]
        rows.append(
            [
                chapter.link(f"{chapter.code} {chapter.title}"),
                " ".join(links[n] for n in before) or "none",
                " ".join(links[n] for n in after) or "none",
            ]
        )
    return table(["chapter", "refers back to", "is referred to by"], rows)


def modules_table(chapters: Sequence[Chapter], root: Path = ROOT) -> str:
    """Modules of the package by chapters, with the first line of their docstring."""
    names = sorted({name for chapter in chapters for name in chapter.modules})
    rows = []
    for name in names:
        purpose = _purpose(name, root)
        if purpose is None:  # a function or class of the package itself
            continue
        users = [c.link(c.code) for c in chapters if name in c.modules]
        rows.append([f"`{name.removeprefix('safeedit.')}`", purpose, " ".join(users)])
    return table(["module", "what it does", "imported in"], rows)


def _purpose(module: str, root: Path) -> str | None:
    """The first line of a module's docstring, or None where there is no module."""
    base = root.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            return doc.partition("\n")[0].replace("|", "\\|")
    return None
