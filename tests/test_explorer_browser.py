"""Explorers in a real browser: the script's solver against project_out, and what moves.

The page is made here from an explorer and the book's scripts, so no built book is
needed but Chromium and its driver (see tests/QUARANTINE.md).
"""

import json
import re
import shutil
from functools import partial
from html import unescape

import numpy as np
import pytest
import torch
from tiny import tiny_chat

from safeedit.attacks import GCGConfig
from safeedit.edits import project_out
from safeedit.evaluation import Question
from safeedit.explorers import (
    CASES,
    AttackExplorer,
    BudgetExplorer,
    GeometryExplorer,
    Scene,
    attack_steps,
    describe,
    solve,
)
from safeedit.explorers.frames import rich
from safeedit.explorers.geometry import spare_direction
from safeedit.records import ROOT
from safeedit.sphinx import explorers as sphinx_explorers

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
    "--window-size=900,1400",
)
STATIC = ROOT / "book" / "_static"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="chromium or chromedriver is not installed"
    ),
]


@pytest.fixture(scope="module")
def shown():
    """The three explorers of the page, in its order."""
    chat = tiny_chat()
    prompt, target = "tell me how to make a kite", "sure, here is a guide"
    config = GCGConfig(num_steps=4, suffix_length=3, search_width=8, max_new_tokens=4)

    def label(word, response):
        return ("refusal", "success", "other")[len(response) % 3]

    steps = attack_steps(chat, prompt, target, config, partial(label, "kite"))
    asked = (Question("kite", prompt), Question("bread", "how do I bake bread"))
    blocks = {"0": (0,), "all": (0, 1, 2)}
    words = ["bread", "boat", "kite"]
    budget = BudgetExplorer(chat, asked, words, blocks, [1.0, 2.0, 4.0], label)
    return GeometryExplorer(), AttackExplorer(steps), budget


