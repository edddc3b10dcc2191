"""Decks: what goes on a slide, and the finished file in a real browser."""

import shutil

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from safeedit.course import slides, slides_page, slides_text
from safeedit.course.chapters import CourseError, notebooks, read_parts
from safeedit.records import ROOT

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="4" height="3"></svg>'
TABLE = "<div><style>x</style><table border='1'><tr><td>cell</td></tr></table></div>"
FIRST = """(demo)=
# A demo

:::{admonition} What you will learn
:class: tip
- to see $x < y$;
:::

An opening sentence that says what all of this is about. A second one.
"""
SECOND = """## One section

Its first sentence has a formula $a. B$ and goes on for a while. More of it.

$$
\\min_x \\; a^2
$$ (eq-demo)

As {eq}`eq-demo` says, and {cite:t}`zou2023universal`, and {ref}`pcr`.
"""
THIRD = """*Figure: a picture, with {eq}`eq-demo` in it.*

<!-- reading -->
The reading of the picture is a sentence that is long enough. And then some.

## Exercises

:::{admonition} Exercise 1: by hand (difficulty 2/5, importance 3/5, 10 minutes)
:class: note
Compute the number that is asked for in this exercise here. *Hint:* none.
:::

:::{admonition} Take-away
:class: tip
- Only this.
:::

**Further reading.** Nothing.
"""


@pytest.fixture
def deck(tmp_path):
    shown = [
        new_output("display_data", {"image/svg+xml": SVG}),
        new_output("execute_result", {"text/html": TABLE}, execution_count=1),
        new_output("stream", name="stdout", text="a line"),
    ]
    hidden = [new_output("stream", name="stdout", text="the answer is 42")]
    node = new_notebook(
        cells=[
            new_markdown_cell(FIRST),
            new_markdown_cell(SECOND),
            new_code_cell("draw()", outputs=shown),
            new_markdown_cell(THIRD),
            new_code_cell("x", outputs=hidden, metadata={"tags": ["solution"]}),
        ]
    )
    path = tmp_path / "demo.ipynb"
    nbformat.write(node, path)
    return slides.read_slides(path, ROOT)


def test_every_kind_of_content_has_its_slide(deck):
    assert [(s.kind, s.title) for s in deck] == [
        ("title", "A demo"),
        ("text", "What you will learn"),
        ("text", "A demo"),
        ("text", "One section"),
        ("figure", "One section"),
        ("table", "One section"),
        ("text", "Exercises"),
        ("text", "Take-away"),
    ]


def test_text_is_cut_and_kept_as_a_note(deck):
    section = deck[3]
    shown = " ".join(section.body)
    assert "More of it." not in shown
    assert any("More of it." in note for note in section.notes)
    assert "\\(a. B\\)" in shown and "\\tag{1}" in shown
    assert "As (1) says, and Zou et al. (2023), and" in shown
    assert "<em>Point-wise constrained regions (PCR)</em>" in shown
    assert r"\(x &lt; y\)" in deck[1].body[0]  # a formula cannot become a tag


def test_figure_has_caption_alternative_text_and_reading(deck):
    figure, table = deck[4:6]
    assert figure.caption == table.caption == "Figure: a picture, with (1) in it."
    assert 'alt="Figure: a picture, with (1) in it."' in figure.body[0]
    assert "data:image/svg+xml;base64," in figure.body[0]
    assert table.reading.startswith("The reading of the picture")
    assert table.body == ["<table><tr><td>cell</td></tr></table>"]


def test_exercises_are_asked_and_not_answered(deck):
    shown = deck[6].body[0]
    assert "Exercise 1: by hand (10 minutes)" in shown
    assert "Compute the number" in shown and "Hint" not in shown
    assert "the answer is" not in slides_page.page(deck)


def test_blocks_keep_formulas_and_boxes_whole():
    text = "a\nb\n\n$$x$$ (eq-x)\n:::{note}\n\nc\n:::\nd\n$$\ny\n$$\n## h\ne"
    assert list(slides.blocks(text)) == [
        "a\nb",
        "$$x$$ (eq-x)",
        ":::{note}\n\nc\n:::",
        "d",
        "$$\ny\n$$",
        "## h",
        "e",
    ]


def test_bibliography_is_read():
    found = slides_text.citations((ROOT / "book" / "references.bib").read_text("utf-8"))
    assert found["rezkellah2025constrained"] == ("Rezkellah and Dakhmouche", "2025")
    assert found["lucki2024adversarial"][0] == "Lucki et al."
    assert all(year.isdigit() for _, year in found.values())


def test_notebook_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CourseError, match="Next step: make notebooks"):
        slides.read_slides(tmp_path / "x.ipynb", ROOT)
    with pytest.raises(CourseError, match="names 0 pages"):
        slides_page.write_decks(["Z9"], tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("slides")
    ((path, number),) = slides_page.write_decks(["02"], out)
    return path, number


def test_deck_is_one_file_that_names_every_section(made):
    path, number = made
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 4_000_000
    (chapter,) = [c for c in notebooks(read_parts()) if c.code == "02"]
    for title in [*chapter.headings.values(), "Take-away", "What you will learn"]:
        assert f"<h2>{title}</h2>" in text, title
    assert text.count("<section ") == number
    assert all(word not in text for word in ('src="http', "href='http", "@import"))


@pytest.mark.browser
@pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="chromium or chromedriver is not installed",
)
def test_deck_in_a_browser(made, tmp_path):
    """Keys turn pages, formulas and pictures are there, and nobody is asked."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    path, number = made
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync"
    for flag in flags.split():
        options.add_argument(f"--{flag}")
    options.add_argument("--disable-background-networking")
    options.add_argument("--disable-component-update")
    options.add_argument(f"--user-data-dir={tmp_path}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        browser.get(path.as_uri())
        ready = "return document.body.dataset.ready === 'yes'"
        WebDriverWait(browser, 120).until(lambda b: b.execute_script(ready))
        run = browser.execute_script
        asked = "return performance.getEntriesByType('resource').map(e => e.name)"
        assert [u for u in run(asked) if not u.startswith("data:")] == []
        assert browser.get_log("browser") == []
        assert run("return document.querySelectorAll('mjx-container').length") > 10
        assert run("return document.querySelectorAll('mjx-merror').length") == 0
        # Formulas have words for those who do not see them.
        named = "mjx-container[role=img][aria-label]"
        assert run(f"return document.querySelectorAll('{named}').length") > 10
        broken = "return [...document.images].filter(i => !i.naturalWidth).length"
        assert run(broken) == 0
        # No slide is cut off at its foot.
        cut = """return [...document.querySelectorAll('.body')].filter(
          b => b.scrollHeight > b.clientHeight + 2).length"""
        assert run(cut) == 0
        page = browser.find_element("tag name", "body")
        seen = "return document.querySelector('section.now').ariaLabel"
        assert run(seen).startswith(f"1 of {number}: ")
        page.send_keys(Keys.ARROW_RIGHT)
        page.send_keys(" ")
        assert run(seen).startswith(f"3 of {number}: ")
        page.send_keys(Keys.ARROW_LEFT)
        assert run(seen).startswith(f"2 of {number}: ")
        assert run("return location.hash") == "#2"
        page.send_keys(Keys.END)
        assert run(seen).startswith(f"{number} of {number}: ")
        page.send_keys("n")
        shown = "return getComputedStyle(document.querySelector('.now .notes')).display"
        assert run(shown) == "block"
        # Printed, every slide is a page.
        import base64

        pdf = base64.b64decode(browser.print_page())
        assert pdf.count(b"/Type /Page\n") == number
    finally:
        browser.quit()
