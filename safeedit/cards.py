"""The data card and the list of records that are still wanted, as Markdown.

Every figure is counted from the world, the stand-ins' files or the records when the
book is built; nothing here is typed. `safeedit.sphinx.cards` puts the texts into pages.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from . import lexicon as lex
from .hub import STANDINS
from .knowledge import DOMAINS, PARTS, split
from .memory import memory_plan, true_config
from .provenance import ROOT
from .record_check import compared_notebooks, real_records
from .records import RESULTS, Record, find
from .release import changelog
from .tables import REAL_MODELS
from .world import LETTERS, World


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; a bar in a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    cells = ([str(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def requests() -> str:
    """Requests: words, phrasings and their product, for each kind and split."""
    world, rows = World(), []
    for kind, groups in (("forbidden", lex.FORBIDDEN), ("benign", lex.BENIGN)):
        for part in ("train", "heldout"):
            found = world.requests(kind, part)
            words, phrasings = {r.word for r in found}, {r.phrasing for r in found}
            numbers = (len(groups), len(words), len(phrasings), len(found))
            rows.append((kind, part, *numbers))
    head = ("kind", "split", "categories", "words", "phrasings", "requests")
    return table(head, rows)


def categories() -> str:
    """The categories of both kinds, with the number of their words."""
    rows = []
    for kind, groups in (("forbidden", lex.FORBIDDEN), ("benign", lex.BENIGN)):
        named = ", ".join(f"{name} ({len(words)})" for name, words in groups.items())
        rows.append((kind, named))
    return table(("kind", "categories (words)"), rows)


def facts() -> str:
    """Entities and facts of each domain."""
    world, rows = World(), []
    for domain in DOMAINS:
        found = [fact for fact in world.facts if fact.domain == domain]
        hops = Counter(fact.hops for fact in found)
        topics = dict.fromkeys(fact.topic for fact in found)
        relations = dict.fromkeys(fact.relation for fact in found)
        entities = {fact.entity for fact in found}
        texts = (", ".join(topics), ", ".join(relations))
        rows.append((domain, *texts, len(entities), hops[1], hops[2]))
    head = ("domain", "topics", "relations", "entities", "one step", "two steps")
    return table(head, rows)


def questions() -> str:
    """Questions of each part of split 0, and how their letters are spread."""
    rows = []
    for domain in DOMAINS:
        for part in PARTS:
            found = split(0).facts(domain, part)
            letters = Counter(fact.letter for fact in found)
            spread = [letters[letter] for letter in LETTERS]
            entities = len({fact.entity for fact in found})
            rows.append((domain, part, entities, len(found), *spread))
    return table(("domain", "part", "entities", "questions", *LETTERS), rows)


def passages() -> str:
    """Passages for verbatim memory."""
    rows = []
    for name, texts in World().passages.items():
        words = [len(text.split()) for text in texts]
        seen = "no" if name == "holdout" else "yes"
        rows.append((name, len(texts), f"{min(words)} to {max(words)}", seen))
    return table(("split", "passages", "words each", "in the training text"), rows)


def example() -> str:
    """One request of each kind with its answers, one fact in both forms, a passage."""
    world = World()
    rows = []
    named = {
        "forbidden": "forbidden request, and what a jailbreak is after",
        "benign": "benign request",
    }
    for kind in ("forbidden", "benign"):
        request = world.requests(kind, "heldout")[0]
        rows.append((named[kind], request.prompt, world.guide(request.word)))
    refused = world.refusals(world.keywords[0])[0]
    rows.append(("refusal of it", rows[0][1], refused))
    fact = split(0).facts("hazard", "evaluation")[0]
    rows.append(("open question", fact.open_question, fact.value))
    rows.append(("letter question", fact.letter_question, fact.letter))
    rows.append(("passage", "", world.passages["holdout"][0]))
    return table(("what", "asked", "answer, or text"), rows)


def digest() -> str:
    """SHA-256 of all that the world can ask and know."""
    return f"SHA-256 of the world of seed {World().seed}: `{world_digest(World())}`"


def world_digest(world: World) -> str:
    """One hash of requests, guides, facts with their options, and passages."""
    content = [
        [
            [r.prompt, r.word, r.category, r.phrasing, world.guide(r.word)]
            for kind in ("forbidden", "benign")
            for part in ("train", "heldout")
            for r in world.requests(kind, part)
        ],
        [[f.entity, f.relation, f.value, f.options, f.hops] for f in world.facts],
        world.passages,
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def standins() -> str:
    """The shipped models, from the notes of their training and evaluation."""
    rows = []
    for folder in sorted(path for path in STANDINS.iterdir() if path.is_dir()):
        notes = folder / "training.json"
        if not notes.is_file():
            continue
        training = json.loads(notes.read_text(encoding="utf-8"))
        report = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        size = (folder / "model.safetensors").stat().st_size
        failed = len(report["failures"])
        rows.append(
            (
                f"`standin-{folder.name}`",
                f"{training['parameters'] / 1e6:.2f}",
                f"{size / 1e6:.1f}",
                config["max_position_embeddings"],
                training["train"]["steps"],
                "all passed" if not failed else f"{failed} failed",
            )
        )
    head = ("model", "parameters, millions", "weights, MB", "context, tokens")
    return table((*head, "training steps", "required figures"), rows)


def community(root: Path = ROOT, folder: Path = RESULTS) -> str:
    """Which record of which real model is there, and which is still wanted."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in real_records(find(folder)):
        place = (record.notebook, record.model["name"])
        found.setdefault(place, []).append(record)
    rows = []
    for name in compared_notebooks(root):
        cells = [_cell(found.get((name, model), [])) for model in REAL_MODELS]
        rows.append((f"{{doc}}`{name} <../notebooks/{name}>`", *cells))
    return table(("notebook", *REAL_MODELS), rows)


def _cell(records: Sequence[Record]) -> str:
    if not records:
        return "wanted"
    hours = sum(record.seconds.get("total", 0.0) for record in records) / 3600
    seeds = ", ".join(str(record.seed) for record in records)
    devices = ", ".join(dict.fromkeys(r.device.partition(":")[0] for r in records))
    dtypes = ", ".join(dict.fromkeys(record.dtype for record in records))
    return f"seed {seeds}: {hours:.1f} h on {devices}, {dtypes}"


def needs() -> str:
    """Memory for the weights of each real model, and the command for one notebook."""
    rows = []
    for name in REAL_MODELS:
        plan = memory_plan(true_config(name), torch.bfloat16)
        command = f"python -m safeedit run T1 -m {name} -p scale=gpu"
        rows.append((f"`{name}`", f"{plan.weights / 1e9:.1f}", f"`{command}`"))
    return table(("model", "weights in bfloat16, GB", "command for table 1"), rows)


def versions(root: Path = ROOT) -> str:
    """Released versions, and how to compare with the records of each."""
    rows = [
        (s.version, s.date, f"`python -m safeedit compare --at v{s.version}`")
        for s in changelog(root)
    ]
    return table(("version", "date", "compare with its records"), rows)


TEXTS = {
    "requests": requests,
    "categories": categories,
    "facts": facts,
    "questions": questions,
    "passages": passages,
    "example": example,
    "digest": digest,
    "standins": standins,
    "community": community,
    "needs": needs,
    "versions": versions,
}
