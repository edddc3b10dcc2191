"""Captions, numbers and alt texts for the pictures and tables of executed notebooks.

A notebook shows an output and then a paragraph that is emphasised as a whole:

    *Figure: success against the number of blocks. Dotted: the undefended model.*

GitHub, Colab and Jupyter show that as it is. In the book the output and the paragraph
become one numbered figure, or one numbered table when the output is a table, and each
picture gets the first sentence of its caption as alt text. A caption of a cell with
both may name its parts: `*Table: ... Figure: ...*`, or `*Figure and table: ...*` for
one figure that holds everything. A label before the paragraph, `(fig-x)=`, names the
figure for `{numref}`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

LABEL = re.compile(r"(?:^|(?<=\.\s))(Figure and table|Figures?|Tables?):\s+")
SHORTEST_ALT = 40  # letters; a shorter sentence takes the next one with it

Segment = tuple[str | None, list[nodes.Node]]  # label of a part of a caption, its text


class output_table(nodes.figure):  # noqa: N801  docutils names nodes so
    """A table of a notebook with its caption, numbered with the other tables."""


class CaptionOutputs(SphinxTransform):
    """Join each output of a notebook with the caption that follows its cell."""

    default_priority = 400  # after targets have gone to what they name (260)

    def apply(self, **kwargs: Any) -> None:
        """Rewrite the page's tree in place."""
        for cell in list(self.document.findall(_is_cell)):
            paragraph = _following(cell)
            if paragraph is None or not _is_caption(paragraph):
                continue
            pictures, tables = _outputs(cell)
            if pictures or tables:
                segments = split_caption(paragraph[0].children)
                self._wrap(paragraph, pictures, tables, segments)

    def _wrap(
        self,
        paragraph: nodes.Element,
        pictures: list[nodes.Element],
        tables: list[nodes.Element],
        segments: list[Segment],
    ) -> None:
        of_tables = [text for label, text in segments if (label or "")[:5] == "Table"]
        others = [text for label, text in segments if (label or "")[:5] != "Table"]
        if pictures and tables and not (of_tables and others):
            # One caption for both: the order of the cell's outputs is kept.
            both = sorted(pictures + tables, key=lambda node: node.parent.index(node))
            made = [self._figure(nodes.figure(), both, segments)]
        else:
            made = []
            if tables:
                mine = of_tables if pictures else of_tables + others
                made.append(self._figure(output_table(), tables, _join(mine)))
            if pictures:
                mine = others if tables else others + of_tables
                made.append(self._figure(nodes.figure(), pictures, _join(mine)))
        # What a label before the paragraph named is the (last) figure now.
        made[-1]["names"] += paragraph["names"]
        for name in paragraph["ids"]:
            made[-1]["ids"].append(name)
            self.document.ids[name] = made[-1]
        paragraph.parent.remove(paragraph)

    def _figure(
        self,
        figure: nodes.Element,
        outputs: list[nodes.Element],
        segments: list[Segment],
    ) -> nodes.Element:
        """Put outputs into `figure`, where the first of them was, with a caption."""
        caption = nodes.caption()
        for _, text in segments:
            caption += _capitalised(text)
        describe(outputs, caption)
        place, index = outputs[0].parent, outputs[0].parent.index(outputs[0])
        for output in outputs:
            output.parent.remove(output)
            figure += output
        figure += caption
        place.insert(index, figure)
        kind = "table" if isinstance(figure, output_table) else "figure"
        # The page's name keeps ids apart where the whole book is one page.
        stem = nodes.make_id(f"{kind}-{Path(self.env.docname).name}")
        count = sum(name.startswith(f"{stem}-") for name in self.document.ids) + 1
        figure["ids"] = [f"{stem}-{count}"]
        self.document.ids[figure["ids"][0]] = figure
        return figure


def _is_cell(node: nodes.Node) -> bool:
    return isinstance(node, nodes.container) and node.get("nb_element") == "cell_code"


