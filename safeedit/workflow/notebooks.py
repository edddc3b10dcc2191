"""From notebook sources to what the book shows: the plan, and what of it is stale.

    notebooks/src/NN_topic.md               the source (MyST Markdown through jupytext)
    -> notebooks/NN_topic.ipynb             student edition: executed, no solutions
    -> notebooks/solutions/NN_topic.ipynb   complete edition, executed
    -> results/NN_topic/<model>.json        the record that its last cell writes
    -> results/status/NN_topic.<model>.json seconds and machine

The complete edition is executed once, by papermill (see `runner`). The student edition
is that run less the cells tagged `solution`, which equals running it alone because
nothing below a solution may depend on it (a rule of the sources).

A source's YAML header may say, beside the entries of jupytext and the kernel:

    safeedit:
      models: [standin-llama, standin-gemma]  # run it once for each (`reproduce`)
      seeds: [0, 1, 2]           # and for each of these values of `seed`
      uses: [standin-mistral]    # stand-ins loaded beside the parameter's, unless a
                                 # code cell names them literally; "oracle" means the
                                 # oracle of the parameter's
      reads: [T1_attack_success] # notebooks whose records it needs: they run first
      alone: true                # it measures seconds: nothing else runs beside it
      standins_only: true        # it asks about their world: no real model can run it

The canonical run, all parameters at their defaults, is the one that the book shows; it
may read every record of what it reads. The other runs of such a notebook read those of
their own model and seed.
"""

import ast
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbformat import NotebookNode

from .. import fingerprints
from ..provenance import ROOT
from ..records import RecordError, read
from .editions import install_cell, problems, tags, with_install

STANDIN = re.compile(r"standin-[a-z]+(?:-oracle)?")
SCALES = ("smoke", "cpu", "gpu")  # values of the parameter `scale`
LABEL = 150  # bytes of a run's label; file names end at 255 bytes


class NotebookError(RuntimeError):
    """A notebook that cannot be run or published, with what to do about it."""


@dataclass(frozen=True)
class Source:
    """A notebook source and what its header and its parameters cell say."""

    path: Path  # <root>/notebooks/src/<name>.md
    node: NotebookNode = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def root(self) -> Path:
        """The repository that the source is part of and its outputs go to."""
        return self.path.parents[2]

    @property
    def header(self) -> Mapping[str, Any]:
        return self.node.metadata.get("safeedit", {})

    @property
    def reads(self) -> list[str]:
        return list(self.header.get("reads", []))

    @property
    def seeds(self) -> list[int]:
        return list(self.header.get("seeds", []))

    @property
    def alone(self) -> bool:
        return bool(self.header.get("alone", False))

    @property
    def code_cells(self) -> list[NotebookNode]:
        return [cell for cell in self.node.cells if cell.cell_type == "code"]

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """Names and default values of the cell tagged `parameters`."""
        if not any("parameters" in tags(cell) for cell in self.code_cells):
            return {}
        from papermill import inspect_notebook  # slow to import

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
    def text_digest(self) -> str:
        """Hash of all cells with prose, comments and tags, as published."""
        node = with_install(self.node, install_cell(self.root))
        cells = [[c.cell_type, c.source, tags(c)] for c in node.cells]
        return fingerprints.digest(cells)


def find_sources(root: Path = ROOT) -> list[Source]:
    """All notebook sources, those that others read before the others."""
    folder = root / "notebooks" / "src"
    if not folder.is_dir():
        raise NotebookError(
            f"{root} has no folder notebooks/src. Next step: give the repository's "
            "folder with --root."
        )
    waiting = [_read_source(path) for path in sorted(folder.glob("*.md"))]
    ordered: list[Source] = []
    while waiting:
        done = {source.name for source in ordered}
        ready = [s for s in waiting if set(s.reads) - {s.name} <= done]
        if not ready:
            raise NotebookError(
                "these notebooks wait for each other or for one that is not there: "
                f"{ {s.name: s.reads for s in waiting} }. Next step: correct `reads` "
                "in their headers."
            )
        ordered.append(ready[0])
        waiting.remove(ready[0])
    return ordered


def _read_source(path: Path) -> Source:
    """One source; what is wrong with its text or its header is told here."""
    try:
        source = Source(path, jupytext.read(path, fmt="md:myst"))
    except OSError:
        raise
    except Exception as error:  # jupytext hands on whatever its YAML reader raises
        raise NotebookError(
            f"{path}: not a notebook in MyST Markdown ({str(error).splitlines()[0]}). "
            "Next step: correct its YAML header, or take the file out of the folder."
        ) from error
    if not isinstance(source.header, Mapping):
        raise NotebookError(
            f"{path}: its header says safeedit: {source.header!r}, want a mapping such "
            "as {models: [standin-llama]}"
        )
    return source


