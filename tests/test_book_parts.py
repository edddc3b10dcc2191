"""The parts of the book's Sphinx extension, on a book of one page."""

import json
import re
import zipfile
from types import SimpleNamespace

import nbformat
import pytest
from docutils import nodes
from sphinx.addnodes import pending_xref

from safeedit.sphinx import bundles, figures, sharing

SVG = "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>"
TABLE = "<table border='1' class='dataframe'><tr><th></th><th>rate</th></tr></table>"
BOOK = """
extensions = ["myst_nb", "safeedit.sphinx"]
project = "small book"
html_theme = "basic"
html_theme_options = {}
numfig = True
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
root_doc = "book/index"
"""


def cell(*outputs):
    made = []
    for kind, data in outputs:
        made.append(nbformat.v4.new_output("display_data", data={kind: data}))
    return nbformat.v4.new_code_cell("draw()", outputs=made, execution_count=1)


PICTURE, FRAME = ("image/svg+xml", SVG), ("text/html", TABLE)
CELLS = [
    "# Title\n\nThe only paragraph of this page, long enough for a description.",
    cell(PICTURE),
    "*Figure: rates of `a` and $b$. Bars: 95 %.*\n\nProse with *emphasis* here.",
    cell(FRAME),
    "*Rates of all models in percent, as in the figure.*",
    cell(FRAME, PICTURE),
    "(named)=\n*Table: the numbers of all. Figure: the picture of all numbers below.*",
    cell(PICTURE, PICTURE),
    "*Figures: two of a kind, each with its own axis.*",
    cell(FRAME),
    "Prose, and *not* a caption. See {numref}`named`.",
]


@pytest.fixture(scope="module")
def small_book(tmp_path_factory):
    """The built page of a notebook with every kind of output and caption."""
    from sphinx.application import Sphinx

    root = tmp_path_factory.mktemp("small")
    (root / "book" / "_static").mkdir(parents=True)
    (root / "book" / "_templates").mkdir()
    for name in ("404.html", "door.html"):
        text = (pages_folder() / name).read_text()
        (root / "book" / "_templates" / name).write_text(text)
    (root / "conf.py").write_text(BOOK)
    cells = [
        nbformat.v4.new_markdown_cell(c) if isinstance(c, str) else c for c in CELLS
    ]
    node = nbformat.v4.new_notebook(cells=cells)
    node.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    node.metadata["language_info"] = {"name": "python"}
    (root / "book" / "index.ipynb").write_text(json.dumps(node))
    out = root / "_build" / "html"
    app = Sphinx(
        root, root, out, root / "_build" / "trees", "html", status=None, warning=None
    )
    app.build()
    return out


def pages_folder():
    from safeedit.records import ROOT

    return ROOT / "book" / "_templates"


def made_figures(folder):
    html = (folder / "book" / "index.html").read_text()
    return html, re.findall(r"<figure.*?</figure>", html, re.DOTALL)


def test_outputs_and_captions_become_numbered_figures(small_book):
    _, found = made_figures(small_book)
    numbers = [re.search(r'caption-number">([^<]+?) ?<', f)[1] for f in found]
    assert numbers == ["Fig. 1", "Table 1", "Table 2", "Fig. 2", "Fig. 3"]
    inside = [(f.count("<img"), f.count("<table")) for f in found]
    assert inside == [(1, 0), (0, 1), (0, 1), (1, 0), (2, 0)]


def test_captions_lose_their_label_and_keep_their_markup(small_book):
    html, found = made_figures(small_book)
    assert "Figure:" not in html and "Table:" not in html
    assert "Rates of <code" in found[0] and "\\(b\\)" in found[0]
    assert "The numbers of all." in found[2] and "picture" not in found[2]
    assert "The picture of all numbers" in found[3]
    assert "Prose with <em>emphasis</em>" in html


def test_pictures_get_the_first_sentence_of_their_caption(small_book):
    html, _ = made_figures(small_book)
    alts = re.findall(r'<img alt="([^"]*)"', html)
    two = "Two of a kind, each with its own axis."
    assert alts == [
        "Rates of a and b. Bars: 95 %.",  # short, so the next one goes with it
        "The picture of all numbers below.",
        f"{two} (1 of 2)",
        f"{two} (2 of 2)",
    ]