def _following(cell: nodes.Element) -> nodes.Element | None:
    """What stands next on the page, comments and labels not counted."""
    siblings = cell.parent.children[cell.parent.index(cell) + 1 :]
    skipped = (nodes.comment, nodes.target)
    return next((node for node in siblings if not isinstance(node, skipped)), None)


def _is_caption(node: nodes.Element) -> bool:
    """Whether a node is a paragraph that is emphasised as a whole."""
    return (
        isinstance(node, nodes.paragraph)
        and len(node) == 1
        and isinstance(node[0], nodes.emphasis)
    )


def _outputs(cell: nodes.Element) -> tuple[list[nodes.Element], list[nodes.Element]]:
    """The outputs of a cell that are pictures, and those that are tables."""
    pictures, tables = [], []
    for bundle in cell.findall(nodes.container):
        if bundle.get("nb_element") != "mime_bundle":
            continue
        if next(iter(bundle.findall(nodes.image)), None) is not None:
            pictures.append(bundle)
        elif any("<table" in raw.astext() for raw in bundle.findall(nodes.raw)):
            tables.append(bundle)
    return pictures, tables


def split_caption(children: list[nodes.Node]) -> list[Segment]:
    """Cut the text of a caption where a label such as "Figure: " stands.

    Returns:
        The label and the nodes behind it, part by part; the label is None where a
        caption begins without one. Labels themselves are left out: the number that
        the figure gets says the same.
    """
    segments: list[Segment] = []
    for child in children:
        pieces: list[str | nodes.Node] = [child]
        if isinstance(child, nodes.Text):
            pieces = LABEL.split(child.astext())  # text, label, text, label, text
        for index, piece in enumerate(pieces):
            if index % 2:
                segments.append((str(piece), []))
            elif piece or not isinstance(piece, str):
                if not segments:
                    segments.append((None, []))
                node = nodes.Text(piece) if isinstance(piece, str) else piece
                segments[-1][1].append(node)
    return segments


def _join(texts: list[list[nodes.Node]]) -> list[Segment]:
    return [(None, text) for text in texts]


def _capitalised(text: list[nodes.Node]) -> list[nodes.Node]:
    """Begin with a capital letter, but for words such as "k-instability"."""
    first = text[0] if text else None
    if isinstance(first, nodes.Text) and first[1:2] != "-":
        return [nodes.Text(first[:1].upper() + first[1:]), *text[1:]]
    return text


def describe(outputs: list[nodes.Element], caption: nodes.Element) -> None:
    """Give the pictures among `outputs` an alt text made from their caption, in place.

    Raises:
        ValueError: the caption has no words, so nothing could be said.
    """
    words = alt_text(caption)
    if not words:
        raise ValueError(
            "a picture's caption is empty, want a sentence. Next step: write "
            "*Figure: what it shows.* below the cell."
        )
    images = [image for output in outputs for image in output.findall(nodes.image)]
    for count, image in enumerate(images, start=1):
        place = f" ({count} of {len(images)})" if len(images) > 1 else ""
        image["alt"] = words + place


def alt_text(caption: nodes.Element) -> str:
    """The first sentence of a caption, or the first few where it is short."""
    said = ""
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z\"])", " ".join(_words(caption))):
        if len(said) < SHORTEST_ALT:
            said = f"{said} {sentence}".strip()
    return said


def _words(caption: nodes.Element) -> Iterator[str]:
    """The text of a caption; a reference to an equation is left out, with its label."""
    text = ""
    for child in caption.children:
        if not (isinstance(child, pending_xref) and child.get("reftype") == "eq"):
            text += child.astext()
    yield from text.split()


def _visit(translator: Any, node: nodes.Element) -> None:
    node["classes"].append("output-table")
    translator.visit_figure(node)


def _depart(translator: Any, node: nodes.Element) -> None:
    translator.depart_figure(node)


def _title(node: nodes.Element) -> str:
    return next((child.astext() for child in node.findall(nodes.caption)), "")


def setup(app: Sphinx) -> None:
    """Register the transform and the numbered table."""
    same = (_visit, _depart)
    app.add_enumerable_node(
        output_table, "table", _title, html=same, latex=same, text=same
    )
    app.add_transform(CaptionOutputs)
