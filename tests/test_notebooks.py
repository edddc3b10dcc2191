"""Sources, runs, fingerprints and editions, on a small notebook of their own."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from safeedit import fingerprints, records
from safeedit.provenance import ROOT
from safeedit.workflow import editions, notebooks, runner

DEMO = """---
kernelspec:
  display_name: Python 3
  language: python
  name: python3
safeedit:
  models: [standin-llama, standin-gemma]
  reads: [90_demo]
---
# A demo

```{code-cell} python3
:tags: [parameters]
model_name: str = "standin-llama"  # which model
seed: int = 0  # of nothing
rate: float = 0.5  # of everything
```

```{code-cell} python3
from types import SimpleNamespace

from safeedit import records

config = SimpleNamespace(name_or_path="x")
chat = SimpleNamespace(
    name=model_name, kind="stand-in", revision=None, device="cpu",
    dtype="float32", model=SimpleNamespace(config=config),
)
print("seed", seed)
"shown"
```

```{code-cell} python3
answer = ...
```

+++ {"tags": ["solution"]}

The answer is one.

```{code-cell} python3
:tags: [solution]
answer = 1
answer
```

+++

More text.

```{code-cell} python3
parameters = dict(model_name=model_name, seed=seed, rate=rate)
rows = [records.row("rate", rate)]
path = records.save_run("90_demo", parameters, chat, rows, {"total": 0.0})
```
"""


def make_root(folder: Path, text: str = DEMO) -> Path:
    source = folder / "notebooks" / "src" / "90_demo.md"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(text)
    return folder


def run_of(root: Path, **parameters) -> notebooks.Run:
    return notebooks.make_run(notebooks.load_source("90", root), parameters)


def outputs(root: Path) -> dict[str, bytes]:
    files = [p for p in root.rglob("*") if p.is_file() and "runs" not in p.parts]
    kept = [p for p in files if "status" not in p.parts and p.suffix == ".ipynb"]
    return {str(p.relative_to(root)): p.read_bytes() for p in kept}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A root whose canonical run is done."""
    root = make_root(tmp_path_factory.mktemp("root"))
    assert runner.refresh(run_of(root), progress=False) == "run"
    return root


@pytest.fixture
def copy(done, tmp_path):
    """A copy of that root to change."""
    import shutil

    root = tmp_path / "root"
    shutil.copytree(done, root)
    return root


# Sources and parameters.


def test_parameters_are_read_from_their_cell(tmp_path):
    source = notebooks.load_source("90_demo", make_root(tmp_path))
    assert source.parameters == {"model_name": "standin-llama", "seed": 0, "rate": 0.5}


@pytest.mark.parametrize("name", ["90", "90_demo", "notebooks/90_demo.ipynb"])
def test_source_by_name_beginning_or_path(tmp_path, name):
    assert notebooks.load_source(name, make_root(tmp_path)).name == "90_demo"


def test_unknown_notebook_names_the_allowed(tmp_path):
    with pytest.raises(notebooks.NotebookError, match="allowed: 90_demo"):
        notebooks.load_source("91", make_root(tmp_path))


def test_a_shorter_name_goes_before_one_that_begins_alike(tmp_path):
    root = make_root(tmp_path)
    folder = root / "notebooks" / "src"
    (folder / "90a_demo.md").write_text((folder / "90_demo.md").read_text())
    assert notebooks.load_source("90", root).name == "90_demo"
    assert notebooks.load_source("90a", root).name == "90a_demo"
    with pytest.raises(notebooks.NotebookError, match="90_demo, 90a_demo"):
        notebooks.load_source("9", root)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"sede": 1}, "no parameter 'sede'.*seed=0"),
        ({"seed": "1"}, "seed is '1'.*want a int"),
        ({"seed": True}, "seed is True"),
        ({"rate": "high"}, "want a float"),
    ],
)
def test_wrong_parameter_is_refused(tmp_path, parameters, message):
    with pytest.raises(notebooks.NotebookError, match=message):
        run_of(make_root(tmp_path), **parameters)


