"""How large the book's pages are and how soon the first chapter can be read from disk.

    make book && python benchmarks/bench_page.py

Needs Chromium and its driver. "Readable" is the first contentful paint, which the
browser reports; "complete" has every formula drawn. Each page is opened `REPEATS`
times in one browser, the first time with an empty cache.
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

HTML = Path(__file__).resolve().parents[1] / "_build" / "html"
FIRST = "notebooks/01_jailbreak.html"
REPEATS = 5
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run")
PAINT = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
DRAWN = """
return document.readyState === "complete" &&
  document.querySelectorAll(".math mjx-container").length >=
  document.querySelectorAll(".math").length"""


def sizes() -> dict[str, int]:
    """Bytes of each page, without the files that pages share."""
    pages = [*HTML.glob("book/*.html"), *HTML.glob("notebooks/*.html")]
    return {page.relative_to(HTML).as_posix(): page.stat().st_size for page in pages}


def seconds() -> dict[str, list[float]]:
    """Seconds until the first chapter can be read, and until it is complete."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    found: dict[str, list[float]] = {"readable": [], "complete": []}
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        for _ in range(REPEATS):
            browser.get("about:blank")
            start = time.perf_counter()
            browser.get((HTML / FIRST).as_uri())
            while not (browser.execute_script(DRAWN) and browser.execute_script(PAINT)):
                time.sleep(0.01)
            found["complete"].append(time.perf_counter() - start)
            found["readable"].append(browser.execute_script(PAINT) / 1000)
        browser.quit()
    return found


def main() -> int:
    """Print one JSON document."""
    if not (HTML / FIRST).is_file():
        print(f"{HTML / FIRST} is not there. Next step: make book.", file=sys.stderr)
        return 1
    largest = sorted(sizes().items(), key=lambda item: -item[1])
    report = {"pages": len(largest), "largest": dict(largest[:5]), "first": FIRST}
    if shutil.which("chromium") and shutil.which("chromedriver"):
        for name, values in seconds().items():
            report[f"seconds_{name}"] = {
                "first": round(values[0], 3),
                "median": round(statistics.median(values), 3),
            }
    else:
        print("No seconds: chromium or chromedriver is not installed.", file=sys.stderr)
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
