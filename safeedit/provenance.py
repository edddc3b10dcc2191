"""Where a result comes from: commit, versions, model and machine."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]  # the repository, in an editable install


def describe(chat: Any) -> dict[str, Any]:
    """Which model it is: name, id, revision, kind of weights."""
    # A local folder's path says nothing to another reader, so only real models
    # (Hugging Face ids) carry an id of their own.
    real = chat.kind == "real"
    name = chat.model.config.name_or_path if real else chat.name
    return {
        "name": chat.name,
        "id": name,
        "revision": chat.revision,
        "weights": chat.kind,
    }


def version_of(name: str) -> str:
    """Version of Python or of an installed package."""
    if name == "python":
        return platform.python_version()
    try:
        return version(name)
    except PackageNotFoundError:  # used in place, without an installation
        return "not installed"


def commit() -> str:
    """The commit of the sources, "+changes" when they differ, or "unknown"."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        name = git("rev-parse", "--short=12", "HEAD")
        # Only the sources count: a run's own outputs are always "changed".
        changed = git("status", "--porcelain", "--", "safeedit", "notebooks/src")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}+changes" if changed else name


def machine() -> str:
    """A machine in words, without its name: processor, number of CPUs, system."""
    processor = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = re.findall(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8"))
        processor = names[0].strip() if names else processor
    return f"{processor}, {os.cpu_count()} CPUs, {platform.system()}"