def test_int_does_for_float_and_default_is_no_change(tmp_path):
    root = make_root(tmp_path)
    assert run_of(root, rate=1).changed == {"rate": 1}
    assert run_of(root, seed=0).canonical


def test_only_published_runs_write_to_results(tmp_path):
    root = make_root(tmp_path)
    results = root / "results" / "90_demo"
    assert run_of(root).record_path == results / "standin-llama.json"
    gemma = run_of(root, model_name="standin-gemma")
    assert gemma.record_path == results / "standin-gemma.json"
    assert gemma.editions["complete"].parent == root / "runs" / "standin-gemma"
    trial = run_of(root, seed=1)
    assert trial.record_path.is_relative_to(root / "runs")
    assert "seed-1" in trial.record_path.name
    hub = run_of(root, model_name="owner/model")
    assert hub.record_path == results / "owner--model.json"


def test_seeds_of_the_header_are_published(tmp_path):
    root = make_root(tmp_path)
    path = root / "notebooks" / "src" / "90_demo.md"
    models = "  models: [standin-llama, standin-gemma]\n"
    path.write_text(DEMO.replace(models, models + "  seeds: [0, 1]\n"))
    gemma = run_of(root, model_name="standin-gemma", seed=1)
    name = "standin-gemma.seed-1.json"
    assert gemma.record_path == root / "results" / "90_demo" / name
    assert gemma.status_path.name == f"90_demo.{name}"
    assert run_of(root, seed=2).record_path.is_relative_to(root / "runs")
    order = [(run.model, run.parameters["seed"]) for run in notebooks.plan(root=root)]
    every = [(f"standin-{m}", s) for m in ("gemma", "llama") for s in (0, 1)]
    assert sorted(order) == every and order[-1] == ("standin-llama", 0)
    only = notebooks.plan(["standin-mistral"], root=root, seeds=[3])
    assert [run.parameters["seed"] for run in only] == [3]


def test_a_run_reads_the_records_of_its_own_model_and_seed(tmp_path):
    root = make_root(tmp_path)
    folder = root / "notebooks" / "src"
    (folder / "80_first.md").write_text(DEMO.replace("reads: [90_demo]", "reads: []"))
    (folder / "90_demo.md").write_text(DEMO.replace("[90_demo]", "[80_first, 90_demo]"))
    gemma = run_of(root, model_name="standin-gemma")
    first = notebooks.load_source("80_first", root)
    for name, same in (("standin-gemma", True), ("standin-llama", False)):
        other = notebooks.make_run(first, {"model_name": name})
        assert gemma.reads_run(other) is same
        assert run_of(root).reads_run(other)
    assert run_of(root).reads_run(gemma) and not gemma.reads_run(run_of(root))


def test_a_header_may_ask_for_the_records_of_all_seeds(tmp_path):
    root = make_root(tmp_path)
    folder = root / "notebooks" / "src"
    (folder / "80_first.md").write_text(DEMO.replace("reads: [90_demo]", "reads: []"))
    (folder / "90_demo.md").write_text(
        DEMO.replace("reads: [90_demo]", "reads: [80_first]\n  all_seeds: [80_first]")
    )
    later = run_of(root, model_name="standin-gemma", seed=4)
    first = notebooks.load_source("80_first", root)
    for changes, wanted in (
        (dict(model_name="standin-gemma"), True),
        (dict(model_name="standin-gemma", seed=1), True),
        (dict(model_name="standin-llama"), False),
    ):
        assert later.reads_run(notebooks.make_run(first, changes)) is wanted


@pytest.mark.parametrize("weights", ["stand-in", "real"])
def test_prompts_that_break_a_real_model_are_not_published(tmp_path, weights):
    root = make_root(tmp_path)
    run = run_of(root, model_name="standin-gemma")
    found = records.find(notebook="T1_attack_success")[0]
    model = {**found.model, "weights": weights}
    prompts = [{"prompt": "x", "success": True}]
    draft = root / "draft.json"
    dataclasses.replace(found, model=model, prompts=prompts).write(draft)
    runner._put({}, runner._records(run, draft))
    published = records.read(run.record_path).prompts
    kept = root / "runs" / "records" / "90_demo" / run.record_path.name
    if weights == "real":
        assert published == [] and records.read(kept).prompts == prompts
    else:
        assert published == prompts and not kept.exists()


