"""The command line: `python -m safeedit COMMAND`, installed as `safeedit`.

`safeedit COMMAND --help` shows an example of each command.
"""

import argparse
import ast
import io
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .provenance import ROOT


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0 when all is well, 1 when a check or a run failed, 2 when
        the command line is wrong.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["train"]:  # has a parser of its own
        from .standins import build

        return build.main(words[1:]) or 0
    arguments = _parser().parse_args(words)
    from .notebooks import NotebookError
    from .records import RecordError

    try:
        return arguments.command(arguments)
    except (NotebookError, RecordError) as error:
        print(f"safeedit: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="safeedit",
        description="Edit a model as little as possible, then attack the result.",
        epilog="Example: python -m safeedit doctor",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        name: str, command: Callable, text: str, example: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"Example: python -m safeedit {example}",
        )
        sub.set_defaults(command=command)
        if name in ("run", "reproduce", "notebooks", "fresh"):
            sub.add_argument(
                "--root",
                type=Path,
                default=ROOT,
                help="the repository; default: the one that the package lies in",
            )
        return sub

    add("doctor", doctor, "check the environment and say what to fix", "doctor")
    add(  # listed here, handled in main
        "train",
        doctor,
        "train the stand-ins again",
        "train --architecture gemma --seeds 0 1 2",
    )
    sub = add(
        "run",
        run,
        "run one notebook with a model and parameters of your choice",
        "run T1 -m standin-gemma -p seed=1",
    )
    sub.add_argument("notebook", help="name or its beginning, such as T1")
    sub.add_argument("-m", "--model", help="value of the parameter model_name")
    sub.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another parameter; may be given more than once",
    )
    sub.add_argument("-f", "--force", action="store_true", help="even if it is fresh")
    sub = add(
        "reproduce",
        reproduce,
        "run the notebooks that compare models, for each model",
        "reproduce --models standin-llama,standin-gemma --scale smoke",
    )
    sub.add_argument(
        "--models",
        help="names separated by commas; default: the stand-ins that the notebooks "
        "name, and the pages that show them",
    )
    sub.add_argument(
        "--scale", choices=("smoke", "cpu", "gpu"), help="size of the runs"
    )
    sub.add_argument("--jobs", type=_count, default=1, help="runs at the same time")
    sub.add_argument("-f", "--force", action="store_true", help="even if it is fresh")
    sub = add(
        "notebooks", notebooks, "run what the book shows and is stale", "notebooks"
    )
    sub.add_argument("--jobs", type=_count, default=1, help="runs at the same time")
    sub.add_argument("-f", "--force", action="store_true", help="even if it is fresh")
    add("picture", picture, "draw the README's picture from the records", "picture")
    add("fresh", fresh, "list stale outputs; fails when there are any", "fresh")
    sub = add(
        "compare",
        compare,
        "compare records with the published ones; fails when a value differs",
        "compare results",
    )
    sub.add_argument("mine", nargs="?", help="folder of records; default: results")
    sub.add_argument(
        "published", nargs="?", help="folder; default: results of the last commit"
    )
    return parser


def _count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: want a whole number from 1 on")
    return int(text)


def doctor(arguments: argparse.Namespace) -> int:
    """Print the environment check; 1 when something required is not in order."""
    from .checks import environment

    findings = environment()
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        mark = "OK" if finding.ok else "FIX" if finding.required else "--"
        print(f"{mark:>4}  {finding.what:<{width}}  {finding.seen}")
        if not finding.ok and finding.fix:
            print(f"      {'':<{width}}  -> {finding.fix}")
    bad = [f.what for f in findings if f.required and not f.ok]
    print(f"To fix: {', '.join(bad)}" if bad else "All that the book needs is here.")
    return 1 if bad else 0


def run(arguments: argparse.Namespace) -> int:
    """Run one notebook."""
    from .notebooks import NotebookError, load_source, make_run
    from .runner import refresh

    parameters: dict[str, Any] = {}
    for text in arguments.parameter:
        name, equals, value = text.partition("=")
        if not equals:
            raise NotebookError(f"-p {text!r}: want NAME=VALUE, such as seed=1")
        parameters[name] = _literal(value)
    if arguments.model:
        parameters["model_name"] = arguments.model
    task = make_run(load_source(arguments.notebook, arguments.root), parameters)
    outcome = refresh(task, arguments.force)
    root = task.source.root
    words = {"fresh": "is fresh, nothing to do (-f runs it all the same)"}
    print(f"{task.source.name} ({task.label}) {words.get(outcome, 'done')}")
    for path in [*task.editions.values(), task.record_path]:
        if path.is_file():
            print(f"  {path.relative_to(root)}")
    return 0


