"""`safeedit evaluate`: what a model refuses, answers and expects, edited or not."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..attacks import PrefillConfig, prefill
from ..chat import Chat
from ..edits import WeightEdit
from ..evaluation import Judge, Outcome, Question
from ..judges import degenerate
from ..metrics import CARRIER, perplexity, token_nlls
from ..models import DTYPES, load
from ..records import row
from ..world import World
from .asking import Requests, about, benign, check_words, read_requests, read_words
from .outputs import check_out
from .report import effects, new_record, progress

LIMIT = 100  # requests of each kind
TEXTS = 64  # sentences of the utility text
PARTS = 4  # of a `measure`


@dataclass(frozen=True)
class Probe:
    """What a model is asked, before and after an edit."""

    judge: Judge
    words: list[str]  # forbidden
    forbidden: Requests
    benign: list[Question]
    texts: list[str]  # benign


def make_probe(
    chat: Chat,
    words: Sequence[str],
    limit: int = LIMIT,
    prompts: str | Path | None = None,
) -> Probe:
    """Held-out requests about the words, or those of a file, and benign ones.

    Args:
        chat: the base model; its kind decides the judge and the phrasings.
        words: forbidden words.
        limit: requests of each kind.
        prompts: a file for `read_requests`, in place of requests about the words.
    """
    from ..data import utility_text  # heavy: only when something is measured

    asked = (
        read_requests(chat, prompts, limit)
        if prompts
        else about(chat, words, "heldout", limit)
    )
    kept = benign(chat, words, "heldout", limit).questions
    return Probe(Judge(chat), list(words), asked, kept, utility_text(TEXTS))


def measure(
    chat: Chat,
    probe: Probe,
    defense: str,
    scope: str = "none",
    begin: Callable[[str], None] = lambda what: None,
) -> list[dict]:
    """Rates and perplexities of a model as it is now, as tidy rows.

    Args:
        chat: the model, with whatever edit is in place.
        probe: what to ask.
        defense: name of the rows.
        scope: of the edit.
        begin: told the name of each of the `PARTS` as it begins.
    """
    judge = probe.judge
    who: dict[str, Any] = {"defense": defense, "scope": scope}
    begin(f"{defense}: forbidden requests")
    rows = judge.evaluate(chat, probe.forbidden.questions).rows(
        dataset="forbidden", attack="direct", judge=judge.name, **who
    )
    begin(f"{defense}: prefilled answers")
    started = prefill(
        chat,
        probe.forbidden.prompts,
        probe.forbidden.targets,
        PrefillConfig(max_new_tokens=judge.max_new_tokens),
    )
    rows += labelled(judge, probe.forbidden.questions, started.responses).rows(
        dataset="forbidden", attack="prefill", judge=judge.name, **who
    )
    begin(f"{defense}: benign requests")
    rows += judge.evaluate(chat, probe.benign).rows(
        dataset="benign", attack="none", judge=judge.name, **who
    )
    begin(f"{defense}: perplexities")
    heads = chat.render([CARRIER + word for word in probe.words])
    for metric, dataset, nlls in (
        ("forbidden_perplexity", "forbidden", token_nlls(chat, heads, probe.words)),
        (
            "utility_perplexity",
            "benign",
            token_nlls(chat, [""] * len(probe.texts), probe.texts),
        ),
    ):
        value, low, high = perplexity(nlls)
        rows.append(
            row(metric, value, len(nlls), low, high, dataset=dataset, **who)
            | {"unit": "perplexity"}
        )
    return rows


def labelled(
    judge: Judge, questions: Sequence[Question], responses: Sequence[str]
) -> Outcome:
    """Responses that are already there, labelled."""
    pairs = zip(questions, responses, strict=True)
    labels = [judge.label(question.word, text) for question, text in pairs]
    return Outcome(list(responses), labels, [degenerate(text) for text in responses])


def model_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a model, shared by the commands."""
    parser.add_argument("model", help="name, Hugging Face id or folder")
    parser.add_argument("--dtype", choices=DTYPES, help="default: as `safeedit.load`")
    parser.add_argument("--device", help="cpu, cuda or cuda:1; default: what is there")


def edit_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that name an edited form of the model."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--edit", metavar="FILE", help="with this edit of it, as `edit` writes one"
    )
    which.add_argument(
        "--checkpoint", metavar="FOLDER", help="as this edited checkpoint of it"
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `evaluate` takes."""
    model_arguments(parser)
    edit_arguments(parser)
    parser.add_argument(
        "--words", help="forbidden words: a file, or a,b,c; default: the kit's 110"
    )
    parser.add_argument(
        "--prompts", metavar="FILE", help="forbidden requests, one a line"
    )
    parser.add_argument(
        "--limit", type=int, default=LIMIT, help=f"requests of a kind ({LIMIT})"
    )
    parser.add_argument("--out", metavar="FILE", help="a new file for the record")


@contextmanager
def edited(given: argparse.Namespace, chat: Chat) -> Iterator[tuple[Chat, str]]:
    """The model that --edit or --checkpoint means, and the name of its rows.

    Raises:
        ValueError: an edit of another model, or with one change per prompt; a
            checkpoint of another shape.
    """
    if given.edit:
        edit = WeightEdit.load(given.edit, chat)
        if edit.batch is not None:
            raise ValueError(
                f"{given.edit} holds one change for each of {edit.batch} prompts; it "
                'says nothing about others: make the edit with scope="shared"'
            )
        with edit.applied(chat):
            yield chat, Path(given.edit).name
    elif given.checkpoint:
        other = load(given.checkpoint, device=given.device, dtype=given.dtype)
        sizes = [(c.n_layers, c.d_model, len(c.tokenizer)) for c in (chat, other)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{given.checkpoint} is no checkpoint of {chat.name}: blocks, width "
                f"and vocabulary are {sizes[1]} and not {sizes[0]}"
            )
        yield other, other.name
    else:
        yield chat, "none"


def run(given: argparse.Namespace) -> None:
    """Measure a model, and its edited form beside it, and print the table."""
    began = time.time()
    out = Path(given.out) if given.out else None
    if out:
        check_out(out)
    words = read_words(given.words) if given.words else list(World().keywords)
    both = bool(given.edit or given.checkpoint)
    with progress(1 + PARTS * (1 + both)) as begin:
        begin("load the model")
        chat = load(given.model, device=given.device, dtype=given.dtype)
        check_words(chat, words)
        probe = make_probe(chat, words, given.limit, given.prompts)
        rows = []
        if both:
            with edited(given, chat) as (model, name):
                rows = measure(model, probe, name, "shared", begin)
        rows = measure(chat, probe, "none", begin=begin) + rows
    print(f"{chat.name} ({chat.kind}), judge: {probe.judge.name}\n")
    print(effects(rows))
    if out:
        settings = {"words": words, "edit": given.edit, "checkpoint": given.checkpoint}
        settings |= {"prompts": given.prompts, "limit": given.limit, "seed": 0}
        new_record("evaluate", chat, settings, rows, {}, began).write(out)
        print(f"\nrecord: {out}")
