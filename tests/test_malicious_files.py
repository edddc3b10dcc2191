"""Files made to do harm: no code in them runs, and no path leads out of its folder.

A model folder, an edit, a record or a cached cell may come from a stranger. Each file
here carries a payload that leaves a mark if anything ever runs it.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import pytest
import torch
from misuse import Bench, a_record, files
from safetensors.torch import load_file

from safeedit import __main__ as cli
from safeedit import cells, load, records
from safeedit.edits import WeightEdit
from safeedit.edits.storage import FORMAT
from safeedit.schema import RecordError
from safeedit.workflow import notebooks

RUNS_CODE = {  # modules and functions that make objects of what a file says
    "pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle", "eval", "exec",
    "torch.load", "np.load", "numpy.load", "yaml.load", "os.system", "os.popen",
    "pd.read_pickle", "pandas.read_pickle", "importlib.import_module",
}  # fmt: skip


class Payload:
    """Unpickling it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    """A path that is there after a test only if code in a file was run."""
    path = tmp_path / "mark"
    yield path
    assert not path.exists(), "code in a file was run"


@pytest.fixture
def folder(bench: Bench, tmp_path):
    """A copy of a good model folder, to be spoilt."""
    return Path(shutil.copytree(bench.at / "model", tmp_path / "model"))


def change(path: Path, **entries) -> None:
    """Set entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def code(mark: Path) -> str:
    """A Python module that leaves a mark and has the classes of a model."""
    return (
        f"import os\nos.mkdir({str(mark)!r})\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Config(LlamaConfig): model_type = 'own'\n"
        "class Model(LlamaForCausalLM): pass\n"
        "class Tokenizer: pass\n"
    )


def pickled(mark: Path, how: str) -> bytes:
    """A pickle with a payload, as plain pickle or as torch.save writes it."""
    if how == "pickle":
        return pickle.dumps(Payload(mark))
    path = mark.with_suffix(".pt")
    torch.save({"model.norm.weight": Payload(mark)}, path)
    return path.read_bytes()


def test_the_payloads_work(tmp_path):
    for how, opened in (
        ("pickle", lambda path: pickle.loads(path.read_bytes())),
        ("torch", lambda path: torch.load(path, weights_only=False)),
    ):
        path, mark = tmp_path / how, tmp_path / f"mark-{how}"
        path.write_bytes(pickled(mark, how))
        opened(path)
        assert mark.is_dir()
    mark = tmp_path / "mark-code"
    exec(compile(code(mark), "own", "exec"), {})
    assert mark.is_dir()


# No code of a file is run


def called(tree: ast.AST) -> set[str]:
    """Names of what a module imports or calls."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Call):
            found.add(ast.unparse(node.func))
    return found


def test_the_package_has_no_way_to_run_what_a_file_says():
    assert called(ast.parse("import pickle\nx = torch.load(y)")) == {
        "pickle",
        "torch.load",
    }
    sources = sorted((records.ROOT / "safeedit").rglob("*.py"))
    assert len(sources) > 80
    for path in sources:
        found = called(ast.parse(path.read_text()))
        assert not found & RUNS_CODE, path
        text = path.read_text()
        assert "trust_remote_code=True" not in text, path
        assert "weights_only=False" not in text, path
        assert "shell=True" not in text, path
        assert "use_safetensors=False" not in text, path


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_pickled_weights_alone_are_not_loaded(folder, mark, how):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickled(mark, how))
    with pytest.raises(FileNotFoundError, match=r"Pickled weights \(\*.bin\) are not"):
        load(folder)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_pickled_weights_under_the_name_of_safe_ones_are_not_loaded(folder, mark, how):
    (folder / "model.safetensors").write_bytes(pickled(mark, how))
    with pytest.raises(OSError, match="model.safetensors is truncated or damaged"):
        load(folder)


def test_pickled_weights_beside_safe_ones_are_not_opened(bench, folder, mark):
    (folder / "pytorch_model.bin").write_bytes(pickled(mark, "torch"))
    chat = load(folder)
    for one, two in zip(
        chat.model.parameters(), bench.chat.model.parameters(), strict=True
    ):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("pytorch_model.bin", "lacks pytorch_model.bin of its index"),
        ("../model/model.safetensors", "lacks ../model/model.safetensors of its"),
        ("/etc/hostname", "lacks /etc/hostname of its index"),
    ],
)
def test_an_index_names_only_safe_files_of_its_folder(folder, mark, name, error):
    (folder / "pytorch_model.bin").write_bytes(pickled(mark, "torch"))
    index = json.dumps({"weight_map": {"model.norm.weight": name}})
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(FileNotFoundError, match=error):
        load(folder)


