"""Many runs at a time: each after those that it reads, with an estimate of the rest.

Notebooks are light on memory and bound to one core, so runs that do not wait for each
other go side by side, each in a kernel of its own. A run that measures seconds
(`alone` in the header of its notebook) has the machine to itself.

What is finished is on disk and fresh, so a workflow that was killed is started again
by the same command and goes on. The same list of runs drives Snakemake: `todo`.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from ..records import RecordError
from .kernels import Kernels
from .locks import Lock
from .notebooks import STANDIN, NotebookError, Run, why_stale
from .progress import Progress
from .runner import COMMON, ONE_THREAD, refresh


def run_all(runs: Sequence[Run], force: bool = False, jobs: int = 1) -> list[str]:
    """Do runs, at most `jobs` at a time, and go on after a failure.

    A run whose input failed is tried all the same: it says what it lacks. While
    another process does so in the same repository, it is waited for.

    Args:
        runs: in an order in which each finds what it reads (`notebooks.plan`).
        force: do them even where they are fresh.
        jobs: runs at the same time.

    Returns:
        The messages of the failures, none when all went well.
    """
    if not runs:
        return []
    root = runs[0].source.root
    with Lock(root / "runs" / "workflow.lock", str(root)):
        try:
            return _run_all(runs, force, jobs)
        finally:
            logging.disable(logging.NOTSET)  # see `_run_all`


def _run_all(runs: Sequence[Run], force: bool, jobs: int) -> list[str]:
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    print(f"{count}, {jobs} at a time; those that are fresh are skipped.")
    failures: list[str] = []
    waiting, done = list(range(len(runs))), set[int]()
    running: dict[Future[str], int] = {}
    # To import once what all kernels import does not pay for a single one.
    kernels = Kernels(COMMON | ONE_THREAD if len(runs) > 1 else None)
    with Progress(runs, jobs) as progress, ThreadPoolExecutor(jobs) as pool, kernels:
        try:
            while waiting or running:
                for index in _ready(runs, waiting, done, list(running.values()), jobs):
                    waiting.remove(index)
                    progress.start(index)
                    # Freshness is judged now, when what it reads is there.
                    if force or why_stale(runs[index]) not in (None, "text"):
                        kernels.prepare()
                    future = pool.submit(refresh, runs[index], force, False, kernels)
                    running[future] = index
                finished, _ = wait(running, 1.0, return_when=FIRST_COMPLETED)
                progress.show(waiting)
                for future in finished:
                    index = running.pop(future)
                    done.add(index)
                    try:
                        outcome = future.result()
                    except (NotebookError, RecordError) as error:
                        failures.append(str(error))
                        outcome = f"FAILED. {error}"
                    progress.end(index, outcome, waiting)
        except BaseException:  # Ctrl-C too: the pool waits for what runs, so end that
            logging.disable(logging.CRITICAL)  # of kernels that die on purpose
            pool.shutdown(wait=False, cancel_futures=True)
            kernels.stop()
            raise
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
        if len(beside) >= jobs or any(runs[i].alone for i in beside):
            break
        needs = [i for i in range(index) if runs[index].reads_run(runs[i])]
        if not done.issuperset(needs):
            continue
        if runs[index].alone and beside:
            break  # wait for the machine, and let no later one take it
        chosen.append(index)
    return chosen


@dataclass(frozen=True)
class Task:
    """A run as another engine needs to know it."""

    notebook: str
    label: str  # with the notebook's name, tells it from all others
    parameters: dict[str, Any]  # those that are not at their default
    reason: str  # why it has to be done; "" when it has not
    after: list[str]  # "notebook/label" of runs that have to be done before it
    alone: bool
    real: bool  # not a stand-in: it wants a GPU

    @property
    def name(self) -> str:
        return f"{self.notebook}/{self.label}"


def todo(runs: Sequence[Run], force: bool = False) -> list[Task]:
    """What is to be done of a plan: what is stale, and what reads it.

    Whether a run that reads a stale one is itself stale shows only when that has been
    done; it counts as to be done, and `safeedit run` skips it if it is fresh by then.
    """
    tasks: list[Task] = []
    for index, run in enumerate(runs):
        reason = "forced" if force else (why_stale(run) or "")
        before = [
            tasks[i].name
            for i in range(index)
            if tasks[i].reason and run.reads_run(runs[i])
        ]
        if before and not reason:
            reason = f"reads {before[0]}"
        tasks.append(
            Task(
                run.source.name,
                run.label,
                dict(run.changed),
                reason,
                before,
                run.alone,
                not STANDIN.match(run.model),
            )
        )
    return tasks
