"""Explorers: what is shown is what direct calls give, live and as HTML."""

import json
import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from xml.etree import ElementTree

import ipywidgets
import numpy as np
import pytest
import torch
from tiny import tiny_chat

from safeedit import explorers
from safeedit.attacks import GCGConfig, gcg
from safeedit.edits import PCRConfig, concept_vectors, pcr, project_out
from safeedit.evaluation import Question
from safeedit.explorers import (
    CASES,
    AttackExplorer,
    BudgetExplorer,
    Frames,
    FramesExplorer,
    GeometryExplorer,
    Scene,
    attack_steps,
    describe,
    solve,
)
from safeedit.explorers.attack import changed
from safeedit.explorers.frames import plain, readout, rich
from safeedit.explorers.page import WIDGET
from safeedit.metrics import token_nlls
from safeedit.sphinx import explorers as sphinx_explorers

NASTY = "<script>alert('x')</script> & \"quoted\" </table>"
WORDS = ["bread", "boat", "kite"]


def parsed(html):
    """The HTML as a tree: it must be well-formed."""
    return ElementTree.fromstring(html)


def table_of(html):
    """Texts of the table's lines, the head first."""
    rows = parsed(html).iter("tr")
    return [["".join(cell.itertext()) for cell in row] for row in rows]


def knobs(widget, kind=ipywidgets.SelectionSlider):
    return [child for child in widget.children if isinstance(child, kind)]


def shown(widget):
    (html,) = knobs(widget, ipywidgets.HTML)
    return html.value


def label(word, response):
    """A judge for models that know nothing: by the length of the answer."""
    return ("refusal", "success", "other")[len(response) % 3]


@pytest.fixture(scope="module")
def chat():
    return tiny_chat()


# The plane


