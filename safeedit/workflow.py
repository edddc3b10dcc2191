"""Many runs at a time: each after those that it reads, with an estimate of the rest.

Notebooks are light on memory and bound to one core, so runs that do not wait for each
other go side by side, each in a process of its own. A run that measures seconds
(`alone` in the header of its notebook) has the machine to itself.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from .notebooks import NotebookError, Run, why_stale
from .runner import refresh


def run_all(runs: Sequence[Run], force: bool = False, jobs: int = 1) -> list[str]:
    """Do runs, at most `jobs` at a time, and go on after a failure.

    A run whose input failed is tried all the same: it says what it lacks.

    Args:
        runs: in an order in which each finds what it reads (`notebooks.plan`).
        force: do them even where they are fresh.
        jobs: runs at the same time.

    Returns:
        The messages of the failures, none when all went well.
    """
    print(f"{len(runs)} runs, {jobs} at a time; those that are fresh are skipped.")
    clock = _Clock(runs, jobs)
    failures: list[str] = []
    waiting, done = list(range(len(runs))), set[int]()
    running: dict[Future[str], int] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            for index in _ready(runs, waiting, done, list(running.values()), jobs):
                waiting.remove(index)
                task = runs[index]
                # Freshness is judged now, when what it reads is there.
                job = _beside if jobs > 1 else refresh
                clock.start(index)
                running[pool.submit(job, task, force)] = index
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                index = running.pop(future)
                done.add(index)
                title = f"{runs[index].source.name} ({runs[index].label})"
                try:
                    outcome = future.result()
                except NotebookError as error:
                    failures.append(str(error))
                    outcome = f"FAILED. {error}"
                print(clock.line(index, title, outcome, waiting), flush=True)
    return failures


def _ready(
    runs: Sequence[Run],
    waiting: Sequence[int],
    done: set[int],
    running: Sequence[int],
    jobs: int,
) -> list[int]:
    """Which waiting runs can start beside the running ones, in order."""
    chosen: list[int] = []
    for index in waiting:
        beside = [*running, *chosen]
        if len(beside) >= jobs or any(runs[i].source.alone for i in beside):
            break
        needs = [i for i in range(index) if runs[index].reads_run(runs[i])]
        if not done.issuperset(needs):
            continue
        if runs[index].source.alone and beside:
            break  # wait for the machine, and let no later one take it
        chosen.append(index)
    return chosen


def _beside(task: Run, force: bool) -> str:
    """As `refresh`, what has to be executed in a process of its own."""
    if not force and why_stale(task) in (None, "text"):
        return refresh(task)
    return _in_process(task, force)


def _in_process(task: Run, force: bool) -> str:
    """A run in a process of its own: kernels take their environment from it."""
    command = [sys.executable, "-m", "safeedit", "run", task.source.name]
    command += ["--root", str(task.source.root)]
    for name, value in task.changed.items():
        command += ["-p", f"{name}={value!r}"]
    command += ["--force"] if force else []
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or ["no message"]
        raise NotebookError(lines[-1])
    return "fresh" if "is fresh" in ended.stdout else "run"


class _Clock:
    """Seconds taken, and what is likely left."""

    def __init__(self, runs: Sequence[Run], jobs: int) -> None:
        self.runs, self.jobs = runs, jobs
        self.began: dict[int, float] = {}
        self.took: list[float] = []  # of runs that were not fresh
        self.lines = 0

    def start(self, index: int) -> None:
        self.began[index] = time.perf_counter()

    def line(self, index: int, title: str, outcome: str, waiting: Sequence[int]) -> str:
        """What to print when a run has ended."""
        seconds = time.perf_counter() - self.began[index]
        self.lines += 1
        if outcome == "run":
            self.took.append(seconds)
        left = sum(self._likely(self.runs[i]) for i in waiting) / self.jobs
        more = f", at most {left / 60:.0f} min left" if left > 60 else ""
        count = f"[{self.lines}/{len(self.runs)}]"
        return f"{count} {title}: {outcome}, {seconds:.0f} s{more}"

    def _likely(self, task: Run) -> float:
        """What a run took the last time; an unknown one like the mean so far."""
        if task.status_path.is_file():
            return float(json.loads(task.status_path.read_text("utf-8"))["seconds"])
        return sum(self.took) / len(self.took) if self.took else 60.0
