"""A workflow that is killed, runs out of disk or is started twice loses nothing.

The notebooks of these tests need nothing but Python, so that a kernel costs a second.
"""

import errno
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from safeedit import records
from safeedit.workflow import engine, kernels, locks, notebooks, runner

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs kill -9 and flock")

KILLS = 30
SOURCE = """---
kernelspec: {display_name: Python 3, language: python, name: python3}
safeedit: {models: [standin-llama, standin-gemma], reads: [READS]}
---
# A notebook

```{code-cell} python3
:tags: [parameters]
model_name: str = "standin-llama"  # which
seed: int = 0  # of nothing
```

```{code-cell} python3
import json
import os
import time

time.sleep(0.2)
print("ROUND", model_name)
model = dict(name=model_name, id=model_name, revision=None, weights="stand-in")
row = dict(dataset="d", defense="d", attack="a", scope="s", metric="m",
           value=len(model_name) + ROUND, n=None, low=None, high=None)
record = dict(kit_version="0", commit="c", notebook="NAME",
              parameters=dict(model_name=model_name, seed=seed),
              fingerprint=os.environ["SAFEEDIT_FINGERPRINT"], model=model,
              device="cpu", dtype="float32", seed=seed, versions={}, seconds={},
              peak_memory_mb=None, started="2026-01-01T00:00:00+00:00", rows=[row],
              prompts=[])
place = os.environ["SAFEEDIT_RECORD"]
with open(place + ".part", "w") as stream:
    json.dump(record, stream)
os.replace(place + ".part", place)
```
"""


def write_sources(root, turn=0):
    """Two notebooks for two models each; another turn makes them stale."""
    folder = root / "notebooks" / "src"
    folder.mkdir(parents=True, exist_ok=True)
    for name, reads in (("80_first", ""), ("90_second", "80_first")):
        text = SOURCE.replace("READS", reads).replace("NAME", name)
        (folder / f"{name}.md").write_text(text.replace("ROUND", str(turn)))
    return root


def published(root):
    """Every file outside of runs/, less what belongs to an hour or a machine."""
    found = {}
    for folder in ("notebooks", "results"):
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and "status" not in path.parts:
                found[str(path.relative_to(root))] = path.read_text("utf-8")
    return found


def unforked(shared):
    """Kernels without torch: a forked one finds its start in the package."""
    return kernels.Kernels()


@pytest.fixture(autouse=True)
def light(monkeypatch):
    """Kernels that cost little, and no question to git."""
    monkeypatch.setattr(engine, "Kernels", unforked)
    monkeypatch.setattr(runner, "commit", lambda: "unknown")