def test_a_label_before_a_caption_names_the_figure(small_book):
    html, _ = made_figures(small_book)
    assert re.search(r'href="#named"[^>]*><span[^>]*>Fig. 2<', html)
    assert 'id="named"' in html


def test_a_table_without_a_caption_stays_as_it_is(small_book):
    html, found = made_figures(small_book)
    assert html.count("<table") == 1 + sum(f.count("<table") for f in found)


def test_empty_header_cells_are_no_headers(small_book):
    html, _ = made_figures(small_book)
    assert "<th></th>" not in html and "<th>rate</th>" in html


def test_door_and_lost_page_name_the_start(small_book):
    door = (small_book / "index.html").read_text()
    assert 'content="0; url=book/index.html"' in door
    assert "The only paragraph of this page" in door
    lost = (small_book / "404.html").read_text()
    assert 'data-path="book/index.html"' in lost
    assert not re.search(r'(src|href)="(?!/|data:)', lost)  # at any depth


@pytest.mark.parametrize(
    "text, said",
    [
        ("Short. And another sentence that goes with it.", None),
        ("This sentence is long enough to stand alone, is it not? More.", 55),
        ("Values of 0.5 and e.g. more, up to the end", None),
    ],
)
def test_alt_text_is_the_first_sentence_or_two(text, said):
    caption = nodes.caption("", text)
    assert figures.alt_text(caption) == (text if said is None else text[:said].strip())


def test_alt_text_names_no_label_of_an_equation():
    reference = pending_xref("", nodes.Text("eq-loss"), reftype="eq")
    caption = nodes.caption("", "", nodes.Text("Left: "), reference, nodes.Text(" now"))
    assert figures.alt_text(caption) == "Left: now"


def test_an_empty_caption_is_an_error():
    with pytest.raises(ValueError, match="caption is empty.*Next step"):
        figures.describe([], nodes.caption())


@pytest.mark.parametrize(
    "base, repository, address",
    [
        ("", "https://github.com/owner/name", "https://owner.github.io/name/"),
        ("https://book.org/x", "https://github.com/o/n", "https://book.org/x/"),
        ("", "https://elsewhere.org/owner/name", ""),
    ],
)
def test_address_of_the_published_book(base, repository, address):
    options = {"repository_url": repository}
    config = SimpleNamespace(html_baseurl=base, html_theme_options=options)
    assert sharing.base_address(config) == address


def small_repository(root):
    for name in ("01_a.ipynb", "solutions/01_a.ipynb"):
        path = root / "notebooks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{{}} {name}")
    for name in ("LICENSE", "LICENSE-text"):
        (root / name).write_text(name)
    return root


def test_zip_has_both_editions_and_is_equal_when_they_are(tmp_path):
    root = small_repository(tmp_path / "kit")
    one, two = tmp_path / "one.zip", tmp_path / "new" / "two.zip"
    assert bundles.make_zip(one, root) == bundles.make_zip(two, root) == 2
    assert one.read_bytes() == two.read_bytes()
    names = set(zipfile.ZipFile(one).namelist())
    both = {"notebooks/01_a.ipynb", "notebooks/solutions/01_a.ipynb"}
    assert names == both | {"LICENSE", "LICENSE-text", "READ-ME-FIRST.txt"}


def test_zip_of_nothing_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(bundles.BundleError, match="no notebook.*Next step"):
        bundles.make_zip(tmp_path / "x.zip", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pdf_without_a_browser_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bundles, "browser", lambda: None)
    assert bundles.main(["pdf", "--build", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "chromium" in said and "Next step" in said
    assert list(tmp_path.iterdir()) == []


def test_a_failing_program_is_named_with_what_it_said(tmp_path):
    with pytest.raises(bundles.BundleError, match="status 3:\nwhat it said"):
        bundles._call(["sh", "-c", "echo what it said; exit 3"], tmp_path)


def test_one_page_for_paper_has_its_pictures_beside_it(tmp_path):
    page = tmp_path / "book" / "index.html"
    page.parent.mkdir()
    filler = "x" * 100_000
    page.write_text(f'<head></head><img src="../_images/a.svg">{filler}')
    printed = bundles._printable(tmp_path).read_text()
    assert 'src="_images/a.svg"' in printed and "@page" in printed
    page.write_text("small")
    with pytest.raises(bundles.BundleError, match="0 books of one page"):
        bundles._printable(tmp_path)
