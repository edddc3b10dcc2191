"""A rerun beside the published records: verdicts, words, and their statistics."""

import dataclasses
import json
import subprocess

import numpy as np
import pytest

from safeedit import __main__ as cli
from safeedit import comparison, records
from safeedit.commands import compare as command
from safeedit.metrics import wilson_interval

ROW = records.row


def rate(hits, n=20, metric="success_rate", **labels):
    bounds = wilson_interval(hits, n)
    return ROW(metric, hits / n, n, *bounds, unit="share", **labels)


def record(*rows, notebook="T9_demo", seed=0, versions=None, **parameters):
    return records.Record(
        kit_version="0.1.0",
        commit="abc",
        notebook=notebook,
        parameters={"seed": seed, "scale": "cpu", **parameters},
        fingerprint="f" * 64,
        model={"name": "m", "id": "m", "revision": None, "weights": "local"},
        device="cpu",
        dtype="float32",
        seed=seed,
        versions=versions or {"torch": "2.13.0"},
        seconds={},
        peak_memory_mb=None,
        started="2026-01-01T00:00:00+00:00",
        rows=list(rows),
    )


def verdicts(mine, published):
    result = comparison.compare([record(*mine)], [record(*published)])
    return {line.what: line.verdict for line in result.lines}


def test_difference_of_two_rates_is_newcombes():
    """His example (1998, table II, a): 56 of 70 less 48 of 80, method 10."""
    bounds = [wilson_interval(56, 70), wilson_interval(48, 80)]
    low, high = comparison.difference(56 / 70, bounds[0], 48 / 80, bounds[1])
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def test_equal_rates_rarely_differ():
    """About one in twenty when both are drawn anew, as a 95 % interval promises."""
    rng = np.random.default_rng(0)
    for chance in (0.1, 0.5):
        draws = rng.binomial(48, chance, size=(2000, 2)).tolist()
        differs = [comparison.judge(rate(a, 48), rate(b, 48)) for a, b in draws]
        assert 0.02 < differs.count("differs") / len(draws) < 0.07


CASES = {
    "equal": (rate(5), rate(5), "same"),
    "rates near": (rate(5), rate(9), "within"),
    "rates apart": (rate(2), rate(12), "differs"),
    "another n": (rate(10, 20), rate(20, 40), "within"),
    "rate without interval": (
        ROW("success_rate", 0.5, 20, unit="share"),
        rate(9),
        "within",
    ),
    "means near": (ROW("kl", 1, 9, 0.5, 2), ROW("kl", 2.2, 9, 1.4, 3), "within"),
    # The intervals touch; together they say more than either.
    "means apart": (ROW("kl", 1, 9, 0.5, 2), ROW("kl", 3, 9, 2, 4), "differs"),
    "no pair moved, then one": (
        ROW("success_difference", 0.0, 16, 0.0, 0.0),
        ROW("success_difference", -1 / 16, 16, -1 / 16, -1 / 16),
        "within",
    ),
    "no pair moved, then three": (
        ROW("success_difference", 0.0, 16, 0.0, 0.0),
        ROW("success_difference", -3 / 16, 16, -3 / 16, -3 / 16),
        "differs",
    ),
    "setting": (
        ROW("pcr_factor", 1.5, unit="setting"),
        ROW("pcr_factor", 1.51, unit="setting"),
        "differs",
    ),
    "loss": (ROW("final_loss", 0.02), ROW("final_loss", 0.06), "within"),
    "large loss": (ROW("loss", 5.0, unit="nats"), ROW("loss", 6.0), "differs"),
    "rounding": (ROW("smallest_margin", 0.0), ROW("smallest_margin", 2e-5), "within"),
    "number": (ROW("relative_norm", 1.0), ROW("relative_norm", 1.04), "within"),
    "number apart": (ROW("relative_norm", 1.0), ROW("relative_norm", 1.1), "differs"),
    "one interval is missing": (ROW("kl", 1, 9), ROW("kl", 1.2, 9, 0.1, 9), "differs"),
    "another verdict": (
        ROW("claim", 0.1, 9, -0.1, 0.3, verdict="cannot be told"),
        ROW("claim", 0.1, 9, -0.1, 0.3, verdict="holds"),
        "differs",
    ),
}


@pytest.mark.parametrize("mine, published, verdict", CASES.values(), ids=CASES)
def test_verdict_on_one_value(mine, published, verdict):
    assert comparison.judge(mine, published) == verdict
    assert comparison.judge(published, mine) == verdict  # neither side is preferred


def test_values_are_matched_by_their_labels():
    mine = [rate(5, attack="gcg"), rate(5, attack="pgd"), rate(1, attack="new")]
    published = [rate(5, attack="gcg"), rate(19, attack="pgd"), rate(1, attack="gone")]
    assert verdicts(mine, published) == {
        "success_rate, attack gcg": "same",
        "success_rate, attack pgd": "differs",
        "success_rate, attack gone": "missing",
        "success_rate, attack new": "new",
    }


@pytest.mark.parametrize("unit", comparison.MACHINE_UNITS)
def test_values_of_a_machine_are_left_out(unit):
    assert (
        verdicts([ROW("speed", 3.0, unit=unit)], [ROW("speed", 9.0, unit=unit)]) == {}
    )


def test_other_parameters_are_another_record():
    result = comparison.compare(
        [record(rate(1), length=8)], [record(rate(1), length=9)]
    )
    assert result.lines == [] and result.both == []
    assert len(result.only_mine) == len(result.only_published) == 1
    assert command.words(result).startswith("Nothing to compare")


