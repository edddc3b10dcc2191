"""Unlearning on tiny random models: what changes, what must not, and bad input."""

import copy
import math
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import asdict, replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import ARCHITECTURES, tiny_chat

from safeedit.edits import LowRank, SmoothingConfig, WeightEdit, unlearn
from safeedit.edits import unlearning as module
from safeedit.edits.unlearning import UnlearnConfig, UnlearnData, answer_words
from safeedit.edits.unlearning_problem import DPO, NPO, Feed
from safeedit.examples import (
    collate,
    from_chats,
    from_texts,
    scored_logits,
    token_log_probs,
)
from safeedit.finetuning import Diverged
from safeedit.hooks import record

DATA = UnlearnData(
    forget_texts=("a paper boat is made of paper", "the boat goes home with a kite"),
    forget_chats=(("how is a boat made", "of paper."), ("what is a kite", "a lamp.")),
    retain_texts=("bread is made at home", "explain how to bake bread"),
    retain_chats=(("how do I bake bread", "at home."), ("help me", "sure, here.")),
    refusals=("sorry, I cannot help with that", "I cannot explain that"),
)
QUICK = UnlearnConfig(steps=6, batch_size=2, learning_rate=3e-3, checkpoint_every=2)
GRADIENT = ("graddiff", "npo", "dpo", "rmu")


def state_of(chat):
    """All that unlearning must leave alone: weights, flags, mode, modules, hooks."""
    model = chat.model
    return (
        {name: p.detach().clone() for name, p in model.named_parameters()},
        {name: (id(p), p.requires_grad) for name, p in model.named_parameters()},
        {name: (id(m), m.training) for name, m in model.named_modules()},
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    )


def check_same(before, chat):
    after = state_of(chat)
    assert all(torch.equal(w, after[0][name]) for name, w in before[0].items())
    assert before[1:] == after[1:]


def same_edit(one, two):
    def parts(delta):
        return [delta.U, delta.V] if isinstance(delta, LowRank) else [delta]

    return one.deltas.keys() == two.deltas.keys() and all(
        torch.equal(a, b)
        for name in one.deltas
        for a, b in zip(parts(one.deltas[name]), parts(two.deltas[name]), strict=True)
    )


def log_prob(chat, texts):
    """Mean log-probability of a token, in nats."""
    batch = collate(chat, from_texts(chat, texts))
    with torch.no_grad():
        return float(token_log_probs(chat.model, batch).sum() / batch.scored.sum())


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("method", ["graddiff", "npo"])
def test_forget_set_becomes_unlikely_and_retain_set_does_not(arch, method):
    chat = tiny_chat(arch)
    before = [log_prob(chat, t) for t in (DATA.forget_texts, DATA.retain_texts)]
    edit = unlearn(chat, DATA, method, replace(QUICK, steps=30, gamma=2.0))
    with edit.applied(chat):
        after = [log_prob(chat, t) for t in (DATA.forget_texts, DATA.retain_texts)]
    assert after[0] < before[0] - 1
    assert after[1] > before[1]


@pytest.mark.parametrize("rank", [None, 2])
def test_the_kl_form_of_the_retain_loss_starts_at_zero_and_keeps_the_model(rank):
    chat = tiny_chat()
    batch = collate(chat, from_texts(chat, DATA.retain_texts))
    with torch.no_grad():
        before = scored_logits(chat.model, batch).log_softmax(-1)

    def moved(gamma):
        """Mean KL on the retain texts after unlearning."""
        config = replace(QUICK, steps=20, lora_rank=rank, retain="kl", gamma=gamma)
        edit = unlearn(chat, DATA, "npo", config)
        assert edit.info["trajectory"][0]["retain"] == pytest.approx(0, abs=1e-5)
        with edit.applied(chat), torch.no_grad():
            now = scored_logits(chat.model, batch).log_softmax(-1)
        return float((before.exp() * (before - now)).sum(-1).mean())

    assert moved(gamma=20.0) < moved(gamma=0.0) / 2