def test_plan_puts_pages_last(tmp_path):
    root = make_root(tmp_path)
    first = DEMO.replace("reads: [90_demo]", "reads: []")
    (root / "notebooks" / "src" / "95_later.md").write_text(first)
    page = DEMO.replace("reads: [90_demo]", "reads: [95_later]")
    page = page.replace("  models: [standin-llama, standin-gemma]\n", "")
    (root / "notebooks" / "src" / "10_page.md").write_text(page)
    order = [(run.source.name, run.model) for run in notebooks.plan(root=root)]
    assert order == [
        ("90_demo", "standin-gemma"),
        ("90_demo", "standin-llama"),
        ("95_later", "standin-gemma"),
        ("95_later", "standin-llama"),
        ("10_page", "standin-llama"),
    ]
    only = notebooks.plan(["standin-mistral"], root=root)
    assert [run.source.name for run in only] == ["90_demo", "95_later"]


def test_notebooks_that_wait_for_each_other_are_named(tmp_path):
    root = make_root(tmp_path)
    text = DEMO.replace("reads: [90_demo]", "reads: [91_gone]")
    (root / "notebooks" / "src" / "90_demo.md").write_text(text)
    with pytest.raises(notebooks.NotebookError, match="91_gone"):
        notebooks.plan(root=root)


# What a run leaves.


