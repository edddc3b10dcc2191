"""What all explorers share: one object, shown live or on a page."""

from __future__ import annotations

from html import escape
from typing import Any

import ipywidgets

WIDGET = "application/vnd.jupyter.widget-view+json"


class Explorer:
    """Something to move about, as a live widget and as HTML.

    A subclass gives `page`, `widget` and `summary`. Jupyter shows the widget; the book
    shows the HTML (`nb_mime_priority_overrides` in `_config.yml`), and so does Jupyter
    where no kernel runs.
    """

    def page(self) -> str:
        """Well-formed HTML that stands without any script."""
        raise NotImplementedError

    def widget(self) -> ipywidgets.Widget:
        """A live widget; it needs a kernel."""
        raise NotImplementedError

    def summary(self) -> str:
        """What is shown at the start, in words."""
        raise NotImplementedError

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> dict[str, Any]:
        """All forms at once; the front end takes the best one that it can show."""
        live = self.widget()._repr_mimebundle_()
        bundle: dict[str, Any] = {
            "text/plain": f"{type(self).__name__}: {self.summary()}",
            "text/html": self.page(),
        }
        if WIDGET in live:
            bundle[WIDGET] = live[WIDGET]
        return bundle


def tag(_name: str, _content: str = "", /, **attributes: object) -> str:
    """One HTML element, its attributes escaped, its content taken as HTML.

    Args:
        _name: of the element.
        _content: HTML that is safe already; see `html.escape` for text.
        attributes: `data_plot` becomes data-plot and `class_` class; None is left out.
    """
    pairs = "".join(
        f' {key.strip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{_name}{pairs}>{_content}</{_name}>"
