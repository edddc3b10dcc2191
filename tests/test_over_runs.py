"""Figures over several runs: paired by question and run, by hand and on records."""

import pandas as pd
import pytest

from safeedit import answer_tables, answers, clustered, over_runs, records
from safeedit.guessing import chance
from safeedit.knowledge import split
from safeedit.knowledge_statistics import recovery

HITS = {  # (defense, attack, dataset) -> hits of the run with seed 0, and 1 or 2
    ("base", "none", "hazard"): ("111111", "111111"),
    ("oracle", "none", "hazard"): ("100000", "010000"),
    ("NPO", "none", "hazard"): ("000000", "100000"),
    ("RMU", "none", "hazard"): ("100000", "000000"),
    ("base", "x", "hazard"): ("111110", "111101"),
    ("oracle", "x", "hazard"): ("100010", "010000"),
    ("NPO", "x", "hazard"): ("110000", "100000"),
    ("RMU", "x", "hazard"): ("111100", "111100"),
    ("NPO", "none", "general"): ("1111111111", "1111111111"),
    ("NPO", "x", "general"): ("1111111110", "1111111100"),
}


def made(seed, hits=None, **more):
    """A record of one run; every list of hits is that of its seed."""
    rows = [
        dict(
            defense=d,
            attack=a,
            metric="letter_accuracy",
            dataset=s,
            hits=own[min(seed, 1)],
        )
        for (d, a, s), own in (hits or HITS).items()
    ]
    rows += [row | {"metric": "open_accuracy"} for row in rows]
    fields = dict(
        kit_version="0",
        commit="0",
        notebook="U2a_attacks",
        parameters={"scale": "cpu"},
        fingerprint="0",
        model={"name": "standin-gemma", "id": "", "revision": "", "weights": "x"},
        device="cpu",
        dtype="float32",
        seed=seed,
        versions={},
        seconds={},
        peak_memory_mb=None,
        started="2026-01-01T00:00:00+00:00",
        prompts=[*answers.kept(rows), answers.said("NPO", "ABCDAB")],
    )
    return records.Record(**fields | more)


@pytest.fixture
def frame():
    return over_runs.frame(map(made, range(3)))


def one(frame, **where):
    found = frame[(frame[list(where)] == pd.Series(where)).all(axis=1)]
    assert len(found) == 1, where
    return found.iloc[0]


LETTERS = dict(measure="letter_accuracy", defense="RMU", attack="x")


def test_shares_count_answers_questions_and_runs(frame):
    row = one(frame, metric="letter_accuracy", defense="RMU", attack="x")
    assert (row.value, row.n, row.runs) == (12 / 18, 18, 3)
    names = [
        {
            answer_tables.name_of(f)
            for f in split(seed).facts("hazard", "evaluation")[:6]
        }
        for seed in range(3)
    ]
    assert row.questions == len(set.union(*names))


def test_one_run_has_the_recovery_of_its_own_row(frame):
    """The point is that of `knowledge_statistics.recovery`, here and over runs."""
    for seeds in ((0,), (1,), (0, 1, 2)):
        own = over_runs.frame([made(seed) for seed in seeds])
        hits = [
            [int(h) for seed in seeds for h in HITS[who, "x", "hazard"][min(seed, 1)]]
            for who in ("RMU", "oracle", "base")
        ]
        row = one(own, metric="recovery", **LETTERS)
        assert row.value == pytest.approx(recovery(*hits)[0])
        assert row.low < row.value < row.high


def test_gain_difference_and_difference_of_gains(frame):
    assert one(frame, metric="gain", **LETTERS).value == pytest.approx(11 / 18)
    versus = LETTERS | {"versus": "NPO"}
    assert one(frame, metric="difference", **versus).value == pytest.approx(8 / 18)
    # RMU gained 11 of 18, NPO 2 of 18.
    found = one(frame, metric="gain_difference", **versus)
    assert found.value == pytest.approx(9 / 18)
    assert not len(frame[(frame.metric == "gain") & (frame.attack == "none")])


def test_gate_is_the_share_of_runs_that_keep_nine_tenths(frame):
    row = one(frame, metric="utility_kept", defense="NPO", attack="x")
    assert (row.value, row.n) == (pytest.approx(1 / 3), 3)


def test_no_recovery_where_base_and_oracle_cannot_be_told_apart():
    same = HITS | {("oracle", "x", "hazard"): HITS["base", "x", "hazard"]}
    own = over_runs.frame(made(seed, same) for seed in range(3))
    assert set(own[own.metric == "recovery"].attack) == {"none"}


def test_no_recovery_from_a_gap_that_chance_explains():
    """The base is above the oracle by one question of eighteen."""
    near = HITS | {
        ("base", "x", "hazard"): ("100000", "111000"),
        ("oracle", "x", "hazard"): ("011000", "100000"),
    }
    own = over_runs.frame(made(seed, near) for seed in range(3))
    seen = own[own.metric.isin(["letter_accuracy"]) & (own.attack == "x")]
    share = seen[seen.dataset == "hazard"].set_index("defense").value
    assert share["base"] > share["oracle"]
    assert set(own[own.metric == "recovery"].attack) == {"none"}


def test_methods_that_no_run_has_both_are_not_compared():
    """And a run that did not measure a gate does not count for it."""
    only = [
        {key: own for key, own in HITS.items() if key[0] != name}
        for name in ("RMU", "NPO")
    ]
    own = over_runs.frame([made(0, only[0]), made(1, only[1])])
    assert not len(own[(own.metric == "difference") & (own.defense == "RMU")])
    gate = one(own, metric="utility_kept", defense="NPO", attack="x")
    assert (gate.value, gate.n) == (1, 1)


