"""Explorers that step through what was computed before: one frame a slider position.

The page holds the frames as a table, and nothing else: the script of the book reads
that table to build its sliders, its chart and its read-out. So what a reader without
the script sees is the very data that the sliders step through.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import product
from pathlib import Path

import ipywidgets

from safeedit.records import write_atomic

from .page import Explorer, tag

# Text; a number; or pieces of a text, of which every second one is marked.
Cell = str | float | list[str]


@dataclass(frozen=True)
class Frames:
    """What to show at each position of some sliders.

    Attributes:
        title: names the explorer to a screen reader.
        sliders: name of a slider -> its positions, as shown.
        rows: one frame for each combination of positions, the last slider fastest; a
            frame maps the name of a field to its content, and all have the same names.
        start: position of each slider at first, counted from 0.
        plot: the field that the chart is of: a number where there is one slider, a
            word (a colour on a map) where there are two.
    """

    title: str
    sliders: dict[str, list[str]]
    rows: list[dict[str, Cell]]
    start: list[int]
    plot: str

    def __post_init__(self) -> None:
        sizes = [len(positions) for positions in self.sliders.values()]
        if len(sizes) not in (1, 2) or 0 in sizes:
            raise ValueError(
                f"sliders have {sizes} positions; give one slider or two, with at "
                "least one position each"
            )
        for name, positions in self.sliders.items():
            if len(set(positions)) < len(positions):
                raise ValueError(
                    f"slider {name!r} has equal positions in {positions}; each must "
                    "be named differently"
                )
        if len(self.rows) != math.prod(sizes):
            raise ValueError(
                f"got {len(self.rows)} frames for sliders with {sizes} positions; "
                f"give {math.prod(sizes)}, one for each combination"
            )
        names = list(self.rows[0])
        if any(list(row) != names for row in self.rows):
            raise ValueError(f"frames differ in their fields; give each {names}")
        if self.plot not in names:
            raise ValueError(f"plot is {self.plot!r}; use one of {names}")
        if len(self.start) != len(sizes) or any(
            not 0 <= place < size for place, size in zip(self.start, sizes, strict=True)
        ):
            raise ValueError(
                f"start is {self.start}; give a position for each slider, below {sizes}"
            )

    def at(self, *places: int) -> dict[str, Cell]:
        """The frame at a position of each slider, counted from 0."""
        sizes = [len(positions) for positions in self.sliders.values()]
        index = 0
        for place, size in zip(places, sizes, strict=True):
            if not 0 <= place < size:
                raise IndexError(f"position {place} of a slider with {size}; from 0")
            index = index * size + place
        return self.rows[index]

    def save(self, path: str | Path) -> Path:
        """Write the frames as JSON, whole or not at all."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False)
        return write_atomic(path, text + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Frames:
        """Read what `save` wrote.

        Raises:
            ValueError: the file holds something else.
        """
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except (TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path} holds no frames ({error}); give a file that Frames.save wrote"
            ) from error


class FramesExplorer(Explorer):
    """Sliders over frames.

    Args:
        frames: what there is to see.
    """

    def __init__(self, frames: Frames) -> None:
        self.frames = frames

    def summary(self) -> str:
        """The first frame on one line."""
        frames = self.frames
        places = zip(frames.sliders.items(), frames.start, strict=True)
        where = ", ".join(f"{name} {seen[at]}" for (name, seen), at in places)
        first = frames.at(*frames.start)
        what = "; ".join(f"{name}: {plain(cell)}" for name, cell in first.items())
        return f"{frames.title} ({where}): {what}"

    def page(self) -> str:
        """All frames as a table, with what the script needs to know beside them."""
        frames = self.frames
        heads = [
            tag("th", escape(s), scope="col", data_slider="") for s in self.sliders
        ]
        heads += [tag("th", escape(name), scope="col") for name in frames.rows[0]]
        lines = []
        for places, row in zip(
            product(*frames.sliders.values()), frames.rows, strict=True
        ):
            cells = [tag("th", escape(place), scope="row") for place in places]
            cells += [_td(cell) for cell in row.values()]
            lines.append(tag("tr", "".join(cells)))
        table = tag(
            "table",
            tag("thead", tag("tr", "".join(heads)))
            + "\n"
            + tag("tbody", "\n".join(lines)),
        )
        scroll = tag(
            "div",
            table,
            class_="safeedit-scroll",
            tabindex=0,
            role="region",
            aria_label=f"{frames.title}: table",
        )
        summary = tag("summary", f"All {len(frames.rows)} positions as a table")
        return tag(
            "div",
            tag("details", summary + scroll),
            class_="safeedit-explorer",
            data_explorer="frames",
            data_plot=frames.plot,
            data_start=",".join(map(str, frames.start)),
            role="group",
            aria_label=frames.title,
        )

    @property
    def sliders(self) -> Sequence[str]:
        """Names of the sliders, the slowest first."""
        return list(self.frames.sliders)

    def widget(self) -> ipywidgets.Widget:
        """Sliders that step through the frames."""
        frames = self.frames
        knobs = [
            ipywidgets.SelectionSlider(
                options=[(text, place) for place, text in enumerate(positions)],
                value=at,
                description=name,
                style={"description_width": "initial"},
            )
            for (name, positions), at in zip(
                frames.sliders.items(), frames.start, strict=True
            )
        ]
        shown = ipywidgets.HTML()

        def show(*_: object) -> None:
            shown.value = readout(frames.at(*(knob.value for knob in knobs)))

        for knob in knobs:
            knob.observe(show, "value")
        show()
        return ipywidgets.VBox([*knobs, shown])


def readout(frame: dict[str, Cell]) -> str:
    """A frame as a list of its fields, in HTML."""
    pairs = (tag("dt", escape(k)) + tag("dd", rich(v)) for k, v in frame.items())
    return tag("dl", "".join(pairs), class_="safeedit-readout")


def plain(cell: Cell) -> str:
    """A cell as text; numbers with two decimals."""
    if isinstance(cell, list):
        return "".join(cell)
    if isinstance(cell, str):
        return cell
    return f"{cell:.2f}".replace("-0.00", "0.00")


def rich(cell: Cell) -> str:
    """A cell as HTML: as `plain`, escaped, with what is marked in <mark>."""
    if not isinstance(cell, list):
        return _text(plain(cell))
    marked = (i % 2 == 1 for i in range(len(cell)))
    pieces = zip(cell, marked, strict=True)
    return "".join(tag("mark", _text(p)) if m else _text(p) for p, m in pieces if p)


def _text(text: str) -> str:
    """Escaped; control characters, which models say and HTML forbids, as U+FFFD."""
    return escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", "\ufffd", text))


def _td(cell: Cell) -> str:
    if isinstance(cell, str | list):
        return tag("td", rich(cell))
    return tag("td", rich(cell), data_value=repr(float(cell)))
