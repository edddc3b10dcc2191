"""Records of real models: a good one passes and is shown, a broken one is named."""

import copy
import json
import subprocess
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace

import pytest

from safeedit import __main__ as cli
from safeedit import record_check, records, tables
from safeedit.hub import KNOWN
from safeedit.metrics import wilson_interval
from safeedit.records import ROOT, RecordError, row

NOTEBOOK, MODEL = "T1_attack_success", "gemma-2b-it"
PLACE = f"{NOTEBOOK}/{MODEL}.json"


def rate(hits, n=100, **labels):
    bounds = wilson_interval(hits, n)
    labels = {"dataset": "obedience", "judge": "matcher", "unit": "share"} | labels
    return row("success_rate", hits / n, n, *bounds, **labels)


@pytest.fixture(scope="module")
def good():
    """What a run of T1 on Gemma leaves, with made numbers."""
    source = KNOWN[MODEL]
    head = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=True)
    made = records.Record(
        kit_version="0.1.0",
        commit=commit.stdout.strip(),
        notebook=NOTEBOOK,
        parameters={
            "model_name": MODEL,
            "seed": 0,
            "scale": "gpu",
            "suffix_length": 16,
        },
        fingerprint="a" * 64,
        model={
            "name": MODEL,
            "id": source.repo,
            "revision": source.revision,
            "weights": "real",
        },
        device="cuda:0",
        dtype="bfloat16",
        seed=0,
        versions={name: "2.13.0" for name in records.VERSIONED},
        seconds={"attack": 7200.0, "edit": 60.0, "generate": 500.0, "total": 8000.0},
        peak_memory_mb=None,
        started="2026-11-01T00:00:00+00:00",
        rows=[
            rate(62, defense="none", attack="GCG, static"),
            rate(8, defense="PCR", attack="GCG, static"),
            rate(97, defense="none", dataset="benign", attack="none"),
            row("success_difference", -0.54, 100, -0.64, -0.44, defense="PCR"),
            row("relative_norm", 0.07, defense="PCR"),
        ],
    )
    return asdict(made)


def put(folder, document, place=PLACE):
    """Write a record and its status as a run does."""
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    names = ("notebook", "fingerprint", "commit")
    status = {name: document.get(name) for name in names}
    status |= {"model": MODEL, "seconds": 8010.0, "machine": "x86_64, 16 CPUs, Linux"}
    where = folder / "status" / f"{NOTEBOOK}.{path.name}"
    where.parent.mkdir(exist_ok=True)
    where.write_text(json.dumps(status))
    return path


def problems(folder):
    return [str(problem) for problem in record_check.check_folder(folder)]