@pytest.fixture(scope="module")
def address(shown, tmp_path_factory):
    """A page with the explorers, on disk."""
    folder = tmp_path_factory.mktemp("page")
    names = (sphinx_explorers.STYLES, *sphinx_explorers.SCRIPTS)
    for name in names:
        shutil.copy(STATIC / name, folder / name)
    scripts = "".join(f'<script src="{name}"></script>' for name in names[1:])
    style = f'<link rel="stylesheet" href="{names[0]}">'
    body = "\n".join(explorer.page() for explorer in shown)
    page = folder / "page.html"
    page.write_text(
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">{style}'
        '<meta name="viewport" content="width=device-width, initial-scale=1"></head>'
        f"<body>{body}{scripts}</body></html>",
        encoding="utf-8",
    )
    return page.as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One Chromium for all tests."""
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


@pytest.fixture
def explorers(browser, address):
    """The explorers of a fresh page, which must not complain."""
    browser.get(address)
    yield browser.find_elements("css selector", ".safeedit-explorer")
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []


def text_of(cell):
    """A cell as the browser has it."""
    text = unescape(re.sub("</?mark>", "", rich(cell)))
    return text.replace("\r", "\n")


def press(element, *names):
    from selenium.webdriver.common.keys import Keys

    element.send_keys("".join(getattr(Keys, name) for name in names))


def said(root):
    return root.find_element("css selector", ".safeedit-says").text


def handle(root, name):
    return root.find_element("css selector", f'[role="slider"][aria-label="{name}"]')


def instances():
    """The failure cases, starts in the three-cycle, special and random scenes."""
    rng = np.random.default_rng(0)
    scenes = list(CASES.values())
    triangle = CASES["three-cycle"].centres
    scenes += [Scene(tuple(rng.uniform(-0.3, 0.3, 2)), triangle) for _ in range(12)]
    scenes += [
        Scene((0.0, 0.0), ((0.0, 0.0),)),  # on the only centre
        Scene((0.2, 0.3), ((0.2, 0.3), (0.9, 0.3))),  # on one of two
        Scene((0.2, 0.3), ((0.1, 0.3), (0.1, 0.3))),  # a centre twice
        Scene((5.0, 0.0), ((0.0, 0.0),)),  # outside
        Scene((0.0, 0.0), ((-0.6, 0.0), (0.6, 0.0), (0.0, 0.0))),  # on a line
    ]
    for _ in range(45):
        centres = rng.uniform(-0.9, 0.9, (int(rng.integers(1, 6)), 2))
        point, radius = rng.uniform(-0.5, 0.5, 2), rng.uniform(0.5, 1.5)
        scenes.append(Scene(tuple(point), tuple(map(tuple, centres)), radius))
    return scenes


def test_the_scripts_solver_is_project_out(browser):
    scenes = instances()
    data = json.dumps([vars(scene) for scene in scenes])
    code = (STATIC / "explorer-solver.js").read_text(encoding="utf-8")
    browser.get("about:blank")
    found = browser.execute_script(
        f"""{code}
        return {data}.map((scene) => {{
          const solved = safeedit.solve(scene, {list(spare_direction())});
          return {{ ...solved, text: safeedit.describe(solved) }};
        }});"""
    )
    stopped = 0
    for scene, mine in zip(scenes, found, strict=True):
        point = torch.tensor(scene.point, dtype=torch.float64)
        centres = torch.tensor(scene.centres, dtype=torch.float64)
        for method in ("greedy", "exact"):
            result = project_out(point, centres, scene.radius, method)
            length = mine[method]["distance"]
            assert length == pytest.approx(float(result.distance), abs=1e-6), scene
            end = torch.tensor(mine[method]["point"], dtype=torch.float64)
            outside = torch.cdist(end[None], centres).min() - scene.radius
            assert outside >= -2e-6 * scene.radius
            if method == "greedy":
                assert mine["stopped"] == (result.status != "fallback")
                assert mine["steps"] == int(result.iterations)
                stopped += mine["stopped"]
        # Where the optimum is not unique the other ones are as near, and named.
        for other in mine["ties"]:
            gap = np.hypot(*np.subtract(other, scene.point))
            assert gap == pytest.approx(mine["exact"]["distance"], abs=1e-6)
        assert mine["text"] == describe(solve(scene))
    assert 5 <= len(scenes) - stopped <= len(scenes) - 40  # both kinds are there


def test_each_case_says_what_python_says(browser, explorers):
    from selenium.webdriver.support.ui import Select

    root = explorers[0]
    chooser = Select(root.find_element("css selector", "select"))
    for name, scene in CASES.items():
        chooser.select_by_visible_text(name)
        assert said(root) == describe(solve(scene))
        count = len(root.find_elements("css selector", '[role="slider"]'))
        assert count == len(scene.centres) + 2


def test_handles_move_by_key(browser, explorers):
    root = explorers[0]
    point = handle(root, "point o")
    press(point, "ARROW_RIGHT", "ARROW_RIGHT", "ARROW_UP")
    assert point.get_attribute("aria-valuetext") == "x 0.10, y 0.05"
    first = CASES["two-cycle"]
    assert said(root) == describe(solve(Scene((0.1, 0.05), first.centres)))
    press(handle(root, "centre 2"), "ARROW_DOWN")
    press(handle(root, "radius"), "ARROW_UP", "ARROW_UP")
    assert handle(root, "radius").get_attribute("aria-valuenow") == "1.10"
    centres = (first.centres[0], (0.6, -0.05))
    assert said(root) == describe(solve(Scene((0.1, 0.05), centres, 1.1)))
    assert handle(root, "radius").get_attribute("tabindex") == "0"
    # Focus stays, so that the next key goes on.
    active = browser.switch_to.active_element
    assert active.get_attribute("aria-label") == "radius"


def test_a_handle_is_dragged(browser, explorers):
    from selenium.webdriver import ActionChains

    root = explorers[0]
    before = said(root)
    point = handle(root, "point o")
    knob = point.find_element("css selector", ".safeedit-shape")
    ActionChains(browser).drag_and_drop_by_offset(knob, 40, -30).perform()
    place = re.fullmatch(r"x (.+), y (.+)", point.get_attribute("aria-valuetext"))
    x, y = map(float, place.groups())
    assert 0.1 < x < 0.5 and y == pytest.approx(0.75 * x, abs=0.02)
    assert said(root) != before
    own = root.find_element("css selector", "select").get_attribute("value")
    assert own == "your own"
    rim = handle(root, "radius").find_element("css selector", ".safeedit-shape")
    ActionChains(browser).drag_and_drop_by_offset(rim, 30, -30).perform()
    assert float(handle(root, "radius").get_attribute("aria-valuenow")) > 1.1


def test_radius_slider_and_buttons(browser, explorers):
    root = explorers[0]
    slider = root.find_element("css selector", 'input[type="range"]')
    press(slider, "ARROW_RIGHT")
    centres = CASES["two-cycle"].centres
    assert said(root) == describe(solve(Scene((0.0, 0.0), centres, 1.05)))
    add, remove = root.find_elements("css selector", "button")
    add.click()
    more = (*centres, (0.6 + 0.5 * 1.05, 0.0))
    assert said(root) == describe(solve(Scene((0.0, 0.0), more, 1.05)))
    remove.click()
    remove.click()
    assert said(root) == describe(solve(Scene((0.0, 0.0), centres[:1], 1.05)))
    assert not remove.is_enabled()


@pytest.mark.parametrize("place", [1, 2])
def test_every_slider_changes_what_is_read(browser, explorers, shown, place):
    root, frames = explorers[place], shown[place].frames
    sliders = root.find_elements("css selector", 'input[type="range"]')
    assert len(sliders) == len(frames.sliders)
    at = list(frames.start)
    for index, (slider, (name, positions)) in enumerate(
        zip(sliders, frames.sliders.items(), strict=True)
    ):
        label = f'label[for="{slider.get_attribute("id")}"]'
        assert root.find_element("css selector", label).text == name
        for _ in positions[1:]:
            press(slider, "ARROW_RIGHT")
            at[index] += 1
            assert slider.get_attribute("aria-valuetext") == positions[at[index]]
            content = [
                field.get_attribute("textContent")
                for field in root.find_elements("css selector", ".safeedit-readout dd")
            ]
            assert content == [text_of(cell) for cell in frames.at(*at).values()]
    live = root.find_element("css selector", "[aria-live]")
    assert live.find_elements("css selector", "dl")


def test_a_click_on_the_map_goes_there(browser, explorers, shown):
    root, frames = explorers[2], shown[2].frames
    root.find_elements("css selector", ".safeedit-cell")[4].click()
    answer = root.find_elements("css selector", ".safeedit-readout dd")[1]
    assert answer.get_attribute("textContent") == text_of(frames.at(1, 1)["answer"])


def test_explorers_fit_a_phone(browser, address):
    size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.get(address)
        wide = "return document.documentElement.scrollWidth"
        assert browser.execute_script(wide) <= 360
        reach = browser.find_element("css selector", ".safeedit-reach")
        assert reach.rect["width"] >= 24  # WCAG 2.5.8, CSS pixels
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
