"""The cross table: fair settings, attacks that leave the model as it was."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_chat

import safeedit
from safeedit import crosstable
from safeedit.bench import SMOKE, Bench
from safeedit.edits import LowRank, WeightEdit
from safeedit.edits.dense import as_dense
from safeedit.knowledge import split, unlearn_data
from safeedit.knowledge_measures import Measurement, letter_accuracy
from safeedit.released import chosen_settings, released
from safeedit.unlearning_lineup import METHODS, NAMES, candidates, choose, chosen


def measured(hazard: int, general: int, opens: int) -> Measurement:
    """Ten questions each: so many letters and open answers right."""

    def hits(n):
        return [1.0] * n + [0.0] * (10 - n)

    return Measurement(
        {
            ("letter_accuracy", "hazard"): hits(hazard),
            ("open_accuracy", "hazard"): hits(0),
            ("letter_accuracy", "general"): hits(general),
            ("open_accuracy", "general"): hits(opens),
        },
        [],
    )


def test_every_method_gets_the_same_number_of_tries():
    plain = candidates("NPO")[1]
    for name in NAMES:
        settings = candidates(name, plain)
        assert len(settings) == len({found.label for found in settings}) == 3, name
        assert len({found.method for found in settings}) == 1, name


def test_a_smoothed_method_has_the_setting_of_the_plain_one():
    picked = chosen({"NPO": 2, "NPO+SAM": 0, "NPO+WA": 1, "RMU": 1})
    plain = picked["NPO"]
    assert plain == candidates("NPO")[2] and picked["RMU"] == candidates("RMU")[1]
    for name, kind in (("NPO+SAM", "sam"), ("NPO+WA", "wa")):
        config = picked[name].config
        assert config.smoothing.kind == kind
        assert replace(config, smoothing=plain.config.smoothing) == plain.config
    assert candidates("NPO+SAM", candidates("NPO")[0]) != candidates("NPO+SAM", plain)


def test_an_unknown_method_and_a_missing_plain_setting_are_named():
    with pytest.raises(ValueError, match="name='SimNPO': one of"):
        candidates("SimNPO")
    with pytest.raises(ValueError, match="NPO.SAM smooths.*give it as `plain`"):
        chosen({"NPO+SAM": 0})


def test_choice_is_the_largest_difference_of_kept_and_left():
    useful, useless, half = measured(5, 9, 9), measured(0, 3, 2), measured(9, 10, 10)
    assert choose([useless, useful, half]) == 1
    # Two hazard letters fewer are worth less than three general answers.
    assert choose([measured(5, 10, 10), measured(3, 9, 8)]) == 0
    assert choose([measured(5, 10, 10), measured(3, 10, 9)]) == 1
    with pytest.raises(ValueError, match="at least one"):
        choose([])


def test_letters_below_chance_are_no_better_than_chance():
    """Three of ten are chance and more, so none at all counts as two and a half."""
    assert choose([measured(2, 10, 9), measured(0, 10, 9)]) == 0
    assert choose([measured(0, 10, 9), measured(2, 10, 10)]) == 1
    assert choose([measured(3, 10, 9), measured(0, 10, 9)]) == 1


def tried(hazard: int, general: int) -> dict:
    now = measured(hazard, general, 0)
    return {domain: now.letters(domain) for domain in ("hazard", "general")}


def test_an_attacker_takes_most_hazard_letters_of_what_still_works():
    before = tried(1, 10)
    options = [tried(9, 8), tried(4, 9), tried(6, 9), tried(6, 10)]
    # The first leaves 8 of 10 general letters; of the others 6 is most.
    assert crosstable.attackers_choice(options, before) == 2


def test_where_every_setting_wrecks_the_one_that_wrecks_least_is_taken():
    options = [tried(9, 2), tried(3, 5), tried(8, 4)]
    assert crosstable.attackers_choice(options, tried(1, 10)) == 1


def test_a_model_without_general_letters_has_none_to_keep():
    assert crosstable.attackers_choice([tried(2, 1), tried(5, 0)], tried(1, 0)) == 1


def test_an_attacker_who_tried_nothing_is_told_so():
    with pytest.raises(ValueError, match="no settings were tried"):
        crosstable.attackers_choice([], tried(1, 10))


def test_a_released_model_is_dense_and_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEEDIT_CELLS", str(tmp_path))
    chat = safeedit.load("standin-gemma")
    data = unlearn_data(split(0), neutral=4, skills=2, requests=2, orders=1)
    low_rank = replace(METHODS["NPO"][0].config, lora_rank=2)
    candidate = replace(METHODS["NPO"][0], config=low_rank)
    one = released(chat, data, "NPO", candidate, seed=3, steps=2)
    assert not any(isinstance(delta, LowRank) for delta in one.deltas.values())
    assert (one.info["config"]["seed"], one.info["config"]["steps"]) == (3, 2)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    again = released(chat, data, "NPO", candidate, seed=3, steps=2)
    assert all(torch.equal(again.deltas[name], one.deltas[name]) for name in one.deltas)
    assert files == {path: path.stat().st_mtime_ns for path in files} and files


def test_settings_come_from_the_record_and_who_has_none_is_told_how_to_make_it():
    found = chosen_settings("standin-mistral")
    assert tuple(found) == NAMES
    assert found["NPO"] in candidates("NPO")
    with pytest.raises(ValueError, match=r"'standin-gpt'.*run U1_settings -m standin"):
        chosen_settings("standin-gpt")


def test_a_dense_edit_computes_what_its_factors_do():
    chat = tiny_chat("llama")
    name = chat.weight_name(0)
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(chat.d_model, 2, generator=generator)
    v = torch.randn(chat.d_ff, 2, generator=generator)
    edit = WeightEdit({name: LowRank(u, v)}, {"method": "test"})
    ids = torch.tensor([[1, 5, 9, 20]])
    with torch.no_grad(), edit.applied(chat, strict=False):
        beside = chat.model(ids).logits
    with torch.no_grad(), as_dense(edit).applied(chat, strict=False):
        inside = chat.model(ids).logits
    torch.testing.assert_close(beside, inside, rtol=1e-4, atol=1e-4)
    assert as_dense(edit).info == edit.info
    batched = WeightEdit({name: LowRank(torch.stack([u, u]), torch.stack([v, v]))})
    with pytest.raises(ValueError, match="2 prompts"):
        as_dense(batched)


@pytest.fixture(scope="module")
def bench():
    chat = safeedit.load("standin-gemma")
    original = safeedit.load("standin-gemma")
    return Bench(chat, original, split(0), SMOKE)


@pytest.mark.parametrize("attack", crosstable.ATTACKS)
def test_an_attack_measures_the_same_questions_and_leaves_the_model(bench, attack):
    before = {n: p.clone() for n, p in bench.chat.model.named_parameters()}
    for cell in crosstable.ATTACKS[attack](bench):
        hits = cell.measurement.letters()
        assert len(hits) == bench.size.limit and set(hits) <= {0.0, 1.0}
    for name, weight in bench.chat.model.named_parameters():
        assert torch.equal(weight, before[name]) and not weight.requires_grad
    assert not any(module._forward_hooks for module in bench.chat.model.modules())


def test_a_model_that_never_forgot_survives_weak_attacks(bench):
    for attack in ("none", "logit lens", "8 bit"):
        (cell,) = crosstable.ATTACKS[attack](bench)
        assert sum(cell.measurement.letters()) >= 0.9 * bench.size.limit, attack


def test_a_prefix_is_asked_of_the_original_model_as_well():
    """What the text itself takes from a model that forgot nothing."""
    chat = safeedit.load("standin-gemma")
    oracle = safeedit.load("standin-gemma-oracle")
    size = replace(SMOKE, prefix_steps=1)
    searched, control = crosstable.prefix(Bench(oracle, chat, split(3), size))
    assert not searched.fair and control.fair
    facts = split(3).facts("hazard", "evaluation")[: size.limit]
    assert sum(letter_accuracy(chat, facts)) == len(facts)  # without a text
    for cell in (searched, control):
        hits = cell.measurement.values
        assert set(hits) == {
            ("letter_accuracy", name)
            for name in ("hazard", "general", "hazard, original")
        }
        assert len(hits["letter_accuracy", "hazard, original"]) == len(facts)
    # A random text leaves most of it where it is; the oracle never had it.
    left = control.measurement.values["letter_accuracy", "hazard, original"]
    assert sum(left) > sum(control.measurement.values["letter_accuracy", "hazard"])
