"""The built book as files: links, pictures, numbers, sizes, what other sites show.

Needs `make book` first (see tests/QUARANTINE.md).
"""

import json
import re
from functools import cache
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from built_book import BUILT, HTML, PAGES, ROOT

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
LARGEST = 2_000_000  # bytes of a page, without the files that pages share
NOTEBOOKS = [page for page in BUILT if page.startswith("notebooks/")]

pytestmark = pytest.mark.skipif(not BUILT, reason="the book is not built: make book")


class Page(HTMLParser):
    """What a page points to and what can be pointed to on it."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.files: list[str] = []
        self.images: list[dict] = []  # with the classes of what they lie in
        self.meta: dict[str, str] = {}
        self.title = ""
        self._open: list[tuple[str, str]] = []
        self.feed(text)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)  # `<img />` closes nothing that is open

    def handle_starttag(self, tag, attrs):
        found = {key: value or "" for key, value in attrs}
        self.ids |= {found[key] for key in ("id", "name") if key in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in ("script", "img", "iframe", "source", "video"):
            self.files += [found["src"]] if "src" in found else []
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload"):
            self.files.append(found["href"])
        if tag == "meta" and "content" in found:
            name = found.get("property") or found.get("name") or ""
            self.meta[name] = found["content"]
        if tag == "img":
            around = [f"{name}.{classes}" for name, classes in self._open]
            self.images.append({**found, "around": around})
        if tag not in ("img", "meta", "link", "br", "hr", "input", "source", "col"):
            self._open.append((tag, found.get("class", "")))

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if self._open and self._open[-1][0] == "title":
            self.title += data


@cache
def text(page: str) -> str:
    return (HTML / page).read_text(encoding="utf-8")


@cache
def parsed(page: str) -> Page:
    return Page(text(page))


def resolve(page: str, link: str) -> tuple[str, str]:
    """The file, relative to the book, and the anchor that a link on a page means."""
    parts = urlsplit(link)
    path = (HTML / page).parent / unquote(parts.path) if parts.path else HTML / page
    return path.resolve().relative_to(HTML.resolve()).as_posix(), unquote(
        parts.fragment
    )


def test_every_page_of_the_contents_is_built():
    assert sorted(BUILT) == sorted(PAGES)


@pytest.mark.parametrize("page", [*BUILT, "index.html"])
def test_links_and_files_are_there(page):
    dead = []
    for link in [*parsed(page).links, *parsed(page).files]:
        if urlsplit(link).scheme or link.startswith(("//", "data:")):
            continue
        file, anchor = resolve(page, link)
        if not (HTML / file).is_file():
            dead.append(f"{link}: no such file")
        elif anchor and file.endswith(".html") and anchor not in parsed(file).ids:
            dead.append(f"{link}: no such anchor")
    assert dead == []


@pytest.mark.parametrize("page", BUILT)
def test_page_loads_nothing_from_other_hosts(page):
    assert [
        f for f in parsed(page).files if urlsplit(f).scheme not in ("", "data")
    ] == []


@pytest.mark.parametrize("page", BUILT)
def test_pictures_say_what_they_show(page):
    mute = [i["src"] for i in parsed(page).images if not i.get("alt", "").strip()]
    assert mute == []


def outputs(page: str, kind: str) -> int:
    """Pictures or tables in the outputs of the notebook that a page shows."""
    path = ROOT / page.replace(".html", ".ipynb")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    shown = [
        output.get("data", {})
        for cell in cells
        for output in cell.get("outputs", [])
        if "remove-cell" not in cell["metadata"].get("tags", [])
    ]
    return sum(any(name.startswith(kind) for name in data) for data in shown)


@pytest.mark.parametrize("page", NOTEBOOKS)
def test_pictures_of_a_notebook_are_numbered_figures(page):
    pictures = [
        image
        for image in parsed(page).images
        if "_images/" in image["src"]  # those of outputs, wherever the caption put them
    ]
    bare = [i["src"] for i in pictures if "figure" not in " ".join(i["around"])]
    assert bare == []
    assert len(pictures) == outputs(page, "image/")
    figures = re.findall(r"<figure.*?</figure>", text(page), re.DOTALL)
    number = re.compile(r'class="caption-number">(Fig\.|Table) [\d.]+ <')
    assert [f[:200] for f in figures if not number.search(f)] == []


def test_numbers_of_figures_are_unique():
    numbers = [
        number
        for page in BUILT
        for number in re.findall(r'class="caption-number">([^<]+)<', text(page))
    ]
    assert len(numbers) == len(set(numbers)) > 0


def test_no_page_is_large():
    sizes = {page: (HTML / page).stat().st_size for page in BUILT}
    assert {page: size for page, size in sizes.items() if size > LARGEST} == {}


def test_no_page_names_a_path_of_this_machine():
    assert [page for page in BUILT if str(ROOT) in text(page)] == []


@pytest.mark.parametrize("page", NOTEBOOKS)
def test_launch_buttons_open_this_notebook(page):
    """The file that GitHub, and so Colab and Binder, has at that path."""
    path = page.replace(".html", ".ipynb")
    assert (ROOT / path).is_file()
    repository = CONFIG["repository"]
    owner = repository["url"].removeprefix("https://github.com/")
    branch = repository["branch"]
    colab = f"https://colab.research.google.com/github/{owner}/blob/{branch}/{path}"
    binder = f"https://mybinder.org/v2/gh/{owner}/{branch}?urlpath=lab/tree/{path}"
    launch = [
        link for link in parsed(page).links if "colab" in link or "binder" in link
    ]
    assert sorted(launch) == sorted([colab, binder])


@pytest.mark.parametrize("page", [p for p in BUILT if "/" in p])
def test_what_other_sites_show_of_a_page(page):
    meta = parsed(page).meta
    assert meta["og:title"] and meta["og:title"] in parsed(page).title
    assert len(meta["og:description"]) > 20
    assert meta["description"] == meta["og:description"]
    card = urlsplit(meta["og:image"])
    assert card.scheme == "https" and card.path.endswith("/_static/social-card.png")
    assert meta["og:url"].endswith(page)


def test_the_card_is_a_picture_of_the_size_that_is_said():
    import matplotlib.image

    height, width, _ = matplotlib.image.imread(HTML / "_static/social-card.png").shape
    meta = parsed("book/index.html").meta
    said = (meta["og:image:width"], meta["og:image:height"])
    assert (str(width), str(height)) == said


def test_downloads_are_offered_only_where_they_are():
    links = {
        resolve(page, link)[0]
        for page in BUILT
        for link in parsed(page).links
        if "downloads/" in link
    }
    made = {path.relative_to(HTML).as_posix() for path in HTML.glob("downloads/*")}
    assert links == made
