"""From notebook sources to what the book shows.

    notebooks/src/NN_topic.md            the source (MyST Markdown through jupytext)
      -> notebooks/NN_topic.ipynb            student edition, executed, no solutions
      -> notebooks/solutions/NN_topic.ipynb  complete edition, executed
      -> results/NN_topic/<model>.json       the record that its last cell writes
      -> results/status/NN_topic.<model>.json  seconds and machine

The complete edition is executed once, by papermill. The student edition is that run
less the cells tagged `solution`, which is the same as running it alone because
nothing below a solution may depend on it (a rule of the sources). Outputs are
normalised, so that two runs are equal byte for byte; what differs between two runs
(seconds, machine) is kept in records and status files.

A source's YAML header may say, beside jupytext's and the kernel's entries:

    safeedit:
      models: [standin-llama, standin-gemma]  # run it once for each (`reproduce`)
      uses: [standin-mistral]    # stand-ins loaded beside the parameter's, if not
                                 # named literally in a code cell
      reads: [T1_attack_success] # notebooks whose records it shows: they run first
"""

import ast
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbformat import NotebookNode

from . import fingerprints
from .records import RESULTS, ROOT, RecordError, commit, find, read, write_atomic

NOTEBOOKS = ROOT / "notebooks"
RUNS = ROOT / "runs"
WIDGET = "application/vnd.jupyter.widget-view+json"
STANDIN = re.compile(r"standin-[a-z]+")


class NotebookError(RuntimeError):
    """A notebook that cannot be run or published, with what to do about it."""


@dataclass(frozen=True)
class Source:
    """A notebook source and what its header and its parameters cell say."""

    path: Path
    node: NotebookNode = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def header(self) -> Mapping[str, Any]:
        return self.node.metadata.get("safeedit", {})

    @property
    def reads(self) -> list[str]:
        return list(self.header.get("reads", []))

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """Names and default values of the cell tagged `parameters`."""
        from papermill import inspect_notebook

        values = {}
        for name, seen in inspect_notebook(self.node).items():
            try:
                values[name] = ast.literal_eval(seen["default"])
            except (ValueError, SyntaxError) as error:
                raise NotebookError(
                    f"{self.path.name}: parameter {name} = {seen['default']} is not a "
                    "literal. Next step: write a number, text, list, True or None."
                ) from error
        return values

    @property
    def code_cells(self) -> list[NotebookNode]:
        return [cell for cell in self.node.cells if cell.cell_type == "code"]


def load_source(name: str) -> Source:
    """The source whose name is, or begins with, `name` (such as "T1")."""
    found = find_sources()
    exact = [s for s in found if s.name == name]
    matches = exact or [s for s in found if s.name.startswith(name)]
    if len(matches) != 1:
        allowed = ", ".join(s.name for s in found) or "none"
        raise NotebookError(
            f"{name!r} names {len(matches)} notebooks, want 1; allowed: {allowed}"
        )
    return matches[0]


def find_sources(folder: Path | None = None) -> list[Source]:
    """All notebook sources, those that others read before the others."""
    sources = {}
    for path in sorted((folder or NOTEBOOKS / "src").glob("*.md")):
        sources[path.stem] = Source(path, jupytext.read(path, fmt="md:myst"))
    ordered: list[Source] = []
    while len(ordered) < len(sources):
        done = {source.name for source in ordered}
        ready = [
            s
            for s in sources.values()
            if s.name not in done and set(s.reads) - {s.name} <= done
        ]
        if not ready:
            stuck = {s.name: s.reads for s in sources.values() if s.name not in done}
            raise NotebookError(
                f"these notebooks wait for each other or for one that is not there: "
                f"{stuck}. Next step: correct `reads` in their headers."
            )
        ordered.append(ready[0])
    return ordered


