"""A release: its version everywhere the same, its notes, and its records as one file.

    python -m safeedit release v0.1.0 --out FOLDER

The version is in `pyproject.toml`, `safeedit.__version__` and `CITATION.cff`; its notes
are the section of `CHANGELOG.md` with its number and date. A tag vX.Y.Z fixes the
records: `results/` at that commit are the records of version X.Y.Z, and
`python -m safeedit compare --at vX.Y.Z` compares with them.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

from .provenance import ROOT
from .records import write_atomic

HEADING = re.compile(r"^## (\d+\.\d+\.\d+) \((\d{4}-\d{2}-\d{2})\)$", re.MULTILINE)


class ReleaseError(ValueError):
    """A version, date or tag that is not what the others are."""


@dataclass(frozen=True)
class Section:
    """What `CHANGELOG.md` says of one version."""

    version: str
    date: str  # ISO 8601
    text: str


def changelog(root: Path = ROOT) -> list[Section]:
    """All versions, as they stand in the file: the newest first.

    Raises:
        ReleaseError: no version in it.
    """
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    found = list(HEADING.finditer(text))
    if not found:
        raise ReleaseError(
            "CHANGELOG.md has no heading such as '## 0.1.0 (2026-11-27)'. Next step: "
            "write one for the version in pyproject.toml."
        )
    ends = [match.start() for match in found[1:]] + [len(text)]
    return [
        Section(match[1], match[2], text[match.end() : end].strip())
        for match, end in zip(found, ends, strict=True)
    ]


def check(root: Path = ROOT, tag: str | None = None) -> Section:
    """The newest section of the changelog, when all places name the same version.

    Args:
        root: the repository.
        tag: of the release, such as "v0.1.0".

    Raises:
        ReleaseError: naming the place that says something else.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    cited = dict(re.findall(r"^(version|date-released): \"?([^\"\n]+)", citation, re.M))
    init = (root / "safeedit" / "__init__.py").read_text(encoding="utf-8")
    package = re.search(r'__version__ = "([^"]+)"', init)
    newest = changelog(root)[0]
    wanted = project["project"]["version"]
    said = {
        "CHANGELOG.md": (newest.version, wanted),
        "CITATION.cff, version": (cited.get("version"), wanted),
        "CITATION.cff, date-released": (cited.get("date-released"), newest.date),
        "safeedit/__init__.py": (package and package[1], wanted),
    }
    if tag is not None:
        said["the tag"] = (tag, f"v{wanted}")
    for place, (value, other) in said.items():
        if value != other:
            raise ReleaseError(
                f"{place} says {value!r}, want {other!r}. Next step: one version in "
                "pyproject.toml, safeedit/__init__.py, CITATION.cff and CHANGELOG.md, "
                "commit, and tag that commit."
            )
    return newest


def write(folder: Path, tag: str, root: Path = ROOT) -> list[Path]:
    """Write `notes.md` and `records-<tag>.zip`, the records of the last commit.

    Raises:
        ReleaseError: see `check`; or no commit with results.
    """
    section = check(root, tag)
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"records-{tag}.zip"
    command = ["git", "-C", str(root), "archive", "--format=zip"]
    command += ["-o", str(archive.resolve()), "HEAD", "results"]
    try:
        subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ReleaseError(
            "git cannot pack results/ of the last commit. Next step: commit them."
        ) from error
    notes = f"{section.text}\n\nThe records of this version are in `{archive.name}`.\n"
    return [write_atomic(folder / "notes.md", notes), archive]