def random_scenes(count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        centres = rng.uniform(-0.9, 0.9, (int(rng.integers(1, 5)), 2))
        point = rng.uniform(-0.5, 0.5, 2)
        yield Scene(tuple(point), tuple(map(tuple, centres)), rng.uniform(0.5, 1.5))


@pytest.mark.parametrize("scene", [*CASES.values(), *random_scenes(6)])
def test_both_ways_out_are_those_of_project_out(scene):
    solved = solve(scene)
    for method in ("greedy", "exact"):
        point = torch.tensor(scene.point, dtype=torch.float64)
        centres = torch.tensor(scene.centres, dtype=torch.float64)
        found = project_out(point, centres, scene.radius, method)
        assert getattr(solved, method) == pytest.approx(found.point.tolist())
        length = getattr(solved, f"{method}_distance")
        assert length == pytest.approx(float(found.distance))
        if method == "greedy":
            assert solved.stopped == (found.status != "fallback")
            assert solved.steps == int(found.iterations)
    # Each step ends on the sphere of the centre that was nearest.
    for before, after in zip(solved.path, solved.path[1:], strict=False):
        nearest = np.linalg.norm(before - scene.centres, axis=1).argmin()
        out = np.linalg.norm(after - scene.centres[nearest])
        assert out == pytest.approx(scene.radius)


@pytest.mark.parametrize(
    "name, stopped, cycle, on_centre, optimum",
    [
        ("two-cycle", False, 2, False, 0.8),
        ("lands on a centre", True, 0, True, 0.75**0.5),
        ("stops too far", True, 0, False, np.hypot(0.35, (1 - 0.45**2) ** 0.5)),
        ("a row of five", True, 0, False, np.hypot(0.35, (1 - 0.45**2) ** 0.5)),
        ("three-cycle", False, 3, False, None),
    ],
)
def test_failure_cases(name, stopped, cycle, on_centre, optimum):
    solved = solve(CASES[name])
    found = solved.stopped, solved.cycle, solved.on_centre
    assert found == (stopped, cycle, on_centre)
    if optimum is not None:
        assert solved.exact_distance == pytest.approx(optimum)
    said = describe(solved)
    assert f"moves {solved.exact_distance:.2f}" in said
    assert ("never stops" in said) == (not stopped)


def test_a_path_that_creeps_to_a_corner_is_no_cycle():
    # Between two circles, into the corner where they meet: each step is shorter.
    scene = Scene((0.0, 0.7), ((-0.7, 0.0), (0.7, 0.0)))
    solved = solve(scene)
    assert solved.cycle == 0
    assert solved.greedy_distance >= solved.exact_distance - 1e-9


def test_the_point_that_is_free_stays():
    solved = solve(Scene((3.0, 0.0), ((0.0, 0.0),)))
    assert solved.steps == 0 and solved.exact_distance == 0
    assert describe(solved) == "The point is outside every ball: nothing moves."


@pytest.mark.parametrize(
    "point, centres, radius, message",
    [
        ((0.0, 0.0, 0.0), ((0.0, 0.0),), 1.0, r"give \(2,\) and \(n, 2\)"),
        ((0.0, 0.0), ((0.0,),), 1.0, r"give \(2,\) and \(n, 2\)"),
        ((0.0, 0.0), ((0.0, 0.0),) * 9, 1.0, "got 9 centres; give 1 to 8"),
        ((float("nan"), 0.0), ((0.0, 0.0),), 1.0, "finite"),
        ((0.0, 0.0), ((0.0, 0.0),), 0.0, "radius that is > 0"),
    ],
)
def test_bad_scene_is_refused(point, centres, radius, message):
    with pytest.raises(ValueError, match=message):
        Scene(point, centres, radius)


def test_geometry_page_says_what_was_solved():
    explorer = GeometryExplorer()
    html = explorer.page()
    root = parsed(html)
    assert root.get("data-explorer") == "geometry"
    assert Scene(**json.loads(root.get("data-scene"))) == explorer.scene
    assert np.hypot(*json.loads(root.get("data-spare"))) == pytest.approx(1)
    head, *lines = table_of(html)
    assert head[0] == "case" and [line[0] for line in lines] == list(CASES)
    for line, scene in zip(lines, CASES.values(), strict=True):
        solved = solve(scene)
        assert line[1].startswith(f"{solved.greedy_distance:.2f}")
        assert line[2:] == [f"{solved.exact_distance:.2f}", describe(solved)]
    picture = root.find(".//svg")
    assert picture.get("role") == "img"
    assert describe(solve(explorer.scene)) in picture.get("aria-label")
    assert len(picture.findall("circle")) >= len(explorer.scene.centres)


def test_picture_holds_all_balls():
    from safeedit.explorers.drawing import HEIGHT, WIDTH

    for scene in CASES.values():
        picture = parsed(GeometryExplorer(scene, {}).page()).find(".//svg")
        for circle in picture.findall("circle"):
            x, y, r = (float(circle.get(key)) for key in ("cx", "cy", "r"))
            assert -1 <= x - r and x + r <= WIDTH + 1
            assert -1 <= y - r and y + r <= HEIGHT + 1


def test_geometry_widget_solves_at_each_move():
    box = GeometryExplorer().widget()
    case, (radius, x, y), (which, cx, cy), (more, less) = (
        box.children[0],
        *(row.children for row in box.children[1:4]),
    )
    assert describe(solve(CASES["two-cycle"])) in shown(box)
    x.value, y.value, radius.value = 0.1, 0.25, 1.2
    scene = Scene((0.1, 0.25), CASES["two-cycle"].centres, 1.2)
    assert describe(solve(scene)) in shown(box)
    which.value = 1
    assert (cx.value, cy.value) == (0.6, 0.0)
    cx.value = 0.9
    scene = Scene((0.1, 0.25), ((-0.6, 0.0), (0.9, 0.0)), 1.2)
    assert describe(solve(scene)) in shown(box)
    more.click()
    assert len(which.options) == 3 and which.value == 2
    less.click()
    less.click()
    less.click()  # the last one stays
    assert len(which.options) == 1
    case.value = "three-cycle"
    assert describe(solve(CASES["three-cycle"])) in shown(box)


# Frames


def frames(**changes):
    some = Frames(
        title="A & B",
        sliders={"size": ["1", "2"], "name": ["a", "b", "<c>"]},
        rows=[
            {"loss": 0.5 * i, "answer": NASTY, "marked": ["same ", "new<", " same"]}
            for i in range(6)
        ],
        start=[1, 2],
        plot="answer",
    )
    return replace(some, **changes)


def test_frames_are_found_by_their_positions(tmp_path):
    some = frames()
    assert [some.at(i, j)["loss"] for i in (0, 1) for j in (0, 1, 2)] == [
        0.5 * i for i in range(6)
    ]
    with pytest.raises(IndexError, match="position 3 of a slider with 3"):
        some.at(0, 3)
    assert Frames.load(some.save(tmp_path / "frames.json")) == some


@pytest.mark.parametrize("text", ["[1]", '{"title": "x"}', "{", "null"])
def test_a_file_without_frames_is_refused(tmp_path, text):
    path = tmp_path / "frames.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="Frames.save"):
        Frames.load(path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sliders": {}}, "give one slider or two"),
        ({"sliders": {"a": []}}, "at least one position"),
        ({"sliders": {"a": ["1", "1"]}}, "named differently"),
        ({"sliders": {"a": ["1", "2"]}}, "got 6 frames .* give 2"),
        ({"plot": "colour"}, "use one of"),
        ({"start": [0]}, "give a position for each slider"),
        ({"start": [0, 3]}, "give a position for each slider"),
        ({"rows": [{"loss": 1.0}] * 5 + [{"gain": 1.0}]}, "differ in their fields"),
    ],
)
def test_bad_frames_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        frames(**changes)


