"""Kept parts of a run: computed once, read back equal, not kept without a runner."""

import torch

from safeedit import cells
from safeedit.edits import WeightEdit


def test_a_cell_is_computed_once_in_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEEDIT_CELLS", str(tmp_path / "cells"))
    calls = []

    def compute():
        calls.append(1)
        return [{"metric": "accuracy", "value": 0.1 + 0.2, "n": 3}]

    key = {"method": "npo", "attack": "none"}
    first = cells.rows_of(key, compute)
    again = cells.rows_of(dict(reversed(key.items())), compute)
    assert first == again == [{"metric": "accuracy", "value": 0.1 + 0.2, "n": 3}]
    assert len(calls) == 1
    cells.rows_of(key | {"attack": "relearning"}, compute)
    assert len(calls) == 2


def test_an_edit_comes_back_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEEDIT_CELLS", str(tmp_path / "cells"))
    made = WeightEdit({"a.weight": torch.randn(3, 4)}, {"method": "npo"})
    cells.edit_of(["npo", 0], lambda: made)

    def fail():
        raise AssertionError("computed twice")

    back = cells.edit_of(["npo", 0], fail)
    assert torch.equal(back.deltas["a.weight"], made.deltas["a.weight"])
    assert back.info == made.info


def test_a_cell_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEEDIT_CELLS", str(tmp_path))

    def fail():
        raise RuntimeError("out of luck")

    for _ in range(2):
        try:
            cells.rows_of("x", fail)
        except RuntimeError as error:
            assert "out of luck" in str(error)
    assert not list(tmp_path.iterdir())


def test_without_a_runner_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.delenv("SAFEEDIT_CELLS", raising=False)
    calls = []
    for _ in range(2):
        cells.rows_of("x", lambda: calls.append(1) or [{"value": 1}])
    assert len(calls) == 2
    assert cells.checkpoint_of("x") is None
