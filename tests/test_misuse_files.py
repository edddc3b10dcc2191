"""Damaged and malformed files: edits and records."""

import json

import pytest
import torch
from misuse import INF, NAN, Bench, Case, a_record, case, check

from safeedit import records
from safeedit.edits import WeightEdit
from safeedit.edits.storage import write_tensors
from safeedit.schema import RecordError

AREA = "Edit files and record files"
V, F, R = ValueError, FileNotFoundError, RecordError
NAME = "model.layers.1.mlp.down_proj.weight"
NOTES = {"info": {}, "constraint": None}

CRAFTED = {  # name -> tensors, notes: well-formed files that say something wrong
    "shape": ({f"{NAME}::dense": torch.zeros(3, 3)}, NOTES),
    "name": ({"x.y::dense": torch.zeros(3, 3)}, NOTES),
    "ranks": (
        {f"{NAME}::U": torch.zeros(32, 1), f"{NAME}::V": torch.zeros(48, 2)},
        NOTES,
    ),
    "base": (
        {f"{NAME}::dense": torch.zeros(32, 48)},
        {"info": {"base": {"structure": 1, "weights": []}}, "constraint": None},
    ),
}


def crafted(bench: Bench, name: str) -> WeightEdit:
    """Read an edit file of `CRAFTED`."""
    return WeightEdit.load(bench.at / "crafted" / name, bench.chat)


def row(**changes) -> dict:
    return records.row("loss", 1.0) | changes