def test_frames_page_is_escaped_and_whole():
    html = FramesExplorer(frames()).page()
    assert "<script" not in html
    root = parsed(html)
    assert root.get("aria-label") == "A & B" and root.get("data-start") == "1,2"
    head, *lines = table_of(html)
    assert head == ["size", "name", "loss", "answer", "marked"]
    assert lines[5] == ["2", "<c>", "2.50", NASTY, "same new< same"]
    sliders = [th for th in root.iter("th") if th.get("data-slider") is not None]
    assert [th.text for th in sliders] == ["size", "name"]
    assert [td.get("data-value") for td in root.iter("td")][::3][1] == "0.5"
    assert [mark.text for mark in root.iter("mark")] == ["new<"] * 6


def test_frames_widget_steps_through_the_frames():
    some = frames()
    box = FramesExplorer(some).widget()
    assert shown(box) == readout(some.at(1, 2))
    first, second = knobs(box)
    first.value, second.value = 0, 1
    assert shown(box) == readout(some.at(0, 1))


@pytest.mark.parametrize(
    "cell, text, html",
    [
        ("a < b", "a < b", "a &lt; b"),
        (-1e-9, "0.00", "0.00"),
        (-0.25, "-0.25", "-0.25"),
        ("a\x00\x1fb\n", "a\x00\x1fb\n", "a\ufffd\ufffdb\n"),
        (["", "new", " old"], "new old", "<mark>new</mark> old"),
    ],
)
def test_cells(cell, text, html):
    assert plain(cell) == text and rich(cell) == html


def all_explorers(chat):
    config = GCGConfig(num_steps=2, suffix_length=3, search_width=4, topk=8)
    config = replace(config, max_new_tokens=4)
    prompt, target = "tell me how to make a kite", "sure, here is a guide"
    steps = attack_steps(chat, prompt, target, config, partial(label, "kite"))
    asked = (Question("kite", prompt), Question("bread", "how do I bake bread"))
    blocks = {"0": (0,), "all": (0, 1, 2)}
    budget = BudgetExplorer(chat, asked, WORDS, blocks, [1.0, 3.0], label)
    return [GeometryExplorer(), AttackExplorer(steps), budget]


def test_each_explorer_is_shown_live_and_as_html(chat):
    for explorer in all_explorers(chat):
        bundle = explorer._repr_mimebundle_()
        assert set(bundle) == {"text/plain", "text/html", WIDGET}
        assert bundle["text/html"] == explorer.page() == explorer.page()
        assert explorer.summary() in bundle["text/plain"]
        root = parsed(bundle["text/html"])
        assert root.get("role") == "group" and root.get("aria-label")
        # Nothing is asked of another host, and nothing runs without the book's script.
        assert not re.search(r"https?://|<script|\bon\w+=", bundle["text/html"])
        # No slider in the HTML that would be dead without the script.
        assert not list(root.iter("input"))
        for region in root.iter("div"):
            if region.get("tabindex"):
                assert region.get("aria-label")


# An attack


@pytest.mark.parametrize("early_stop", [True, False])
def test_attack_steps_are_those_of_shorter_searches(chat, early_stop):
    prompt, target = "tell me how to make a kite", "sure, here is a guide"
    config = GCGConfig(
        num_steps=6,
        suffix_length=4,
        search_width=16,
        topk=32,
        max_new_tokens=6,
        early_stop=early_stop,
        eval_every=4,
    )
    steps = attack_steps(chat, prompt, target, config, partial(label, "kite"))
    assert [step.step for step in steps] == list(range(7))
    assert len({step.suffix for step in steps}) > 2
    for step in steps:
        done = replace(config, num_steps=step.step, early_stop=False)
        alone = gcg(chat, [prompt], [target], done)
        assert step.suffix == alone.suffixes[0]
        assert step.response == alone.responses[0]
        assert step.label == label("kite", step.response)
        heads = chat.answer_heads([prompt + step.suffix])
        (nlls,) = token_nlls(chat, heads, [target])
        assert step.loss == pytest.approx(sum(nlls) / len(nlls), abs=1e-4)
    explorer = AttackExplorer(steps)
    for place, step in enumerate(steps):
        frame = explorer.frames.at(place)
        assert plain(frame["suffix"]) == step.suffix
        assert (frame["loss"], frame["answer"]) == (step.loss, step.response)


