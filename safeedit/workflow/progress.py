"""How far many runs are: a bar in a terminal, a line for each run elsewhere.

The estimate of the rest takes for each run what it took the last time, else the mean
of what the others of its notebook took just now, and counts runs that need the machine
for themselves one after the other. Runs that turn out to be fresh take no time, so the
estimate is an upper one.
"""

import json
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from .notebooks import Run


class Progress:
    """A context manager that shows which runs started and ended."""

    def __init__(self, runs: Sequence[Run], jobs: int) -> None:
        self.runs, self.jobs = runs, jobs
        self.began: dict[int, float] = {}  # of runs that are at work
        self.took: dict[str, list[float]] = {}  # by notebook, of what was executed
        self.ended = 0
        self.bar: tqdm | None = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            self.bar = tqdm(
                total=len(self.runs),
                unit="run",
                bar_format="{percentage:3.0f}%|{bar}| {n}/{total} {elapsed}{postfix}",
                dynamic_ncols=True,
                disable=False,  # not silenced by TQDM_DISABLE
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def start(self, index: int) -> None:
        """A run begins."""
        self.began[index] = time.perf_counter()

    def end(self, index: int, outcome: str, waiting: Sequence[int]) -> None:
        """A run has ended: say how, and what is left."""
        seconds = time.perf_counter() - self.began.pop(index)
        self.ended += 1
        run = self.runs[index]
        if outcome == "run":
            self.took.setdefault(run.source.name, []).append(seconds)
        count = f"[{self.ended}/{len(self.runs)}]"
        line = f"{count} {run.source.name} ({run.label}): {outcome}, {seconds:.0f} s"
        if self.bar is None:
            print(f"{line}{self._rest(waiting)}", flush=True)
        else:
            self.bar.write(line)
            self.bar.update()
            self.show(waiting)

    def show(self, waiting: Sequence[int]) -> None:
        """Draw the bar anew, if there is one."""
        if self.bar is not None:
            names = ", ".join(self.runs[i].source.name for i in self.began)
            self.bar.set_postfix_str(f"{names}{self._rest(waiting)}")

    def _rest(self, waiting: Sequence[int]) -> str:
        left = self.left(waiting)
        return f", at most {left / 60:.0f} min left" if left > 60 else ""

    def left(self, waiting: Sequence[int]) -> float:
        """Seconds until all is done, at most as far as one can tell."""
        now = time.perf_counter()
        alone = shared = 0.0
        for index in [*waiting, *self.began]:
            gone = now - self.began[index] if index in self.began else 0.0
            seconds = max(self._likely(self.runs[index]) - gone, 0.0)
            if self.runs[index].alone:
                alone += seconds
            else:
                shared += seconds
        return alone + shared / self.jobs

    def _likely(self, run: Run) -> float:
        """What a run took the last time; an unknown one like others of its notebook."""
        if run.status_path.is_file():
            return float(json.loads(run.status_path.read_text("utf-8"))["seconds"])
        every = [s for seconds in self.took.values() for s in seconds]
        known = self.took.get(run.source.name) or every or [60.0]
        return sum(known) / len(known)
