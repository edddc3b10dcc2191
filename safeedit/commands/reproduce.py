"""`safeedit reproduce` and `safeedit plan`: the workflow here, or through Snakemake."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # slow to import, and `--help` can do without
    from ..workflow.notebooks import Run


def choice(sub: argparse.ArgumentParser) -> None:
    """Options that say which runs: notebooks, models, scale, seeds."""
    sub.add_argument(
        "--notebooks",
        help="names separated by commas, or how the names begin, such as T1,F; "
        "default: all",
    )
    sub.add_argument(
        "--models",
        help="names separated by commas; default: the stand-ins that the notebooks "
        "name, and the pages that show them",
    )
    sub.add_argument(
        "--scale", choices=("smoke", "cpu", "gpu"), help="size of the runs"
    )
    sub.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        help="values of the parameter seed; default: those that the notebooks name",
    )
    sub.add_argument("-f", "--force", action="store_true", help="even if it is fresh")


def arguments(sub: argparse.ArgumentParser) -> None:
    """Options of `reproduce`."""
    choice(sub)
    sub.add_argument("--jobs", type=count, default=1, help="runs at the same time")
    sub.add_argument(
        "--engine",
        choices=("here", "snakemake"),
        default="here",
        help="who starts the runs; snakemake is an extra, and the way to a cluster",
    )
    sub.add_argument(
        "--profile",
        type=Path,
        help="folder of a Snakemake profile, such as profiles/slurm; default: "
        "profiles/default",
    )
    sub.add_argument(
        "-n", "--dry-run", action="store_true", help="say what would be done"
    )


def plan_arguments(sub: argparse.ArgumentParser) -> None:
    """Options of `plan`."""
    choice(sub)
    sub.add_argument("--json", action="store_true", help="for another program")


def count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: want a whole number from 1 on")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Do the runs; 1 when one failed."""
    from ..workflow.notebooks import NotebookError

    if arguments.engine == "snakemake":
        return _snakemake(arguments)
    if arguments.profile:
        raise NotebookError(
            f"--profile {arguments.profile}: only Snakemake has profiles. Next step: "
            "add --engine snakemake"
        )
    if arguments.dry_run:
        return show(argparse.Namespace(**vars(arguments), json=False))
    return do(_runs(arguments), arguments.force, arguments.jobs)


def do(runs: "Sequence[Run]", force: bool, jobs: int) -> int:
    """Do runs and print what failed; 1 when something did."""
    from ..workflow.engine import run_all

    failures = run_all(runs, force, jobs)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def show(arguments: argparse.Namespace) -> int:
    """Print what `reproduce` would do."""
    from ..workflow.engine import todo

    tasks = todo(_runs(arguments), arguments.force)
    if arguments.json:
        print(json.dumps([asdict(task) for task in tasks], indent=1))
        return 0
    for task in tasks:
        if task.reason:
            print(f"{task.notebook} ({task.label}): {task.reason}")
    stale = sum(bool(task.reason) for task in tasks)
    print(f"{stale} of {len(tasks)} runs to do")
    return 0


def _runs(arguments: argparse.Namespace) -> "list[Run]":
    from ..workflow.notebooks import plan

    models = arguments.models.split(",") if arguments.models else None
    some = arguments.notebooks.split(",") if arguments.notebooks else None
    return plan(models, arguments.scale, arguments.root, arguments.seeds, some)


def _snakemake(arguments: argparse.Namespace) -> int:
    """The same through Snakemake, which may live in an environment of its own."""
    from ..workflow.notebooks import NotebookError

    beside = str(Path(sys.executable).parent)
    program = shutil.which("snakemake", path=beside) or shutil.which("snakemake")
    if program is None:
        raise NotebookError(
            "there is no program snakemake. Next step: python -m venv .tools/snakemake "
            "&& .tools/snakemake/bin/pip install snakemake "
            "snakemake-executor-plugin-slurm, and put its bin on PATH"
        )
    root: Path = arguments.root
    profile = arguments.profile or root / "profiles" / "default"
    if not (profile / "config.yaml").is_file():
        raise NotebookError(
            f"--profile {profile}: there is no config.yaml in it; the kit's are "
            f"{', '.join(str(p.parent) for p in root.glob('profiles/*/config.yaml'))}"
        )
    command = [program, "--snakefile", str(root / "Snakefile")]
    command += ["--directory", str(root), "--profile", str(profile.resolve())]
    if arguments.profile is None:
        command += ["--cores", str(arguments.jobs)]
    command += ["--dry-run"] if arguments.dry_run else []
    settings = {"python": sys.executable, "force": arguments.force}
    settings |= {"notebooks": arguments.notebooks} if arguments.notebooks else {}
    settings |= {"models": arguments.models} if arguments.models else {}
    settings |= {"scale": arguments.scale} if arguments.scale else {}
    if arguments.seeds is not None:
        settings["seeds"] = " ".join(map(str, arguments.seeds))
    command += ["--config", *(f"{name}={value}" for name, value in settings.items())]
    # Its own interpreter must not find the kit's packages, which may be others.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(command, env=env).returncode
