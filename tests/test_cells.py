"""Kept parts of a run: computed once, read back equal, not kept without a runner."""

import time

import pytest
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


def test_a_killed_run_and_a_whole_one_have_the_same_norms(tmp_path, monkeypatch):
    # A file has its weights in another order than the model, and a norm is a sum.
    monkeypatch.setenv("SAFEEDIT_CELLS", str(tmp_path / "cells"))
    torch.manual_seed(0)
    names = ["model.embed", *(f"model.layers.{i}.weight" for i in range(12)), "a.last"]
    made = WeightEdit({name: torch.randn(5, 7) for name in names})
    whole = cells.edit_of("npo", lambda: made)
    resumed = cells.edit_of("npo", lambda: pytest.fail("computed twice"))
    assert list(whole.deltas) == list(resumed.deltas)
    assert whole.norm() == resumed.norm()
    assert list(whole.norm().per_layer.items()) == list(
        resumed.norm().per_layer.items()
    )


def test_a_run_that_goes_on_counts_the_seconds_of_its_first_part(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEEDIT_CELLS", str(tmp_path / "cells"))
    assert cells.seconds_before() == 0

    def slow(value):
        time.sleep(0.05)
        return value

    begin = time.perf_counter()
    cells.rows_of("rows", lambda: slow([{"value": 1}]))
    cells.edit_of("edit", lambda: slow(WeightEdit({"a.weight": torch.ones(2)})))
    first = time.perf_counter() - begin
    assert 0.1 <= cells.seconds_before() <= first
    before = cells.seconds_before()
    cells.rows_of("rows", lambda: pytest.fail("computed twice"))
    assert cells.seconds_before() == before  # reading costs nothing twice


def test_a_cell_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEEDIT_CELLS", str(tmp_path))

    def fail():
        raise RuntimeError("out of luck")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of luck"):
            cells.rows_of("x", fail)
    assert not list(tmp_path.iterdir())


def test_without_a_runner_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.delenv("SAFEEDIT_CELLS", raising=False)
    calls = []
    for _ in range(2):
        cells.rows_of("x", lambda: calls.append(1) or [{"value": 1}])
    assert len(calls) == 2
    assert cells.checkpoint_of("x") is None
    assert cells.seconds_before() == 0
