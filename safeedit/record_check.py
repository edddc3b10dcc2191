"""Whether records may be published: form, plausible values, and nothing harmful.

Any record has to be valid, whole and possible: numbers finite, a rate a number of hits
out of n, an interval around its value. A record of a real model comes from a machine
that nobody here has seen, so more is asked of it: the run is one of the book's, the
model is the pinned one, the commit is known, and there is no room for prompts or
answers. A file has to lie where a run puts it, which also keeps a second record of the
same model and seed away: two would be counted as independent.

What can be checked is form. That a number is true, only another run can tell.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from .hub import KNOWN
from .provenance import ROOT
from .record_rows import kind_problems, row_problems
from .records import VERSIONED, Record, read
from .schema import RecordError
from .tables import NAMESAKES, REAL_MODELS
from .workflow.notebooks import NotebookError, Run, find_sources, make_run

LARGEST = 2_000_000  # bytes of a file; the largest published one has a tenth of it
LONGEST = 60  # characters of a text in a row: a label, never an answer
# A label; what asks, calls out, quotes or breaks a line is not one.
LABEL = re.compile(r"[\w .,:;+/%()<>=|~^*-]*", re.ASCII)
LONGEST_RUN = timedelta(days=30)
FIRST = datetime(2025, 10, 1, tzinfo=UTC)  # the paper is of this month
STATUS = ("notebook", "model", "fingerprint", "commit", "seconds", "machine")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one file."""

    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


def check_folder(
    folder: Path, root: Path = ROOT, commits: bool = True
) -> list[Problem]:
    """Check every record `<folder>/<notebook>/*.json`.

    Args:
        folder: usually `results/`.
        root: the repository whose notebooks and commits count.
        commits: whether the commits of real models' records have to be in its history.

    Raises:
        RecordError: no such folder, or no record in it.
    """
    if not folder.is_dir():
        raise RecordError(f"{folder}: no such folder of records")
    paths = sorted(folder.glob("*/*.json"))
    if not paths:
        raise RecordError(
            f"{folder} holds no <notebook>/<model>.json. Next step: give the folder "
            "`results` itself."
        )
    problems: list[Problem] = []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if path.parent.name != "status":
            texts = check_file(path, folder, root, commits)
            problems += [Problem(name, text) for text in dict.fromkeys(texts)]
    return problems


def check_file(
    path: Path, folder: Path, root: Path = ROOT, commits: bool = True
) -> list[str]:
    """What is wrong with one file, one sentence each; nothing when it is in order."""
    if path.is_symlink() or not path.is_file():
        return ["is a link or no file. Next step: commit the file itself."]
    if (size := path.stat().st_size) > LARGEST:
        return [
            f"has {size} bytes, allowed are {LARGEST}: a record holds numbers only."
        ]
    try:
        record = read(path)
    except (RecordError, OSError, RecursionError) as error:
        return [str(error).removeprefix(f"{path}: ")]
    texts = [*kind_problems(record), *row_problems(record)]
    if record.model["weights"] in ("real", "local"):
        texts += _real(record, path, folder, root, commits)
    return texts


def _real(
    record: Record, path: Path, folder: Path, root: Path, commits: bool
) -> Iterator[str]:
    """What is asked of a record that comes from somebody's GPU."""
    yield from _model(record)
    yield from _run(record, path, folder, root)
    yield from _no_text(record)
    yield from _numbers(record)
    if not re.fullmatch(r"[0-9a-f]{7,40}", record.commit):
        yield (
            f"commit is {record.commit!r}, want a commit of this repository without "
            "changes. Next step: run from a clean clone."
        )
    elif commits and not known_commit(record.commit, root):
        yield (
            f"commit {record.commit} is not in the history of this repository. Next "
            "step: run from a published commit, and fetch the whole history to check."
        )
    if not re.fullmatch(r"[0-9a-f]{64}", record.fingerprint):
        yield (
            f"fingerprint is {record.fingerprint!r}: nobody vouches for such a run. "
            "Next step: use `python -m safeedit run`, not an open notebook."
        )


def _model(record: Record) -> Iterator[str]:
    model = record.model
    source = KNOWN.get(str(model["name"]))
    if source is None or source.kind != "real":
        yield (
            f"model.name is {model['name']!r}, the tables have rows for "
            f"{', '.join(REAL_MODELS)}"
        )
        return
    wanted = {"id": source.repo, "revision": source.revision, "weights": "real"}
    for name, value in wanted.items():
        if model[name] != value:
            yield (
                f"model.{name} is {model[name]!r}, want {value!r}. Next step: load the "
                "model by its name here, and not from a folder of yours."
            )