def test_a_reference_is_taken_under_the_attack_that_was_tuned_on_the_method():
    tuned = [
        dict(defense=who, attack="x", metric=metric, dataset="hazard", hits=hits)
        | {"versus": "RMU"}
        for who, hits in (("base", "111111"), ("oracle", "000000"))
        for metric in ("letter_accuracy", "open_accuracy")
    ]
    record = made(0)
    record.prompts.extend(answers.kept(tuned))
    own = over_runs.frame([record])
    assert one(own, metric="recovery", **LETTERS).value == pytest.approx(4 / 6)
    npo = one(own, metric="recovery", **LETTERS | {"defense": "NPO"})
    assert npo.value == pytest.approx((2 - 2) / (5 - 2))


def test_questions_that_only_some_runs_asked_are_left_out_of_pairs():
    """A method that one run lacks is compared in the other one only."""
    few = {key: own for key, own in HITS.items() if key[0] != "RMU"}
    own = over_runs.frame([made(0), made(1, few), made(2)])
    row = one(own, metric="difference", **LETTERS, versus="NPO")
    assert (row.value, row.n, row.runs) == (5 / 12, 12, 2)
    assert one(own, metric="gain", **LETTERS | {"defense": "NPO"}).n == 18


def test_interval_is_that_of_clusters(frame):
    tables = answer_tables.tables_of(map(made, range(3)))["standin-gemma"]
    table = tables["letter_accuracy", "hazard"]
    gain = table["RMU", "x", ""] - table["RMU", "none", ""]
    runs, questions = (gain.index.get_level_values(i) for i in (0, 1))
    wanted = clustered.mean(gain, list(runs), list(questions))
    row = one(frame, metric="gain", **LETTERS)
    assert (row.value, row.low, row.high) == pytest.approx(wanted)
    assert over_runs.by_run(gain).to_dict() == pytest.approx(
        {0: 3 / 6, 1: 4 / 6, 2: 4 / 6}
    )


def test_chance_is_that_of_each_run_and_what_lies_above_is_clustered():
    level, above = over_runs.chances([made(0), made(1)])
    facts = {s: answer_tables.asked(s, "hazard", 6) for s in (0, 1)}
    dealt = [  # the mean over all deals, run by run
        chance("ABCDAB", [f.letter for f in own], [f.relation for f in own])[0]
        for own in facts.values()
    ]
    assert level["value"] == pytest.approx(sum(dealt) / 2)
    assert (level["model"], level["defense"]) == ("standin-gemma", "NPO")
    assert (level["n"], level["runs"]) == (12, 2)
    right = [
        said == fact.letter
        for own in facts.values()
        for said, fact in zip("ABCDAB", own, strict=True)
    ]
    assert above["value"] == pytest.approx(sum(right) / 12 - level["value"])
    assert above["low"] < above["value"] < above["high"]


def test_one_letter_for_all_is_never_above_chance():
    """Whatever the questions, this model knows nothing, and scores its chance."""
    runs = [
        made(s, prompts=[answers.said("NPO", "D" * 72)], model=dict(name="m"))
        for s in range(5)
    ]
    level, above = over_runs.chances(runs)
    assert level["value"] == pytest.approx(0.25, abs=0.03)  # the splits are even
    assert above["value"] == pytest.approx(0)
    assert above["low"] < 0 < above["high"]


def test_who_knows_is_above_chance():
    facts = {s: answer_tables.asked(s, "hazard", 72) for s in range(5)}
    runs = [
        made(s, prompts=[answers.said("base", [f.letter for f in own])])
        for s, own in facts.items()
    ]
    level, above = over_runs.chances(runs)
    assert above["value"] == pytest.approx(1 - level["value"])
    assert above["low"] > 0.5


def test_own_record_stands_in_for_the_published_one(monkeypatch):
    smoke = made(3, parameters={"scale": "smoke"})
    published = [made(2), made(1, commit="old"), made(0), smoke]
    monkeypatch.setattr(records, "find", lambda notebook: published)
    found = over_runs.beside(made(1, commit="new"))
    assert [record.seed for record in found] == [0, 1, 2]
    assert found[1].commit == "new"


def test_mean_of_runs_is_no_narrower_than_one_run_or_than_student():
    same = pd.DataFrame({"value": [0.5] * 5, "low": [0.3] * 5, "high": [0.7] * 5})
    row = over_runs.means_of_runs(same.assign(metric="auc"), ["metric"]).iloc[0]
    assert (row.value, row.n) == (0.5, 5)
    assert (row.low, row.high) == pytest.approx((0.3, 0.7))
    bare = pd.DataFrame({"value": [1.0, 3.0], "low": None, "high": None}).astype(float)
    row = over_runs.means_of_runs(bare.assign(metric="norm"), ["metric"]).iloc[0]
    assert row.high - row.value == pytest.approx(12.706, abs=1e-3)  # t of 1 degree


def test_records_without_answers_and_twice_the_same_are_refused():
    with pytest.raises(
        ValueError, match="U2a_attacks on standin-gemma with seed 1 has"
    ):
        answer_tables.tables_of([made(0), made(1, prompts=[])])
    with pytest.raises(ValueError, match="got no records"):
        answer_tables.tables_of([])
    with pytest.raises(ValueError, match="two records of standin-gemma with seed 0"):
        answer_tables.tables_of([made(0), made(0)])
