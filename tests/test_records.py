"""Records: what is written is read, what is wrong is named, a kill breaks nothing."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest

from safeedit import records


@pytest.fixture
def record():
    return records.Record(
        kit_version="0.1.0",
        commit="abc",
        notebook="T9_demo",
        parameters={"model_name": "standin-llama", "seed": 0, "scale": "cpu"},
        fingerprint="f" * 64,
        model={
            "name": "standin-llama",
            "id": "standin-llama",
            "revision": None,
            "weights": "stand-in",
        },
        device="cpu",
        dtype="float32",
        seed=0,
        versions={"python": "3.11.7"},
        seconds={"attack": 1.5, "total": 2.0},
        peak_memory_mb=None,
        started="2026-01-01T00:00:00+00:00",
        rows=[records.row("asr", 0.5, 20, 0.3, 0.7, dataset="held-out", attack="gcg")],
    )


def test_written_record_is_read_back(record, tmp_path):
    path = record.write(tmp_path / "T9_demo" / "standin-llama.json")
    assert records.read(path) == record
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no leftovers


BROKEN = {
    "seed": (lambda d: d.update(seed="0"), "seed"),
    "missing": (lambda d: d.pop("device"), "device"),
    "unknown": (lambda d: d.update(colour="red"), "colour"),
    "weights": (lambda d: d["model"].update(weights="tiny"), "model.weights"),
    "model": (lambda d: d.update(model="standin-llama"), "model"),
    "seconds": (lambda d: d["seconds"].update(edit=-1), "seconds.edit"),
    "time": (lambda d: d.update(started="yesterday"), "started"),
    "rows": (lambda d: d.update(rows={}), "rows"),
    "row": (lambda d: d["rows"][0].pop("metric"), r"rows\[0\].metric"),
    "value": (lambda d: d["rows"][0].update(value="0.5"), r"rows\[0\].value"),
    "nested": (lambda d: d["rows"][0].update(more=[1]), r"rows\[0\].more"),
    "truth": (lambda d: d["rows"][0].update(n=True), r"rows\[0\].n"),
}


@pytest.mark.parametrize("change, field", BROKEN.values(), ids=BROKEN)
def test_reader_names_file_and_field(record, tmp_path, change, field):
    path = record.write(tmp_path / "one.json")
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(records.RecordError, match=f"one.json.*{field}"):
        records.read(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "0.5"])
def test_bad_value_is_not_written(record, tmp_path, value):
    rows = [{**record.rows[0], "value": value}]
    bad = dataclasses.replace(record, rows=rows)
    with pytest.raises(records.RecordError, match=r"rows\[0\].value"):
        bad.write(tmp_path / "one.json")
    assert not list(tmp_path.iterdir())


def test_row_takes_numpy_scalars():
    row = records.row("asr", np.float32(0.5), np.int64(4), seed=np.int64(1))
    assert json.dumps(row)
    assert (row["value"], row["n"], row["seed"]) == (0.5, 4, 1)


def test_find_filters_and_skips_status(record, tmp_path):
    record.write(tmp_path / "T9_demo" / "standin-llama.json")
    other = dataclasses.replace(
        record,
        model={**record.model, "name": "standin-gemma"},
        parameters={**record.parameters, "scale": "smoke"},
    )
    other.write(tmp_path / "T9_demo" / "standin-gemma.json")
    records.write_atomic(tmp_path / "status" / "T9_demo.json", "{}")
    assert len(records.find(tmp_path)) == 2
    assert records.find(tmp_path, model="standin-gemma") == [other]
    assert records.find(tmp_path, scale="cpu", notebook="T9_demo") == [record]
    assert records.find(tmp_path / "nowhere") == []
    with pytest.raises(records.RecordError, match="colour"):
        records.find(tmp_path, colour="red")


def test_frame_is_tidy_also_when_empty(record):
    frame = records.rows_frame([record, record])
    assert len(frame) == 2
    assert frame.loc[0, "model"] == "standin-llama"
    assert set(records.rows_frame([]).columns) <= set(frame.columns)


def with_rows(record, *rows):
    return [dataclasses.replace(record, rows=list(rows))]


def test_compare_verdicts(record):
    row = records.row
    mine = with_rows(
        record,
        row("interval", 0.5, 20, 0.3, 0.7),
        row("apart", 0.1, 20, 0.0, 0.2),
        row("plain", 1.04),
        row("tight", 1.04),
        row("new", 1.0),
        row("speed", 3.0, unit="steps/s"),
    )
    published = with_rows(
        record,
        row("interval", 0.6, 20, 0.4, 0.8),
        row("apart", 0.9, 20, 0.8, 1.0),
        row("plain", 1.0),
        row("tight", 1.0),
        row("gone", 1.0),
        row("speed", 9.0, unit="steps/s"),
    )
    table = records.compare(mine, published, {"tight": 0.01})
    assert dict(zip(table["metric"], table["verdict"], strict=True)) == {
        "interval": "agrees",
        "apart": "differs",
        "plain": "agrees",
        "tight": "differs",
        "new": "only mine",
        "gone": "only published",
    }
    assert set(records.compare(mine, mine)["verdict"]) == {"agrees"}
    assert len(records.compare([], [])) == 0


def chat(kind="stand-in"):
    config = SimpleNamespace(name_or_path="owner/model")
    return SimpleNamespace(
        name="standin-llama",
        kind=kind,
        revision=None,
        device="cpu",
        dtype="torch.float32",
        model=SimpleNamespace(config=config),
    )


def test_interactive_run_says_so(tmp_path, monkeypatch):
    monkeypatch.delenv("SAFEEDIT_RECORD", raising=False)
    monkeypatch.delenv("SAFEEDIT_FINGERPRINT", raising=False)
    monkeypatch.setattr(records, "ROOT", tmp_path)
    path = records.save_run("T9_demo", {"seed": 3}, chat(), [], {"total": 1})
    assert path.is_relative_to(tmp_path / "runs")
    saved = records.read(path)
    assert (saved.fingerprint, saved.seed) == ("interactive", 3)
    assert saved.dtype == "float32"


def test_runner_decides_place_and_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEEDIT_RECORD", str(tmp_path / "draft.json"))
    monkeypatch.setenv("SAFEEDIT_FINGERPRINT", "abc")
    path = records.save_run("T9_demo", {}, chat("real"), [], {"total": 1})
    assert path == tmp_path / "draft.json"
    saved = records.read(path)
    assert saved.fingerprint == "abc"
    assert saved.model["id"] == "owner/model"


def test_what_is_saved_is_what_was_built(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEEDIT_RECORD", str(tmp_path / "draft.json"))
    monkeypatch.setenv("SAFEEDIT_FINGERPRINT", "abc")
    run = ("T9_demo", {"seed": 3}, chat(), [records.row("m", np.float64(0.5), 4)])
    seconds = {"edit": 3600, "generate": 7}  # no total: the longest part counts
    begin = datetime.now(UTC) - timedelta(seconds=3601)  # records hold whole seconds
    saved = records.read(records.save_run(*run, seconds, 12.5))
    built = records.build(*run, seconds, 12.5, fingerprint="abc")
    end = datetime.now(UTC) - timedelta(seconds=3600)
    for made in (saved, built):
        assert begin <= datetime.fromisoformat(made.started) <= end
    same = [dataclasses.replace(made, started="") for made in (saved, built)]
    assert same[0] == same[1]
    assert records.build(*run, {}).fingerprint == "interactive"
