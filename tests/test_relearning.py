"""Relearning: the training of torch and peft, order and state, and nothing left."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny import ARCHITECTURES, tiny_chat

from safeedit.attacks import RelearnConfig, relearn
from safeedit.edits import LowRank, WeightEdit
from safeedit.examples import Example, collate, from_chats, from_texts
from safeedit.finetuning import Diverged

TEXTS = [
    "tell me how to make a paper boat",
    "a lamp",
    "explain how to make a kite",
    "how do I bake bread at home",
    "sure, here is a guide",
    "to make a boat and a lamp",
    "bread at home",
]
KINDS = (None, 2)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def chat(request):
    return tiny_chat(request.param)


@pytest.fixture(scope="module")
def llama():
    return tiny_chat("llama")


def state(chat):
    return {name: p.detach().clone() for name, p in chat.model.named_parameters()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


@torch.no_grad()
def logits(chat):
    return chat.model(**chat.encode(TEXTS[:2])).logits


def untouched(chat, before):
    return (
        same(before, state(chat))
        and not chat.model.training
        and not any(
            p.requires_grad or p.grad is not None for p in chat.model.parameters()
        )
        and not any(m._forward_hooks for m in chat.model.modules())
    )


def dense(edit):
    return {
        n: d.dense() if isinstance(d, LowRank) else d for n, d in edit.deltas.items()
    }


def labelled(chat, examples):
    batch = collate(chat, examples)
    labels = torch.where(batch.scored, batch.ids, -100)
    return {"input_ids": batch.ids, "attention_mask": batch.mask, "labels": labels}


def train(model, inputs, steps, rate, decay):
    """torch's AdamW on the model's own loss, all samples in one batch."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=decay)
    losses = []
    for _ in range(steps):
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("rank", KINDS)
def test_no_samples_change_nothing(chat, rank):
    before, plain = state(chat), logits(chat)
    config = RelearnConfig(samples=0, lora_rank=rank, learning_rate=0.1)
    seen = []
    attack = relearn(
        chat,
        from_texts(chat, TEXTS),
        config,
        lambda: {"same": torch.equal(logits(chat), plain), "n": seen.append(1)},
    )
    assert attack.edit.deltas == {} and attack.edit.norm(chat) == 0
    assert attack.trajectory == [
        {"samples": 0, "evaluation": {"same": True, "n": None}}
    ]
    assert len(seen) == 1 and untouched(chat, before)


def test_all_weights_train_as_torch_trains_them(chat):
    examples = from_texts(chat, TEXTS[:2]) + from_chats(
        chat, TEXTS[2:4], ["sure", "no"]
    )
    config = RelearnConfig(
        epochs=4, learning_rate=1e-3, batch_size=len(examples), weight_decay=0.1
    )
    before = state(chat)
    attack = relearn(chat, examples, config)
    assert untouched(chat, before) and attack.attack == "relearning"
    model = copy.deepcopy(chat.model).requires_grad_(True)
    losses = train(model, labelled(chat, examples), 4, 1e-3, 0.1)
    assert [row["loss"] for row in attack.trajectory] == pytest.approx(losses, rel=1e-4)
    # Adam divides by the gradient's size: where that is next to nothing, so is the
    # agreement. Off by a tenth of one step at most, and hardly anywhere.
    for name, wanted in model.named_parameters():
        change = wanted.detach() - before[name]
        if name not in attack.edit.deltas:
            assert not change.any()
            continue
        gap = (attack.edit.deltas[name] - change).abs()
        assert gap.max() < 1e-4 and gap.mean() < 1e-6, name
    with attack.edit.applied(chat), torch.no_grad():
        loss = chat.model(**labelled(chat, examples)).loss.item()
        assert loss == pytest.approx(
            model(**labelled(chat, examples)).loss.item(), rel=1e-4
        )
    assert untouched(chat, before)