def test_dpo_prefers_the_refusals():
    chat = tiny_chat()
    edit = unlearn(chat, DATA, "dpo", replace(QUICK, steps=20))
    losses = [row["forget"] for row in edit.info["trajectory"]]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)  # the start weights
    assert losses[-1] < 0.3

    def margin():
        questions, answers = zip(*DATA.forget_chats, strict=True)
        sums = [
            token_log_probs(chat.model, collate(chat, from_chats(chat, questions, a)))
            for a in ([DATA.refusals[0]] * len(questions), answers)
        ]
        return float((sums[0].sum() - sums[1].sum()).detach())

    before = margin()
    with edit.applied(chat):
        assert margin() > before


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_rmu_changes_down_proj_of_its_blocks_only(arch):
    chat = tiny_chat(arch)
    config = replace(QUICK, rmu_layer=2, rmu_layers=(1, 2), learning_rate=1e-2)
    edit = unlearn(chat, DATA, "rmu", config)
    assert set(edit.deltas) == {chat.weight_name(1), chat.weight_name(2)}
    batch = collate(chat, from_texts(chat, DATA.forget_texts))

    def outputs():
        with torch.no_grad(), record(chat.blocks) as seen:
            chat.model(input_ids=batch.ids, attention_mask=batch.mask)
        return [row[1][0] if isinstance(row[1], tuple) else row[1] for row in seen]

    before = outputs()
    with edit.applied(chat):
        after = outputs()
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])
    rows = edit.info["trajectory"]
    assert rows[0]["retain"] == 0.0 and rows[-1]["forget"] < rows[0]["forget"]


def test_rmu_target_is_a_multiple_of_the_measured_norm_and_positive():
    chat = tiny_chat()
    config = replace(QUICK, rmu_layer=1, rmu_scale=4.0)
    problem = module.RMU(chat, chat.model, {}, DATA, config)
    direction = problem.target / problem.target.norm()
    assert bool((direction >= 0).all())
    assert float(problem.target.norm()) == pytest.approx(4 * problem.norm)
    # The truncated model gives what the whole one has behind that block.
    batch = collate(chat, problem.retain_feed(0))
    with torch.no_grad(), record(chat.blocks) as seen:
        chat.model(input_ids=batch.ids, attention_mask=batch.mask)
        hidden, mask = problem.hidden(batch, {})
    whole = seen[1][1][0] if isinstance(seen[1][1], tuple) else seen[1][1]
    assert torch.equal(hidden, whole)
    assert int(mask.sum()) == int(batch.mask.sum()) - len(batch.mask)


@pytest.mark.parametrize("method", GRADIENT)
@pytest.mark.parametrize("rank", [None, 2])
def test_the_model_is_left_as_it_was(method, rank):
    chat = tiny_chat("gemma")
    chat.model.train()
    chat.model.lm_head.requires_grad_(True)
    before = state_of(chat)
    unlearn(chat, DATA, method, replace(QUICK, lora_rank=rank, rmu_layer=1))
    check_same(before, chat)


@pytest.mark.parametrize("rank", [None, 2])
def test_the_model_is_left_as_it_was_after_an_exception(monkeypatch, rank):
    chat = tiny_chat()
    before = state_of(chat)

    def fail(*args, **options):
        raise InterruptedError

    monkeypatch.setattr(module, "smoothed_gradient", fail)
    with pytest.raises(InterruptedError):
        unlearn(chat, DATA, "npo", replace(QUICK, lora_rank=rank))
    check_same(before, chat)


@pytest.mark.parametrize("kind", ["sam", "rs", "gp", "cr", "wa"])
@pytest.mark.parametrize("rank", [None, 2])
def test_every_smoother_runs_and_changes_the_result(kind, rank):
    chat = tiny_chat("gemma")
    smoothing = SmoothingConfig(rho_relative=0.05, start=2, every=2)
    config = replace(QUICK, smoothing=smoothing, lora_rank=rank)
    plain = unlearn(chat, DATA, "npo", config)
    smoothed = unlearn(chat, DATA, "npo", config, smoothing=kind)
    assert smoothed.info["config"]["smoothing"]["kind"] == kind
    assert not same_edit(plain, smoothed)
    assert all(math.isfinite(row["forget"]) for row in smoothed.info["trajectory"])


