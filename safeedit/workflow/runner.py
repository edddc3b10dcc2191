"""Running notebooks: papermill, then the normal form, then one rename.

A kernel writes under `runs/logs`, and a failed notebook stays there to be looked at.
What is published is first written whole beside its place, all files of a run, and then
renamed, the record last: a kill, an error or a full disk changes nothing, and what
counts as fresh is complete.
"""

import errno
import glob
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from ..cells import seconds_before
from ..provenance import ROOT, commit, machine
from ..records import Record, read, write_atomic
from .editions import (
    install_cell,
    normalise,
    problems,
    student_edition,
    with_install,
)
from .kernels import Kernels
from .locks import Lock
from .notebooks import STANDIN, NotebookError, Run, why_stale

# What makes two runs equal. Part of it counts when a library is imported.
COMMON = {
    "PYTHONHASHSEED": "0",  # the order of sets
    "SOURCE_DATE_EPOCH": "0",  # the date inside SVG pictures
    "TQDM_DISABLE": "1",  # bars have seconds in them
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's kernel, not the user's
}
# The order of a sum, and so its last digits, depends on the number of threads.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def refresh(
    run: Run,
    force: bool = False,
    progress: bool = True,
    kernels: Kernels | None = None,
) -> str:
    """Do a run if it is stale.

    Args:
        run: the run.
        force: do it even when it is fresh.
        progress: show a bar over the notebook's cells.
        kernels: starts the kernel; default: a process of its own.

    Returns:
        "fresh" (nothing to do), "text" (only prose renewed) or "run".

    Raises:
        NotebookError: the run failed; nothing that it would have replaced is changed.
    """
    if not force and why_stale(run) is None:
        return "fresh"
    title = f"{run.source.name} ({run.label})"
    try:
        # Two at once would write the same files; the second one then finds it fresh.
        with Lock(_log(run).with_suffix(".lock"), title):
            reason = "forced" if force else why_stale(run)
            if reason is None:
                return "fresh"
            if reason == "text":
                _renew_text(run)
                return "text"
            execute(run, progress, kernels or Kernels())
            return "run"
    except OSError as error:
        raise NotebookError(f"{title}: {_explained(error, run.source.root)}") from error


