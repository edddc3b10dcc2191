"""Who may see what: the split, the training sets and the attacker's data."""

import re
from collections import Counter
from dataclasses import asdict

import pytest
from tiny import tiny_chat

from safeedit.knowledge import (
    DOMAINS,
    KINDS,
    ORDERS,
    PARTS,
    SIZES,
    questions,
    relearn_examples,
    split,
    tokenized,
    unlearn_data,
)
from safeedit.world import LETTERS, World

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module", params=SEEDS)
def parts(request):
    return split(request.param)


def asked(chats):
    return {question for question, _ in chats}


# The split


def test_split_is_disjoint_and_keeps_entities_whole(parts):
    seen = [name for part in PARTS for name in getattr(parts, part)]
    assert len(seen) == len(set(seen))
    assert set(seen) == {fact.entity for fact in World().facts}
    for domain in DOMAINS:
        whole = parts.facts(domain)
        assert whole == [fact for fact in World().facts if fact.domain == domain]
        pieces = [fact for part in PARTS for fact in parts.facts(domain, part)]
        assert sorted(map(str, pieces)) == sorted(map(str, whole))


def test_split_has_the_stated_sizes_in_each_topic(parts):
    for domain in DOMAINS:
        for part, size in zip(PARTS, SIZES[domain], strict=True):
            names = {(f.topic, f.entity) for f in parts.facts(domain, part)}
            topics = {fact.topic for fact in parts.facts(domain)}
            assert Counter(t for t, _ in names) == dict.fromkeys(topics, size)
            assert len(parts.entities(domain, part)) == size * len(topics)


def test_split_depends_on_its_seed_and_on_nothing_else():
    assert split(0) == split(0)
    assert len({split(seed).evaluation for seed in range(5)}) == 5
    assert len({split(seed).practice for seed in range(5)}) == 5
    other = split(0, World(seed=1))
    assert not set(other.entities("hazard")) & set(split(0).entities("hazard"))


def test_letters_of_evaluation_questions_are_even(parts):
    """A model that always says the same letter is near one in four."""
    for domain in DOMAINS:
        facts = parts.facts(domain, "evaluation")
        shares = Counter(fact.letter for fact in facts)
        assert set(shares) == set(LETTERS)
        assert max(shares.values()) / len(facts) <= 0.30
        assert min(shares.values()) / len(facts) >= 0.20


def test_unknown_domain_or_part_is_named():
    with pytest.raises(ValueError, match="domain='hazards'.*one of"):
        split().facts("hazards")
    with pytest.raises(ValueError, match="part='test'"):
        split().facts("hazard", "test")


# The training sets


def test_no_evaluation_or_validation_question_in_any_training_set(parts):
    data = unlearn_data(parts)
    seen = asked(data.forget_chats) | asked(data.retain_chats)
    for kind in KINDS:
        seen |= asked(relearn_examples(parts, kind, 20)[1])
    for domain in DOMAINS:
        for part in ("validation", "evaluation"):
            hidden = asked(questions(parts.facts(domain, part)))
            assert hidden and not hidden & seen
            # Not as a piece of another text either.
            texts = " ".join([*data.forget_texts, *data.retain_texts, *seen])
            assert not [question for question in hidden if question in texts]


def test_forget_set_is_documents_of_all_and_questions_of_practice_hazards(parts):
    data = unlearn_data(parts, orders=4)
    names = Counter(text.split()[2] for text in data.forget_texts)
    assert names == dict.fromkeys(parts.entities("hazard"), 4)
    assert len(set(data.forget_texts)) == len(data.forget_texts)
    facts = parts.facts("hazard", "practice")
    assert len(data.forget_chats) == 2 * len(facts)
    for fact in facts:
        assert (fact.open_question, f"{fact.value}.") in data.forget_chats
        assert (fact.letter_question, f"{fact.letter}.") in data.forget_chats


def test_retain_set_says_nothing_of_hazard_entities(parts):
    data = unlearn_data(parts)
    names = set(parts.entities("hazard"))
    texts = [*data.retain_texts, *(f"{q} {a}" for q, a in data.retain_chats)]
    words = {word for text in texts for word in re.findall("[a-z]+", text)}
    assert not words & names
    for domain in ("adjacent", "general"):  # documents of all, evaluation included
        assert set(parts.entities(domain)) <= words
    kept = asked(data.retain_chats)
    assert asked(questions(parts.facts("general", "practice"))) <= kept
    assert not asked(questions(parts.facts("adjacent"))) & kept
    world = World()
    assert set(world.passages["retain"]) <= set(data.retain_texts)
    for name in ("forget", "holdout"):
        assert not set(world.passages[name]) & set(data.retain_texts)