def load_source(name: str, root: Path = ROOT) -> Source:
    """The source whose name is, or begins with, `name` (such as "T1").

    A path to a source or to an executed notebook does as well. What stands before the
    first "_" of a name goes before a longer one that begins alike: U2, and not U2a.
    """
    found = find_sources(root)
    if not name.strip():
        raise NotebookError(
            f"the name of a notebook is {name!r}; allowed: "
            + (", ".join(s.name for s in found) or "none")
        )
    wanted = Path(name).name.removesuffix(".ipynb").removesuffix(".md")
    exact = [s for s in found if wanted in (s.name, s.name.partition("_")[0])]
    matches = exact or [s for s in found if s.name.startswith(wanted)]
    if len(matches) != 1:
        allowed = ", ".join(s.name for s in matches or found) or "none"
        raise NotebookError(
            f"{name!r} names {len(matches)} notebooks, want 1; allowed: {allowed}"
        )
    return matches[0]


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

        Runs of other models and of the header's seeds do, at the default scale or, of
        real models, at scale "gpu". Any other change makes it a reader's experiment.
        """
        if not set(self.changed) <= {"model_name", "scale", "seed"}:
            return False
        if self.changed.get("seed", 0) not in [0, *self.source.seeds]:
            return False
        real = not STANDIN.match(self.model)
        return "scale" not in self.changed or (real and self.changed["scale"] == "gpu")

    @property
    def alone(self) -> bool:
        """Whether it has the machine to itself: it measures seconds to publish."""
        return self.source.alone and self.parameters.get("scale") != "smoke"

    @property
    def label(self) -> str:
        """A file name: the model, the seed unless 0, and an experiment's changes."""
        shown = {"seed"} if self.published else set(self.changed) - {"model_name"}
        changes = sorted((k, v) for k, v in self.changed.items() if k in shown)
        words = [self.model, *(f"{key}-{value}" for key, value in changes)]
        label = re.sub(r"[^\w.=+-]+", "--", ".".join(words)).lstrip(".") or "none"
        if len(label.encode()) <= LABEL:
            return label
        return f"{label[:24]}-{fingerprints.digest(label)[:12]}"

    @property
    def _records(self) -> Path:
        root = self.source.root
        return root / "results" if self.published else root / "runs" / "records"

    @property
    def record_path(self) -> Path:
        return self._records / self.source.name / f"{self.label}.json"

    @property
    def status_path(self) -> Path:
        return self._records / "status" / f"{self.source.name}.{self.label}.json"

    @property
    def editions(self) -> dict[str, Path]:
        """The executed notebooks that the run leaves; "complete" is always one."""
        root, file = self.source.root, f"{self.source.name}.ipynb"
        if not self.canonical:
            return {"complete": root / "runs" / self.label / file}
        folder = root / "notebooks"
        return {"complete": folder / "solutions" / file, "student": folder / file}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that the outputs depend on; see `safeedit.fingerprints`."""
        cells = [
            cell.source
            for cell in self.source.code_cells
            if "parameters" not in tags(cell)  # their values count instead
        ]
        # A stand-in can be named by a parameter, by a cell or by the header.
        models = set(STANDIN.findall(repr([cells, self.parameters])))
        for name in self.source.header.get("uses", []):
            models.add(f"{self.model}-oracle" if name == "oracle" else name)
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
        """What the records say that the run reads, without seconds and machine."""
        seen: dict[str, Any] = {}
        for name in self.source.reads:
            folder = self.source.root / "results" / name
            for path in sorted(folder.glob("*.json")):
                if not self._reads(name, path.stem):
                    continue
                try:
                    r = read(path)
                    seen[f"{name}/{path.name}"] = [r.fingerprint, r.rows, r.prompts]
                except RecordError:  # its own run is stale and comes first
                    seen[f"{name}/{path.name}"] = "not valid"
        return seen

    def reads_run(self, other: "Run") -> bool:
        """Whether the run may read the record of another one, and so waits for it."""
        return self._reads(other.source.name, other.label)

    def _reads(self, notebook: str, label: str) -> bool:
        """Runs of a notebook that compares models read those of their own model and
        seed, and only the canonical one reads all: else every one would wait for
        every other. Of a notebook that their header names under `all_seeds` they
        read the records of their own model, whatever the seed.
        """
        if notebook not in self.source.reads:
            return False
        if notebook == self.source.name:
            return self.canonical and label != self.label
        own = label == self.label
        if notebook in self.source.header.get("all_seeds", []):
            own |= label == self.model or label.startswith(f"{self.model}.seed-")
        return self.canonical or own


def make_run(source: Source, parameters: Mapping[str, Any]) -> Run:
    """A run of a notebook, its parameters checked against the parameters cell.

    Raises:
        NotebookError: an unknown parameter, one of another type than its default, one
            that no record can hold, or an unknown scale.
    """
    known = source.parameters
    for name, value in parameters.items():
        if name not in known:
            raise NotebookError(
                f"{source.name} has no parameter {name!r}; allowed, with defaults: "
                + ", ".join(f"{key}={default!r}" for key, default in known.items())
            )
        default, kind = known[name], type(value)
        same = kind is type(default) or default is None or value is None
        if not (same or (type(default) is float and kind is int)):
            raise NotebookError(
                f"{source.name}: parameter {name} is {value!r} ({kind.__name__}), "
                f"want a {type(default).__name__} such as {default!r}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise NotebookError(
                f"{source.name}: parameter {name} is {value}, which no record can "
                f"hold; give a finite number such as {default!r}"
            )
        if isinstance(value, int) and value.bit_length() > 63:
            raise NotebookError(
                f"{source.name}: parameter {name} has {value.bit_length()} bits; give "
                f"a whole number of at most 63, such as {default!r}"
            )
        if name == "scale" and value not in SCALES:
            raise NotebookError(
                f"{source.name}: scale is {value!r}; use one of {SCALES}"
            )
    return Run(source, {k: v for k, v in parameters.items() if v != known[k]})


def plan(
    models: Sequence[str] | None = None,
    scale: str | None = None,
    root: Path = ROOT,
    seeds: Sequence[int] | None = None,
    notebooks: Sequence[str] | None = None,
) -> list[Run]:
    """The runs that make the book, in an order in which each finds what it reads.

    Args:
        models: run the notebooks that compare models for these and nothing else;
            default: for those that their headers name, and every canonical run.
        scale: "smoke", "cpu" or "gpu", for notebooks with that parameter.
        root: the repository.
        seeds: run those notebooks for these seeds; default: their headers' seeds.
        notebooks: names of notebooks, or how the names begin; default: all.
    """
    if models is not None and not (models and all(name.strip() for name in models)):
        raise NotebookError(
            f"models are {list(models)}; give names such as standin-llama, with commas "
            "between them"
        )
    for model in models or ():
        check_model(model)
    sources = find_sources(root)
    if notebooks is not None:
        sources = _named(sources, notebooks)
    runs = []
    for source in sources:
        known = source.parameters
        settings = {"scale": scale} if scale and "scale" in known else {}
        compared = source.header.get("models", [])
        some = models
        if models is not None and source.header.get("standins_only"):
            some = [model for model in models if STANDIN.match(model)]
        if compared and "model_name" not in known:
            raise NotebookError(
                f"{source.path}: its header compares models {compared}, and its "
                "parameters cell has no model_name. Next step: add the parameter, or "
                "take `models` out of the header."
            )
        if models is None:
            chosen = [*compared, known["model_name"]] if compared else [None]
        else:
            chosen = list(some or ()) if compared else []
        mine = []
        wanted: Sequence[int | None] = source.seeds if seeds is None else seeds
        for name in dict.fromkeys(chosen):
            for seed in wanted if compared and wanted else [None]:
                given: dict[str, Any] = {"model_name": name} if name else {}
                given |= {} if seed is None else {"seed": seed}
                mine.append(make_run(source, settings | given))
        # The canonical run last: it may show the records of the other models.
        runs += sorted(mine, key=lambda run: run.canonical)
    return runs


def check_model(name: Any) -> None:
    """Refuse a model that cannot be loaded before anything is run."""
    from ..hub import find_source

    try:
        find_source(name)
    except (ValueError, OSError) as error:
        raise NotebookError(str(error)) from error


def _named(sources: Sequence[Source], wanted: Sequence[str]) -> list[Source]:
    """The notebooks whose names begin so, in the order of the plan."""
    for start in wanted:
        if not any(start and source.name.startswith(start) for source in sources):
            raise NotebookError(
                f"notebooks: no name begins with {start!r}; there are "
                f"{', '.join(source.name for source in sources)}"
            )
    return [s for s in sources if s.name.startswith(tuple(wanted))]


def why_stale(run: Run) -> str | None:
    """Why a run has to be done again, or None when all its outputs are fresh.

    "text" means that prose, comments or tags changed and nothing else: that needs no
    execution.
    """
    noted = None
    if run.canonical:
        for edition, path in run.editions.items():
            name = path.relative_to(run.source.root)
            if not path.is_file():
                return f"{name} is not there"
            try:
                node = nbformat.read(path, as_version=4)
            except (ValueError, AttributeError, nbformat.ValidationError):
                return f"{name} is not a valid notebook"
            noted = node.metadata.get("safeedit", {})
            if noted.get("fingerprint") != run.fingerprint:
                return f"code or inputs changed since the {edition} edition was run"
            if found := problems(node, run.source.root):
                return f"{name}: {found[0]}"
    if noted is None or noted.get("record"):
        if not run.record_path.is_file():
            return f"{run.record_path.relative_to(run.source.root)} is not there"
        try:
            if read(run.record_path).fingerprint != run.fingerprint:
                return "code or inputs changed since the record was written"
        except RecordError as error:
            return str(error)
    if noted is not None and noted.get("text") != run.source.text_digest:
        return "text"
    return None


def stale(root: Path = ROOT) -> list[str]:
    """One line for each stale or left-over committed output; none when all is fresh."""
    runs = plan(root=root)
    lines = []
    for run in runs:
        reason = why_stale(run)
        if reason:
            reason = "prose or comments changed" if reason == "text" else reason
            lines.append(f"{run.source.name} ({run.label}): {reason}")
    names = {run.source.name for run in runs}
    for folder in (root / "notebooks", root / "notebooks" / "solutions"):
        for path in sorted(folder.glob("*.ipynb")):
            if path.stem not in names:
                lines.append(f"{path.relative_to(root)}: no source in notebooks/src")
    return lines