@pytest.mark.parametrize(
    "entries",
    [
        {"transformers_weights": "pytorch_model.bin"},
        {"transformers_weights": "../other/model.safetensors"},
        {"transformers_weights": "/tmp/model.safetensors"},
    ],
    ids=["pickle", "above", "absolute"],
)
def test_a_config_cannot_name_other_weights(folder, mark, entries):
    (folder / "pytorch_model.bin").write_bytes(pickled(mark, "torch"))
    change(folder / "config.json", **entries)
    with pytest.raises(ValueError, match="model directory|seems to be incorrect"):
        load(folder)


@pytest.mark.parametrize("kind", ["ignored", "model", "remote"])
def test_code_that_a_config_names_is_never_run(folder, mark, kind):
    (folder / "own.py").write_text(code(mark))
    place = "owner/repository--own" if kind == "remote" else "own"
    auto = {
        "AutoConfig": f"{place}.Config",
        "AutoModelForCausalLM": f"{place}.Model",
    }
    change(folder / "config.json", auto_map=auto)
    if (
        kind == "ignored"
    ):  # a type that transformers itself knows: its own class is used
        chat = load(folder)
        assert type(chat.model).__module__.startswith("transformers.models.llama")
        return
    change(folder / "config.json", model_type="own")
    with pytest.raises(ValueError, match="config.json is damaged or describes a model"):
        load(folder)


def test_code_that_a_tokenizer_names_is_never_run(folder, mark):
    (folder / "own.py").write_text(code(mark))
    auto = {"AutoTokenizer": [None, "own.Tokenizer"]}
    change(folder / "tokenizer_config.json", auto_map=auto, tokenizer_class="Tokenizer")
    with pytest.raises(OSError, match="The tokenizer in .* cannot be read"):
        load(folder)


def test_code_for_generation_is_never_run(folder, mark):
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code(mark))
    change(folder / "generation_config.json", custom_generate=str(folder))
    assert len(load(folder).generate(["hi"], 2)) == 1


@pytest.mark.parametrize(
    "template",
    [
        "{{{{ cycler.__init__.__globals__.os.mkdir('{}') }}}}",
        "{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}",
        "{{{{ messages.append.__self__.__class__ }}}}",
    ],
)
def test_a_chat_template_reaches_nothing_of_python(folder, mark, template):
    (folder / "chat_template.jinja").write_text(template.format(mark))
    with pytest.raises(Exception, match="unsafe"):
        load(folder)


def test_a_pickle_for_an_edit_or_a_record_is_refused(tmp_path, mark):
    for how in ("pickle", "torch"):
        path = tmp_path / how
        path.write_bytes(pickled(mark, how))
        with pytest.raises(ValueError, match="corrupt or truncated"):
            WeightEdit.load(path)
        with pytest.raises(RecordError, match="not a JSON document"):
            records.read(path)


def test_a_pickle_among_kept_cells_is_refused(tmp_path, mark, monkeypatch):
    """Cells of a killed run are read back from a folder."""
    monkeypatch.setenv("SAFEEDIT_CELLS", str(tmp_path / "cells"))
    cells.rows_of("one", lambda: [{"a": 1}])
    for path in (tmp_path / "cells").iterdir():
        path.write_bytes(pickled(mark, "pickle"))
        path.with_suffix(".safetensors").write_bytes(pickled(mark, "pickle"))
    with pytest.raises(ValueError):  # JSONDecodeError or UnicodeDecodeError
        cells.rows_of("one", lambda: [{"a": 1}])
    with pytest.raises(ValueError, match="corrupt"):
        cells.edit_of("one", lambda: WeightEdit({}))


def test_an_object_in_a_notebook_header_is_not_made(tmp_path, mark):
    source = tmp_path / "notebooks" / "src" / "91_demo.md"
    call = f"!!python/object/apply:os.mkdir ['{mark}']"
    records.write_atomic(source, f"---\nx: {call}\n---\n# X\n")
    with pytest.raises(notebooks.NotebookError, match="could not determine a construc"):
        notebooks.plan(root=tmp_path)


def test_a_parameter_is_a_value_and_never_code(bench, mark):
    """Papermill writes parameters into a cell as source text."""
    from papermill.translators import PythonTranslator

    source = notebooks.load_source("90", bench.at / "root")
    for text in ('"); ', "'''; ", '\\"; ', "\n", "\\\n"):
        value = f"x{text}import os; os.mkdir({str(mark)!r}) #"
        run = notebooks.make_run(source, {"model_name": value})
        cell = PythonTranslator.codify(dict(run.changed))
        seen: dict = {}
        exec(compile(cell, "cell", "exec"), seen)
        assert seen["model_name"] == value
    assert cli._literal(f"__import__('os').mkdir({str(mark)!r})").startswith("__import")