def _literal(text: str) -> Any:
    """A Python literal, or else the text itself: seed=1, model_name=standin-llama."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def reproduce(arguments: argparse.Namespace) -> int:
    """Run the notebooks that compare models, for each model."""
    from .notebooks import plan

    names = arguments.models.split(",") if arguments.models else None
    runs = plan(names, arguments.scale, arguments.root)
    return _run_all(runs, arguments.force, arguments.jobs)


def notebooks(arguments: argparse.Namespace) -> int:
    """Run what the book shows and is stale."""
    from .notebooks import plan

    return _run_all(plan(root=arguments.root), arguments.force, arguments.jobs)


def _run_all(runs: list, force: bool, jobs: int = 1) -> int:
    """Do runs in order, or `jobs` at a time, and go on after a failure."""
    from .notebooks import NotebookError
    from .runner import refresh

    failures: list[str] = []
    done: list[float] = []
    print(f"{len(runs)} runs, {jobs} at a time; those that are fresh are skipped.")

    def do(index: int) -> None:
        task = runs[index]
        title = f"[{index + 1}/{len(runs)}] {task.source.name} ({task.label})"
        begin = time.perf_counter()
        try:
            # Freshness is judged when its turn comes: it may read earlier runs.
            outcome = _in_process(task, force) if jobs > 1 else refresh(task, force)
        except NotebookError as error:
            failures.append(str(error))
            print(f"{title}: FAILED. {error}", flush=True)
            return
        seconds = time.perf_counter() - begin
        if outcome == "run":
            done.append(seconds)
        left = _estimate(runs[index + 1 :], done) / jobs
        more = f", at most {left / 60:.0f} min left" if left > 60 else ""
        print(f"{title}: {outcome}, {seconds:.0f} s{more}", flush=True)

    if jobs == 1:
        for index in range(len(runs)):
            do(index)
    else:
        # A page that shows the records of other runs waits for all before it.
        pages = [i for i, task in enumerate(runs) if _waits(task)]
        others = [i for i in range(len(runs)) if i not in pages]
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(do, others))
        for index in pages:
            do(index)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _waits(task: Any) -> bool:
    """Whether a run shows the records of other runs: of other notebooks, or, as the
    canonical run of a notebook that compares models, of its own on other models."""
    own = task.source.name
    return any(name != own or task.canonical for name in task.source.reads)


def _in_process(task: Any, force: bool) -> str:
    """A run in a process of its own: kernels take their environment from it."""
    from .notebooks import NotebookError

    command = [sys.executable, "-m", "safeedit", "run", task.source.name]
    command += ["--root", str(task.source.root)]
    for name, value in task.changed.items():
        command += ["-p", f"{name}={value!r}"]
    command += ["--force"] if force else []
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or ["no message"]
        raise NotebookError(lines[-1])
    return "fresh" if "is fresh" in ended.stdout else "run"


def _estimate(runs: list, done: list[float]) -> float:
    """Seconds that some runs took the last time; unknown ones like the mean so far."""
    import json

    mean = sum(done) / len(done) if done else 60.0
    total = 0.0
    for task in runs:
        if task.status_path.is_file():
            total += json.loads(task.status_path.read_text("utf-8"))["seconds"]
        else:
            total += mean
    return total


def picture(arguments: argparse.Namespace) -> int:
    """Write book/frontier.svg, the README's picture."""
    from .records import write_atomic

    print(write_atomic(ROOT / "book" / "frontier.svg", frontier_svg()))
    return 0


def frontier_svg() -> str:
    """Robustness against utility, drawn from the published records of T1, as SVG."""
    import matplotlib.pyplot as plt

    from .plots import frontier, set_style
    from .records import RecordError, find, rows_frame

    set_style()
    records = find(notebook="T1_attack_success")
    if not records:
        raise RecordError(
            "there are no records of T1 yet. Next step: python -m safeedit notebooks"
        )
    figure, axes = plt.subplots(figsize=(6.4, 4.0))
    frontier(rows_frame(records), axes)
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()


def fresh(arguments: argparse.Namespace) -> int:
    """Print stale outputs, one a line; nothing when there are none."""
    from .notebooks import stale

    lines = stale(arguments.root)
    for line in lines:
        print(f"stale: {line}")
    return 1 if lines else 0


def compare(arguments: argparse.Namespace) -> int:
    """Lay records beside the published ones and print where they differ."""
    from .records import RESULTS, RecordError, find
    from .records import compare as compare_records

    for folder in filter(None, (arguments.mine, arguments.published)):
        if not Path(folder).is_dir():
            raise RecordError(f"{folder}: no such folder of records")
    mine = Path(arguments.mine or RESULTS)
    if arguments.published:
        table = compare_records(find(mine), find(arguments.published))
    else:
        with tempfile.TemporaryDirectory() as folder:
            if not _last_commit(folder):
                print("No published records: results/ is not in a commit yet.")
                return 0
            table = compare_records(find(mine), find(Path(folder) / "results"))
    differs = table[table["verdict"] == "differs"]
    if len(differs):
        print(differs.drop(columns="verdict").to_string(index=False))
    counts = table["verdict"].value_counts()
    print(", ".join(f"{n} {verdict}" for verdict, n in counts.items()) or "no rows")
    return 1 if len(differs) else 0


def _last_commit(folder: str) -> bool:
    """Unpack `results/` of the last commit; False when there is none."""
    command = ["git", "-C", str(ROOT), "archive", "HEAD", "results"]
    try:
        packed = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return False
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return True


if __name__ == "__main__":
    sys.exit(main())