def test_editions_have_the_cells_of_the_source(done):
    source = notebooks.load_source("90", done)
    complete = nbformat.read(done / "notebooks/solutions/90_demo.ipynb", 4)
    student = nbformat.read(done / "notebooks/90_demo.ipynb", 4)
    for node in (complete, student):
        nbformat.validate(node)
    assert [c.source for c in complete.cells] == [c.source for c in source.node.cells]
    wanted = [c.source for c in source.node.cells if "solution" not in editions.tags(c)]
    assert [c.source for c in student.cells] == wanted
    assert "answer = 1" not in (done / "notebooks/90_demo.ipynb").read_text()
    counts = [c.execution_count for c in student.cells if c.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert "'shown'" in str(student.cells[2].outputs)


def test_both_editions_can_fetch_the_kit_from_where_the_repository_is(
    tmp_path, monkeypatch
):
    """Their install cell is run, as on a machine without the kit and with it."""
    assert editions.install_cell(tmp_path) is None  # no address: the cell stays
    address = "repository: {url: 'https://host/it', branch: next}\n"
    (tmp_path / "_config.yml").write_text(address)
    text = editions.install_cell(tmp_path)
    new = nbformat.v4
    cells = [
        new.new_code_cell("old", metadata={"tags": ["remove-cell"]}),
        new.new_code_cell("kept"),
    ]
    node = new.new_notebook(cells=cells)
    sources = [c.source for c in editions.with_install(node, text).cells]
    assert sources == [text, "kept"] and node.cells[0].source == "old"
    steps = []
    monkeypatch.setattr(subprocess, "run", lambda step, check: steps.append(step))
    monkeypatch.setattr(sys, "path", ["here"])
    exec(text, {})  # there it is
    assert not steps and sys.path == ["here"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(text, {})
    kit = os.path.abspath("safeedit-kit")
    assert steps[0][-4:] == ["-b", "next", "https://host/it", kit]
    assert steps[1][1:4] == ["-m", "pip", "install"] and steps[1][-1] == kit
    assert sys.path == [kit, "here"]


@pytest.mark.parametrize("folder", ["notebooks", "notebooks/solutions"])
def test_published_notebooks_fetch_the_kit(folder):
    for path in (ROOT / folder).glob("*.ipynb"):
        found = [cell.source for cell in nbformat.read(path, 4).cells]
        assert editions.install_cell(ROOT) in found, path.name


def test_checks_say_nothing_in_the_student_edition():
    """What a check printed was about the solution, which is not in that edition."""
    new = nbformat.v4
    said = [new.new_output("stream", text="exercise 1: correct.")]
    cells = [
        new.new_code_cell("x = 1", metadata={"tags": ["solution"]}),
        new.new_code_cell("check(x)", metadata={"tags": ["check"]}, outputs=said),
        new.new_code_cell("y", outputs=said),
    ]
    complete = new.new_notebook(cells=cells)
    student = editions.student_edition(complete)
    assert [len(c.outputs) for c in student.cells] == [0, 1]
    assert [len(c.outputs) for c in complete.cells] == [0, 1, 1]
    assert [c.id for c in student.cells] == ["cell-000", "cell-001"]


def test_record_and_editions_share_the_fingerprint(done):
    run = run_of(done)
    record = records.read(run.record_path)
    assert record.fingerprint == run.fingerprint
    for path in run.editions.values():
        noted = nbformat.read(path, 4).metadata["safeedit"]
        assert noted["fingerprint"] == run.fingerprint
        assert noted["parameters"] == run.parameters
        assert noted["record"] == "results/90_demo/standin-llama.json"
    status = json.loads(run.status_path.read_text())
    assert status["seconds"] > 0


def test_seconds_of_a_run_that_goes_on_are_those_of_all_its_parts(copy):
    run = run_of(copy)
    kept = copy / "runs" / "cells" / run.fingerprint / "part.json.seconds"
    kept.parent.mkdir(parents=True)
    kept.write_text("1000.5")
    runner.refresh(run, force=True, progress=False)
    assert json.loads(run.status_path.read_text())["seconds"] > 1000.5
    assert not kept.exists()  # the next run begins anew


def test_no_seconds_or_paths_in_notebooks(done):
    for content in outputs(done).values():
        text = content.decode()
        assert "papermill" not in text
        assert str(done) not in text


def test_second_run_is_free_and_a_forced_one_is_equal(copy):
    before = outputs(copy)
    assert runner.refresh(run_of(copy), progress=False) == "fresh"
    assert runner.refresh(run_of(copy), force=True, progress=False) == "run"
    assert outputs(copy) == before


def test_prose_is_renewed_without_a_run(copy):
    path = copy / "notebooks/src/90_demo.md"
    text = path.read_text().replace("More text.", "Other text.")
    path.write_text(text.replace("config =", "# why\nconfig ="))
    assert notebooks.why_stale(run_of(copy)) == "text"
    assert runner.refresh(run_of(copy)) == "text"
    student = (copy / "notebooks/90_demo.ipynb").read_text()
    assert "Other text." in student and "# why" in student and "'shown'" in student
    assert notebooks.why_stale(run_of(copy)) is None


def test_changed_code_is_stale(copy):
    path = copy / "notebooks/src/90_demo.md"
    path.write_text(path.read_text().replace('"shown"', '"other"'))
    assert "changed" in notebooks.why_stale(run_of(copy))
    lines = notebooks.stale(copy)
    assert any("90_demo (standin-llama)" in line for line in lines)


def test_missing_and_broken_outputs_are_stale(copy):
    run = run_of(copy)
    run.record_path.write_text("{")
    assert "not a JSON document" in notebooks.why_stale(run)
    run.record_path.unlink()
    assert "not there" in notebooks.why_stale(run)
    run.editions["student"].write_text("{")
    assert "not a valid" in notebooks.why_stale(run)
    run.editions["student"].unlink()
    assert "not there" in notebooks.why_stale(run)


def test_left_over_notebook_is_listed(copy):
    (copy / "notebooks/80_old.ipynb").write_text("{}")
    assert any("80_old" in line for line in notebooks.stale(copy))


def test_failed_run_changes_nothing_and_leaves_a_log(copy):
    before = outputs(copy)
    path = copy / "notebooks/src/90_demo.md"
    path.write_text(path.read_text().replace('"shown"', "1 / 0"))
    with pytest.raises(notebooks.NotebookError, match="ZeroDivisionError.*runs/logs"):
        runner.refresh(run_of(copy), progress=False)
    assert outputs(copy) == before
    log = copy / "runs/logs/90_demo.standin-llama.ipynb"
    assert "ZeroDivisionError" in log.read_text()
    assert "SAFEEDIT_RECORD" not in os.environ


def test_another_models_record_makes_the_page_stale(copy):
    """The demo reads its own records: of other models, in the canonical run."""
    assert notebooks.why_stale(run_of(copy)) is None
    gemma = run_of(copy, model_name="standin-gemma")
    before = gemma.fingerprint
    record = records.read(run_of(copy).record_path)
    document = {**vars(record), "model": {**record.model, "name": "standin-gemma"}}
    records.Record(**document).write(gemma.record_path)
    assert "changed" in notebooks.why_stale(run_of(copy))
    assert run_of(copy, model_name="standin-gemma").fingerprint == before


# The normal form.


def stream(text, name="stdout"):
    return nbformat.v4.new_output("stream", name=name, text=text)


def code(*outs):
    return nbformat.v4.new_code_cell("1", outputs=list(outs))


def test_normal_form_joins_streams_and_drops_widgets():
    widget = nbformat.v4.new_output(
        "display_data", data={editions.WIDGET: {}, "text/plain": "x"}
    )
    cell = code(stream("a"), stream("b"), widget)
    node = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {"state": 1}})
    editions.normalise(node)
    assert [o.output_type for o in node.cells[0].outputs] == ["stream", "display_data"]
    assert node.cells[0].outputs[0].text == "ab"
    assert editions.WIDGET not in node.cells[0].outputs[1].data
    assert "widgets" not in node.metadata