BROKEN = {  # what is wrong -> changes of a record's fields, what the message says
    "no device": ({"device": None}, ("field device is None", "non-empty text")),
    "an empty notebook": ({"notebook": ""}, ("field notebook is ''", "non-empty text")),
    "a field too many": ({"colour": 1}, ("field colour is 'unknown'", "one of")),
    "a text for a seed": ({"seed": "0"}, ("field seed is '0'", "an integer")),
    "True for a seed": ({"seed": True}, ("field seed is True", "an integer")),
    "a list of versions": ({"versions": [1]}, ("field versions is [1]", "a mapping")),
    "a list of parameters": ({"parameters": [1]}, ("parameters is [1]", "a mapping")),
    "a text for a model": ({"model": "m"}, ("field model is 'm'", "a mapping with")),
    "odd weights": (
        {"model": {"name": "m", "id": "m", "revision": None, "weights": "tiny"}},
        ("field model.weights is 'tiny'", "'stand-in', 'real'"),
    ),
    "True for seconds": ({"seconds": {"a": True}}, ("seconds.a is True", ">= 0")),
    "NaN for seconds": ({"seconds": {"a": NAN}}, ("seconds.a is nan", ">= 0")),
    "-1 seconds": ({"seconds": {"a": -1}}, ("seconds.a is -1", "a number >= 0")),
    "a text for memory": ({"peak_memory_mb": "1"}, ("is '1'", "MB or null")),
    "yesterday for a time": (
        {"started": "yesterday"},
        ("field started is 'yesterday'", "an ISO 8601 time"),
    ),
    "a number for a time": ({"started": 3}, ("started is 3", "an ISO 8601 time")),
    "a mapping of rows": ({"rows": {}}, ("field rows is {}", "a list")),
    "a text for a row": ({"rows": ["x"]}, ("rows[0] is 'x'", "a mapping")),
    "a row without a value": (
        {"rows": [{k: v for k, v in row().items() if k != "value"}]},
        ("rows[0].value is 'missing'", "a value"),
    ),
    "a text for a value": (
        {"rows": [row(value="1")]},
        ("rows[0].value is '1'", "a finite number"),
    ),
    "NaN for a value": (
        {"rows": [row(value=NAN)]},
        ("value is nan", "a finite number"),
    ),
    "infinity for a value": (
        {"rows": [row(value=INF)]},
        ("rows[0].value is inf", "a finite number"),
    ),
    "True for n": ({"rows": [row(n=True)]}, ("rows[0].n is True", "number or null")),
    "a list in a row": ({"rows": [row(x=[1])]}, ("rows[0].x is [1]", "a text, number")),
    "a text of prompts": ({"prompts": "x"}, ("prompts is 'str'", "a list")),
    "a number in a prompt": (
        {"prompts": [{"a": 1}]},
        ("prompts[0] is {'a': 1}", "texts and truth values"),
    ),
}
SPOILT = {  # what is wrong -> how the text of a good record is changed
    "half a record": lambda text: text[: len(text) // 2],
    "a record without its last characters": lambda text: text[:-3],
    "an empty record": lambda text: b"",
    "noise for a record": lambda text: b"\xff" * 64,
    "a record with something after it": lambda text: text + b"{}",
    "a record in UTF-16": lambda text: text.decode().encode("utf-16"),
    "a record with a byte order mark": lambda text: b"\xef\xbb\xbf" + text,
}


def prepare(bench: Bench) -> None:
    """Write the files of this module into the bench, once."""
    if (bench.at / "crafted").exists():
        return
    for name, (tensors, notes) in CRAFTED.items():
        write_tensors(bench.at / "crafted" / name, tensors, notes)
    good = (bench.at / "mine" / "90_demo" / "m.json").read_bytes()
    folder = bench.at / "records"
    folder.mkdir()
    for name, (changes, _) in BROKEN.items():
        text = json.dumps(json.loads(good) | changes)
        (folder / name).write_text(text)
    for name, spoil in SPOILT.items():
        (folder / name).write_bytes(spoil(good))
    (folder / "a list for a record").write_text("[]")
    (folder / "null for a record").write_text("null")
    vars(bench).pop("as_it_was", None)  # with these files the bench begins anew


EDITS = [
    case(
        "an edit that is not there",
        lambda b: WeightEdit.load(b.at / "none"),
        F,
        "there is no edit at",
        "none; check the path",
    ),
    case(
        "a folder for an edit",
        lambda b: WeightEdit.load(b.at / "model"),
        F,
        "there is no edit at",
        "model; check the path",
    ),
    case(
        "a name of an edit with a NUL",
        lambda b: WeightEdit.load("a\0b"),
        F,
        "there is no edit at a\0b; check the path",
    ),
    *(
        case(
            f"{what} an edit",
            lambda b, name=name: WeightEdit.load(b.at / name),
            V,
            f"{name} is corrupt or truncated",
            "save the edit again",
        )
        for what, name in (
            ("half", "edit-half"),
            ("the start of", "edit-start"),
            ("nothing in", "edit-empty"),
            ("noise for", "edit-noise"),
            ("two other bytes in", "edit-flipped"),
        )
    ),
    case(
        "another kind of safetensors file for an edit",
        lambda b: WeightEdit.load(b.at / "edit-other"),
        V,
        "edit-other has format None, not 'safeedit-weight-edit-1'; give a file written",
    ),
    case(
        "weights for an edit",
        lambda b: WeightEdit.load(b.at / "model" / "model.safetensors"),
        V,
        "has format 'pt', not 'safeedit-weight-edit-1'",
    ),
    case(
        "an edit file for other weights",
        lambda b: WeightEdit.load(b.at / "edit", b.other),
        V,
        "made for another model",
        "its weights differ",
    ),
    case(
        "an edit file for another architecture",
        lambda b: WeightEdit.load(b.at / "edit", b.mistral),
        V,
        "its configuration or parameter shapes differ",
    ),
    case(
        "an edit file of the wrong shape",
        lambda b: crafted(b, "shape"),
        V,
        "has shape (3, 3), the weight (32, 48); was it made for another model?",
    ),
    case(
        "an edit file of a weight that is not there",
        lambda b: crafted(b, "name"),
        V,
        "changes 'x.y', which this model does not have",
    ),
    case(
        "an edit file with factors of two ranks",
        lambda b: crafted(b, "ranks"),
        V,
        "U has shape (32, 1) and V (48, 2); use (d_out, r) and (d_in, r)",
    ),
    case(
        "an edit file with a forged base",
        lambda b: crafted(b, "base"),
        V,
        "made for another model than tiny-llama",
    ),
]

RECORDS = [
    *(
        case(
            name,
            lambda b, name=name: records.read(b.at / "records" / name),
            R,
            f"{name}: not a JSON document",
            "Next step: delete it and run",
        )
        for name in SPOILT
    ),
    *(
        case(
            f"a record with {name}",
            lambda b, name=name: records.read(b.at / "records" / name),
            R,
            f"{name}: ",
            *words,
        )
        for name, (_, words) in BROKEN.items()
    ),
    case(
        "a list for a record",
        lambda b: records.read(b.at / "records" / "a list for a record"),
        R,
        "field (the whole) is 'list', want a dict",
    ),
    case(
        "null for a record",
        lambda b: records.read(b.at / "records" / "null for a record"),
        R,
        "field (the whole) is 'NoneType', want a dict",
    ),
    case(
        "a record that is not there",
        lambda b: records.read(b.at / "none.json"),
        F,
        "No such file",
        "none.json",
    ),
    case(
        "a folder for a record",
        lambda b: records.read(b.at / "mine"),
        IsADirectoryError,
        "Is a directory",
        "mine",
    ),
    case(
        "a record written with a text for a seed",
        lambda b: a_record(seed="0").write(b.at / "new.json"),
        R,
        "new.json: field seed is '0', want an integer",
    ),
    case(
        "a record written with NaN",
        lambda b: a_record(rows=[row(value=NAN)]).write(b.at / "new.json"),
        R,
        "new.json: field rows[0].value is nan, want a finite number",
    ),
    case(
        "a record written with NaN among its parameters",
        lambda b: a_record(parameters={"a": NAN}).write(b.at / "new.json"),
        V,
        "not JSON compliant: nan",
    ),
    case(
        "a record written under a file",
        lambda b: a_record().write(b.at / "edit" / "x.json"),
        FileExistsError,
        "File exists",
        "edit",
    ),
    case(
        "a record written onto a folder",
        lambda b: a_record().write(b.at / "mine"),
        IsADirectoryError,
        "Is a directory",
        "mine",
    ),
    case(
        "a search for records by a field that they have not",
        lambda b: records.find(b.at / "mine", colour=1),
        R,
        "m.json: no field ['colour'], allowed ['commit'",
    ),
]

CASES = [*EDITS, *RECORDS]


@pytest.mark.parametrize("one", CASES, ids=[one.key for one in CASES])
def test_error_is_clear_and_nothing_is_changed(bench, one: Case):
    prepare(bench)
    check(bench, one)
