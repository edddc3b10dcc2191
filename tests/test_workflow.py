"""Many runs at a time: nothing starts before what it reads, or beside what is timed."""

import re
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from safeedit.provenance import ROOT
from safeedit.workflow import engine, progress
from safeedit.workflow.notebooks import NotebookError, plan


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The root of the fake runs."""
    monkeypatch.setattr(sys.modules[__name__], "FOLDER", tmp_path)


def fake(name, reads=(), alone=False):
    """A run that reads the named ones."""
    source = Source(name, alone)
    return SimpleNamespace(
        source=source,
        alone=alone,
        label="model",
        status_path=Path("/nowhere"),
        changed={},
        model="standin-llama",
        reads_run=lambda other: other.source.name in reads,
    )


FOLDER = Path()


@dataclass
class Source:
    name: str
    alone: bool

    @property
    def root(self):
        return FOLDER


class Journal:
    """Stands in for the execution of a run and keeps what happened when."""

    def __init__(self, broken=()):
        self.lock, self.events, self.broken = threading.Lock(), [], broken

    def __call__(self, task, force, progress, kernels):
        name = task.source.name
        self._note("begin", name)
        time.sleep(0.01)
        self._note("end", name)
        if name in self.broken:
            raise NotebookError(f"{name} broke")
        return "run"

    def _note(self, what, name):
        with self.lock:
            self.events.append((what, name))

    def at(self, what, name):
        return self.events.index((what, name))

    def beside(self, name):
        """Names that began or ended while `name` ran."""
        inside = self.events[self.at("begin", name) + 1 : self.at("end", name)]
        return {other for _, other in inside}


@pytest.fixture
def journal(monkeypatch):
    made = Journal()
    monkeypatch.setattr(engine, "refresh", made)
    monkeypatch.setattr(engine, "why_stale", lambda task: None)
    return made


RUNS = [
    fake("a"),
    fake("b"),
    fake("reads a", reads=["a"]),
    fake("timed", reads=["a"], alone=True),
    fake("c"),
    fake("reads all", reads=["a", "b", "c", "timed", "reads a"]),
]


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_order(journal, jobs):
    assert engine.run_all(RUNS, jobs=jobs) == []
    assert sorted(n for w, n in journal.events if w == "end") == sorted(
        run.source.name for run in RUNS
    )
    for run in RUNS:
        for other in RUNS:
            if run.reads_run(other):
                first = journal.at("end", other.source.name)
                assert first < journal.at("begin", run.source.name)
    assert journal.beside("timed") == set()


@pytest.mark.parametrize(
    "reason, force, prepared",
    [(None, False, 0), ("text", False, 0), (None, True, 1), ("code changed", False, 1)],
)
def test_libraries_are_imported_only_to_execute(monkeypatch, reason, force, prepared):
    seen = []
    monkeypatch.setattr(engine, "why_stale", lambda task: reason)
    monkeypatch.setattr(engine, "refresh", lambda *words: "done")
    monkeypatch.setattr(engine.Kernels, "prepare", lambda self: seen.append(1))
    engine.run_all([fake("a")], force=force)
    assert len(seen) == prepared


def test_two_at_a_time_but_not_three(journal):
    engine.run_all([fake(str(i)) for i in range(6)], jobs=2)
    running = most = 0
    for what, _ in journal.events:
        running += 1 if what == "begin" else -1
        most = max(most, running)
    assert most == 2


def test_a_failure_is_told_and_the_rest_goes_on(journal, capsys):
    journal.broken = ("a",)
    assert engine.run_all(RUNS, jobs=2) == ["a broke"]
    assert ("end", "reads all") in journal.events
    assert "FAILED. a broke" in capsys.readouterr().out


def test_runs_of_other_models_and_seeds_need_not_wait_for_each_other():
    runs = [run for run in plan() if run.source.name == "T1_attack_success"]
    assert runs[-1].canonical and len(runs) > 2
    assert all(runs[-1].reads_run(other) for other in runs[:-1])
    assert not any(a.reads_run(b) for a in runs[:-1] for b in runs)


def test_some_notebooks_are_chosen_by_how_their_names_begin():
    names = {run.source.name for run in plan(notebooks=["T4", "F"])}
    assert {name[:2] for name in names} == {"T4", "F1", "F2", "F3", "F4"}
    every = plan()
    assert plan(notebooks=["0"]) == [r for r in every if r.source.name[0] == "0"]
    with pytest.raises(NotebookError, match="begins with 'T9'; there are 00_setup"):
        plan(notebooks=["T1", "T9"])


def test_seconds_of_a_smoke_run_are_nobodys():
    """It need not have the machine to itself."""
    for scale, alone in ((None, True), ("smoke", False)):
        runs = plan(["standin-llama"], scale, notebooks=["T4", "F1"], seeds=[0])
        assert {run.source.name: run.alone for run in runs} == {
            "F1_layers": False,
            "T4_time": alone,
        }


def test_what_asks_about_the_stand_ins_world_is_not_planned_for_a_real_model():
    real = {run.source.name for run in plan(["gemma-2b-it", "standin-gemma"], "gpu")}
    alone = {run.source.name for run in plan(["gemma-2b-it"], "gpu")}
    assert real - alone == {
        "10_explorers",
        "U1_settings",
        "U2a_attacks",
        "U5_more_rows",
        "U6_tuned_attacker",
    }


# What another engine is told.


def test_what_is_stale_and_what_reads_it_is_to_be_done(monkeypatch):
    monkeypatch.setattr(
        engine, "why_stale", lambda task: "old" if task.source.name == "a" else None
    )
    tasks = {task.notebook: task for task in engine.todo(RUNS)}
    assert tasks["a"].reason == "old" and tasks["a"].after == []
    assert tasks["reads a"].reason == "reads a/model"
    assert tasks["timed"].alone and tasks["timed"].after == ["a/model"]
    assert set(tasks["reads all"].after) == {"a/model", "timed/model", "reads a/model"}
    assert [name for name, task in tasks.items() if not task.reason] == ["b", "c"]
    forced = engine.todo(RUNS, force=True)
    assert {task.reason for task in forced} == {"forced"}


PROFILES = sorted((ROOT / "profiles").glob("*/config.yaml"))


def test_there_is_a_profile_for_each_place():
    assert [path.parent.name for path in PROFILES] == ["default", "kubernetes", "slurm"]


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.parent.name)
def test_profiles_know_the_rules_of_the_snakefile(path):
    profile = yaml.safe_load(path.read_text("utf-8"))
    rules = re.findall(r"^rule (\w+):", (ROOT / "Snakefile").read_text("utf-8"), re.M)
    assert set(profile.get("set-resources", {})) <= set(rules)
    if path.parent.name == "default":
        return
    assert {"mem_mb", "runtime"} <= set(profile["default-resources"])
    assert "gpu" not in profile["default-resources"]
    real = profile["set-resources"]["real"]
    assert real["gpu"] == 1 and {"mem_mb", "runtime"} <= set(real)


# How far it is.


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when told to."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_the_rest_counts_what_is_alone_one_after_the_other(clock, tmp_path):
    known = fake("known")
    known.status_path = tmp_path / "status.json"
    known.status_path.write_text('{"seconds": 100}')
    runs = [known, fake("new"), fake("timed", alone=True), fake("new")]
    shown = progress.Progress(runs, jobs=2)
    assert shown.left([0, 1, 2, 3]) == (100 + 60 + 60) / 2 + 60
    shown.start(1)
    clock[0] = 20.0
    assert shown.left([0, 2, 3]) == (100 + 40 + 60) / 2 + 60
    shown.end(1, "run", [0, 2, 3])  # 20 s: so the others will take that long
    assert shown.left([0, 2, 3]) == (100 + 20) / 2 + 20
    shown.start(0)
    clock[0] = 500.0
    assert shown.left([]) == 0  # late, but not less than nothing


def test_lines_in_a_log_and_a_bar_in_a_terminal(clock, capsys, monkeypatch):
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with progress.Progress([fake("a"), fake("b")], jobs=1) as shown:
            shown.start(0)
            clock[0] += 300.0
            shown.end(0, "run", [1])
        out, err = capsys.readouterr()
        assert "[1/2] a (model): run, 300 s" in out
        assert (", at most 5 min left" in (err if terminal else out)) is True
        assert ("1/2" in err) is terminal
