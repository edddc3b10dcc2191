"""The command line: `python -m safeedit COMMAND`, installed as `safeedit`.

`safeedit COMMAND --help` shows an example of each command.
"""

import argparse
import ast
import sys
from collections.abc import Callable, Sequence
from functools import partial
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
    from .records import RecordError
    from .workflow.notebooks import NotebookError

    try:
        return arguments.command(arguments)
    except (NotebookError, RecordError) as error:
        print(f"safeedit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "safeedit: stopped. What is finished is kept; the same command goes on.",
            file=sys.stderr,
        )
        return 130  # as a shell says it


def _parser() -> argparse.ArgumentParser:
    from .commands import (
        attack,
        check_records,
        edit,
        evaluate,
        lm_eval_tasks,
        pictures,
        release,
        report,
        teaching,
    )
    from .commands import compare as comparing
    from .commands import reproduce as reproducing

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
        if name in ("run", "reproduce", "plan", "notebooks", "fresh"):
            sub.add_argument(
                "--root",
                type=lambda text: Path(text).resolve(),  # kernels have another folder
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
        reproducing.run,
        "run the notebooks that compare models, for each model",
        "reproduce --models standin-llama,standin-gemma --scale smoke",
    )
    reproducing.arguments(sub)
    sub = add(
        "plan",
        reproducing.show,
        "list what reproduce would do, and why",
        "plan --scale smoke",
    )
    reproducing.plan_arguments(sub)
    sub = add(
        "notebooks", notebooks, "run what the book shows and is stale", "notebooks"
    )
    sub.add_argument(
        "--jobs", type=reproducing.count, default=1, help="runs at the same time"
    )
    sub.add_argument("-f", "--force", action="store_true", help="even if it is fresh")
    text = "draw the README's pictures from the records"
    add("picture", pictures.run, text, "picture")
    sub = add(
        "slides", teaching.slides, "make slides from the notebooks", "slides 02 T1"
    )
    teaching.slides_arguments(sub)
    sub = add(
        "student",
        teaching.student,
        "write the notebooks without solutions and all they need, to hand out",
        "student handout.zip",
    )
    teaching.student_arguments(sub)
    add("fresh", fresh, "list stale outputs; fails when there are any", "fresh")
    sub = add(
        "compare",
        comparing.run,
        "compare records with the published ones; fails when a value differs",
        "compare results --at v0.1.0",
    )
    comparing.arguments(sub)
    sub = add(
        "check-records",
        check_records.run,
        "check whether records may be published; fails when one may not",
        "check-records results",
    )
    check_records.arguments(sub)
    for name, module, text, example in (
        (
            "edit",
            edit,
            "edit a model's weights against a list of words, as a new checkpoint",
            "edit standin-gemma --words bomb,attack --out edited",
        ),
        (
            "attack",
            attack,
            "attack a model, or an edited form of it, and judge what comes back",
            "attack standin-gemma --attack gcg --checkpoint edited --limit 8",
        ),
        (
            "evaluate",
            evaluate,
            "measure what a model refuses and answers, without and with an edit",
            "evaluate standin-gemma --checkpoint edited --words bomb,attack",
        ),
        (
            "lm-eval-tasks",
            lm_eval_tasks,
            "write the world's questions as tasks of lm-evaluation-harness",
            "lm-eval-tasks",
        ),
        (
            "release",
            release,
            "check that a tag, the version and its notes agree",
            "release v0.1.0 --out _build/release",
        ),
    ):
        sub = add(name, partial(report.told, module.run), text, example)
        module.arguments(sub)
    return parser


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
    from .workflow.notebooks import NotebookError, check_model, load_source, make_run
    from .workflow.runner import refresh

    parameters: dict[str, Any] = {}
    for text in arguments.parameter:
        name, equals, value = text.partition("=")
        if not equals:
            raise NotebookError(f"-p {text!r}: want NAME=VALUE, such as seed=1")
        parameters[name] = _literal(value)
    if arguments.model:
        parameters["model_name"] = arguments.model
    if "model_name" in parameters:
        check_model(parameters["model_name"])
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


def notebooks(arguments: argparse.Namespace) -> int:
    """Run what the book shows and is stale."""
    from .commands.reproduce import do
    from .workflow.notebooks import plan

    return do(plan(root=arguments.root), arguments.force, arguments.jobs)


def fresh(arguments: argparse.Namespace) -> int:
    """Print stale outputs, one a line; nothing when there are none."""
    from .workflow.notebooks import stale

    lines = stale(arguments.root)
    for line in lines:
        print(f"stale: {line}")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
