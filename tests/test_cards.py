"""The data card and the list of wanted records: counted, and in the pages."""

import dataclasses
import re
from types import SimpleNamespace

import pytest
from docutils.parsers.rst import DirectiveError

from safeedit import cards, records
from safeedit.knowledge import split
from safeedit.records import ROOT
from safeedit.sphinx.cards import Card
from safeedit.tables import REAL_MODELS
from safeedit.world import World


def rows(text):
    """Cells of a Markdown table without its head."""
    lines = text.splitlines()[2:]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


@pytest.mark.parametrize("name", cards.TEXTS)
def test_every_text_is_used_on_a_page_and_made(name):
    pages = "".join(path.read_text() for path in (ROOT / "book").glob("*.md"))
    assert f"```{{safeedit-card}} {name}\n```" in pages
    text = cards.TEXTS[name]()
    assert text.startswith("|") or name == "digest"
    widths = {line.count(" | ") for line in text.splitlines()[2:]}
    assert len(widths) <= 1


def test_pages_ask_for_no_other_text():
    for path in (ROOT / "book").glob("*.md"):
        for name in re.findall(r"\{safeedit-card\} (\w+)", path.read_text()):
            assert name in cards.TEXTS


def test_counts_are_those_of_the_world():
    world = World()
    total = sum(int(row[-1]) for row in rows(cards.requests()))
    kinds = [(k, s) for k in ("forbidden", "benign") for s in ("train", "heldout")]
    assert total == sum(len(world.requests(*kind)) for kind in kinds)
    for row in rows(cards.requests()):
        assert int(row[-1]) == int(row[3]) * int(row[4])
    found = rows(cards.facts())
    assert sum(int(row[-1]) + int(row[-2]) for row in found) == len(world.facts)


def test_letters_of_a_part_add_up_to_its_questions():
    parts = split(0)
    for domain, part, entities, n, *letters in rows(cards.questions()):
        assert sum(map(int, letters)) == int(n) == len(parts.facts(domain, part))
        assert int(entities) == len(parts.entities(domain, part))


def test_digest_tells_two_worlds_apart():
    assert cards.world_digest(World()) == cards.world_digest(World(0))
    assert cards.world_digest(World()) != cards.world_digest(World(1))
    assert cards.world_digest(World()) in cards.digest()


def test_every_shipped_model_is_on_the_card():
    said = {row[0].strip("`") for row in rows(cards.standins())}
    folders = (ROOT / "safeedit" / "standins").glob("*/model.safetensors")
    assert said == {f"standin-{path.parent.name}" for path in folders}


def test_a_record_is_wanted_until_it_is_there(tmp_path):
    wanted = rows(cards.community(folder=tmp_path))
    assert {cell for row in wanted for cell in row[1:]} == {"wanted"}
    assert all(len(row) == 1 + len(REAL_MODELS) for row in wanted)
    template = records.find(notebook="T2_refusal_patterns")[0]
    for seed in (0, 2):
        made = dataclasses.replace(
            template,
            model=template.model | {"name": "gemma-2b-it", "weights": "real"},
            device="cuda:0",
            dtype="bfloat16",
            seed=seed,
            seconds={"total": 5400.0},
        )
        made.write(tmp_path / made.notebook / f"gemma-2b-it.seed-{seed}.json")
    shown = [row for row in rows(cards.community(folder=tmp_path)) if "T2" in row[0]]
    column = 1 + list(REAL_MODELS).index("gemma-2b-it")
    assert shown[0][column] == "seed 0, 2: 3.0 h on cuda, bfloat16"
    assert shown[0].count("wanted") == 2


def test_a_bar_does_not_break_a_table():
    assert cards.table(("a",), [("x|y",)]).splitlines()[-1] == "| x\\|y |"


def test_an_unknown_text_ends_the_build():
    directive = Card.__new__(Card)
    directive.arguments, directive.name = ["nothing"], "safeedit-card"
    settings = SimpleNamespace(env=SimpleNamespace(note_reread=lambda: None))
    directive.state = SimpleNamespace(document=SimpleNamespace(settings=settings))
    directive.lineno = 1
    with pytest.raises(DirectiveError) as raised:
        directive.run()
    assert "'nothing' is not one of requests" in raised.value.msg