def test_two_records_or_values_of_one_name_are_refused():
    with pytest.raises(records.RecordError, match="two records of T9_demo m seed 0"):
        comparison.compare([record(), record()], [])
    twice = record(rate(1), rate(2))
    with pytest.raises(records.RecordError, match="two values of 'success_rate'"):
        comparison.compare([twice], [twice])


def many(differ):
    """508 values, ten of them a little off, some of them far."""
    mine = [rate(8, attack=f"a{i}") for i in range(508)]
    published = list(mine)
    for i in range(10):
        published[i] = rate(9, attack=f"a{i}")
    for i in range(10, 10 + differ):
        published[i] = rate(20, attack=f"a{i}")
    return record(*mine), record(*published)


def test_words_come_first():
    mine, published = many(0)
    text = command.words(comparison.compare([mine], [published]))
    assert text == (
        "498 of 508 values are equal to the last bit, 10 within the tolerance of their "
        "kind, none differs."
    )


def test_words_say_what_chance_would_do():
    mine, published = many(30)
    text = command.words(comparison.compare([mine], [published]))
    assert "10 within the tolerance of their kind, 30 differ." in text
    assert "about 2 would differ by chance" in text  # 5 % of 40


def test_words_name_other_versions_and_records():
    mine = [record(rate(5), versions={"torch": "2.14.0"}), record(seed=1)]
    text = command.words(comparison.compare(mine, [record(rate(5))]))
    assert "torch: mine 2.14.0; published 2.13.0" in text
    assert "1 record only mine: T9_demo m seed 1" in text


def test_table_shows_both_sides_and_the_rule():
    result = comparison.compare(
        [record(rate(20), ROW("kl", 1.0))], [record(rate(2), ROW("gone", 1.0))]
    )
    lines = command.listing(result).splitlines()
    assert "differs" in lines[1] and "missing" in lines[2] and "new" in lines[3]
    assert "1 [0.839, 1] n 20" in lines[1] and "0.1 [0.0279, 0.301] n 20" in lines[1]
    assert "Newcombe" in lines[1] and "Newcombe" not in lines[2]


def test_table_is_cut_and_says_so():
    mine, published = many(60)
    result = comparison.compare([mine], [published])
    cut = command.listing(result, 5).splitlines()
    assert len(cut) == 7 and cut[-1] == "... and 55 more: --all or --json"
    assert len(command.listing(result, None).splitlines()) == 61


def write(folder, *found):
    for item in found:
        item.write(folder / item.notebook / f"m.seed-{item.seed}.json")
    return str(folder)


@pytest.mark.parametrize("hits, status", [(5, 0), (6, 0), (19, 1)])
def test_command_says_it_with_its_status(tmp_path, capsys, hits, status):
    mine = write(tmp_path / "a", record(rate(hits)))
    published = write(tmp_path / "b", record(rate(5)))
    assert cli.main(["compare", mine, published]) == status
    words = capsys.readouterr().out
    assert cli.main(["compare", mine, published, "--json"]) == status
    said = json.loads(capsys.readouterr().out)
    assert said["agrees"] == (status == 0)
    assert said["verdict"] == words.split("\n\n")[0].splitlines()
    assert sum(said["counts"].values()) == 1
    assert len(said["values"]) == (hits != 5)
    for value in said["values"]:
        assert value["mine"]["value"] == hits / 20
        assert value["published"]["value"] == 5 / 20


def test_command_takes_the_records_of_a_commit(tmp_path, capsys, monkeypatch):
    def git(*words):
        name = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        subprocess.run(["git", "-C", str(tmp_path), *name, *words], check=True)

    monkeypatch.setattr(command, "ROOT", tmp_path)
    mine = write(tmp_path / "results", record(rate(5)))
    assert cli.main(["compare", mine]) == 0  # no repository, so nothing published
    assert "No published records" in capsys.readouterr().out
    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "one")
    git("tag", "v1")
    write(tmp_path / "results", record(rate(19)))
    git("commit", "-q", "-a", "-m", "two")
    assert cli.main(["compare", mine]) == 0
    assert cli.main(["compare", mine, "--at", "v1"]) == 1
    capsys.readouterr()
    for name in ("nowhere", "--output=x"):
        assert cli.main(["compare", mine, f"--at={name}"]) == 1
        assert f"no results at {name!r}" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_every_published_value_has_a_name_of_its_own():
    """So that none hides another; and a set of records agrees with itself."""
    found = records.find()
    result = comparison.compare(found, found)
    assert len(result.both) == len(found) > 0
    assert {line.verdict for line in result.lines} == {"same"}
    timed = comparison.MACHINE_UNITS
    rows = [row for r in found for row in r.rows if row.get("unit") not in timed]
    assert len(result.lines) == len(rows)


def test_a_shift_of_every_value_is_seen():
    """A copy of the published records, all rates turned round, does not pass."""
    found = [r for r in records.find() if r.notebook == "T1_attack_success"][:1]
    turned = []
    for row in found[0].rows:
        if row.get("unit") == "share":
            ends = {"low": 1 - row["high"], "high": 1 - row["low"]}
            row = {**row, "value": 1 - row["value"], **ends}
        turned.append(row)
    result = comparison.compare([dataclasses.replace(found[0], rows=turned)], found)
    assert not result.agrees
