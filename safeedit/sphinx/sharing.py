"""What a link to the book shows elsewhere: title, description and a picture.

Other hosts read the tags at the absolute address of the published book, which follows
from the repository's (`repository` in `_config.yml`) unless `html_baseurl` says it.
The picture is drawn at build time: a forbidden region and the shortest way out of it,
computed by the kit.
"""

import html
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

CARD = "social-card.png"
CARD_SIZE = (1200, 630)  # pixels, the shape that link previews are cut to
CARD_ALT = "A point inside overlapping forbidden discs and the shortest way out."
LONGEST = 200  # letters of a description


def base_address(config: Any) -> str:
    """Where the book is published, with a slash at the end; "" when nothing says so.

    A GitHub repository's pages are at https://OWNER.github.io/NAME/.
    """
    if config.html_baseurl:
        return str(config.html_baseurl).rstrip("/") + "/"
    repository = str(config.html_theme_options.get("repository_url", ""))
    match = re.fullmatch(r"https://github\.com/([^/]+)/([^/]+?)/?", repository)
    return f"https://{match[1]}.github.io/{match[2]}/" if match else ""


def description(doctree: nodes.Element) -> str:
    """The first paragraph of running text, cut at a word."""
    boxes = (nodes.Admonition, nodes.figure, nodes.table, nodes.list_item, nodes.entry)
    for paragraph in doctree.findall(nodes.paragraph):
        parent = paragraph.parent
        while parent is not None and not isinstance(parent, boxes):
            parent = parent.parent
        text = " ".join(paragraph.astext().split())
        if parent is None and len(text) > 40:
            if len(text) <= LONGEST:
                return text
            return text[: LONGEST - 4].rsplit(" ", 1)[0] + " ..."
    return ""


def tag_page(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Add the tags of a page of the book to its head, in place."""
    if app.builder.name != "html":
        return
    title = re.sub(r"<[^>]+>", "", context.get("title", ""))
    if page == "index" != app.config.root_doc:  # the door to the book
        doctree = app.env.get_doctree(app.config.root_doc)
        title = app.env.titles[app.config.root_doc].astext()
    if doctree is None:
        return
    base = base_address(app.config)
    tags = {
        "og:type": "article",
        "og:site_name": app.config.html_title or app.config.project,
        "og:title": html.unescape(title),
        "og:description": description(doctree),
        "og:image": f"{base}_static/{CARD}" if base else "",
        "og:image:width": str(CARD_SIZE[0]),
        "og:image:height": str(CARD_SIZE[1]),
        "og:image:alt": CARD_ALT,
        "og:url": f"{base}{page}.html" if base else "",
    }
    lines = [
        f'<meta property="{name}" content="{html.escape(text)}" />'
        for name, text in tags.items()
        if text
    ]
    lines.append('<meta name="twitter:card" content="summary_large_image" />')
    if tags["og:description"]:
        said = html.escape(tags["og:description"])
        lines.append(f'<meta name="description" content="{said}" />')
    context["metatags"] = "\n".join([context.get("metatags", ""), *lines])


CARD_ALT = (
    "A point inside overlapping forbidden discs and the shortest way out of them."
)


def draw_card(path: Path, title: str, words: str) -> None:
    """Draw the picture of a link preview.

    Args:
        path: the PNG to write.
        title: the book's short name.
        words: one line below it, broken where it has a "\\n".
    """
    import torch
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    from ..edits import project_out

    width, height = CARD_SIZE
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0.5, 0.0, 0.5, 1.0))
    centres = torch.tensor([[-0.5, 0.25], [0.45, 0.45], [0.1, -0.45]])
    point = torch.tensor([[0.05, 0.12]])
    way = project_out(point, centres, 0.8, method="exact")
    for x, y in centres.tolist():
        ax.add_patch(Circle((x, y), 0.8, color="#D55E00", alpha=0.28, linewidth=0))
        ax.plot(x, y, "x", color="#D55E00", markersize=12, markeredgewidth=3)
    start, end = (tuple(p[0].tolist()) for p in (point, way.point))
    arrow = {"arrowstyle": "-|>,head_width=.5,head_length=.9", "color": "#0072B2"}
    ax.annotate("", end, start, arrowprops={**arrow, "linewidth": 5})
    ax.plot(*start, "o", color="black", markersize=14)
    ax.set(xlim=(-1.5, 1.5), ylim=(-1.575, 1.575), aspect="equal")
    ax.axis("off")
    figure.text(0.05, 0.60, title, fontsize=64, fontweight="bold", color="#1a1a1a")
    figure.text(0.05, 0.55, words, fontsize=27, va="top", color="#1a1a1a")
    figure.savefig(path, dpi=100)


def _write_card(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.name == "html":
        name = str(app.config.html_title or app.config.project)
        words = app.env.titles[app.config.root_doc].astext()
        middle = words.find(" ", len(words) // 2)  # two lines
        words = f"{words[:middle]}\n{words[middle + 1 :]}" if middle > 0 else words
        draw_card(Path(app.outdir, "_static", CARD), name, words)


def setup(app: Sphinx) -> None:
    """Register the tags and the picture."""
    app.connect("html-page-context", tag_page)
    app.connect("build-finished", _write_card)
