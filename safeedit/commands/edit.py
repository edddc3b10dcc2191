"""`safeedit edit`: from a word list and a model to an edited checkpoint folder."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..chat import Chat
from ..edits import ARRConfig, PCRConfig, TSRConfig, WeightEdit, arr, pcr, tsr
from ..edits.merging import LostInRounding, Rounded, rounded
from ..edits.storage import check_new
from ..models import load
from ..records import write_atomic
from .asking import about, benign, check_words, read_requests, read_words
from .edit_report import METHODS, card, layer_rows, summary
from .evaluate import LIMIT, PARTS, make_probe, measure, model_arguments
from .outputs import check_out
from .report import as_text, new_record, progress

CALIBRATION = 64  # prompts made from the words, or one a word if there are more
EDIT_FILE = ".safetensors"  # ending of --out for the edit alone


@dataclass(frozen=True)
class Choices:
    """How an edit is made; None: the default of the method's config."""

    method: str = "pcr"  # one of METHODS
    layers: int | tuple[int, ...] | None = None  # as in `PCRConfig`
    eps_factor: float | None = None  # PCR: eps / median distance to a concept
    eps_relative: float | None = None  # TSR, ARR: budget / norm of edited weights
    steps: int | None = None  # TSR, ARR: gradient steps
    keep_benign: bool = False  # OUR EXTENSION: disturb benign prompts little
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; use one of {list(METHODS)}")
        for name, methods in (
            ("eps_factor", ("pcr",)),
            ("eps_relative", ("tsr", "arr")),
            ("steps", ("tsr", "arr")),
        ):
            if getattr(self, name) is not None and self.method not in methods:
                raise ValueError(
                    f"{name} means nothing to {self.method}; it is of "
                    f"{' and '.join(methods)}"
                )


def make_edit(
    chat: Chat, words: Sequence[str], prompts: Sequence[str], choices: Choices
) -> WeightEdit:
    """One edit for all prompts.

    Args:
        chat: the base model; it is left as it is.
        words: the forbidden words, PCR's concepts.
        prompts: calibration prompts.
        choices: method and settings.

    Raises:
        ValueError: whatever the method refuses, or an edit that changes nothing.
    """
    names = ("layers", "eps_factor", "eps_relative", "steps", "seed")
    given: dict[str, Any] = {
        name: value for name in names if (value := getattr(choices, name)) is not None
    }
    kept: tuple[str, ...] = ()
    if choices.keep_benign:
        kept = tuple(benign(chat, words, "train", CALIBRATION).prompts)
    if choices.method == "pcr":
        if kept:
            given |= {"weighting": "covariance", "weighting_prompts": kept}
        edit = pcr(chat, prompts, list(words), PCRConfig(scope="shared", **given))
    elif choices.method == "tsr":
        edit = tsr(chat, prompts, TSRConfig(keep=kept, **given))
    else:
        edit = arr(chat, prompts, ARRConfig(keep=kept, **given))
    if float(edit.norm()) == 0:
        raise ValueError(
            "the edit changes nothing: no output of these prompts is inside the "
            "radius. Use a larger --eps-factor, other --layers or other --prompts"
        )
    return edit


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `edit` takes."""
    model_arguments(parser)
    add = parser.add_argument
    add("--words", required=True, help="forbidden words: a file, one a line, or a,b,c")
    add(
        "--out",
        required=True,
        help="a new folder for the checkpoint; a new file that ends in "
        f"{EDIT_FILE} gets the edit alone, in float32",
    )
    add(
        "--prompts",
        metavar="FILE",
        help="calibration prompts, one a line; default: requests about the words",
    )
    add("--method", choices=METHODS, default="pcr", help="default: pcr")
    add(
        "--layers",
        type=_layers,
        help="a number for the last blocks, or block indices: 2,3 (one alone: 2,)",
    )
    add("--eps-factor", type=float, help="pcr: radius / median distance to a concept")
    add("--eps-relative", type=float, help="tsr, arr: budget / norm of the weights")
    add("--steps", type=int, help="tsr, arr: gradient steps")
    add(
        "--keep-benign",
        action="store_true",
        help="ours, not the paper's: disturb benign requests as little as possible",
    )
    add("--limit", type=int, default=LIMIT, help=f"judged requests of a kind ({LIMIT})")
    add("--seed", type=int, default=0, help="default: 0")


def _layers(text: str) -> int | tuple[int, ...]:
    try:
        if "," in text:
            return tuple(int(part) for part in text.split(",") if part.strip())
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: want a number of last blocks, such as 4, or blocks, such as 2,3"
        ) from error


def run(given: argparse.Namespace) -> None:
    """Make the edit, measure it as it will be written, report, and write."""
    began = time.time()
    out = Path(given.out).expanduser()
    alone = out.suffix == EDIT_FILE
    outputs = [out, out.with_suffix(".json")] if alone else [out]
    for path in outputs:
        check_out(path)
    words = read_words(given.words)
    choices = Choices(
        **{field.name: getattr(given, field.name) for field in fields(Choices)}
    )
    name = METHODS[given.method]
    with progress(3 + 2 * PARTS) as begin:
        begin("load the model")
        chat = load(given.model, device=given.device, dtype=given.dtype)
        check_words(chat, words)
        if given.prompts:
            prompts = read_requests(chat, given.prompts, judged=False).prompts
        else:
            prompts = about(chat, words, "train", max(CALIBRATION, len(words))).prompts
        probe = make_probe(chat, words, given.limit)
        begin("solve for the edit")
        start = time.time()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            edit = make_edit(chat, words, prompts, choices)
        notes = list(dict.fromkeys(str(warning.message) for warning in caught))
        seconds = {"edit": time.time() - start}
        # The rounded weights first: what cannot be written need not be measured.
        start = time.time()
        try:
            place = _as_file(edit, chat) if alone else rounded(edit, chat)
            with place as found:
                after = measure(chat, probe, name, "shared", begin)
        except LostInRounding as error:
            raise LostInRounding(
                f"{error} On the command line: --dtype float32, or an --out that ends "
                f"in {EDIT_FILE}, which writes the edit beside the model."
            ) from error
        rows = measure(chat, probe, "none", begin=begin) + after
        seconds["generate"] = time.time() - start
        rows += layer_rows(chat, edit, found, name)
        settings = {"words": words, "prompts": len(prompts), "limit": given.limit}
        settings |= {**vars(choices), "config": edit.info["config"]}
        record = new_record("edit", chat, settings, rows, seconds, began)
        text = summary(chat, edit, record, notes, probe.judge.name)
        begin("write")
        if alone:
            check_new(out)
            edit.save(out)
            check_new(outputs[1])
            write_atomic(outputs[1], as_text(record))
        else:
            files = {"README.md": card(chat, edit, name, words, out.name, text)}
            edit.merge(chat, out, files=files | {"report.json": as_text(record)})
    print(text)
    print(f"\nwritten: {out}")


@contextmanager
def _as_file(edit: WeightEdit, chat: Chat) -> Iterator[Rounded]:
    """The edit beside the model, as a file of it is used: nothing is rounded."""
    promise = edit.constraint
    before = promise.margins(chat) if promise else {}
    with edit.applied(chat):
        exact = promise.margins(chat) if promise else {}
        margins = {
            layer: {"before": float(before[layer].min()), "exact": float(seen.min())}
            for layer, seen in exact.items()
        }
        yield Rounded(margins, {})
