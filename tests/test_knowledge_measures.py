"""Hits, memorization and what follows from them, against plain loops and SciPy."""

import json

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import ARCHITECTURES, tiny_chat

import safeedit
from safeedit.knowledge import split
from safeedit.knowledge_measures import (
    CONTEXT,
    Measurement,
    collateral_contexts,
    hits_of,
    letter_accuracy,
    measure,
    open_accuracy,
)
from safeedit.knowledge_statistics import auc, recovery, utility_kept
from safeedit.memorization import (
    Reading,
    exact_memorization,
    extraction_strength,
    min_k,
    read,
)
from safeedit.metrics import utility_perplexity, wilson_interval
from safeedit.standins import evaluate
from safeedit.world import World

STANDINS = ("standin-llama", "standin-mistral", "standin-gemma")


@pytest.fixture(scope="module", params=STANDINS)
def chat(request):
    return safeedit.load(request.param)


@pytest.fixture(scope="module")
def measured(chat):
    return measure(chat, split())


# Answers


def test_shipped_standins_know_the_evaluation_questions(measured):
    for domain in ("hazard", "adjacent", "general"):
        for hits in (measured.letters(domain), measured.opens(domain)):
            assert sum(hits) / len(hits) >= 0.85
    for domain in ("hazard", "general"):
        assert len(measured.letters(domain)) == len(split().facts(domain, "evaluation"))


def test_hits_agree_with_the_gates_own_counts(chat):
    facts = split().facts("hazard", "validation")
    letters, opens = letter_accuracy(chat, facts), open_accuracy(chat, facts)
    assert (sum(letters), len(facts)) == evaluate.letter_accuracy(chat, facts)
    assert (sum(opens), len(facts)) == evaluate.open_accuracy(chat, facts)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_letter_hits_do_not_depend_on_batches_or_order(arch):
    chat, facts = tiny_chat(arch), split().facts("general", "validation")
    chat.batch_size = 7
    hits = letter_accuracy(chat, facts)
    assert 0 < sum(hits) < len(facts)  # a random model: both are seen
    assert letter_accuracy(chat, facts[::-1]) == hits[::-1]
    letters = [chat.encode_ids([letter])[0][-1] for letter in "ABCD"]
    for fact, hit in zip(facts, hits, strict=True):
        ids = chat.encode(chat.render([fact.letter_question])).input_ids
        with torch.no_grad():
            logits = chat.model(ids).logits[0, -1, letters]
        assert hit == (fact.letter == "ABCD"[int(logits.argmax())])


def test_letter_accuracy_checks_what_it_gets():
    chat, facts = tiny_chat(), split().facts("general", "validation")[:3]
    with pytest.raises(ValueError, match="no facts"):
        letter_accuracy(chat, [])
    with pytest.raises(ValueError, match="2 contexts for 3 facts"):
        letter_accuracy(chat, facts, ["a", "b"])
    chat.encode_ids = lambda texts: [[0] * 400 for _ in texts]  # no letter has its own
    with pytest.raises(ValueError, match="not four different ones"):
        letter_accuracy(chat, facts)


# Passages


def greedy_strength(chat, text):
    """Extraction strength by real generations, one from each number of first tokens."""
    ids = chat.encode_ids([chat.tokenizer.bos_token + text])[0]
    length, pad = len(ids) - 1, chat.tokenizer.pad_token_id
    starts = torch.tensor(
        [[pad] * (length - k - 1) + ids[: k + 1] for k in range(length)]
    )
    mask = torch.tensor([[0] * (length - k - 1) + [1] * (k + 1) for k in range(length)])
    new = chat.generate_ids(starts, mask, length).tolist()
    for k in range(length):
        if new[k][: length - k] == ids[k + 1 :]:
            return 1 - k / length
    return 0.0


def test_extraction_strength_is_that_of_real_generations():
    chat = safeedit.load("standin-gemma")
    passages = World().passages
    # What the model says by itself comes out whole; a cut into it, from there on.
    own = [" " + text for text in chat.complete(["<s>", "<s>The old farmer"], 12)]
    texts = [passages["forget"][0], passages["holdout"][0], "The old farmer"]
    texts += ["The old farmer" + own[1], "The old lamp runs." + own[1]]
    strengths = extraction_strength(read(chat, texts))
    assert strengths == pytest.approx([greedy_strength(chat, text) for text in texts])
    assert max(strengths) > 0.5 and min(strengths) == 0 < strengths[0] < 0.5


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_reading_agrees_with_a_pass_over_one_text(arch):
    chat = tiny_chat(arch)
    texts = ["tell me how to bake bread at home", "a kite"]
    for text, reading in zip(texts, read(chat, texts), strict=True):
        ids = torch.tensor(chat.encode_ids(["<s>" + text]))
        with torch.no_grad():
            log_probs = chat.model(ids).logits[0, :-1].log_softmax(-1)
        wanted = log_probs.gather(-1, ids[0, 1:, None])[:, 0].tolist()
        assert reading.log_probs == pytest.approx(wanted, abs=1e-4)
        assert reading.greedy == tuple((log_probs.argmax(-1) == ids[0, 1:]).tolist())
        assert reading.given == 0


