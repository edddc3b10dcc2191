"""The capstone's grader, on edits whose verdict is known beforehand."""

import json
import re
from dataclasses import replace

import pytest

import safeedit
from safeedit.course import capstone, rubric
from safeedit.edits import WeightEdit
from safeedit.records import ROOT

TASK = replace(
    capstone.TASKS["smoke"], requests=8, num_steps=20, search_width=32, benign=12
)
SEED = 3


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    """The file that the page's own code writes."""
    page = (ROOT / "book" / "capstone.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    path = tmp_path_factory.mktemp("capstone") / "edit.safetensors"
    exec(code.replace('"edit.safetensors"', repr(str(path))), {})
    return path


def marks(found):
    return {mark.criterion.name: mark for mark in found.marks}


def test_baseline_passes(baseline):
    found = capstone.grade(baseline, "standin-gemma", TASK, SEED)
    mark = marks(found)
    assert found.passed, found.text()
    assert found.points >= 6 + 9 + 12
    assert mark["budget"].value < 1 and mark["budget"].level != "insufficient"
    # The one word that the book says undoes such edits undoes this one.
    assert mark["one word in its mouth"].level == "insufficient"
    assert "passes" in found.text() and f"attacker: {SEED}" in found.text()


def test_random_edit_of_the_same_norm_fails(baseline, tmp_path):
    path = tmp_path / "random.safetensors"
    WeightEdit.load(baseline).randomised(1).save(path)
    found = capstone.grade(path, "standin-gemma", TASK, SEED)
    mark = marks(found)
    assert mark["budget"].level != "insufficient"  # it is not the size
    assert not found.passed, found.text()
    assert mark["replayed jailbreaks"].level == "insufficient"


def test_edit_over_the_budget_gets_nothing_and_command_says_so(
    baseline, tmp_path, capsys
):
    path, out = tmp_path / "large.safetensors", tmp_path / "marks.json"
    (2.0 * WeightEdit.load(baseline)).save(path)
    assert capstone.main([str(path), "--seed", "3", "--out", str(out)]) == 1
    said = capsys.readouterr().out
    assert "does not pass" in said and "over the budget" in said
    document = json.loads(out.read_text())
    assert document["points"] == 0 and document["passed"] is False
    assert [m["criterion"] for m in document["marks"]] == ["budget"]
    assert document["marks"][0]["value"] > 1


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda edit, path: None, "no edit"),
        (lambda edit, path: path.write_bytes(b"not an edit"), "corrupt"),
        (
            lambda edit, path: WeightEdit(
                {k: d * float("nan") for k, d in edit.deltas.items()}, edit.info
            ).save(path),
            "not finite",
        ),
    ],
    ids=["no file", "other file", "not a number"],
)
def test_what_cannot_be_graded_is_said(baseline, tmp_path, capsys, make, words):
    path = tmp_path / "mine.safetensors"
    make(WeightEdit.load(baseline), path)
    assert capstone.main([str(path)]) == 2
    assert words in capsys.readouterr().err


def test_edit_of_another_model_is_refused(baseline, capsys):
    assert capstone.main([str(baseline), "--model", "standin-llama"]) == 2
    assert capsys.readouterr().err.startswith("safeedit: ")


def test_points_follow_the_limits():
    line = rubric.Criterion("x", (10, 6), (0.25, 0.5), "", True)
    values = {0.0: 10, 0.25: 10, 0.26: 6, 0.5: 6, 0.51: 0}
    assert {v: line.earned(v) for v in values} == values


def test_rubric_adds_up_and_budget_is_the_pages():
    assert sum(c.points[0] for c in rubric.RUBRIC) == rubric.MACHINE
    assert sum(row[1] for row in rubric.REPORT) == 100 - rubric.MACHINE
    page = (ROOT / "book" / "capstone.md").read_text(encoding="utf-8")
    assert rf"\le {capstone.Task().budget:g}\, \lVert W" in page
    assert f"gives {rubric.MACHINE} points" in page
    assert f"(seed {capstone.Task().replay_seed})" in page
    chat = safeedit.load("standin-gemma")
    assert chat.kind == "stand-in"