def _explained(error: OSError, root: Path) -> str:
    """What an error of the operating system means for a run, and what to do."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    todo = f"free space on the disk of {root}" if full else f"see to {error.filename}"
    return (
        f"{error.strerror or error} ({error.filename or root}). Nothing that is "
        f"published was changed. Next step: {todo} and start again; what is finished "
        "is not done twice."
    )


def execute(run: Run, progress: bool, kernels: Kernels) -> None:
    """Run a notebook and put its status, editions and record in place, in this order.

    Raises:
        NotebookError: a cell raised, or the outputs cannot be published.
        OSError: a file could not be written; nothing that is published was changed.
    """
    from papermill import execute_notebook  # slow to import
    from papermill.exceptions import PapermillExecutionError

    root, log = run.source.root, _log(run)
    log.parent.mkdir(parents=True, exist_ok=True)
    # Under a name of this process: the kernel of a killed one may live for a second.
    for left in log.parent.glob(f"{glob.escape(log.stem)}.*.record.json"):
        left.unlink(missing_ok=True)
    draft = log.with_suffix(f".{os.getpid()}.record.json")
    title, hint = f"{run.source.name} ({run.model})", f"look at {log.relative_to(root)}"
    begin = time.perf_counter() - seconds_before(_cells(run))
    try:
        node = execute_notebook(
            nbformat.from_dict(run.source.node),
            str(log),
            parameters=dict(run.changed),
            kernel_name="python3",
            progress_bar={"disable": not progress},
            start_timeout=180,  # seconds; a busy machine starts a kernel slowly
            extra_arguments=["--log-level=50"],  # its talk about sockets
            # Not papermill's `cwd`: that changes the folder of every thread.
            kernel_manager_class=kernels.manager(
                _environment(run, draft),
                str(run.source.path.parents[1]),  # as in Jupyter
                # Published seconds are those of a process that shares nothing.
                fresh=(run.alone and run.published) or not STANDIN.match(run.model),
            ),
        )
    except PapermillExecutionError as error:
        raise NotebookError(
            f"{title} stopped at In [{error.exec_count}] with {error.ename}: "
            f"{error.evalue}. Next step: {hint}"
        ) from error
    except RuntimeError as error:  # of nbclient: DeadKernelError, or no answer at all
        raise NotebookError(
            f"{title}: its kernel did not start or was killed, as the system does when "
            f"memory runs out ({error}). Next step: fewer runs at a time (--jobs), or "
            f"{hint}"
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
    elif not run.canonical:
        raise NotebookError(
            f"{title} wrote no record, so nothing is left of this run. Next step: end "
            "the notebook with records.save_run, or run it without -m and -p."
        )
    status = {
        "notebook": run.source.name,
        "model": run.model,
        "fingerprint": run.fingerprint,
        "commit": commit(),
        "seconds": round(seconds, 1),
        "machine": machine(),
        "finished": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
    }
    texts = {run.status_path: json.dumps(status, indent=1) + "\n"}
    texts |= _editions(run, node, has_record)
    _put(texts, _records(run, draft) if has_record else {})
    draft.unlink(missing_ok=True)
    shutil.rmtree(_cells(run), ignore_errors=True)


def _log(run: Run) -> Path:
    """The notebook as the kernel fills it."""
    folder = run.source.root / "runs" / "logs"
    return folder / f"{run.source.name}.{run.label}.ipynb"


def _cells(run: Run) -> Path:
    """Where the run keeps finished parts until it is done; see `safeedit.cells`."""
    return run.source.root / "runs" / "cells" / run.fingerprint


def _records(run: Run, draft: Path) -> dict[Path, Record]:
    """The record of a run and its place, the published one last.

    Prompts that break a real model are no part of what is published: they stay in
    `runs/`, where git ignores them.
    """
    record = read(draft)
    if run.published and record.prompts and record.model["weights"] != "stand-in":
        kept = run.source.root / "runs" / "records" / run.source.name
        bare = replace(record, prompts=[])
        return {kept / run.record_path.name: record, run.record_path: bare}
    return {run.record_path: record}


def _editions(run: Run, node: NotebookNode, has_record: bool) -> dict[Path, str]:
    """The text of each edition of an executed complete notebook."""
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
    texts = {}
    for edition, path in run.editions.items():
        shown = student_edition(node) if edition == "student" else node
        shown = with_install(shown, install_cell(root))
        texts[path] = nbformat.writes(shown, version=4, indent=1) + "\n"
    return texts


def _put(texts: Mapping[Path, str], records: Mapping[Path, Record]) -> None:
    """Write all files whole, then rename them one after the other, records last."""
    new = {path: path.with_name(f".{path.name}.new") for path in [*texts, *records]}
    for path in new:  # what a killed run has left; the run's lock is ours
        for left in path.parent.glob(f".*{glob.escape(path.name)}.*"):
            left.unlink(missing_ok=True)
    try:
        for path, text in texts.items():
            write_atomic(new[path], text)
        for path, record in records.items():
            record.write(new[path])
        for path, written in new.items():
            os.replace(written, path)
    finally:
        for written in new.values():
            written.unlink(missing_ok=True)


def _renew_text(run: Run) -> None:
    """Take prose, comments and tags from the source and outputs from the last run."""
    old = nbformat.read(run.editions["complete"], as_version=4)
    node = nbformat.from_dict(run.source.node)
    code = [cell for cell in node.cells if cell.cell_type == "code"]
    ran = [cell for cell in old.cells if cell.cell_type == "code"]
    for cell, previous in zip(code, ran, strict=True):
        cell.outputs = previous.outputs
        cell.execution_count = previous.execution_count
    has_record = bool(old.metadata["safeedit"].get("record"))
    _put(_editions(run, normalise(node), has_record), {})


def _environment(run: Run, draft: Path) -> dict[str, str]:
    """All of the kernel's environment: what makes runs equal, where the record goes."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {
        "SAFEEDIT_FINGERPRINT": run.fingerprint,
        "SAFEEDIT_RECORD": str(draft),
        "SAFEEDIT_CELLS": str(_cells(run)),
        "PYTHONPATH": os.pathsep.join(path),
    }
    threads = ONE_THREAD if STANDIN.match(run.model) else {}
    return {**os.environ, **COMMON, **threads, **own}