@dataclass(frozen=True)
class Run:
    """One execution of a notebook with some parameters."""

    source: Source
    changed: Mapping[str, Any] = field(default_factory=dict)  # non-default parameters

    @property
    def parameters(self) -> dict[str, Any]:
        return {**self.source.parameters, **self.changed}

    @property
    def model(self) -> str:
        return str(self.parameters.get("model_name", "none"))

    @property
    def canonical(self) -> bool:
        """Whether this is the run that the book shows."""
        return not self.changed

    @property
    def published(self) -> bool:
        """Whether its record belongs into `results/`.

        Other models do, at the default scale or, real ones, at scale "gpu". A run
        with any other change is a reader's own experiment.
        """
        other = set(self.changed) - {"model_name", "scale"}
        real_scale = self.parameters.get("scale") == "gpu" and not STANDIN.match(
            self.model
        )
        return not other and ("scale" not in self.changed or real_scale)

    @property
    def label(self) -> str:
        """A file name for the run: the model and, of an experiment, its changes."""
        words = [self.model]
        if not self.published:
            changes = {k: v for k, v in self.changed.items() if k != "model_name"}
            words += [f"{key}-{value}" for key, value in sorted(changes.items())]
        return re.sub(r"[^\w.=+-]+", "--", ".".join(words))

    @property
    def record_path(self) -> Path:
        folder = RESULTS if self.published else RUNS / "records"
        return folder / self.source.name / f"{self.label}.json"

    @property
    def status_path(self) -> Path:
        folder = RESULTS if self.published else RUNS / "records"
        return folder / "status" / f"{self.source.name}.{self.label}.json"

    @property
    def editions(self) -> dict[str, Path]:
        """The executed notebooks that the run leaves."""
        file = f"{self.source.name}.ipynb"
        if self.canonical:
            return {
                "student": NOTEBOOKS / file,
                "complete": NOTEBOOKS / "solutions" / file,
            }
        return {"complete": RUNS / self.label / file}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that the outputs depend on; see `safeedit.fingerprints`."""
        cells = [
            c.source for c in self.source.code_cells if "parameters" not in tags(c)
        ]
        # A stand-in can be named by a parameter, by a cell or by the header.
        models = {name for cell in cells for name in STANDIN.findall(cell)}
        models |= set(STANDIN.findall(repr(list(self.parameters.values()))))
        models |= set(self.source.header.get("uses", []))
        modules = fingerprints.reached_modules(cells)
        return fingerprints.digest(
            {
                "code": [fingerprints.code_shape(cell, False) for cell in cells],
                "parameters": self.parameters,
                "modules": fingerprints.module_digests(modules),
                "standins": fingerprints.standin_digests(models),
                "records": self._records_read(),
            }
        )

    def _records_read(self) -> dict[str, Any]:
        """What the records say that the run reads, without seconds and machine.

        A notebook that shows its own records of other models (a table page) reads
        them in its canonical run only: else every model would wait for every other.
        """
        seen = {}
        for name in self.source.reads:
            own = name == self.source.name
            if own and not self.canonical:
                continue
            for record in find(RESULTS, notebook=name) if RESULTS.exists() else []:
                if not (own and record.model["name"] == self.model):
                    key = f"{name}/{record.model['name']}/{record.parameters}"
                    seen[key] = [record.fingerprint, record.rows]
        return seen


def make_run(source: Source, parameters: Mapping[str, Any]) -> Run:
    """A run of a notebook, its parameters checked against the parameters cell.

    Raises:
        NotebookError: an unknown parameter or one of another type than its default.
    """
    known = source.parameters
    for name, value in parameters.items():
        if name not in known:
            raise NotebookError(
                f"{source.name} has no parameter {name!r}; allowed: "
                + ", ".join(
                    f"{key} (default {default!r})" for key, default in known.items()
                )
            )
        default = known[name]
        same = isinstance(value, type(default)) or default is None or value is None
        if not (same or (type(default) is float and type(value) is int)):
            raise NotebookError(
                f"{source.name}: parameter {name} is {value!r} ({type(value).__name__}),"
                f" want a {type(default).__name__} such as {default!r}"
            )
    return Run(source, {k: v for k, v in parameters.items() if v != known[k]})


def plan(models: Sequence[str] | None = None, scale: str | None = None) -> list[Run]:
    """The runs that make the book, in an order in which each finds what it reads.

    Args:
        models: for the notebooks that compare models, which; default: those that the
            headers name, and every notebook's canonical run.
        scale: "smoke", "cpu" or "gpu" for notebooks with that parameter.
    """
    runs = []
    for source in find_sources():
        known = source.parameters
        settings = {"scale": scale} if scale and "scale" in known else {}
        chosen = source.header.get("models", [])
        if chosen and models is not None:
            chosen = models
        for model in chosen:
            runs.append(make_run(source, {**settings, "model_name": model}))
        if models is None or not chosen:
            runs.append(make_run(source, settings))
        # The canonical run last: it may show the records of the other models.
        runs.sort(key=lambda run: run.source is source and run.canonical)
    unique = {(run.source.name, run.label): run for run in runs}
    return list(unique.values())


def why_stale(run: Run) -> str | None:
    """Why a run has to be done again, or None when all its outputs are fresh.

    "text" means that code and results are up to date and only prose or comments are
    not, which needs no execution.
    """
    record = run.record_path
    noted = None
    if run.canonical:
        for edition, path in run.editions.items():
            if not path.is_file():
                return f"no {path.relative_to(ROOT)}"
            try:
                node = nbformat.read(path, as_version=4)
            except (ValueError, OSError):
                return f"{path.relative_to(ROOT)} is not readable"
            noted = node.metadata.get("safeedit", {})
            if noted.get("fingerprint") != run.fingerprint:
                return f"code or inputs changed since the {edition} edition was run"
            if problems(node):
                return f"{path.relative_to(ROOT)}: {problems(node)[0]}"
    if noted is None or noted.get("record"):
        if not record.is_file():
            return f"no record {record.relative_to(ROOT)}"
        try:
            if read(record).fingerprint != run.fingerprint:
                return "code or inputs changed since the record was written"
        except RecordError as error:
            return str(error)
    if noted is not None and noted.get("text") != _text_digest(run.source):
        return "text"
    return None


def stale(runs: Sequence[Run] | None = None) -> list[str]:
    """One line for each stale or left-over committed output; empty when all is fresh."""
    runs = plan() if runs is None else runs
    lines = []
    for run in runs:
        reason = why_stale(run)
        if reason:
            reason = "prose or comments changed" if reason == "text" else reason
            lines.append(f"{run.source.name} ({run.model}): {reason}")
    names = {run.source.name for run in runs}
    for path in sorted(
        [*NOTEBOOKS.glob("*.ipynb"), *NOTEBOOKS.glob("solutions/*.ipynb")]
    ):
        if path.stem not in names:
            lines.append(f"{path.relative_to(ROOT)}: has no source in notebooks/src")
    return lines


def _text_digest(source: Source) -> str:
    return fingerprints.digest(
        [[c.cell_type, c.source, tags(c)] for c in source.node.cells]
    )