def test_lora_trains_as_peft_trains_it(chat):
    from peft import LoraConfig, get_peft_model

    examples = from_texts(chat, TEXTS[:3])
    config = RelearnConfig(
        epochs=4, learning_rate=1e-2, batch_size=3, lora_rank=3, lora_alpha=6.0, seed=5
    )
    before = state(chat)
    attack = relearn(chat, examples, config)
    assert untouched(chat, before) and attack.attack == "relearning-lora"
    # A rate of next to nothing shows where the run begins; the reference begins there.
    start = relearn(
        chat,
        examples,
        RelearnConfig(learning_rate=1e-30, batch_size=3, lora_rank=3, seed=5),
    )
    layers = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"
    model = get_peft_model(
        copy.deepcopy(chat.model),
        LoraConfig(r=3, lora_alpha=6, target_modules=layers.split()),
    )
    beside = {
        f"{name}.weight": module
        for name, module in model.base_model.model.named_modules()
        if hasattr(module, "lora_A")
    }
    assert beside.keys() == attack.edit.deltas.keys()
    for name, layer in beside.items():
        bound = layer.in_features**-0.5  # peft's own start is of the same size
        for a in (layer.lora_A["default"].weight, start.edit.deltas[name].V.mT):
            assert 0.7 * bound < a.abs().max() <= bound
        layer.lora_A["default"].weight.data.copy_(start.edit.deltas[name].V.mT)
    losses = train(model, labelled(chat, examples), 4, 1e-2, 0.0)
    assert [row["loss"] for row in attack.trajectory] == pytest.approx(losses, rel=1e-4)
    for name, layer in beside.items():
        delta = attack.edit.deltas[name]
        assert isinstance(delta, LowRank) and delta.U.shape[-1] == 3
        wanted = layer.get_delta_weight("default").detach()
        assert torch.allclose(delta.dense(), wanted, atol=1e-3), name


@pytest.mark.parametrize("rank", KINDS)
def test_one_run_measured_on_the_way_is_many_runs(llama, rank):
    examples = from_texts(llama, TEXTS)
    options = dict(learning_rate=1e-2, batch_size=2, lora_rank=rank, seed=3)

    def measure():
        return {"logits": logits(llama)}

    whole = relearn(
        llama, examples, RelearnConfig(samples=6, **options), measure, (4, 0, 2)
    )
    measured = {
        r["samples"]: r["evaluation"] for r in whole.trajectory if "evaluation" in r
    }
    assert sorted(measured) == [0, 2, 4]
    for count in (0, 2, 4):
        part = relearn(
            llama, examples, RelearnConfig(samples=count, **options), measure
        )
        last = part.trajectory[-1]
        assert last["samples"] == count
        assert torch.equal(last["evaluation"]["logits"], measured[count]["logits"])
        with part.edit.applied(llama):  # what was measured is what the edit gives
            assert torch.equal(logits(llama), measured[count]["logits"])
    assert not torch.equal(measured[0]["logits"], measured[2]["logits"])


class Spy(list):
    """Examples that remember which of them a batch took."""

    def __init__(self, values):
        super().__init__(values)
        self.taken = []

    def __getitem__(self, index):
        self.taken.append(index)
        return super().__getitem__(index)


def test_every_epoch_sees_each_drawn_sample_once_and_counts_them(llama):
    examples = Spy(from_texts(llama, TEXTS))
    config = RelearnConfig(samples=5, epochs=3, batch_size=2, seed=1)
    attack = relearn(llama, examples, config)
    taken = examples.taken
    epochs = [taken[i : i + 5] for i in (0, 5, 10)]
    assert len(taken) == 15 and len(set(epochs[0])) == 5
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1  # in another order
    counts = [row["samples"] for row in attack.trajectory]
    assert counts == [2, 4, 5, 7, 9, 10, 12, 14, 15]
    again, fewer, other = (Spy(examples) for _ in range(3))
    relearn(llama, again, config)
    relearn(llama, fewer, RelearnConfig(samples=3, batch_size=2, seed=1))
    relearn(llama, other, RelearnConfig(samples=5, batch_size=2, seed=2))
    assert again.taken == taken and fewer.taken == taken[:3]
    assert other.taken != taken[:5]


@pytest.mark.parametrize("rank", KINDS)
def test_training_on_a_text_makes_it_likelier_and_repeats_to_the_bit(llama, rank):
    examples = from_texts(llama, TEXTS[:2])
    config = RelearnConfig(epochs=30, learning_rate=1e-2, lora_rank=rank)
    one, two = (relearn(llama, examples, config) for _ in range(2))
    losses = [row["loss"] for row in one.trajectory]
    assert losses[-1] < 0.3 * losses[0]
    assert same(dense(one.edit), dense(two.edit)) and one.trajectory == two.trajectory
    assert one.edit.info["base"]["weights"].keys() == one.edit.deltas.keys()
    other = tiny_chat("llama", seed=1)
    with pytest.raises(ValueError, match="made for another model"):
        with one.edit.applied(other):
            pass


