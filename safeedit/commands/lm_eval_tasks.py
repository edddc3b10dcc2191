"""`safeedit lm-eval-tasks`: write the task files for lm-evaluation-harness."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..lm_eval_tasks import DOMAINS, FOLDER, FORMS, task_name, write


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `lm-eval-tasks` takes."""
    parser.add_argument(
        "--out", type=Path, default=FOLDER, help="folder; default: lm_eval_tasks"
    )


def run(given: argparse.Namespace) -> None:
    """Write the files and say how to use them."""
    files = write(given.out)
    print(f"{len(files)} files in {given.out}")
    names = [task_name(domain, form) for domain in DOMAINS for form in FORMS]
    print("tasks: " + ", ".join(names))