def test_normal_form_replaces_random_ids():
    def node(name):
        svg = f'<path id="m{name}"/><use href="#m{name}"/>'
        data = {"image/svg+xml": svg}
        cell = code(nbformat.v4.new_output("display_data", data=data))
        return editions.normalise(nbformat.v4.new_notebook(cells=[cell]))

    assert node("0123456789") == node("abcdef0123")


@pytest.mark.parametrize(
    "output, message",
    [
        (stream("oh", "stderr"), "stderr: oh"),
        (nbformat.v4.new_output("error", ename="KeyError"), "KeyError"),
        (stream(f"{Path.home()}/x"), "path"),
        (stream("<object at 0x7f0011223344>"), "address"),
    ],
)
def test_problems_are_found(output, message, tmp_path):
    node = nbformat.v4.new_notebook(cells=[code(output)])
    assert message in editions.problems(node, tmp_path)[0]
    fine = nbformat.v4.new_notebook(cells=[code(stream("fine"))])
    assert editions.problems(fine, tmp_path) == []


# Fingerprints.


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("x = 1  # one", "x = 1", True),
        ('def f():\n    "why"\n    return 1', "def f():\n    return 1", True),
        ("x = (1 +\n     2)", "x = 1 + 2", True),
        ("x = 1", "x = 2", False),
        ("x = None", "x = 0", False),
        ("x = 1", "x = 1.0", False),
        ("f(a=1)", "f(b=1)", False),
        ("%pip install a", "%pip install b", False),
    ],
)
def test_code_shape(one, other, same):
    shape = fingerprints.code_shape
    assert (shape(one) == shape(other)) is same


def test_a_text_at_the_start_of_a_cell_counts():
    assert fingerprints.code_shape('"a"', False) != fingerprints.code_shape("", False)
    assert fingerprints.code_shape('"a"') == fingerprints.code_shape("")


PACKAGE = {
    "__init__.py": "from . import edits\nfrom .models import load\n__version__ = '1'\n",
    "models.py": "from .hub import get\ndef load(): return get()",
    "hub.py": "def get(): pass",
    "plots.py": "import math",
    "lazy.py": "def f():\n    from .plots import draw",
    "edits/__init__.py": "from .pcr import pcr\nfrom .geometry import project_out",
    "edits/pcr.py": "from ..models import load\nfrom . import geometry",
    "edits/geometry.py": "import math",
    "standins/__init__.py": "LENGTH = 3",
    "standins/build.py": "import math",
}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    root = tmp_path_factory.mktemp("package")
    for name, text in PACKAGE.items():
        path = root / "safeedit" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