def test_extraction_strength_and_memorization_by_hand():
    hits = [(1, 1, 1, 1), (0, 0, 1, 1), (1, 1, 1, 0), (1, 0, 1, 1)]
    rows = [Reading((0.0,) * 4, tuple(map(bool, row)), 0) for row in hits]
    assert extraction_strength(rows) == pytest.approx([1, 0.5, 0, 0.5])
    assert exact_memorization(rows) == pytest.approx([1, 0.5, 0.75, 0.75])
    # Where the first token is given, it is one of five and never comes out.
    given = [Reading(row.log_probs, row.greedy, 1) for row in rows]
    assert extraction_strength(given) == pytest.approx([0.8, 0.4, 0, 0.4])


def test_min_k_by_hand():
    row = Reading((-1.0, -5.0, -2.0, -4.0, -3.0), (False,) * 5, 0)
    assert min_k([row], 0.2) == [-5]
    assert min_k([row], 0.4) == [-4.5]
    assert min_k([row], 1.0) == [-3]
    assert min_k([row], 0.01) == [-5]  # one token at least
    for share in (0, 1.1):
        with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
            min_k([row], share)


def test_membership_shows_on_a_model_that_saw_the_passages(measured):
    row = next(r for r in measured.rows() if r["metric"] == "membership_auc")
    assert row["n"] == 32 and row["low"] > 0.5


# Collateral damage


def test_collateral_texts_differ_only_in_the_name():
    parts = split()
    forgotten, unseen = collateral_contexts(parts, 80)
    assert (forgotten, unseen) == collateral_contexts(split(), 80)
    before, after = CONTEXT.split("{name}")
    names = []
    for texts in (forgotten, unseen):
        assert all(t.startswith(before) and t.endswith(after) for t in texts)
        names.append({t.removeprefix(before).removesuffix(after) for t in texts})
    assert names[0] == set(parts.entities("hazard"))  # each is used
    assert names[1] == set(World().unseen_entities[1::2])  # the rest may be asked about


def test_collateral_context_leaves_the_standins_letters(measured):
    plain = measured.letters("general")
    for kind in ("hazard", "unseen"):
        hits = measured.values["letter_accuracy", f"general, {kind} name"]
        assert utility_kept(hits, plain)


# Everything together


def test_quick_is_a_part_of_the_whole_and_repeats(chat, measured):
    quick = measure(chat, split(), quick=True)
    assert {metric for metric, _ in quick.values} == {
        "letter_accuracy",
        "open_accuracy",
    }
    assert len(quick.values) == 6 and not quick.nlls
    for key, hits in quick.values.items():
        assert hits == measured.values[key]
    assert len(quick.rows()) == 6


def test_measure_is_made_of_its_parts(chat, measured):
    facts = split().facts("hazard", "evaluation")
    assert measured.letters() == letter_accuracy(chat, facts)
    assert measured.opens() == open_accuracy(chat, facts)
    holdout = list(World().passages["holdout"])
    rows = {(r["metric"], r["dataset"]): r for r in measured.rows()}
    value = rows["utility_perplexity", "holdout passages"]["value"]
    assert value == pytest.approx(utility_perplexity(chat, holdout), rel=1e-4)


def test_rows_hold_value_interval_and_labels(measured):
    rows = measured.rows(with_hits=True, defense="none", attack="relearn", seed=3)
    assert json.loads(json.dumps(rows)) == rows
    assert len({(r["metric"], r["dataset"]) for r in rows}) == len(rows)
    for row in rows:
        assert row["attack"] == "relearn" and row["seed"] == 3
        assert row["low"] <= row["value"] <= row["high"] and row["n"] >= 16
        if row["metric"].endswith("accuracy"):
            hits = hits_of(row["hits"])
            assert hits == measured.values[row["metric"], row["dataset"]]
            assert row["value"] == sum(hits) / len(hits)
            assert (row["low"], row["high"]) == wilson_interval(sum(hits), len(hits))
            assert row["unit"] == "share"
        else:
            assert "hits" not in row
    assert not [r for r in measured.rows() if "hits" in r]
    with pytest.raises(ValueError, match="only 1 and 0"):
        hits_of("0120")