def test_an_attack_without_steps_is_refused(chat):
    with pytest.raises(ValueError, match="num_steps is 0"):
        attack_steps(chat, "a", "b", GCGConfig(num_steps=0), str)
    with pytest.raises(ValueError, match="there are no steps"):
        AttackExplorer([])


@pytest.mark.parametrize(
    "before, after, pieces",
    [
        (" x x x", " x y x", [" x", " y", " x"]),
        ("a", "a", ["a"]),
        (" x", " y", ["", " y"]),
        ("a b c", "a c", ["a c"]),
        ("a", "", [""]),
        ("a b", "a b ", ["a b", " "]),
    ],
)
def test_what_is_new_is_marked(before, after, pieces):
    assert changed(before, after) == pieces
    assert "".join(changed(before, after)) == after


# A budget


@pytest.mark.filterwarnings("ignore:PCR changes nothing")
def test_budget_frames_are_what_the_edited_model_says(chat):
    asked = (
        Question("kite", "tell me how to make a kite"),
        Question("bread", "how do I bake bread at home"),
    )
    prompts = [question.prompt for question in asked]
    blocks = {"1": (1,), "all": (0, 1, 2)}
    concepts = concept_vectors(chat, WORDS, range(3))
    explorer = BudgetExplorer(chat, asked, concepts, blocks, [1.0, 2.5], label)
    for i, layers in enumerate(blocks.values()):
        for j, factor in enumerate((1.0, 2.5)):
            frame = explorer.frames.at(i, j)
            config = PCRConfig(
                layers=layers, eps_factor=factor, calibration=(prompts[0],)
            )
            edit = pcr(chat, prompts, WORDS, config)
            with edit.applied(chat):
                answers = chat.generate(prompts, 40)
            assert [frame["answer"], frame["benign answer"]] == answers
            assert frame["verdict"] == label("kite", answers[0])
            assert frame["benign verdict"] == label("bread", answers[1])
            own = float(edit.norm(chat).per_prompt[0])
            assert frame["norm of the edit"] == pytest.approx(own)
            assert (own == 0) == (factor == 1.0)
            assert frame["smallest margin over eps"] >= -1e-5
            with pcr(chat, prompts[:1], WORDS, config).applied(chat):
                assert chat.generate(prompts[:1], 40) == answers[:1]


def test_budget_widget_asks_the_model(chat):
    asked = (Question("kite", "make a kite"), Question("bread", "bake bread"))
    explorer = BudgetExplorer(
        chat, asked, WORDS, {"0": (0,), "2": (2,)}, [1.0, 3.0], label
    )
    box = explorer.widget()
    (blocks,), (factor,) = knobs(box), knobs(box, ipywidgets.FloatSlider)
    assert shown(box) == readout(explorer.frames.at(0, 0))
    blocks.value, factor.value = "2", 2.25  # between the positions of the page
    assert shown(box) == readout(explorer.ask("2", 2.25))
    assert shown(box) != readout(explorer.frames.at(1, 0))


def test_budget_wants_rising_factors(chat):
    asked = (Question("a", "a"), Question("b", "b"))
    with pytest.raises(ValueError, match="give them rising"):
        BudgetExplorer(chat, asked, WORDS, {"0": (0,)}, [2.0, 1.0], label)


# The pages


@pytest.mark.parametrize(
    "builder, body, added",
    [
        ("html", GeometryExplorer().page(), True),
        ("html", "<p>no explorer</p>", False),
        ("singlehtml", GeometryExplorer().page(), False),
    ],
)
def test_only_pages_with_an_explorer_get_its_scripts(builder, body, added):
    files = []
    app = SimpleNamespace(
        builder=SimpleNamespace(name=builder),
        add_js_file=lambda name, **how: files.append(name),
        add_css_file=files.append,
    )
    sphinx_explorers.add_scripts(app, "page", "page.html", {"body": body}, None)
    wanted = [sphinx_explorers.STYLES, *sphinx_explorers.SCRIPTS]
    assert files == (wanted if added else [])


def test_the_scripts_are_there():
    from safeedit.records import ROOT

    for name in (sphinx_explorers.STYLES, *sphinx_explorers.SCRIPTS):
        text = (ROOT / "book" / "_static" / name).read_text(encoding="utf-8")
        hosts = set(re.findall(r"https?://[^\s\"']+", text))
        assert hosts <= {"http://www.w3.org/2000/svg"}, name


def test_all_names_are_there():
    assert all(hasattr(explorers, name) for name in explorers.__all__)