# No path leads out


@pytest.mark.parametrize("name", ["../above", "/etc/x", "a/../../above", "..", "a\0b"])
def test_names_of_weights_are_no_paths(bench, tmp_path, name):
    """A name in an edit file is looked up among parameters, never opened."""
    body = struct.pack("<f", 0.0)
    header = {f"{name}::dense": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    write_edit(tmp_path / "edit", header, body)
    edit = WeightEdit.load(tmp_path / "edit")
    before = files(tmp_path)
    with pytest.raises(ValueError, match="which this model does not have"):
        with edit.applied(bench.chat):
            pass
    with pytest.raises(ValueError, match="which this model does not have"):
        edit.merge(bench.chat, tmp_path / "merged")
    assert files(tmp_path) == before


def write_edit(path: Path, header: dict | str, body: bytes, notes: str = "") -> None:
    """A safetensors file with a right digest, its header written by hand."""
    from safeedit.edits.storage import _digest

    notes = notes or json.dumps({"info": {}, "constraint": None})
    tensors = {name: torch.zeros(1) for name in header}
    metadata = {"format": FORMAT, "notes": notes, "digest": _digest(tensors, notes)}
    text = json.dumps({"__metadata__": metadata} | dict(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def test_an_edit_replaces_a_link_and_not_what_it_points_to(bench, tmp_path):
    target = tmp_path / "target"
    target.write_text("mine")
    for name, write in (
        ("edit", bench.edit.save),
        ("record", lambda path: a_record().write(path)),
    ):
        link = tmp_path / name
        link.symlink_to(target)
        write(link)
        assert not link.is_symlink() and target.read_text() == "mine"


@pytest.mark.parametrize("there", [True, False])
def test_a_merge_does_not_follow_a_link(bench, tmp_path, there):
    target = tmp_path / "target"
    if there:
        target.mkdir()
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(FileExistsError, match="link exists"):
        bench.edit.merge(bench.chat, tmp_path / "link")
    assert not list(target.glob("*"))


def test_names_in_a_record_are_never_paths(tmp_path):
    """A record says for which notebook and model it is; both are only compared."""
    model = {"name": "../../up", "id": "/etc", "revision": None, "weights": "local"}
    path = tmp_path / "in" / "90_demo" / "m.json"
    a_record(notebook="../../../up", model=model).write(path)
    before = files(tmp_path)
    found = records.find(tmp_path / "in")
    assert records.rows_frame(found)["notebook"].tolist() == ["../../../up"]
    assert cli.main(["compare", str(tmp_path / "in"), str(tmp_path / "in")]) == 0
    assert files(tmp_path) == before


# Headers and numbers made to exhaust or confuse a reader


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63 - 1) + b"{}",
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 8) + b"notjson!",
        b'\x10\x00\x00\x00\x00\x00\x00\x00{"a":' + b"[" * 11,
    ],
    ids=["8 EiB header", "1 TiB header", "no JSON", "half a header"],
)
def test_a_huge_or_broken_header_is_refused_at_once(folder, content):
    path = folder / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(OSError, match="model.safetensors is truncated or damaged"):
        load(folder)
    with pytest.raises(ValueError, match="corrupt or truncated"):
        WeightEdit.load(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**40]},
        {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": "[" * 100, "data_offsets": [0, 4]},
    ],
    ids=["overflow", "negative", "backwards", "beyond", "kind", "no shape"],
)
def test_a_header_that_lies_about_its_tensors_is_refused(folder, tmp_path, entry):
    write_edit(folder / "model.safetensors", {"a": entry}, b"\0" * 4)
    with pytest.raises(OSError, match="model.safetensors is truncated or damaged"):
        load(folder)
    with pytest.raises(ValueError, match="corrupt or truncated"):
        WeightEdit.load(folder / "model.safetensors")


def test_a_deeply_nested_header_is_refused(folder):
    text = b'{"a":' + b"[" * 100_000
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(OSError, match="model.safetensors is truncated or damaged"):
        load(folder)


def test_weights_of_another_kind_of_file_are_refused(bench, folder):
    """An edit is a safetensors file too, but not the weights of a model."""
    bench.edit.save(folder / "model.safetensors")
    with pytest.raises(OSError, match="lack 30 tensors"):
        load(folder)
    assert len(load_file(bench.at / "model" / "model.safetensors")) == 30
