"""Running notebooks: papermill, then the normal form, then one rename.

Everything is written under `runs/logs` first, so that a kill or an error changes
nothing that is published; a failed notebook stays there to be looked at.
"""

import json
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from .editions import normalise, problems, student_edition
from .notebooks import STANDIN, NotebookError, Run, text_digest, why_stale
from .records import ROOT, commit, read, write_atomic


def refresh(run: Run, force: bool = False, progress: bool = True) -> str:
    """Do a run if it is stale.

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
    """Run a notebook and put its editions, record and status in place.

    Everything is written under `runs/logs` first, so that a kill or an error changes
    nothing that is published; a failed notebook stays there to be looked at.
    """
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    log = RUNS / "logs" / f"{run.source.name}.{run.label}.ipynb"
    draft = log.with_suffix(".record.json")
    log.parent.mkdir(parents=True, exist_ok=True)
    draft.unlink(missing_ok=True)
    begin = time.perf_counter()
    try:
        with _environment(run, draft):
            node = execute_notebook(
                nbformat.from_dict(run.source.node),
                str(log),
                parameters=dict(run.changed),
                kernel_name="python3",
                progress_bar=progress,
                cwd=str(NOTEBOOKS),
                start_timeout=180,
                extra_arguments=["--log-level=40"],
            )
    except PapermillExecutionError as error:
        raise NotebookError(
            f"{run.source.name} ({run.model}) stopped in cell {error.exec_count}: "
            f"{error.ename}: {error.evalue}. Next step: look at "
            f"{log.relative_to(ROOT)}"
        ) from error
    seconds = time.perf_counter() - begin
    normalise(node)
    found = problems(node)
    if found:
        raise NotebookError(
            f"{run.source.name} ({run.model}): " + "; ".join(found) + ". The notebook "
            f"is at {log.relative_to(ROOT)}"
        )
    has_record = draft.is_file()
    if has_record:
        record = read(draft)
        if record.parameters != run.parameters:
            raise NotebookError(
                f"{run.source.name}: its record says parameters {record.parameters}, "
                f"the run had {run.parameters}. Next step: pass every name of the "
                "parameters cell to records.save_run."
            )
        write_atomic(run.record_path, draft.read_text(encoding="utf-8"))
        draft.unlink()
    _publish(run, node, has_record)
    status = {
        "notebook": run.source.name,
        "model": run.model,
        "fingerprint": run.fingerprint,
        "commit": commit(),
        "seconds": round(seconds, 1),
        "machine": machine(),
        "started": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(time.time() - seconds)),
    }
    text = "\n".join(f" {_json(k)}: {_json(v)}," for k, v in status.items())
    write_atomic(run.status_path, "{\n" + text.rstrip(",") + "\n}\n")


def _json(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)


def _publish(run: Run, node: NotebookNode, has_record: bool) -> None:
    """Write the editions of an executed complete notebook."""
    node.metadata["safeedit"] = {
        **dict(run.source.header),
        "fingerprint": run.fingerprint,
        "text": _text_digest(run.source),
        "source": f"notebooks/src/{run.source.path.name}",
        "commit": commit(),
        "parameters": run.parameters,
        "record": run.record_path.relative_to(ROOT).as_posix() if has_record else None,
    }
    # The complete edition first: a kill between the two leaves the student edition
    # stale, and the next run writes both.
    for edition in ("complete", "student"):
        if edition in run.editions:
            shown = student_edition(node) if edition == "student" else node
            text = nbformat.writes(shown, version=4, indent=1)
            write_atomic(run.editions[edition], text + "\n")


def _renew_text(run: Run) -> None:
    """Take prose, comments and tags from the source and outputs from the last run."""
    old = nbformat.read(run.editions["complete"], as_version=4)
    node = nbformat.from_dict(run.source.node)
    node.metadata.update({k: v for k, v in old.metadata.items() if k != "safeedit"})
    ran = [cell for cell in old.cells if cell.cell_type == "code"]
    code = [cell for cell in node.cells if cell.cell_type == "code"]
    for cell, previous in zip(code, ran, strict=True):
        cell.outputs = previous.outputs
        cell.execution_count = previous.execution_count
    _publish(run, normalise(node), bool(old.metadata["safeedit"].get("record")))


@contextmanager
def _environment(run: Run, draft: Path) -> Iterator[None]:
    """The kernel's environment: what makes two runs equal, and where the record goes."""
    wanted = {
        "SAFEEDIT_FINGERPRINT": run.fingerprint,
        "SAFEEDIT_RECORD": str(draft),
        "PYTHONPATH": os.pathsep.join(
            [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
        "PYTHONHASHSEED": "0",  # the order of sets
        "SOURCE_DATE_EPOCH": "0",  # the date inside SVG pictures
        "TQDM_DISABLE": "1",  # bars have seconds in them
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
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


def machine() -> str:
    """A machine in words, without its name: processor, threads, system."""
    processor = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = re.findall(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8"))
        processor = names[0].strip() if names else processor
    return f"{processor}, {os.cpu_count()} CPUs, {platform.system()}"


