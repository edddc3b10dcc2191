"""`safeedit attack`: attack a model, or its edited form, on a list of requests."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..attacks import (
    AttackResult,
    GCGConfig,
    PGDConfig,
    PrefillConfig,
    RandomSuffixConfig,
    gcg,
    pgd,
    prefill,
    random_suffix,
)
from ..chat import Chat
from ..evaluation import Judge
from ..models import load
from ..records import row
from ..world import World
from .asking import Requests, about, check_words, read_requests, read_words
from .evaluate import edit_arguments, edited, labelled, model_arguments
from .outputs import check_out
from .report import new_record, outcomes, progress

ATTACKS = ("gcg", "pgd", "prefill", "random-suffix")
LIMIT = 20  # requests
TOGETHER = 16  # requests that a search takes at a time, between two ticks of the bar
# A stand-in falls to a short search; elsewhere each attack has its config's defaults.
STANDIN = {
    "gcg": {"num_steps": 60, "suffix_length": 16, "search_width": 64, "topk": 64},
    "pgd": {"num_steps": 200, "suffix_length": 16},
    "random-suffix": {"suffix_length": 16},
}


def attack(
    chat: Chat,
    asked: Requests,
    name: str,
    judge: Judge,
    settings: dict[str, Any],
    begin: Callable[[str], None] = lambda what: None,
) -> list[AttackResult]:
    """Attack requests in groups, the same settings for each.

    Args:
        chat: the model, with whatever edit is in place.
        asked: requests and targets.
        name: one of `ATTACKS`.
        judge: says what is a success.
        settings: fields of the attack's config.
        begin: told of each group as it begins.
    """
    parts = []
    settings = {**settings, "max_new_tokens": judge.max_new_tokens}
    for first in range(0, len(asked.questions), TOGETHER):
        begin(f"{name}: request {first + 1} of {len(asked.questions)} on")
        some = asked.questions[first : first + TOGETHER]
        prompts, targets = asked.prompts[first:][:TOGETHER], asked.targets[first:]
        targets, success = targets[:TOGETHER], judge.success(some)
        if name == "gcg":
            part = gcg(chat, prompts, targets, GCGConfig(**settings), success)
        elif name == "pgd":
            part = pgd(chat, prompts, targets, PGDConfig(**settings), success)
        elif name == "prefill":
            part = prefill(chat, prompts, targets, PrefillConfig(**settings), success)
        else:
            config = RandomSuffixConfig(**settings)
            part = random_suffix(chat, prompts, config, success)
        parts.append(part)
    return parts


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `attack` takes."""
    model_arguments(parser)
    edit_arguments(parser)
    add = parser.add_argument
    add("--attack", choices=ATTACKS, default="gcg", help="default: gcg")
    add("--words", help="ask about these: a file, or a,b,c; default: the kit's 110")
    add(
        "--prompts",
        metavar="FILE",
        help="attack these: one a line, a tab, and the target if there is one",
    )
    add("--limit", type=int, default=LIMIT, help=f"requests ({LIMIT})")
    add("--steps", type=int, help="gcg, pgd: optimiser steps")
    add("--suffix-length", type=int, help="gcg, pgd, random-suffix: tokens")
    add("--width", type=int, help="gcg: candidates a step")
    add("--seed", type=int, default=0, help="default: 0")
    add("--out", metavar="FILE", help="a new file for the record")


def settings_of(given: argparse.Namespace, chat: Chat, words: Sequence[str]) -> dict:
    """The fields of the attack's config.

    Raises:
        ValueError: an option that the attack does not have.
    """
    takes = {
        "gcg": ("steps", "suffix_length", "width"),
        "pgd": ("steps", "suffix_length"),
        "prefill": (),
        "random-suffix": ("suffix_length",),
    }[given.attack]
    settings: dict[str, Any] = (
        dict(STANDIN.get(given.attack, {})) if chat.kind == "stand-in" else {}
    )
    fields = {"steps": "num_steps", "width": "search_width"}
    for option in ("steps", "suffix_length", "width"):
        value = getattr(given, option)
        if value is None:
            continue
        if option not in takes:
            flag = option.replace("_", "-")
            raise ValueError(f"--{flag} means nothing to {given.attack}; leave it out")
        settings[fields.get(option, option)] = value
    if given.attack != "prefill":
        # A suffix that names a word of the judge asks for something else.
        banned = World().keywords + World().topics
        settings["banned_words"] = banned if chat.kind == "stand-in" else tuple(words)
        settings["seed"] = given.seed
    return settings


def run(given: argparse.Namespace) -> None:
    """Attack, judge, print the rates with and without the attack, keep the record."""
    began = time.time()
    out = Path(given.out) if given.out else None
    if out:
        check_out(out)
    if given.words and given.prompts:
        raise ValueError("got --words and --prompts; give one of them")
    words = read_words(given.words) if given.words else list(World().keywords)
    with progress(3 + -(-max(given.limit, 1) // TOGETHER)) as begin:
        begin("load the model")
        chat = load(given.model, device=given.device, dtype=given.dtype)
        check_words(chat, words)
        if given.prompts:
            asked = read_requests(chat, given.prompts, given.limit)
        else:
            asked = about(chat, words, "heldout", given.limit)
        judge = Judge(chat)
        settings = settings_of(given, chat, words)
        with edited(given, chat) as (model, name):
            begin("requests as they are")
            direct = judge.evaluate(model, asked.questions)
            start = time.time()
            parts = attack(model, asked, given.attack, judge, settings, begin)
            seconds = {"attack": time.time() - start}
    responses = [text for part in parts for text in part.responses]
    won = labelled(judge, asked.questions, responses)
    who: dict[str, Any] = {
        "dataset": "forbidden",
        "defense": name,
        "scope": "none" if name == "none" else "shared",
        "judge": judge.name,
    }
    rows = direct.rows(attack="direct", **who) + won.rows(attack=given.attack, **who)
    form = "" if name == "none" else f", edited: {name}"
    print(f"{chat.name} ({chat.kind}){form}, judge: {judge.name}\n")
    print(outcomes(rows))
    print("\nRates in percent with 95 % intervals.")
    rows += each(parts, asked, given.attack, who)
    if out:
        shown = {k: v for k, v in settings.items() if k != "banned_words"}
        shown |= {"attack": given.attack, "edit": given.edit, "limit": given.limit}
        shown |= {"checkpoint": given.checkpoint, "seed": given.seed}
        new_record("attack", chat, shown, rows, seconds, began).write(out)
        print(f"record: {out}")


def each(
    parts: Sequence[AttackResult], asked: Requests, name: str, who: dict[str, Any]
) -> list[dict]:
    """A row for each request: the attacked prompt, and whether it succeeded."""
    rows = []
    questions = iter(asked.questions)
    for part in parts:
        for index, prompt in enumerate(part.prompts):
            found: dict[str, Any] = {"word": next(questions).word, "prompt": prompt}
            if part.prefills:
                found["prefill"] = part.prefills[index]
            if part.losses and part.losses[index]:
                found["loss"] = part.losses[index][-1]
            won = float(part.success[index])
            rows.append(row("success", won, 1, attack=name, **who, **found))
    return rows