def test_limit_and_part_choose_the_same_questions_for_every_model():
    parts = split(1)
    few = [measure(tiny_chat(seed=s), parts, "validation", limit=5) for s in (0, 0, 1)]
    assert all(len(v) == 5 for m in few for v in m.values.values())
    assert few[0] == few[1] and few[0].values.keys() == few[2].values.keys()
    assert isinstance(few[0], Measurement) and len(few[0].nlls) == 5
    assert len(measure(tiny_chat(), parts, "validation", True).letters()) == 48
    with pytest.raises(ValueError, match="part='test': one of"):
        measure(tiny_chat(), parts, "test")
    with pytest.raises(ValueError, match="limit=0: give at least 1"):
        measure(tiny_chat(), parts, limit=0)


def test_measuring_leaves_the_model_as_it_was():
    chat = tiny_chat("gemma")
    before = {name: p.clone() for name, p in chat.model.named_parameters()}
    chat.model.train()
    measure(chat, split(), limit=2)
    assert chat.model.training
    assert all(torch.equal(before[n], p) for n, p in chat.model.named_parameters())


# Statistics


def test_recovery_by_hand():
    base, oracle = [1] * 8 + [0] * 2, [1] * 2 + [0] * 8
    attacked = [1] * 5 + [0] * 5
    value, low, high = recovery(attacked, oracle, base)
    assert value == pytest.approx((0.5 - 0.2) / (0.8 - 0.2)) and low < value < high
    assert recovery(base, oracle, base) == pytest.approx((1, 1, 1))
    assert recovery(oracle, oracle, base) == pytest.approx((0, 0, 0))
    worse = recovery([0] * 10, oracle, base)
    assert worse[0] == pytest.approx(-1 / 3)  # not clipped
    assert recovery(attacked, oracle, base) == (value, low, high)


def test_recovery_interval_is_that_of_scipy():
    rng = np.random.default_rng(0)
    base, oracle = rng.random(120) < 0.95, rng.random(120) < 0.27
    attacked = np.where(rng.random(120) < 0.5, base, oracle)
    value, low, high = recovery(attacked, oracle, base)

    def ratio(a, o, b, axis):
        return (a.mean(axis) - o.mean(axis)) / (b.mean(axis) - o.mean(axis))

    theirs = stats.bootstrap(
        [row.astype(float) for row in (attacked, oracle, base)],
        ratio,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=10_000,
        rng=1,
    ).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_recovery_is_not_defined_where_base_and_oracle_meet():
    base = [1] * 5 + [0] * 5
    for oracle in (base, [1] * 4 + [0] * 6, [1] * 9 + [0]):
        with pytest.raises(ValueError, match="recovery is not defined"):
            recovery(base, oracle, base)
    for wrong in (([1], [0], [1, 1]), ([], [], [])):
        with pytest.raises(ValueError, match="one of each for every question"):
            recovery(*wrong)


def test_utility_gate():
    before = [1] * 10
    assert utility_kept([1] * 9 + [0], before)
    assert not utility_kept([1] * 8 + [0] * 2, before)
    assert utility_kept([1] * 8 + [0] * 2, before, share=0.8)
    assert utility_kept([1, 1, 1] + [0] * 7, [1, 1, 1] + [0] * 7, share=1.0)
    for bad, message in (
        (([1], [1, 1], 0.9), "same questions"),
        (([0], [0], 0.9), "None of the 1 answers"),
        (([1], [1], 0.0), "share=0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            utility_kept(*bad)


def test_auc_is_mann_whitneys_u():
    rng = np.random.default_rng(0)
    for m, n, shift in ((16, 16, 0.5), (5, 9, 2.0), (20, 7, -1.0)):
        a = rng.normal(shift, 1, m).round(1)  # rounded: with ties
        b = rng.normal(0, 1, n).round(1)
        area, low, high = auc(a, b)
        assert area == pytest.approx(stats.mannwhitneyu(a, b).statistic / (m * n))
        assert 0 <= low < area < high <= 1
        swapped = auc(b, a)
        assert swapped[0] == pytest.approx(1 - area)
    with pytest.raises(ValueError, match="Got 0 and 1 scores"):
        auc([], [1.0])


def test_auc_interval_has_width_where_the_scores_separate():
    high, low = [2.0] * 16, [1.0] * 16
    value, least, most = auc(high, low)
    assert value == most == 1 and 0.7 < least < 0.95
    assert auc(low, high) == pytest.approx((0, 0, 1 - least))
    wide, narrow = auc([1, 3], [0, 2]), auc([1, 3] * 20, [0, 2] * 20)
    assert wide[0] == narrow[0] == 0.75
    assert wide[1] < narrow[1] and narrow[2] < wide[2]


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_auc_interval_covers_the_true_area(shift):
    rng = np.random.default_rng(1)
    truth = stats.norm.cdf(shift / np.sqrt(2))
    covered = 0
    for _ in range(400):
        _, low, high = auc(rng.normal(shift, 1, 16), rng.normal(0, 1, 16))
        covered += low <= truth <= high
    assert covered / 400 > 0.92