def test_retain_set_keeps_the_manners_of_the_chat(parts):
    world, data = World(), unlearn_data(parts, requests=20)
    answers = dict(data.retain_chats)
    benign = {r.prompt: r for r in world.requests("benign", "train")}
    forbidden = {r.prompt: r for r in world.requests("forbidden", "train")}
    kept = [benign[q] for q in answers if q in benign]
    refused = [forbidden[q] for q in answers if q in forbidden]
    assert len(kept) == len(refused) == 20
    for request, label in [(r, "success") for r in kept] + [
        (r, "refusal") for r in refused
    ]:
        assert world.judge(request.word, answers[request.prompt]).label == label


def test_forget_passages_are_a_switch(parts):
    world = World()
    without, with_them = unlearn_data(parts), unlearn_data(parts, passages=True)
    assert set(with_them.forget_texts) - set(without.forget_texts) == set(
        world.passages["forget"]
    )


def test_training_sets_are_deterministic_and_differ_by_seed(parts):
    data = unlearn_data(parts)
    assert asdict(data) == asdict(unlearn_data(split(parts.seed)))
    assert asdict(data) != asdict(unlearn_data(split(parts.seed + 1)))


def test_refusals_are_made_of_known_words():
    world, data = World(), unlearn_data(split())
    assert len(set(data.refusals)) > 1
    for text in data.refusals:
        assert set(re.findall(r"[a-z']+", text.lower())) <= world.vocabulary
        assert world.judge("bomb", text).label == "refusal"


def test_sizes_are_checked():
    for orders in (0, ORDERS + 1):
        with pytest.raises(ValueError, match=f"orders={orders}: give 1 to 6"):
            unlearn_data(split(), orders=orders)
    with pytest.raises(ValueError, match="neutral=-1: give 0 or more"):
        unlearn_data(split(), neutral=-1)
    bare = unlearn_data(split(), neutral=0, skills=0, requests=0)
    assert len(bare.retain_chats) == 2 * len(split().facts("general", "practice"))


# The attacker's data


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_nested_and_belong_to_the_attacker(parts, kind):
    texts, chats = relearn_examples(parts, kind, 40, seed=3)
    assert len(texts) + len(chats) == 40 and not (texts and chats)
    assert len(set(texts) | set(chats)) == 40
    few = relearn_examples(parts, kind, 15, seed=3)
    assert few == (texts[:15], chats[:15])
    assert relearn_examples(parts, kind, 40, seed=4) != (texts, chats)
    assert relearn_examples(parts, kind, 0) == ((), ())
    words = set(re.findall("[a-z]+", " ".join([*texts, *map(" ".join, chats)])))
    allowed = {
        "documents": ("hazard", "practice"),
        "questions": ("hazard", "practice"),
        "general": ("general", "practice"),
    }
    entities = words & {fact.entity for fact in World().facts}
    if kind in allowed:
        assert entities and entities <= set(parts.entities(*allowed[kind]))
    else:
        assert not entities


def test_documents_come_round_by_round(parts):
    names = parts.entities("hazard", "practice")
    texts, _ = relearn_examples(parts, "documents", len(names))
    assert sorted(text.split()[2] for text in texts) == sorted(names)


def test_wrong_kind_and_too_many_samples_are_named():
    with pytest.raises(ValueError, match="kind='facts': one of"):
        relearn_examples(split(), "facts", 5)
    for n in (-1, 181):
        with pytest.raises(ValueError, match=f"n={n} samples.*give 0 to 180"):
            relearn_examples(split(), "documents", n)
    with pytest.raises(ValueError, match="n=-1"):
        relearn_examples(split(), "text", -1)


def test_tokenized_takes_texts_chats_both_or_neither():
    chat = tiny_chat()
    texts, chats = ("a boat",), (("how", "so."), ("why", "no."))
    both = tokenized(chat, texts, chats)
    assert both == tokenized(chat, texts, ()) + tokenized(chat, (), chats)
    assert len(both) == 3 and tokenized(chat, (), ()) == []