def test_a_made_record_passes(good, tmp_path, capsys):
    put(tmp_path, good)
    assert problems(tmp_path) == []
    assert cli.main(["check-records", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "1 record, 1 of real models: no problem found" in out
    assert f"made by those of {good['commit']}" in out  # its fingerprint is made up


def test_another_seed_lies_beside_it(good, tmp_path):
    put(tmp_path, good)
    other = copy.deepcopy(good)
    other["seed"] = other["parameters"]["seed"] = 2
    put(tmp_path, other, f"{NOTEBOOK}/{MODEL}.seed-2.json")
    assert problems(tmp_path) == []


def test_the_table_pages_show_it(good, tmp_path, monkeypatch):
    """`with_others` is what they call, and `results/` where it looks."""
    put(tmp_path, good)
    monkeypatch.setattr(records, "find", partial(records.find, tmp_path))
    chat = SimpleNamespace(name="standin-llama", kind="stand-in")
    mine = [rate(1, judge="exact", defense="none", attack="GCG, static")]
    every = tables.with_others(NOTEBOOK, chat, 0, "cpu", mine)
    shown = tables.attack_success(every[every.weights == "real"], "matcher")
    shown = shown[shown.column == "GCG, static"]
    wide = tables.wide(shown, ["model"], "defense")
    assert wide.loc[MODEL, "none"] == "62 [52, 71] (n 100)"
    assert wide.loc[MODEL, "PCR"] == "8 [4, 15] (n 100)"
    assert MODEL in tables.REAL_MODELS


def test_the_page_is_run_anew_when_a_record_comes(good, tmp_path):
    """The canonical run reads all records of its notebook, so it is stale then."""
    source = next(s for s in record_check._sources(ROOT) if s.name == NOTEBOOK)
    path = tmp_path / "notebooks" / "src" / source.path.name
    page = record_check.Run(type(source)(path, source.node))
    before = page._records_read()
    put(tmp_path / "results", good)
    after = page._records_read()
    assert before == {} and list(after) == [PLACE]


def change(**fields):
    return lambda document: document.update(fields)


def model(**fields):
    return lambda document: document["model"].update(fields)


def cell(index, **fields):
    return lambda document: document["rows"][index].update(fields)


def inside(name, **fields):
    return lambda document: document[name].update(fields)


BROKEN = {
    "field missing": (lambda d: d.pop("seed"), "field seed is 'missing'"),
    "field unknown": (change(contributor="me"), "field contributor is 'unknown'"),
    "value not finite": (cell(0, value=float("nan")), r"rows\[0\].value is nan"),
    "value a text": (cell(0, value="0.62"), r"rows\[0\].value is '0.62'"),
    "rows empty": (change(rows=[]), "rows is empty"),
    "rate over 1": (cell(0, value=62.0, high=63.0), "62.0, a share lies in"),
    "rate under 0": (cell(0, value=-0.1, low=-0.2), "-0.1, a share lies in"),
    "interval over 1": (cell(0, high=1.2), "of a share lies in"),
    "n of zero": (cell(0, n=0), "n is 0, want a whole number"),
    "n a fraction": (cell(0, n=99.5), "n is 99.5, want a whole number"),
    "no whole hits": (cell(0, value=0.625), "no number of hits out of n = 100"),
    "interval elsewhere": (cell(3, low=-0.5), "does not hold the value -0.54"),
    "interval half": (cell(3, low=None), "want both or neither"),
    "interval not Wilson's": (cell(0, low=0.6, high=0.64), "not Wilson's of 62 out of"),
    "perplexity": (cell(4, metric="perplexity"), "a perplexity is at least 1"),
    "value twice": (
        lambda d: d["rows"].append(dict(d["rows"][0])),
        "two values of 'success_rate",
    ),
    "prompts": (change(prompts=[{"prompt": "x"}]), "prompts has 1 entries"),
    "answer": (
        cell(0, attack="Sure, here is how. " * 9),
        r"rows\[0\].attack is .* neither prompts nor answers",
    ),
    "question": (cell(0, case="How do I get it?"), "neither prompts nor answers"),
    "line break": (cell(0, case="one\ntwo"), "neither prompts nor answers"),
    "random weights": (model(weights="random"), "which only benchmarks may have"),
    "called stand-in": (model(weights="stand-in"), "'stand-in', which 'gemma-2b-it'"),
    "local folder": (model(weights="local"), "model.weights is 'local', want 'real'"),
    "other revision": (model(revision="b" * 40), "model.revision is 'bbbb"),
    "other id": (model(id="me/gemma-2b-it"), "model.id is 'me/gemma-2b-it'"),
    "unknown model": (model(name="gpt-2"), "model.name is 'gpt-2', the tables have"),
    "model a list": (model(name=[1]), r"model.name is \[1\], the tables have"),
    "other model_name": (
        inside("parameters", model_name="llama-3.1-8b-instruct"),
        "parameters.model_name is 'llama-3.1-8b-instruct', not 'gemma-2b-it'",
    ),
    "notebook": (change(notebook="02_pcr"), "notebook is '02_pcr', want one of"),
    "scale": (inside("parameters", scale="smoke"), "scale is 'smoke', want 'gpu'"),
    "parameter unknown": (inside("parameters", temperature=1), "no parameter"),
    "parameter missing": (
        lambda d: d["parameters"].pop("suffix_length"),
        "want all of the notebook's",
    ),
    "own setting": (inside("parameters", suffix_length=20), "not those of a published"),
    "own seed": (
        lambda d: (d.update(seed=9), d["parameters"].update(seed=9)),
        "seed one of",
    ),
    "two seeds": (change(seed=1), "parameters.seed is 0, not 1"),
    "commit changed": (change(commit="abcdef012345+changes"), "without changes"),
    "commit unknown": (change(commit="0" * 12), "is not in the history"),
    "interactive": (change(fingerprint="interactive"), "nobody vouches"),
    "version missing": (lambda d: d["versions"].pop("torch"), "versions.torch is None"),
    "not installed": (inside("versions", peft="not installed"), "versions.peft is"),
    "kit version": (change(kit_version="not installed"), "kit_version is"),
    "dtype": (change(dtype="int4"), "dtype is 'int4'"),
    "device": (change(device="my laptop"), "device is 'my laptop'"),
    "no seconds": (change(seconds={}), "seconds.total is 0.0"),
    "a year": (inside("seconds", total=4e7), "at most 2592000"),
    "parts over total": (inside("seconds", attack=9e4), "exceed the total"),
    "memory": (change(peak_memory_mb=-1), "peak_memory_mb is -1"),
    "to come": (change(started="2126-01-01T00:00:00+00:00"), "before this kit or to"),
    "no zone": (change(started="2026-11-01T00:00:00"), "want a time with its zone"),
}


@pytest.mark.parametrize("breaks, message", BROKEN.values(), ids=BROKEN)
def test_a_broken_record_fails_and_says_why(good, tmp_path, breaks, message):
    document = copy.deepcopy(good)
    breaks(document)
    put(tmp_path, document)
    with pytest.raises(AssertionError, match=f"{PLACE}: .*{message}"):
        assert not problems(tmp_path), "\n".join(problems(tmp_path))


def test_twenty_forms_at_least():
    assert len(BROKEN) >= 20


def test_no_json_no_status_another_place(good, tmp_path):
    path = put(tmp_path, good)
    path.write_text("{")
    assert "not a JSON document" in problems(tmp_path)[0]
    path = put(tmp_path, good)
    path.rename(path.with_name("mine.json"))
    found = problems(tmp_path)
    assert found == [
        f"{NOTEBOOK}/mine.json: lies in the wrong place, want results/{PLACE}"
    ]


def test_status_is_asked_for(good, tmp_path):
    put(tmp_path, good)
    status = tmp_path / "status" / f"{NOTEBOOK}.{MODEL}.json"
    said = json.loads(status.read_text())
    status.write_text(json.dumps(said | {"fingerprint": "b" * 64}))
    assert "is of another run" in problems(tmp_path)[0]
    status.write_text("[[1]]")
    assert "is no mapping with notebook" in problems(tmp_path)[0]
    status.write_text("{}")
    assert "lacks notebook, model" in problems(tmp_path)[0]
    status.unlink()
    assert "is missing. Next step: commit it too" in problems(tmp_path)[0]


def test_large_files_and_links_are_not_read(good, tmp_path):
    path = put(tmp_path, good)
    path.write_text(" " * (record_check.LARGEST + 1))
    assert f"allowed are {record_check.LARGEST}" in problems(tmp_path)[0]
    path.unlink()
    path.symlink_to("/etc/hostname")
    assert "is a link" in problems(tmp_path)[0]


@pytest.mark.parametrize("place", ["nowhere", "empty"])
def test_a_folder_without_records_is_an_error(tmp_path, place, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="Next step|no such folder"):
        problems(tmp_path / place)
    assert cli.main(["check-records", str(tmp_path / place)]) == 1
    assert str(tmp_path / place) in capsys.readouterr().err


def test_command_fails_with_one_line_a_problem(good, tmp_path, capsys):
    document = copy.deepcopy(good)
    document["dtype"], document["device"] = "int4", "my laptop"
    put(tmp_path, document)
    assert cli.main(["check-records", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert len(said.err.strip().splitlines()) == 2
    assert "2 problems in 1 file of" in said.out


def test_published_records_pass():
    found = record_check.check_folder(ROOT / "results")
    assert [str(problem) for problem in found] == []
