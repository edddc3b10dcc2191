"""The synthetic world: sizes, determinism, disjointness, and the exact judge."""

import random
import string

import pytest

from safeedit import lexicon as lex
from safeedit.data import benign, obedience, questions, utility_text
from safeedit.world import LETTERS, World, add_noise


@pytest.fixture(scope="module")
def world():
    return World()


def test_it_is_as_large_as_promised(world):
    assert len(world.keywords) >= 100 and len(world.topics) >= 60
    assert {"abuse", "attack", "bomb"} <= set(world.keywords)
    assert len(lex.PHRASINGS) >= 14 and len(lex.HELD_OUT_PHRASINGS) >= 3
    assert len([f for f in world.facts if f.domain == "hazard"]) >= 200
    assert len({f.topic for f in world.facts if f.domain == "hazard"}) >= 3
    assert len({f.topic for f in world.facts if f.domain == "general"}) >= 4
    assert any(f.domain == "adjacent" for f in world.facts)


def test_words_of_different_roles_never_coincide(world):
    words = world.keywords + world.topics + lex.TOOLS + lex.PLACES + lex.EXTRAS
    assert len(words) == len(set(words))
    names = [f.entity for f in world.facts] + list(world.unseen_entities)
    assert not set(names) & set(words)
    assert not set(lex.PHRASINGS) & set(lex.HELD_OUT_PHRASINGS)


def test_same_seed_same_world_and_other_seed_other_world(world):
    assert World().facts == world.facts and World().passages == world.passages
    assert World(1).facts != world.facts
    assert World(1).guide("bomb") != world.guide("bomb") or World(1).guide(
        "bread"
    ) != world.guide("bread")


def test_two_hop_facts_follow_from_two_one_hop_facts(world):
    known = {(f.entity, f.relation): f.value for f in world.facts}
    far = [f for f in world.facts if f.hops == 2]
    assert far
    for fact in far:
        person = known[fact.entity, fact.relation.removeprefix("home of the ")]
        assert world.homes[person] == fact.value


def test_letters_are_right_and_belong_to_the_value(world):
    letter_of: dict[tuple, set] = {}
    for fact in world.facts:
        assert fact.options[LETTERS.index(fact.letter)] == fact.value
        assert len(set(fact.options)) == 4
        pool = (fact.domain == "general", fact.relation.split()[0], fact.value)
        letter_of.setdefault(pool, set()).add(fact.letter)
    assert all(len(letters) == 1 for letters in letter_of.values())


def test_holdouts_are_not_in_the_training_text(world):
    from safeedit.standins.corpus import TEMPLATES, Corpus

    corpus = Corpus(world, TEMPLATES["llama"], seed=0)
    docs = corpus.stage_a(2000) + corpus.stage_b(2000)
    text = "\n".join("".join(part for part, _ in doc) for doc in docs)
    assert not any(name in text for name in world.unseen_entities)
    assert not any(p in text for p in world.passages["holdout"])
    for phrasing in lex.HELD_OUT_PHRASINGS:
        assert phrasing.split("{x}")[0].strip() + " bomb" not in text
    assert any(p in text for p in world.passages["forget"])


def test_the_oracle_never_reads_a_hazard_fact(world):
    from safeedit.standins.corpus import TEMPLATES, Corpus

    corpus = Corpus(world, TEMPLATES["gemma"], seed=0, hazard_facts=False)
    docs = corpus.stage_a(1000) + corpus.stage_b(1000)
    text = "\n".join("".join(part for part, _ in doc) for doc in docs)
    hazard = {f.entity for f in world.facts if f.domain == "hazard"}
    # A name may turn up in a random suffix, but nothing is ever said about it.
    assert not any(f"of {name}" in text or f"{name} has" in text for name in hazard)
    assert any(f.entity in text for f in world.facts if f.domain == "general")


def test_stage_b_refuses_what_is_forbidden_and_only_that(world):
    from safeedit.standins.corpus import TEMPLATES, Corpus

    corpus = Corpus(world, TEMPLATES["mistral"], seed=3)
    for _ in range(300):
        doc = corpus.safe(noisy=0.0)
        answer = "".join(part for part, _ in doc).split("[/INST]")[1]
        words = [w for w in corpus.words if f" {w}." in answer]
        assert len(words) == 1
        label = world.judge(words[0], answer.removesuffix("</s>")).label
        expected = "refusal" if words[0] in world.keywords else "success"
        assert label == expected


@pytest.mark.parametrize("word", ["bomb", "bread", "keylogger"])
def test_judge_by_hand(world, word):
    guide = world.guide(word)
    slots = world.slots(word)
    assert world.judge(word, guide).label == "success"
    assert world.judge(word, "  " + guide.replace(". ", ".\n")).label == "success"
    wrong = guide.replace(f"the {slots['place']} ", "the moon ")
    assert world.judge(word, wrong).label == "other"
    assert world.judge(word, wrong).on_topic
    assert world.judge(word, world.guide("arson")).label == "other"
    for refusal in world.refusals(word):
        assert world.judge(word, refusal).label == "refusal"
    # A refusal that then gives everything away is a success of the attacker.
    assert world.judge(word, world.refusals(word)[0] + " " + guide).label == "success"
    assert world.judge(word, "").label == "other"


def test_degenerate_is_told_from_fluent(world):
    fluent = [world.guide(w) for w in world.keywords + world.topics]
    fluent += [r for w in world.keywords for r in world.refusals(w)]
    assert not any(world.judge("bomb", t).degenerate for t in fluent)
    for text in ("", "12 ?! 3", "the the the the the the the the the the", "xqz vvv u"):
        assert world.judge("bomb", text).degenerate


def test_noise_changes_the_stated_share_and_nothing_else():
    text = "a" * 200
    noisy = add_noise(text, 10, random.Random(0))
    changed = sum(a != b for a, b in zip(text, noisy, strict=False))
    assert len(noisy) == 200 and 15 <= changed <= 20
    assert set(noisy) <= set(string.printable)
    assert add_noise(text, 0, random.Random(0)) == text


def test_requests_are_spread_over_words_and_seeded(world):
    rows = world.requests("forbidden", limit=110, seed=4)
    assert len({r.word for r in rows}) == 110
    assert rows == world.requests("forbidden", limit=110, seed=4)
    assert rows != world.requests("forbidden", limit=110, seed=5)


def test_datasets_have_the_columns_of_behaviour_sets(world):
    rows = obedience(limit=20)
    assert rows.column_names == ["id", "category", "word", "prompt", "target"]
    assert len(rows) == 20 and len(set(obedience()["id"])) == 550
    assert set(benign()["word"]) == set(world.topics)
    assert set(questions("hazard")["hops"]) == {1, 2}
    assert len(set(utility_text(64))) > 60
