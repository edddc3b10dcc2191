"""The built book in a real browser: nothing asked of other hosts, nothing broken,
nothing that axe calls serious, on a desk and on a phone, in light and dark.

Needs `make book` first, and Chromium with its driver (see tests/QUARANTINE.md).
"""

import json
import shutil
import time

import pytest
from built_book import BUILT, HTML, ROOT, served

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
AXE = ROOT / "tests" / "vendor" / "axe-core" / "axe.min.js"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-prefers-reduced-motion",
    "--window-size=1200,900",
)
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
# Opens what is folded away, so that it is judged too. Colours of code go by class, so
# one token of each is enough; the drawing inside a formula is one for axe.
PREPARE = """
// Colours are measured as they are in the end, not while a box opens.
const still = document.createElement("style");
still.textContent = "*, ::before, ::after " +
  "{animation: none !important; transition: none !important}";
document.head.append(still);
document.querySelectorAll("details").forEach(d => d.open = true);
const seen = new Set();
document.querySelectorAll(".highlight span[class]").forEach(token => {
  if (seen.has(token.className)) token.replaceWith(...token.childNodes);
  seen.add(token.className);
});
document.querySelectorAll("mjx-container svg *").forEach(part => part.remove());
"""
RUN_AXE = """
const [options, done] = arguments;
axe.run(document, {resultTypes: ["violations"], ...options}).then(result => done(
  result.violations.filter(v => ["serious", "critical"].includes(v.impact)).flatMap(
    v => v.nodes.map(n => `${v.id}: ${n.html.slice(0, 160)} ${n.failureSummary}`))),
  error => done([String(error)]));
"""
SIDEWAYS = "return document.documentElement.scrollWidth - innerWidth"
BROKEN = """
return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)
"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="chromium or chromedriver is not installed"
    ),
    pytest.mark.skipif(not BUILT, reason="the book is not built: make book"),
]


@pytest.fixture(scope="module")
def address():
    """The book on a local port, as from any web server."""
    with served(HTML) as found:
        yield found


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
    kinds = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", kinds)
    driver = webdriver.Chrome(options, Service(DRIVER))
    driver.set_script_timeout(120)
    yield driver
    driver.quit()


def wait_until(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60, poll_frequency=0.05).until(condition)


def open_page(browser, url):
    """Open a page, wait for its formulas, and return what it asked for."""
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # forget the page before
    browser.get(url)
    ready = """
    const formulas = document.querySelectorAll(".math").length;
    const drawn = document.querySelectorAll(".math mjx-container").length;
    return document.readyState === "complete" && drawn >= formulas"""
    wait_until(browser, lambda b: b.execute_script(ready))
    events = [
        json.loads(e["message"])["message"] for e in browser.get_log("performance")
    ]
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]


def console_errors(browser):
    return [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]


def assert_whole(browser, asked, origin):
    """Everything came from the book, nothing failed, every formula could be read."""
    assert asked, "the browser reports no request at all"
    known = (origin, "data:", "blob:", "chrome://")  # the last: its first empty tab
    assert [url for url in asked if not url.startswith(known)] == []
    assert console_errors(browser) == []
    assert browser.execute_script(BROKEN) == []
    merrors = "return document.querySelectorAll('mjx-merror').length"
    assert browser.execute_script(merrors) == 0


def violations(browser, theme, **options):
    """What axe calls serious or critical, with the colours of a theme."""
    browser.execute_script(
        "document.documentElement.dataset.theme = arguments[0]", theme
    )
    found = browser.execute_async_script(RUN_AXE, options)
    if found:  # page.js marks boxes that scroll 0.2 s after a change of width
        time.sleep(1)
        found = browser.execute_async_script(RUN_AXE, options)
    return found


@pytest.mark.parametrize("page", BUILT)
def test_page_is_whole_and_readable_by_all(browser, address, page):
    asked = open_page(browser, f"{address}/{page}")
    assert_whole(browser, asked, address)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    try:
        wide = browser.execute_script(SIDEWAYS)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide <= 0, f"{wide} pixels wider than a phone"
    browser.execute_script(PREPARE)
    browser.execute_script(AXE.read_text(encoding="utf-8"))
    assert violations(browser, "light") == []
    assert violations(browser, "dark", runOnly=["color-contrast"]) == []


@pytest.mark.parametrize("page", BUILT)
def test_page_opens_from_disk(browser, page):
    asked = open_page(browser, (HTML / page).as_uri())
    assert_whole(browser, asked, HTML.as_uri())


def test_boxes_that_scroll_on_a_phone_are_reached_by_keyboard(browser, address):
    """The widest tables, code and formulas: a page with many of each."""
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    try:
        open_page(browser, f"{address}/notebooks/03_regions.html")
        browser.execute_script(PREPARE + AXE.read_text(encoding="utf-8"))
        rule = ["scrollable-region-focusable"]
        wait_until(browser, lambda b: violations(b, "light", runOnly=rule) == [])
        boxes = "return document.querySelectorAll('.output[tabindex=\"0\"]').length"
        assert browser.execute_script(boxes) > 0
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_search_finds_a_term(browser, address):
    open_page(browser, f"{address}/search.html?q=refusal")
    hits = "return document.querySelectorAll('#search-results ul li').length"
    assert wait_until(browser, lambda b: b.execute_script(hits)) > 0


def test_search_works_from_disk(browser):
    open_page(browser, (HTML / "search.html").as_uri() + "?q=jailbreak")
    hits = "return document.querySelectorAll('#search-results ul li').length"
    assert wait_until(browser, lambda b: b.execute_script(hits)) > 0


def test_copy_button_copies_the_cell(browser, address):
    from selenium.webdriver import ActionChains

    open_page(browser, f"{address}/notebooks/01_jailbreak.html")
    grant = {"origin": address, "permissions": ["clipboardReadWrite"]}
    browser.execute_cdp_cmd("Browser.grantPermissions", grant)
    wait_until(browser, lambda b: b.execute_script("return !!window.ClipboardJS"))
    selector = "div.cell:not(.tag_hide-input) .copybtn"
    button = browser.find_element("css selector", selector)
    code = browser.execute_script(
        "arguments[0].scrollIntoView({block: 'center'});"
        "return arguments[0].parentElement.querySelector('pre').innerText",
        button,
    )
    # A click of a script is no gesture of a user, and copies nothing.
    ActionChains(browser).move_to_element(button).click().perform()
    read = """
    const done = arguments[0];
    const read = () => navigator.clipboard.readText().then(done, e => done("" + e));
    setTimeout(read, 300);"""
    copied = browser.execute_async_script(read)
    assert copied.strip() == code.strip() and len(code) > 20


def focus(browser):
    return browser.execute_script(
        "return document.activeElement.outerHTML.slice(0, 300)"
    )


def test_first_stop_of_the_tab_key_skips_to_the_text(browser, address):
    from selenium.webdriver import ActionChains, Keys

    open_page(browser, f"{address}/book/how-to-use.html")
    ActionChains(browser).send_keys(Keys.TAB).perform()
    assert "#main-content" in focus(browser)
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert browser.execute_script("return location.hash") == "#main-content"


def test_keyboard_opens_search_and_changes_the_colours(browser, address):
    from selenium.webdriver import ActionChains, Keys

    open_page(browser, f"{address}/book/how-to-use.html")
    keys = ActionChains(browser)
    keys.key_down(Keys.CONTROL).send_keys("k").key_up(Keys.CONTROL).perform()
    wait_until(browser, lambda b: 'type="search"' in focus(b))
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    mode = "return document.documentElement.dataset.mode"
    before = browser.execute_script(mode)
    button = "document.querySelector('.theme-switch-button').focus()"
    browser.execute_script(button)
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    wait_until(browser, lambda b: b.execute_script(mode) != before)
    browser.execute_script("localStorage.clear()")


@pytest.mark.parametrize("where", ["gone.html", "a/b/c/gone.html"])
def test_a_missing_page_leads_back_from_any_depth(browser, address, where):
    browser.get(f"{address}/{where}")
    found = "return document.documentElement.dataset.root"
    assert wait_until(browser, lambda b: b.execute_script(found)) == "/"
    link = browser.execute_script("return document.querySelector('main a').href")
    assert link == f"{address}/book/index.html"
    browser.execute_script(AXE.read_text(encoding="utf-8"))
    assert violations(browser, "light") == []
    browser.execute_script("document.querySelector('main a').click()")
    title = "return document.title"
    wait_until(browser, lambda b: "Safe editing" in b.execute_script(title))


def test_the_door_leads_to_the_book(browser, address):
    browser.get(f"{address}/")
    wait_until(browser, lambda b: b.current_url == f"{address}/book/index.html")