LOAD = {"models", "hub"}
PCR = LOAD | {"edits.pcr", "edits.geometry"}


@pytest.mark.parametrize(
    "code, modules",
    [
        ("import math", set()),
        ("from safeedit import load", LOAD),
        ("import safeedit\nsafeedit.load('x')", LOAD),
        ("import safeedit as se\nse.load('x')", LOAD),
        ("from safeedit.models import load as open_model", LOAD),
        ("import safeedit.hub", {"hub"}),
        ("from safeedit.edits import project_out", {"edits.geometry"}),
        ("from safeedit import edits\nedits.project_out(1)", {"edits.geometry"}),
        ("from safeedit import edits\nedits.pcr(1)", PCR),
        ("from safeedit.edits import pcr", PCR),
        ("from safeedit.edits.pcr import pcr", PCR),
        ("import safeedit.edits.geometry as g\ng.x", {"edits.geometry"}),
        ("from safeedit import lazy", {"lazy", "plots"}),
        ("import safeedit\nsafeedit.__version__", set()),
        ("from safeedit.standins import LENGTH", {"standins"}),
        ("%pip install safeedit", set()),
    ],
)
def test_reached_modules(package, code, modules):
    found = fingerprints.reached_modules([code], package)
    assert set(found) == {f"safeedit.{name}" for name in modules}


@pytest.mark.parametrize(
    "code",
    [
        "import safeedit\nprint(safeedit)",
        "import safeedit\nsafeedit.unknown",
        "from safeedit import *",
    ],
)
def test_what_cannot_be_followed_counts_as_everything(package, code):
    found = fingerprints.reached_modules([code], package)
    assert {"safeedit.plots", "safeedit.edits.pcr"} <= set(found)


def test_cells_share_imports(package):
    cells = ["import safeedit", "safeedit.load('x')"]
    assert set(fingerprints.reached_modules(cells, package)) == {
        "safeedit.models",
        "safeedit.hub",
    }


def test_reached_modules_cover_what_python_imports():
    """Against Python itself: what an import statement loads of the kit is found."""
    code = "from safeedit.workflow import runner"
    probe = code + "\nimport sys\nprint([m for m in sys.modules if 'safeedit.' in m])"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, cwd=records.ROOT
    )
    loaded = set(re.findall(r"'(safeedit\.[\w.]+)'", done.stdout))
    runs = {"fingerprints", "records"}
    runs |= {f"workflow.{name}" for name in ("runner", "notebooks", "editions")}
    assert {f"safeedit.{name}" for name in runs} <= loaded
    found = set(fingerprints.reached_modules([code]))
    assert {f"safeedit.{name}" for name in runs} <= found


# The notebooks of the book.


BOOK = sorted((records.ROOT / "notebooks").glob("*.ipynb"))
BOOK += sorted((records.ROOT / "notebooks" / "solutions").glob("*.ipynb"))


@pytest.mark.parametrize("path", BOOK, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_committed_notebook_is_publishable(path):
    node = nbformat.read(path, 4)
    nbformat.validate(node)
    assert editions.problems(node, records.ROOT) == []
    assert editions.normalise(nbformat.from_dict(node)) == node
    hidden = [c for c in node.cells if "solution" in editions.tags(c)]
    if path.parent.name != "solutions":
        assert not hidden
    for cell in hidden:
        assert "not yet" not in str(cell.get("outputs", ""))


@pytest.mark.parametrize("path", BOOK, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_committed_notebook_has_the_cells_of_its_source(path):
    source = notebooks.load_source(path.stem)
    node = nbformat.read(path, 4)
    if node.metadata["safeedit"]["text"] != source.text_digest:
        pytest.skip("stale: `make fresh` lists it, `make book` renews it")
    solutions = path.parent.name == "solutions"
    published = editions.with_install(source.node, editions.install_cell(ROOT))
    cells = [
        c.source
        for c in published.cells
        if solutions or "solution" not in editions.tags(c)
    ]
    assert [c.source for c in node.cells] == cells