def _run(record: Record, path: Path, folder: Path, root: Path) -> Iterator[str]:
    """Whether the run is one that the book shows, and the file where it puts it."""
    names = compared_notebooks(root)
    if record.notebook not in names:
        yield f"notebook is {record.notebook!r}, want one of {', '.join(names)}"
        return
    if record.parameters.get("scale") != "gpu":
        yield (
            f"parameters.scale is {record.parameters.get('scale')!r}, want 'gpu'. Next "
            "step: run it with -p scale=gpu."
        )
        return
    try:
        run = run_of(record, root)
    except NotebookError as error:
        yield f"parameters: {error}"
        return
    if record.parameters != run.parameters:
        yield (
            f"parameters are {record.parameters}, want all of the notebook's: "
            f"{run.parameters}"
        )
    for name, said in (("model_name", record.model["name"]), ("seed", record.seed)):
        if record.parameters.get(name) != said:
            yield f"parameters.{name} is {record.parameters.get(name)!r}, not {said!r}"
    if not run.published:
        yield (
            f"parameters are not those of a published run: seed one of "
            f"{sorted({0, *run.source.seeds})}, all others at their defaults"
        )
        return
    wanted = run.record_path.relative_to(root / "results")
    if path.relative_to(folder) != wanted:
        yield f"lies in the wrong place, want results/{wanted.as_posix()}"
    yield from _status(record, folder / run.status_path.relative_to(root / "results"))


def _status(record: Record, path: Path) -> Iterator[str]:
    where = f"status/{path.name}"
    if not path.is_file():
        yield f"{where} is missing. Next step: commit it too; the run has written it."
        return
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        yield f"{where} is not a JSON document ({error})"
        return
    if not isinstance(status, dict):
        yield f"{where} is no mapping with {', '.join(STATUS)}"
        return
    lacking = [name for name in STATUS if name not in status]
    if lacking:
        yield f"{where} lacks {', '.join(lacking)}"
    elif status["fingerprint"] != record.fingerprint:
        yield f"{where} is of another run: fingerprint {status['fingerprint']!r}"


def _no_text(record: Record) -> Iterator[str]:
    """Prompts and answers of real models are not published."""
    if record.prompts:
        yield (
            f"prompts has {len(record.prompts)} entries: prompts that break a real "
            "model are not published. Next step: commit the file in results/, not the "
            "one in runs/."
        )
    for index, row in enumerate(record.rows):
        for name, cell in row.items():
            if not isinstance(cell, str):
                continue
            if len(cell) > LONGEST or not LABEL.fullmatch(cell):
                yield (
                    f"rows[{index}].{name} is {cell[:LONGEST]!r}: want a label of at "
                    f"most {LONGEST} characters, without quotes or line breaks; a "
                    "record holds neither prompts nor answers"
                )
    for name, value in (*record.versions.items(), *record.parameters.items()):
        if isinstance(value, str) and len(value) > LONGEST:
            yield f"{name} has {len(value)} characters, at most {LONGEST} are allowed"


def _numbers(record: Record) -> Iterator[str]:
    """Versions, times and sizes."""
    for name in VERSIONED:
        said = record.versions.get(name)
        if not isinstance(said, str) or not re.match(r"\d+\.\d+", said):
            yield f"versions.{name} is {said!r}, want a version such as '2.13.0'"
    if not re.fullmatch(r"\d+\.\d+\.\d+", record.kit_version):
        yield f"kit_version is {record.kit_version!r}, want one such as '0.1.0'"
    if record.dtype not in ("bfloat16", "float16", "float32"):
        yield f"dtype is {record.dtype!r}, want bfloat16, float16 or float32"
    if not re.fullmatch(r"(cuda|xpu|mps|cpu)(:\d+)?", record.device):
        yield f"device is {record.device!r}, want one such as 'cuda' or 'cuda:0'"
    total = record.seconds.get("total", 0.0)
    limit = LONGEST_RUN.total_seconds()
    if not 0 < total <= limit:
        yield f"seconds.total is {total!r}, want more than 0 and at most {limit:.0f}"
    parts = sum(value for key, value in record.seconds.items() if key != "total")
    if parts > 1.01 * total + 1:
        yield f"seconds: the parts, {parts:.0f} s, exceed the total, {total:.0f} s"
    if record.peak_memory_mb is not None and record.peak_memory_mb <= 0:
        yield f"peak_memory_mb is {record.peak_memory_mb!r}, want more than 0 or null"
    started = datetime.fromisoformat(record.started)
    if started.tzinfo is None:
        yield f"started is {record.started!r}, want a time with its zone (UTC)"
    elif not FIRST < started < datetime.now(UTC) + timedelta(days=1):
        yield f"started is {record.started!r}, which is before this kit or to come"


def compared_notebooks(root: Path = ROOT) -> list[str]:
    """Notebooks that compare models, and that a real model can take part in.

    Those of unlearning, whose names begin with U, ask for facts of the made-up world,
    which no real model has ever read.
    """
    return [
        source.name
        for source in _sources(root)
        if set(NAMESAKES) <= set(source.header.get("models", []))
        and not source.name.startswith("U")
    ]


def run_of(record: Record, root: Path = ROOT) -> Run:
    """The run that a record says it comes from.

    Raises:
        NotebookError: the notebook has no such parameters.
    """
    source = next(s for s in _sources(root) if s.name == record.notebook)
    return make_run(source, record.parameters)


@cache
def _sources(root: Path) -> list:
    return find_sources(root)


@cache
def known_commit(commit: str, root: Path = ROOT) -> bool:
    """Whether a commit is an ancestor of what is checked out."""
    command = ["git", "-C", str(root), "merge-base", "--is-ancestor", commit, "HEAD"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def real_records(records: Iterable[Record]) -> list[Record]:
    """Those of real models."""
    return [record for record in records if record.model["weights"] == "real"]