def reproduce(root):
    """In a forked process, so that it can be killed; it leads a group."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # maybe ignored above
        # The fork server of this process, if any, is not the child's.
        multiprocessing.forkserver._forkserver.__init__()
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        try:
            failed = engine.run_all(notebooks.plan(root=root), jobs=2)
        except BaseException:
            os._exit(2)
        os._exit(1 if failed else 0)
    return pid


def finish(root):
    _, status = os.waitpid(reproduce(root), 0)
    assert os.waitstatus_to_exitcode(status) == 0


def check_whole(root):
    """What is published can be read, and so is whole."""
    for path in published(root):
        if path.startswith("results"):
            if not os.path.basename(path).startswith("."):
                records.read(root / path)
        elif path.endswith(".ipynb"):
            notebooks.nbformat.read(root / path, as_version=4)


def kernels_of(root):
    """Processes that work in a root."""
    found = []
    for process in psutil.process_iter(["pid"]):
        with suppress(psutil.Error):
            if process.cwd().startswith(str(root)) and process.pid != os.getpid():
                found.append(process.pid)
    return found


def test_kill_at_random_moments(tmp_path):
    """Killed 30 times on its way, it ends with the files of one that never was.

    With `pytest -s` it prints a log of the kills.
    """
    draw = random.Random(0)
    root = write_sources(tmp_path / "killed")
    begin = time.perf_counter()
    finish(write_sources(tmp_path / "other"))
    seconds = time.perf_counter() - begin
    turn, killed = 0, 0
    while killed < KILLS:
        pid = reproduce(root)
        wait = draw.uniform(0, seconds)
        time.sleep(wait)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:  # it was done first: give it new work
            assert os.waitstatus_to_exitcode(status) == 0
            turn += 1
            write_sources(root, turn)
            continue
        with suppress(ProcessLookupError):  # it may not lead its group yet
            os.killpg(pid, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        killed += 1
        check_whole(root)
        print(f"kill {killed}: after {wait:.2f} s, {len(published(root))} files whole")
    finish(root)
    assert all(notebooks.why_stale(run) is None for run in notebooks.plan(root=root))
    never = write_sources(tmp_path / "never", turn)
    finish(never)
    assert published(root) == published(never)
    assert len([name for name in published(root) if name.startswith("results")]) == 4


@pytest.mark.parametrize("kind", [unforked, kernels.Kernels])
def test_kernels_end_with_the_process_that_wanted_them(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(engine, "Kernels", kind)
    root = write_sources(tmp_path)
    for path in (root / "notebooks" / "src").glob("*.md"):
        path.write_text(path.read_text().replace("sleep(0.2)", "sleep(600)"))
    pid = reproduce(root)
    deadline = time.monotonic() + 300
    while not kernels_of(root / "notebooks"):
        assert time.monotonic() < deadline, "no kernel has started"
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it ended before"
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)  # it alone: kernels lead groups of their own
    os.waitpid(pid, 0)
    deadline = time.monotonic() + 120
    while kernels_of(root / "notebooks"):
        assert time.monotonic() < deadline, "a kernel has outlived its workflow"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished root."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "Kernels", unforked)
        patch.setattr(runner, "commit", lambda: "unknown")
        root = write_sources(tmp_path_factory.mktemp("done"))
        finish(root)
    return root


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_a_full_disk_changes_nothing(done, monkeypatch, nth):
    """The disk is full at each of the writes: status, two editions, record."""
    before = published(done)
    run = next(r for r in notebooks.plan(root=done) if r.canonical)
    draft = run.source.root / "runs" / "draft.json"
    draft.write_text(run.record_path.read_text("utf-8"))
    count = 0
    write = os.fsync

    def full(handle):
        nonlocal count
        count += 1
        if count == nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(handle)

    def execute(run, *_):
        texts = {run.status_path: "{}", **dict.fromkeys(run.editions.values(), "new")}
        runner._put(texts, runner._records(run, draft))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(runner, "execute", execute)
    with pytest.raises(notebooks.NotebookError) as told:
        runner.refresh(run, force=True)
    assert count == nth
    assert "No space left" in str(told.value) and "Next step: free" in str(told.value)
    assert published(done) == before
    assert not list(done.rglob("*.new*"))


def test_a_disk_that_is_full_for_the_log_is_told(done, monkeypatch):
    """The very first write of a run, by papermill, before any kernel is started."""
    run = next(r for r in notebooks.plan(root=done) if r.canonical)
    before = published(done)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "log.ipynb")

    monkeypatch.setattr("papermill.execute_notebook", full)
    with pytest.raises(notebooks.NotebookError, match="log.ipynb.*free space"):
        runner.refresh(run, force=True)
    assert published(done) == before


# Two at once.

HOLD = """
import sys, time
sys.modules["safeedit"] = type(sys)("safeedit")  # without torch
sys.modules["safeedit"].__path__ = [sys.argv[2]]
from pathlib import Path
from safeedit.workflow.locks import Lock
with Lock(Path(sys.argv[1]), "the folder"):
    print("mine", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds a lock."""
    package = os.path.dirname(locks.__file__)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "a.lock"), package],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_waits_and_says_for_whom(tmp_path, holder, capsys):
    """It goes on when the first is gone, though killed and its file still there."""
    path = tmp_path / "a.lock"
    assert json.loads(path.read_text())["pid"] == holder.pid
    killer = subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {holder.pid}"])
    begin = time.monotonic()
    with locks.Lock(path, "the folder"):
        waited = time.monotonic() - begin
        assert json.loads(path.read_text())["pid"] == os.getpid()
    killer.wait()
    said = capsys.readouterr().err
    assert waited > 0.5
    assert f"the folder: process {holder.pid} on" in said and "Waiting" in said
    assert path.read_text() == ""


def test_a_lock_left_by_a_dead_process_holds_nobody_up(tmp_path, holder, capsys):
    holder.kill()
    holder.wait()
    path = tmp_path / "a.lock"
    assert str(holder.pid) in path.read_text()
    with locks.Lock(path, "the folder"):
        assert str(os.getpid()) in path.read_text()
    assert capsys.readouterr().err == ""


def test_two_at_once_do_the_work_once(tmp_path):
    """The second workflow waits for the first, and then finds all fresh."""
    root = write_sources(tmp_path)
    both = [reproduce(root), reproduce(root)]
    for pid in both:
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    logs = sorted((root / "runs" / "logs").glob("*.ipynb"))
    assert len(logs) == 4
    finish(root)  # nothing to do, so no log is written anew
    assert logs == sorted((root / "runs" / "logs").glob("*.ipynb"))
    assert all(notebooks.why_stale(run) is None for run in notebooks.plan(root=root))


def test_ctrl_c_ends_the_kernels(tmp_path):
    root = write_sources(tmp_path)
    for path in (root / "notebooks" / "src").glob("*.md"):
        path.write_text(path.read_text().replace("sleep(0.2)", "sleep(600)"))
    pid = reproduce(root)
    deadline = time.monotonic() + 300
    while not kernels_of(root / "notebooks"):
        assert time.monotonic() < deadline, "no kernel has started"
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it ended before"
        time.sleep(0.05)
    os.kill(pid, signal.SIGINT)
    ended, status = os.waitpid(pid, os.WNOHANG)
    deadline = time.monotonic() + 120
    while not ended and time.monotonic() < deadline:
        time.sleep(0.1)
        ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert ended, "a kernel was left, and the workflow waits for it"
    assert os.waitstatus_to_exitcode(status) == 2
    assert not published(root) or not any("results" in n for n in published(root))