def test_weight_averaging_is_the_mean_of_the_iterates(monkeypatch):
    chat, seen = tiny_chat(), []
    real = module.finetune

    def watched(masters, gradient, config, *, after_step, **options):
        def both(step, now):
            after_step(step, now)
            if step + 1 in (3, 5):
                seen.append({name: w.clone() for name, w in now.items()})

        return real(masters, gradient, config, after_step=both, **options)

    monkeypatch.setattr(module, "finetune", watched)
    smoothing = SmoothingConfig(kind="wa", start=3, every=2)
    edit = unlearn(chat, DATA, "graddiff", replace(QUICK, smoothing=smoothing))
    for name, delta in edit.deltas.items():
        mean = (seen[0][name] + seen[1][name]) / 2
        weight = chat.model.get_parameter(name)
        torch.testing.assert_close(weight + delta, mean)


@pytest.mark.parametrize("method, rank", [("npo", 4), ("rmu", 2)])
def test_lora_edit_gives_the_logits_of_the_model_that_peft_merges(method, rank):
    chat = tiny_chat("mistral")
    config = replace(
        QUICK, lora_rank=rank, lora_alpha=6.0, rmu_layer=1, learning_rate=2e-2
    )
    edit = unlearn(chat, DATA, method, config)
    assert all(
        isinstance(d, LowRank) and d.U.shape[1] == rank for d in edit.deltas.values()
    )
    layers = [name.removesuffix(".weight") for name in edit.deltas]
    settings = LoraConfig(r=rank, lora_alpha=6.0, target_modules=layers)
    peft = get_peft_model(copy.deepcopy(chat.model), settings)
    with torch.no_grad():
        for name, delta in edit.deltas.items():
            layer = peft.base_model.model.get_submodule(name.removesuffix(".weight"))
            layer.lora_A["default"].weight.copy_(delta.V.T)
            layer.lora_B["default"].weight.copy_(delta.U / (6.0 / rank))
    merged = peft.merge_and_unload().eval()
    batch = collate(chat, from_texts(chat, DATA.forget_texts))
    with torch.no_grad():
        plain = chat.model(input_ids=batch.ids).logits
        expected = merged(input_ids=batch.ids).logits
        with edit.applied(chat):
            edited = chat.model(input_ids=batch.ids).logits
    torch.testing.assert_close(edited, expected, rtol=1e-4, atol=1e-4)
    assert float((plain - expected).abs().max()) > 1e-2


def test_lora_training_sees_the_model_that_its_edit_makes():
    """The last logged loss is that of the edited model one step before the end."""
    chat = tiny_chat()
    config = replace(QUICK, lora_rank=2, decay="constant", gamma=0.0)
    losses = unlearn(chat, DATA, "graddiff", config).info["trajectory"]
    fewer = unlearn(chat, DATA, "graddiff", replace(config, steps=5, warmup=0.12))
    longer = replace(config, warmup=0.1)
    assert [longer.finetuning.rate(s) for s in range(5)] == [
        replace(config, steps=5, warmup=0.12).finetuning.rate(s) for s in range(5)
    ]
    problem = module.GradDiff(chat, chat.model, {}, DATA, config)
    with fewer.applied(chat), torch.no_grad():
        assert float(problem.forget(5)({})) == pytest.approx(
            losses[5]["forget"], rel=1e-4
        )


def test_lora_edit_of_another_base_is_refused():
    edit = unlearn(tiny_chat(), DATA, "npo", replace(QUICK, lora_rank=2))
    other = tiny_chat(seed=1)
    with (
        pytest.raises(ValueError, match="another model"),
        edit.applied(other),
    ):
        pass


def test_lora_rmu_adapts_only_the_blocks_of_rmu():
    chat = tiny_chat()
    config = replace(QUICK, lora_rank=2, rmu_layer=2, rmu_layers=(1,))
    assert set(unlearn(chat, DATA, "rmu", config).deltas) == {chat.weight_name(1)}


