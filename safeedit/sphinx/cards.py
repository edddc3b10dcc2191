"""The directive `safeedit-card NAME`: a text of `safeedit.cards`."""

from __future__ import annotations

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Card(SphinxDirective):
    """Markdown that is counted from the world, the stand-ins or the records."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Make the text and let MyST read it.

        Raises:
            docutils' error of this directive: there is no such text.
        """
        from ..cards import TEXTS  # torch is loaded only where a card is wanted

        self.env.note_reread()  # records change without the page changing
        name = self.arguments[0]
        if name not in TEXTS:
            raise self.error(f"{self.name}: {name!r} is not one of {', '.join(TEXTS)}")
        node = nodes.Element()
        lines = StringList(TEXTS[name]().splitlines(), f"{self.name} {name}")
        self.state.nested_parse(lines, 0, node)
        return node.children


def setup(app: Sphinx) -> None:
    """Register with Sphinx."""
    app.add_directive("safeedit-card", Card)
