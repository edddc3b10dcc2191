"""The built book in a real browser: nothing asked of other hosts, nothing broken.

Needs `make book` first, and Chromium with its driver (see tests/QUARANTINE.md).
"""

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from safeedit.records import ROOT

HTML = ROOT / "_build" / "html"
CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)
HOSTS = """
return performance.getEntriesByType("resource").map(e => e.name)
  .filter(name => !name.startsWith(location.origin) && !name.startsWith("data:"))
"""
PAGES = sorted(
    page.relative_to(HTML).as_posix()
    for folder in ("book", "notebooks")
    for page in (HTML / folder).glob("*.html")
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="chromium or chromedriver is not installed"
    ),
    pytest.mark.skipif(not PAGES, reason="the book is not built: make book"),
]


class Quiet(SimpleHTTPRequestHandler):
    """The book's files, without a line on the terminal for each."""

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture(scope="module")
def address():
    """The book on a local port, as from any web server."""
    handler = partial(Quiet, directory=str(HTML))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One Chromium for all pages."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


def wait_until(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 30).until(condition)


def open_page(browser, url):
    browser.get_log("browser")  # forget the page before
    browser.get(url)
    state = "return document.readyState === 'complete'"
    wait_until(browser, lambda b: b.execute_script(state))


@pytest.mark.parametrize("page", PAGES)
def test_page_is_whole_and_asks_nobody_else(browser, address, page):
    open_page(browser, f"{address}/{page}")
    formulas = browser.execute_script(
        "return document.querySelectorAll('.math').length"
    )
    if formulas:
        done = "return document.querySelectorAll('.math mjx-container').length"
        wait_until(browser, lambda b: b.execute_script(done) >= formulas)
    assert browser.execute_script(HOSTS) == []
    errors = [e for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    assert errors == []
    broken = """
    return [...document.images].filter(i => i.complete && !i.naturalWidth)
      .map(i => i.src)"""
    assert browser.execute_script(broken) == []
    merror = "return document.querySelectorAll('mjx-merror').length"
    assert browser.execute_script(merror) == 0


def test_page_opens_from_disk(browser):
    open_page(browser, (HTML / "book" / "notation.html").as_uri())
    done = "return document.querySelectorAll('mjx-container').length"
    assert wait_until(browser, lambda b: b.execute_script(done)) > 10


def test_search_finds_a_term(browser, address):
    open_page(browser, f"{address}/search.html?q=refusal")
    hits = "return document.querySelectorAll('#search-results ul li').length"
    assert wait_until(browser, lambda b: b.execute_script(hits)) > 0


def test_no_page_names_a_path_of_this_machine():
    for page in PAGES:
        text = Path(HTML, page).read_text(encoding="utf-8")
        assert str(ROOT) not in text, page