def test_an_evaluation_is_after_the_step_that_reaches_its_number(llama):
    calls = []
    config = RelearnConfig(samples=5, epochs=2, batch_size=2)
    attack = relearn(
        llama,
        from_texts(llama, TEXTS),
        config,
        lambda: {"call": calls.append(1) or len(calls)},
        (3, 4, 6, 10),
    )
    found = [
        (r["samples"], r["evaluation"]["call"])
        for r in attack.trajectory
        if "evaluation" in r
    ]
    assert found == [(4, 1), (7, 2), (10, 3)]


@pytest.mark.parametrize("rank", KINDS)
def test_nothing_stays_behind_after_an_exception(llama, rank):
    before = state(llama)
    examples = from_texts(llama, TEXTS)

    def fails():
        raise KeyError("inside")

    config = RelearnConfig(learning_rate=1e-2, batch_size=2, lora_rank=rank)
    for when in (0, 2):
        with pytest.raises(KeyError):
            relearn(llama, examples, config, fails, (when,))
        assert untouched(llama, before)
    # Adam's steps are as long as the rate; at 1e30 the next logits overflow.
    config = RelearnConfig(learning_rate=1e30, batch_size=2, lora_rank=rank)
    with pytest.raises(Diverged, match="lower learning_rate") as caught:
        relearn(llama, examples, config)
    assert untouched(llama, before)
    edit = caught.value.edit
    assert all(bool(torch.isfinite(d).all()) for d in dense(edit).values())
    with edit.applied(llama):
        assert bool(torch.isfinite(logits(llama)).all())


@pytest.mark.parametrize("rank", KINDS)
def test_half_precision_models_learn_in_float32_masters(rank):
    chat = tiny_chat("llama")
    chat.model.to(torch.bfloat16)
    before = state(chat)
    config = RelearnConfig(epochs=3, learning_rate=1e-6, lora_rank=rank)
    attack = relearn(chat, from_texts(chat, TEXTS[:4]), config)
    assert untouched(chat, before)
    changes = dense(attack.edit)
    assert all(d.dtype == torch.float32 for d in changes.values())
    # Steps this small vanish in a bfloat16 weight; the masters have kept them.
    moved = [float((d != 0).float().mean()) for n, d in changes.items() if "proj" in n]
    assert min(moved) > 0.9


def test_an_edit_kept_as_a_hook_is_attacked_like_the_same_edit_in_the_weights(llama):
    generator = torch.Generator().manual_seed(0)
    change = LowRank(
        torch.randn(32, 2, generator=generator),
        torch.randn(48, 2, generator=generator) / 10,
    )
    name, before = llama.weight_name(1), state(llama)
    examples = from_texts(llama, TEXTS[:4])
    config = RelearnConfig(epochs=3, learning_rate=1e-3, batch_size=4)
    losses = []
    for delta in (change, change.dense()):
        with WeightEdit({name: delta}).applied(llama):
            attack = relearn(llama, examples, config)
            with attack.edit.applied(llama):
                inside = logits(llama)
        losses.append([row["loss"] for row in attack.trajectory])
        assert untouched(llama, before)
        assert not torch.allclose(inside, logits(llama))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_bad_input_is_refused_with_what_to_do(llama):
    good = from_texts(llama, TEXTS)
    with pytest.raises(ValueError, match="examples is empty"):
        relearn(llama, [])
    blank = Example(good[0].ids, (False,) * len(good[0].ids))
    with pytest.raises(ValueError, match=r"examples\[1\] has no scored token"):
        relearn(llama, [good[0], blank])
    with pytest.raises(ValueError, match="samples is 8 and there are 7 examples"):
        relearn(llama, good, RelearnConfig(samples=8))
    with pytest.raises(ValueError, match="evaluate is None"):
        relearn(llama, good, evaluate_at=(2,))
    for count in (-1, 8, 2.0, True):
        with pytest.raises(ValueError, match="the run sees 7 samples"):
            relearn(llama, good, RelearnConfig(), dict, (0, count))
    for options, text in (
        ({"samples": -1}, "samples is -1"),
        ({"samples": 2.5}, "samples is 2.5"),
        ({"epochs": 0}, "epochs is 0"),
        ({"lora_rank": 0}, "lora_rank is 0"),
        ({"lora_alpha": math.nan}, "lora_alpha is nan"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"decay": "cosine"}, "decay is 'cosine'"),
        ({"warmup": 2}, "warmup is 2"),
    ):
        with pytest.raises(ValueError, match=text):
            RelearnConfig(**options)
