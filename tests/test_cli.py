"""The command line: help with an example, exit codes, errors without a traceback."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from safeedit import __main__ as cli
from safeedit import records
from safeedit.workflow import engine, notebooks

COMMANDS = ("doctor", "run", "reproduce", "plan", "notebooks", "fresh", "compare")
COMMANDS += ("check-records", "lm-eval-tasks", "release")

SOURCE = """---
kernelspec: {display_name: Python 3, language: python, name: python3}
---
# Empty

```{code-cell} python3
:tags: [parameters]
model_name: str = "standin-llama"  # which
seed: int = 0  # of nothing
```
"""


@pytest.fixture
def root(tmp_path):
    """A repository with one notebook."""
    path = tmp_path / "notebooks" / "src" / "90_demo.md"
    path.parent.mkdir(parents=True)
    path.write_text(SOURCE)
    return tmp_path


def call(root, *words):
    return cli.main([words[0], "--root", str(root), *words[1:]])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert f"Example: python -m safeedit {command}" in capsys.readouterr().out


def test_overview_names_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert all(command in out for command in (*COMMANDS, "train"))


def test_fresh_lists_and_fails(root, capsys):
    assert call(root, "fresh") == 1
    assert "90_demo" in capsys.readouterr().out


def test_fresh_is_silent_when_nothing_is_stale(root, capsys, monkeypatch):
    monkeypatch.setattr(notebooks, "why_stale", lambda run: None)
    assert call(root, "fresh") == 0
    assert capsys.readouterr().out == ""


def test_a_failure_does_not_stop_the_others(root, capsys, monkeypatch):
    (root / "notebooks/src/95_more.md").write_text(SOURCE)
    seen = []

    def refresh(run, *_):
        seen.append(run.source.name)
        if run.source.name == "90_demo":
            raise notebooks.NotebookError("broken")
        return "run"

    monkeypatch.setattr(engine, "refresh", refresh)
    monkeypatch.setattr(engine.Kernels, "prepare", lambda self: None)
    assert call(root, "notebooks") == 1
    assert seen == ["90_demo", "95_more"]
    assert "broken" in capsys.readouterr().err


def demo_record(value):
    return records.Record(
        kit_version="0.1.0",
        commit="abc",
        notebook="90_demo",
        parameters={},
        fingerprint="f",
        model={"name": "m", "id": "m", "revision": None, "weights": "local"},
        device="cpu",
        dtype="float32",
        seed=0,
        versions={},
        seconds={},
        peak_memory_mb=None,
        started="2026-01-01T00:00:00+00:00",
        rows=[records.row("loss", value)],
    )


def test_ctrl_c_is_one_line(root, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "run_all", interrupted)
    assert cli.main(["reproduce", "--root", str(root)]) == 130
    assert capsys.readouterr().err == (
        "safeedit: stopped. What is finished is kept; the same command goes on.\n"
    )


@pytest.mark.parametrize("value, status", [(1.0, 0), (2.0, 1)])
def test_compare_two_folders(tmp_path, capsys, value, status):
    demo_record(1.0).write(tmp_path / "mine" / "90_demo" / "m.json")
    demo_record(value).write(tmp_path / "other" / "90_demo" / "m.json")
    words = ["compare", str(tmp_path / "mine"), str(tmp_path / "other")]
    assert cli.main(words) == status
    assert ("none differs." in capsys.readouterr().out) == (status == 0)


def test_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "safeedit", "--help"],
        capture_output=True,
        text=True,
        cwd=records.ROOT,
    )
    assert done.returncode == 0
    assert "doctor" in done.stdout


# Another engine.


def test_without_snakemake_the_error_says_how_to_get_it(root, capsys, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    assert call(root, "reproduce", "--engine", "snakemake") == 1
    assert "pip install snakemake" in capsys.readouterr().err


def test_a_profile_wants_its_engine_and_a_folder(root, capsys, monkeypatch):
    assert call(root, "reproduce", "--profile", "profiles/slurm") == 1
    assert "add --engine snakemake" in capsys.readouterr().err
    monkeypatch.setattr("shutil.which", lambda *_, **__: "/bin/snakemake")
    words = ["--engine", "snakemake", "--profile", str(root / "none")]
    assert call(root, "reproduce", *words) == 1
    assert "no config.yaml" in capsys.readouterr().err


def test_snakemake_is_told_the_same_choice(root, monkeypatch):
    seen = []
    monkeypatch.setattr("shutil.which", lambda *_, **__: "/bin/snakemake")
    monkeypatch.setattr(
        "subprocess.run",
        lambda command, env: seen.append(command) or SimpleNamespace(returncode=7),
    )
    (root / "profiles" / "mine").mkdir(parents=True)
    (root / "profiles" / "mine" / "config.yaml").write_text("jobs: 1")
    words = ["--engine", "snakemake", "--profile", str(root / "profiles" / "mine")]
    words += ["--models", "a,b", "--scale", "gpu", "--seeds", "0", "1", "-n"]
    assert call(root, "reproduce", *words) == 7
    [command] = seen
    assert {"models=a,b", "scale=gpu", "seeds=0 1", "--dry-run"} <= set(command)
    assert command[command.index("--profile") + 1] == str(root / "profiles" / "mine")


def test_plan_says_why(root, capsys):
    assert call(root, "plan") == 0
    out = capsys.readouterr().out
    assert "90_demo (standin-llama): " in out and "1 of 1 runs to do" in out
    assert call(root, "plan", "--json") == 0
    [task] = json.loads(capsys.readouterr().out)
    assert task["notebook"] == "90_demo" and "not there" in task["reason"]
    assert call(root, "reproduce", "--dry-run") == 0
    assert "1 of 1 runs to do" in capsys.readouterr().out
    assert not (root / "runs").exists()