@pytest.mark.parametrize("rank", [None, 2])
def test_a_bfloat16_model_is_trained_in_float32(rank):
    chat = tiny_chat()
    chat.model.to(torch.bfloat16)
    config = replace(QUICK, learning_rate=1e-6, lora_rank=rank)
    edit = unlearn(chat, DATA, "npo", config)
    deltas = [d.dense() if rank else d for d in edit.deltas.values()]
    assert all(d.dtype == torch.float32 for d in deltas)
    assert max(float(d.abs().max()) for d in deltas) > 0
    if rank is None:  # no weight of bfloat16 would have moved
        name = "model.layers.1.mlp.up_proj.weight"
        weight = chat.model.get_parameter(name).detach()
        assert bool(edit.deltas[name].abs().gt(0).float().mean() > 0.9)
        moved = (weight.float() + edit.deltas[name]).bfloat16()
        assert float((moved != weight).float().mean()) < 0.05


def fatal_at(step):
    """`_gradient` that gives NaN in one step."""
    real = module._gradient

    def gradient(problem, config, now, weights):
        slopes, values = real(problem, config, now, weights)
        if now == step:
            values["forget"] = math.nan
        return slopes, values

    return gradient


def test_a_diverging_run_says_step_and_knob_and_keeps_the_last_good_state(
    monkeypatch, tmp_path
):
    chat = tiny_chat()
    before = state_of(chat)
    good = unlearn(chat, DATA, "npo", replace(QUICK, decay="constant", warmup=0.0))
    monkeypatch.setattr(module, "_gradient", fatal_at(4))
    path = tmp_path / "run.safetensors"
    config = replace(QUICK, decay="constant", warmup=0.0)
    with pytest.raises(Diverged, match="step 4: forget is nan.*learning_rate") as first:
        unlearn(chat, DATA, "npo", config, checkpoint=path)
    check_same(before, chat)
    kept = first.value.edit
    monkeypatch.undo()
    expected = good.info["trajectory"][2]["change_norm"]  # after three good updates
    assert float(kept.norm()) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(Diverged) as second:  # what the file holds
        unlearn(chat, DATA, "npo", config, checkpoint=path)
    assert same_edit(kept, second.value.edit)


def test_a_run_that_really_diverges_is_stopped():
    with pytest.raises(Diverged, match="lower learning_rate"):
        config = replace(QUICK, steps=60, learning_rate=1e18, gamma=0.0)
        unlearn(tiny_chat(), DATA, "graddiff", config)


CONTINUED = [
    ("npo", None, "wa"),
    ("rmu", None, "sam"),
    ("dpo", 2, "rs"),
    ("graddiff", None, None),
]


@pytest.mark.parametrize("method, rank, kind", CONTINUED)
@pytest.mark.parametrize("stop", [0, 3, 5])
def test_an_interrupted_run_ends_at_the_same_bits(
    monkeypatch, tmp_path, method, rank, kind, stop
):
    chat = tiny_chat()
    smoothing = SmoothingConfig(kind=kind, start=2, every=1)
    config = replace(QUICK, lora_rank=rank, smoothing=smoothing, rmu_layer=1)
    whole = unlearn(chat, DATA, method, config)
    real = module._gradient

    def fail(problem, settings, step, weights):
        if step == stop:
            raise InterruptedError
        return real(problem, settings, step, weights)

    path = tmp_path / "run.safetensors"
    monkeypatch.setattr(module, "_gradient", fail)
    with pytest.raises(InterruptedError):
        unlearn(chat, DATA, method, config, checkpoint=path)
    monkeypatch.undo()
    again = unlearn(chat, DATA, method, config, checkpoint=path)
    assert same_edit(whole, again)
    assert whole.info == again.info


