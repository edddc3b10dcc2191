"""Running notebooks: papermill, then the normal form, then one rename.

Everything is written under `runs/logs` first, so that a kill or an error changes
nothing that is published; a failed notebook stays there to be looked at.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from .editions import normalise, problems, student_edition
from .notebooks import STANDIN, NotebookError, Run, why_stale
from .provenance import ROOT, commit, machine
from .records import read, write_atomic


def refresh(run: Run, force: bool = False, progress: bool = True) -> str:
    """Do a run if it is stale.

    Args:
        run: the run.
        force: do it even when it is fresh.
        progress: show a bar over the notebook's cells.

    Returns:
        "fresh" (nothing to do), "text" (only prose renewed) or "run".

    Raises:
        NotebookError: the run failed; nothing that it would have replaced is changed.
    """
    reason = "forced" if force else why_stale(run)
    if reason is None:
        return "fresh"
    if reason == "text":
        _renew_text(run)
        return "text"
    execute(run, progress)
    return "run"


def execute(run: Run, progress: bool = True) -> None:
    """Run a notebook and put its record, editions and status in place, in this order.

    Raises:
        NotebookError: a cell raised, or the outputs cannot be published.
    """
    from papermill import execute_notebook  # slow to import
    from papermill.exceptions import PapermillExecutionError

    root = run.source.root
    log = root / "runs" / "logs" / f"{run.source.name}.{run.label}.ipynb"
    draft = log.with_suffix(".record.json")
    log.parent.mkdir(parents=True, exist_ok=True)
    draft.unlink(missing_ok=True)
    title, hint = f"{run.source.name} ({run.model})", f"look at {log.relative_to(root)}"
    begin = time.perf_counter()
    try:
        with _environment(run, draft):
            node = execute_notebook(
                nbformat.from_dict(run.source.node),
                str(log),
                parameters=dict(run.changed),
                kernel_name="python3",
                progress_bar={"disable": not progress},  # not silenced by TQDM_DISABLE
                cwd=str(run.source.path.parents[1]),  # as in Jupyter
                start_timeout=180,  # seconds; a busy machine starts a kernel slowly
                extra_arguments=["--log-level=50"],  # its talk about sockets
            )
    except PapermillExecutionError as error:
        raise NotebookError(
            f"{title} stopped at In [{error.exec_count}] with {error.ename}: "
            f"{error.evalue}. Next step: {hint}"
        ) from error
    seconds = time.perf_counter() - begin
    if found := problems(normalise(node), root):
        raise NotebookError(f"{title}: {'; '.join(found)}. Next step: {hint}")
    has_record = draft.is_file()
    if has_record:
        if (said := read(draft).parameters) != run.parameters:
            raise NotebookError(
                f"{title}: its record says parameters {said}, the run had "
                f"{run.parameters}. Next step: pass every name of the parameters cell "
                "to records.save_run."
            )
        _place_record(run, draft)
    elif not run.canonical:
        raise NotebookError(
            f"{title} wrote no record, so nothing is left of this run. Next step: end "
            "the notebook with records.save_run, or run it without -m and -p."
        )
    _publish(run, node, has_record)
    status = {
        "notebook": run.source.name,
        "model": run.model,
        "fingerprint": run.fingerprint,
        "commit": commit(),
        "seconds": round(seconds, 1),
        "machine": machine(),
        "finished": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
    }
    write_atomic(run.status_path, json.dumps(status, indent=1) + "\n")
    shutil.rmtree(_cells(run), ignore_errors=True)


def _cells(run: Run) -> Path:
    """Where the run keeps finished parts until it is done; see `safeedit.cells`."""
    return run.source.root / "runs" / "cells" / run.fingerprint


def _place_record(run: Run, draft: Path) -> None:
    """Move a record to its place.

    Prompts that break a real model are no part of what is published: they stay in
    `runs/`, where git ignores them.
    """
    record = read(draft)
    if run.published and record.prompts and record.model["weights"] != "stand-in":
        kept = run.source.root / "runs" / "records" / run.source.name
        record.write(kept / run.record_path.name)
        record = replace(record, prompts=[])
    record.write(run.record_path)
    draft.unlink()


def _publish(run: Run, node: NotebookNode, has_record: bool) -> None:
    """Write the editions of an executed complete notebook."""
    root = run.source.root
    node.metadata["safeedit"] = {
        **dict(run.source.header),
        "fingerprint": run.fingerprint,
        "text": run.source.text_digest,
        "source": run.source.path.relative_to(root).as_posix(),
        "commit": commit(),
        "parameters": run.parameters,
        "record": run.record_path.relative_to(root).as_posix() if has_record else None,
    }
    for edition, path in run.editions.items():
        shown = student_edition(node) if edition == "student" else node
        write_atomic(path, nbformat.writes(shown, version=4, indent=1) + "\n")


def _renew_text(run: Run) -> None:
    """Take prose, comments and tags from the source and outputs from the last run."""
    old = nbformat.read(run.editions["complete"], as_version=4)
    node = nbformat.from_dict(run.source.node)
    code = [cell for cell in node.cells if cell.cell_type == "code"]
    ran = [cell for cell in old.cells if cell.cell_type == "code"]
    for cell, previous in zip(code, ran, strict=True):
        cell.outputs = previous.outputs
        cell.execution_count = previous.execution_count
    _publish(run, normalise(node), bool(old.metadata["safeedit"].get("record")))


@contextmanager
def _environment(run: Run, draft: Path) -> Iterator[None]:
    """The kernel's environment: what makes two runs equal, and where the record goes.

    A kernel inherits the environment of the process that starts it, so it is set here
    and put back afterwards.
    """
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    wanted = {
        "SAFEEDIT_FINGERPRINT": run.fingerprint,
        "SAFEEDIT_RECORD": str(draft),
        "SAFEEDIT_CELLS": str(_cells(run)),
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONHASHSEED": "0",  # the order of sets
        "SOURCE_DATE_EPOCH": "0",  # the date inside SVG pictures
        "TQDM_DISABLE": "1",  # bars have seconds in them
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's kernel, not the user's
    }
    if STANDIN.match(run.model):
        # The order of a sum, and so its last digits, depends on the number of threads.
        wanted |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
