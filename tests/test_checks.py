"""Exercise checks name what is wrong, and never raise."""

import numpy as np
import pytest
import torch

from safeedit import checks

MATRIX = np.array([[1.0, 2.0], [3.0, 4.0]])


@pytest.mark.parametrize("answer", [None, ...])
def test_no_answer_yet(answer, capsys):
    checks.close("E", answer, 1.0)
    checks.equal("E", answer, "a")
    checks.holds("E", answer, lambda x: 1 / 0, "no")
    assert capsys.readouterr().out.count("no answer yet") == 3


@pytest.mark.parametrize(
    "answer", [MATRIX, MATRIX.tolist(), torch.tensor(MATRIX, requires_grad=True)]
)
def test_right_answer_in_any_form(answer, capsys):
    checks.close("E", answer, MATRIX)
    assert capsys.readouterr().out == "E: correct.\n"


@pytest.mark.parametrize(
    "answer, want, message",
    [
        (-MATRIX, MATRIX, "sign"),
        (MATRIX.T, MATRIX, "transpose"),
        (2 * MATRIX, MATRIX, "2 times"),
        (MATRIX + 3, MATRIX, "off by +3"),
        (MATRIX[0], MATRIX, "shape"),
        (np.ones((3, 2)), np.ones((2, 3)), "transpose is right"),
        (MATRIX * np.nan, MATRIX, "not finite"),
        (1.5, 1.0, "1.5 times"),
        (1.5, 0.0, "too large"),
        ("one", 1.0, "str"),
        (MATRIX + [[0, 0], [0, 1]], MATRIX, "1 of 4 values"),
    ],
)
def test_wrong_answer_is_explained(answer, want, message, capsys):
    checks.close("E", answer, want)
    out = capsys.readouterr().out
    assert out.startswith("E: not yet. ") and message in out


def test_random_wrong_answers_are_never_called_correct(capsys):
    generator = np.random.default_rng(0)
    for _ in range(50):
        want = generator.normal(size=(3, 3))
        checks.close("E", want + generator.normal(size=(3, 3)), want)
    assert "correct" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, want, message",
    [
        ("a", "a", "correct"),
        ("b", "a", "not it"),
        (1, "a", "Give a str"),
        (["x", "y"], ["x", "z"], "1 items are missing and 1 do not"),
    ],
)
def test_equal(answer, want, message, capsys):
    checks.equal("E", answer, want)
    assert message in capsys.readouterr().out


def test_holds(capsys):
    checks.holds("E", 3, lambda x: x > 2, "It is too small.")
    checks.holds("E", 1, lambda x: x > 2, "It is too small.")
    assert capsys.readouterr().out == "E: correct.\nE: not yet. It is too small.\n"


def test_environment_findings_have_a_next_step():
    findings = checks.environment()
    assert {"Python", "torch", "standin-llama"} <= {f.what for f in findings}
    assert all(f.ok or f.fix or not f.required for f in findings)