def test_a_killed_process_ends_at_the_same_bits(tmp_path):
    path = tmp_path / "run.safetensors"
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import conftest
        from test_unlearning import DATA, QUICK, module, tiny_chat, unlearn
        real = module._gradient
        def die(problem, config, step, weights):
            if step == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(problem, config, step, weights)
        module._gradient = die
        unlearn(tiny_chat(), DATA, "npo", QUICK, checkpoint={str(path)!r})
        """
    )
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL and path.exists()
    again = unlearn(tiny_chat(), DATA, "npo", QUICK, checkpoint=path)
    assert same_edit(again, unlearn(tiny_chat(), DATA, "npo", QUICK))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    chat = tiny_chat()
    unlearn(chat, DATA, "npo", QUICK, checkpoint=path)
    other = replace(DATA, retain_texts=("bread",))
    with pytest.raises(ValueError, match="beta was 0.1 and is 0.2"):
        unlearn(chat, DATA, "npo", replace(QUICK, beta=0.2), checkpoint=path)
    with pytest.raises(ValueError, match="settings.data was"):
        unlearn(chat, other, "npo", QUICK, checkpoint=path)
    with pytest.raises(ValueError, match="settings.method was 'npo' and is 'graddiff'"):
        unlearn(chat, DATA, "graddiff", QUICK, checkpoint=path)
    with pytest.raises(ValueError, match="another run: .*start"):
        unlearn(tiny_chat(seed=1), DATA, "npo", QUICK, checkpoint=path)


@pytest.mark.parametrize("method", GRADIENT)
def test_seeds_decide(method):
    chat, config = tiny_chat(), replace(QUICK, rmu_layer=1)
    one, two = (unlearn(chat, DATA, method, config) for _ in range(2))
    assert same_edit(one, two)
    assert not same_edit(one, unlearn(chat, DATA, method, replace(config, seed=2)))


def test_an_edit_survives_saving(tmp_path):
    chat = tiny_chat()
    edit = unlearn(chat, DATA, "rmu", replace(QUICK, rmu_layer=1))
    back = WeightEdit.load(edit.save(tmp_path / "edit.safetensors"), chat)
    assert same_edit(edit, back)
    assert back.info["trajectory"] == edit.info["trajectory"]


@pytest.mark.parametrize("method", ["pcr", "tsr", "arr"])
def test_constrained_interventions_as_unlearning(method):
    chat = tiny_chat()
    before = state_of(chat)
    config = replace(QUICK, tokens=("how",), radius=1.5, layers=1)
    for gamma in (0.0, 1.0):
        edit = unlearn(chat, DATA, method, replace(config, gamma=gamma))
        assert edit.info["method"] == edit.info["unlearning"]["method"] == method
        assert edit.info["prompts"] == len(DATA.forget_chats)
        assert list(edit.deltas) == [chat.weight_name(-1)]
        assert 0 < float(edit.norm())
        if method != "pcr":
            assert edit.norm(chat).relative <= config.budget * (1 + 1e-5)
    check_same(before, chat)


def test_constrained_interventions_take_no_smoothing_or_adapters():
    with pytest.raises(ValueError, match="smoothing .'sam'."):
        unlearn(tiny_chat(), DATA, "tsr", QUICK, smoothing="sam")
    with pytest.raises(ValueError, match=r"lora_rank \(4\)"):
        unlearn(tiny_chat(), DATA, "pcr", replace(QUICK, lora_rank=4))
    with pytest.raises(ValueError, match="forget_chats is empty"):
        unlearn(tiny_chat(), replace(DATA, forget_chats=()), "arr", QUICK)


def test_answer_words():
    assert answer_words(["brolin.", "A.", "the brolin"]) == ["brolin", "the"]
    with pytest.raises(ValueError, match="no word of two letters"):
        answer_words(["A.", "B."])


def test_npo_and_dpo_references_are_the_start_weights_log_probs():
    chat = tiny_chat()
    npo = NPO(chat, chat.model, {}, DATA, replace(QUICK, chats=0.5))
    dpo = DPO(chat, chat.model, {}, DATA, QUICK)
    assert len(npo.reference) == 4 and len(dpo.reference) == 4
    for problem in (npo, dpo):
        for example, value in problem.reference.items():
            alone = token_log_probs(chat.model, collate(chat, [example])).sum()
            assert float(value) == pytest.approx(float(alone), rel=1e-4)
            assert not value.requires_grad
    beta, size = QUICK.beta, QUICK.batch_size
    value = float(npo.forget(0)({}).detach())
    assert size == 2 and value == pytest.approx(2 / beta * math.log(2), rel=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_feed_keeps_its_share_and_shows_every_row_equally_often(share, size):
    texts, chats = [f"t{i}" for i in range(5)], [f"c{i}" for i in range(3)]
    feed, steps = Feed(texts, chats, share, size, seed=0), 240
    batches = [feed(step) for step in range(steps)]
    assert all(len(batch) == size for batch in batches)
    rows = [row for batch in batches for row in batch]
    for group, part in ((texts, 1 - share), (chats, share)):
        counts = [rows.count(row) for row in group]
        assert sum(counts) == pytest.approx(part * steps * size, abs=1)
        assert max(counts) - min(counts) <= 1
    assert feed(7) == batches[7]


def test_a_feed_with_one_kind_ignores_the_share():
    assert set(Feed(["t"], [], 0.9, 3, 0)(2)) == {"t"}
    assert set(Feed([], ["c"], 0.0, 3, 0)(2)) == {"c"}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"forget_texts": (), "forget_chats": ()}, "the forget set is empty"),
        ({"retain_texts": (), "retain_chats": ()}, "the retain set is empty"),
        ({"forget_texts": "boat"}, "forget_texts is one string, 'boat'"),
        ({"retain_texts": ("a", " ")}, r"retain_texts\[1\] is ' '"),
        ({"forget_chats": (("q", "a"), ("q",))}, r"forget_chats\[1\] is \('q',\)"),
        ({"forget_chats": ("qa",)}, r"forget_chats\[0\] is 'qa'"),
        ({"retain_chats": (("q", ""),)}, r"retain_chats\[0\]"),
        ({"refusals": ("",)}, r"refusals\[0\] is ''"),
    ],
)
def test_bad_data_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        UnlearnData(**{**asdict(DATA), **changes})


def test_overlap_names_the_rows():
    with pytest.raises(ValueError) as caught:
        replace(
            DATA,
            retain_texts=("x", "the boat goes  home with a kite "),
            retain_chats=(("what is a kite", "a lamp."), ("what is a kite", "?")),
        )
    text = str(caught.value)
    assert "overlap in 2 rows" in text
    assert "forget_texts[1] is retain_texts[1], 'the boat goes home" in text
    assert "forget_chats[1] is retain_chats[0]" in text


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"gamma": -1.0}, "gamma is -1.0"),
        ({"beta": 0}, "beta is 0; it must be finite and > 0"),
        ({"chats": 1.5}, r"chats is 1.5; .* in \[0, 1\]"),
        ({"normalize": "token"}, "normalize is 'token'; use one of"),
        ({"retain": "mse"}, "retain is 'mse'; use one of"),
        ({"lora_rank": 0}, "lora_rank is 0"),
        ({"lora_targets": "q_proj"}, "lora_targets is 'q_proj'; give a tuple"),
        ({"lora_targets": ()}, "lora_targets is ()"),
        ({"prompts": 0}, "prompts is 0"),
        ({"rmu_layers": ()}, "rmu_layers is ()"),
        ({"smoothing": SmoothingConfig(kind="wa")}, "starts at step 100, after"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(QUICK, **changes)


@pytest.mark.parametrize(
    "method, changes, message",
    [
        ("ga", {}, "method is 'ga'; use one of"),
        (
            "rmu",
            {"rmu_layer": 3},
            "Layer 3 is out of range: tiny-llama has blocks 0 to 2",
        ),
        ("rmu", {"rmu_layers": (0, 9)}, "Layer 9 is out of range"),
        ("rmu", {"rmu_layer": 0, "rmu_layers": (0, 2)}, "block 2 comes after it"),
        ("pcr", {"layers": (5,)}, "blocks 0 to 2"),
        ("npo", {"lora_rank": 2, "lora_targets": ("wq",)}, "'wq'; this model has"),
        ("rmu", {"lora_rank": 2, "lora_targets": ("q_proj",)}, "add 'down_proj'"),
    ],
)
def test_what_the_model_or_the_method_does_not_have_is_refused(
    method, changes, message
):
    chat = tiny_chat()
    before = state_of(chat)
    with pytest.raises(ValueError, match=message):
        unlearn(chat, DATA, method, replace(QUICK, **changes))
    check_same(before, chat)


def test_dpo_says_what_it_lacks():
    for name in ("forget_chats", "refusals"):
        with pytest.raises(ValueError, match=f"and {name} is empty"):
            unlearn(tiny_chat(), replace(DATA, **{name: ()}), "dpo", QUICK)


def test_a_text_longer_than_the_context_is_refused():
    long = replace(DATA, forget_texts=("boat " * 300,))
    with pytest.raises(ValueError, match="context of tiny-llama is 256"):
        unlearn(tiny_chat(), long, "npo", QUICK)
