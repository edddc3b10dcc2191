"""MyST Markdown to HTML for slides: formulas, references, citations and terms.

A slide has no other pages to link to, so a reference becomes the title that it means, a
citation author and year, and a formula keeps its number within its notebook.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

_ROLE = re.compile(r"\{([\w:]+)\}`([^`]+)`")
_MATH = re.compile(r"\$(?!\$)((?:[^$\\]|\\.)+)\$")
_LABELLED = re.compile(r"\$\$\s*\(([\w-]+)\)")
_ENTRY = re.compile(r"@\w+\{([\w-]+),(.*?)\n\}", re.S)


class Writer:
    """Turns the Markdown of one notebook into HTML.

    Args:
        root: the repository, with book/references.bib and the pages referred to.
        text: all prose of the notebook, in which formulas are numbered.
    """

    def __init__(self, root: Path, text: str) -> None:
        from markdown_it import MarkdownIt  # comes with the extra "book"

        from .slides import titles

        self._markdown: Any = MarkdownIt("commonmark", {"html": False}).enable("table")
        self._titles = titles(root)
        self._numbers = {k: i for i, k in enumerate(_LABELLED.findall(text), 1)}
        path = root / "book" / "references.bib"
        self._cited = citations(path.read_text("utf-8")) if path.is_file() else {}

    def inline(self, text: str) -> str:
        """One line of text."""
        return self._render(text, self._markdown.renderInline)

    def block(self, text: str) -> str:
        """Paragraphs, lists, tables and formulas."""
        return self._render(text, self._markdown.render)

    def formula(self, block: str) -> str:
        """A displayed formula `$$ ... $$ (label)`."""
        body, _, after = block.strip().removeprefix("$$").rpartition("$$")
        label = re.search(r"\(([\w-]+)\)", after)
        tag = f"\\tag{{{self._numbers[label[1]]}}}" if label else ""
        return f'<div class="formula">\\[{html.escape(body.strip())} {tag}\\]</div>'

    def _render(self, text: str, render: Any) -> str:
        kept: list[str] = []

        def hide(shown: str) -> str:
            kept.append(shown)
            return f"\ue000{len(kept) - 1}\ue001"

        text = re.sub(
            r"\$\$.*?\$\$(?: \([\w-]+\))?",
            lambda m: hide(self.formula(m[0])),
            text,
            flags=re.S,
        )
        text = _ROLE.sub(lambda m: hide(self._role(m[1], m[2])), text)
        text = re.sub(
            r"`([^`]+)`",
            lambda m: hide(f"<code>{html.escape(m[1])}</code>"),
            text,
        )
        text = _MATH.sub(lambda m: hide(f"\\({html.escape(m[1])}\\)"), text)
        shown = render(text)
        while "\ue000" in shown:
            shown = re.sub("\ue000(\\d+)\ue001", lambda m: kept[int(m[1])], shown)
        return shown

    def _role(self, role: str, content: str) -> str:
        named = re.fullmatch(r"(.+?)\s*<([^>]+)>", content, re.S)
        text, target = (named[1], named[2]) if named else ("", content)
        if role == "math":
            return f"\\({html.escape(content)}\\)"
        if role == "eq":
            number = self._numbers.get(target)
            return f"({number})" if number else "the formula of an earlier chapter"
        if role.startswith("cite"):
            found = [self._cited.get(k.strip(), (k, "")) for k in target.split(",")]
            if role == "cite:t":
                return html.escape("; ".join(f"{who} ({year})" for who, year in found))
            return html.escape("(" + "; ".join(f"{w}, {y}" for w, y in found) + ")")
        if role in ("ref", "doc", "numref"):
            text = text or self._titles.get(target.rpartition("/")[2], target)
            return f"<em>{html.escape(text)}</em>"
        return html.escape(text or target)


def citations(bibliography: str) -> dict[str, tuple[str, str]]:
    """Key -> authors as they are cited, and year, of a BibTeX file."""
    found = {}
    for key, body in _ENTRY.findall(bibliography):
        fields = dict(re.findall(r"(\w+)\s*=\s*[{\"](.+?)[}\"],?\s*(?:\n|$)", body))
        names = re.split(r"\s+and\s+", fields.get("author", key))
        family = [_family(name) for name in names]
        who = family[0] if len(family) == 1 else f"{family[0]} et al."
        if len(family) == 2:
            who = " and ".join(family)
        found[key] = (who, fields.get("year", ""))
    return found


def _family(name: str) -> str:
    plain = re.sub(r"[{}\\\"'^~]", "", name).strip()
    return plain.partition(",")[0] if "," in plain else plain.split()[-1]
