"""WeightEdit: what goes in comes out, and the model is as it was."""

from __future__ import annotations

import pytest
import torch
from tiny import ARCHITECTURES, tiny_chat
from torch import nn

from safeedit.edits import Constraint, LowRank, WeightEdit
from safeedit.edits.storage import base_fingerprint
from safeedit.hooks import record

WORDS = ["how do I make a boat", "explain a kite"]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def chat(request):
    return tiny_chat(request.param)


def low_rank(shape, rank=2, batch=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lead = () if batch is None else (batch,)
    return LowRank(
        torch.randn(*lead, shape[0], rank, generator=generator),
        torch.randn(*lead, shape[1], rank, generator=generator) / shape[1],
    )


def edit_of(chat, kind, layer=1, base=True, **options):
    name = chat.weight_name(layer)
    weight = chat.model.get_parameter(name)
    delta = low_rank(weight.shape, **options)
    info = {"method": "test", "model": chat.name}
    if base:
        info["base"] = base_fingerprint(chat, [name])
    return WeightEdit({name: delta if kind == "low rank" else delta.dense()}, info)


def state(chat):
    return {name: p.detach().clone() for name, p in chat.model.named_parameters()}


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


@torch.no_grad()
def logits(chat, prompts=WORDS):
    return chat.model(**chat.encode(chat.render(prompts))).logits


@pytest.mark.parametrize("kind", ["low rank", "dense"])
def test_apply_changes_the_model_and_revert_is_bit_for_bit(chat, kind):
    before, plain = state(chat), logits(chat)
    edit = edit_of(chat, kind)
    with edit.applied(chat):
        assert not torch.allclose(logits(chat), plain)
        assert same(before, state(chat)) == (kind == "low rank")
    assert same(before, state(chat)) and torch.equal(logits(chat), plain)
    with pytest.raises(KeyError), edit.applied(chat):
        raise KeyError("inside")
    assert same(before, state(chat)) and torch.equal(logits(chat), plain)
    assert not any(m._forward_hooks for m in chat.model.modules())


def test_low_rank_and_dense_do_the_same(chat):
    with edit_of(chat, "low rank").applied(chat):
        one = logits(chat)
    with edit_of(chat, "dense").applied(chat):
        two = logits(chat)
    assert torch.allclose(one, two, atol=1e-4)


def test_a_batched_edit_gives_each_prompt_its_own_change(chat):
    edit = edit_of(chat, "low rank", batch=2)
    with edit.applied(chat):
        both = logits(chat)
    batch = chat.encode(chat.render(WORDS))
    for row in range(2):
        alone = {key: value[row : row + 1] for key, value in batch.items()}
        with edit.select([row]).applied(chat), torch.no_grad():
            assert torch.allclose(
                chat.model(**alone).logits[:, -1], both[row : row + 1, -1], atol=1e-4
            )
    with pytest.raises(ValueError, match="holds 2 prompts, the forward pass 1"):
        with edit.applied(chat):
            logits(chat, WORDS[:1])
    assert not any(m._forward_hooks for m in chat.model.modules())


def test_a_failing_dense_edit_changes_nothing(chat):
    before = state(chat)
    good, bad = edit_of(chat, "dense", layer=0), edit_of(chat, "dense", layer=1)
    name = chat.weight_name(1)
    wrong = WeightEdit({**good.deltas, name: bad.deltas[name][:, :3]})
    with pytest.raises(ValueError, match="has shape"), wrong.applied(chat):
        pass
    with pytest.raises(ValueError, match="does not have"):
        with WeightEdit({"model.nothing.weight": torch.zeros(1)}).applied(chat):
            pass
    with pytest.raises(ValueError, match="needs an nn.Linear"):
        table = "model.embed_tokens.weight"
        shape = chat.model.get_parameter(table).shape
        with WeightEdit({table: low_rank(shape)}).applied(chat):
            pass
    assert same(before, state(chat))


def test_norm_is_frobenius_without_a_dense_copy():
    delta = low_rank((40, 60), rank=3, batch=4)
    expected = torch.linalg.matrix_norm(delta.dense().double())
    assert torch.allclose(delta.norm(), expected)
    chat = tiny_chat("llama")
    edit = edit_of(chat, "low rank") + edit_of(chat, "low rank", layer=2, seed=1)
    dense = [d.dense().double().norm() for d in edit.deltas.values()]
    norm = edit.norm(chat)
    assert float(norm) == pytest.approx(float(torch.stack(dense).norm()))
    assert sorted(norm.per_layer) == sorted(edit.deltas)
    weights = [chat.model.get_parameter(n).double().norm() for n in edit.deltas]
    assert norm.relative == pytest.approx(float(norm / torch.stack(weights).norm()))
    assert edit.norm().relative is None


def test_sum_and_multiple_act_on_the_weights(chat):
    one, two = edit_of(chat, "low rank"), edit_of(chat, "low rank", seed=1)
    name = chat.weight_name(1)
    both = one * 2.0 + two
    expected = 2 * one.deltas[name].dense() + two.deltas[name].dense()
    assert torch.allclose(both.deltas[name].dense(), expected, atol=1e-5)
    mixed = one + edit_of(chat, "dense", seed=1)
    assert torch.allclose(
        mixed.deltas[name], one.deltas[name].dense() + two.deltas[name].dense()
    )
    assert torch.allclose(
        (0.5 * one).norm() * torch.ones(1), one.norm() * torch.tensor(0.5)
    )
    batched = one + edit_of(chat, "low rank", batch=3)
    assert batched.batch == 3 and batched.deltas[name].U.shape[-1] == 4


def test_the_random_direction_control_keeps_every_norm():
    edit = edit_of(tiny_chat("llama"), "low rank", batch=3)
    control = edit.randomised(seed=1)
    assert torch.allclose(control.norm().per_prompt, edit.norm().per_prompt, rtol=1e-5)
    name = next(iter(edit.deltas))
    assert not torch.allclose(control.deltas[name].U, edit.deltas[name].U, atol=0.1)


@pytest.mark.parametrize("shape", [(96, 160), (160, 96), (256,)])
def test_a_dense_random_direction_has_the_same_norm_and_another_direction(shape):
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(shape, generator=generator)
    delta[0] = 30.0  # one output has most of it
    edit = WeightEdit({"a": delta, "b": 0.01 * delta}, {"method": "test"})
    control, again, other = (edit.randomised(seed) for seed in (1, 1, 2))
    for name, was in edit.deltas.items():
        new = control.deltas[name]
        assert isinstance(new, torch.Tensor) and new.shape == was.shape
        assert float(new.norm()) == pytest.approx(float(was.norm()), rel=1e-5)
        assert abs(float((new * was).sum())) < 0.25 * float(was.norm()) ** 2
        assert torch.equal(new, again.deltas[name])
        assert not torch.allclose(new, other.deltas[name], rtol=0.1)
    # Each weight has directions of its own, though its change is the same but for size.
    assert not torch.allclose(control.deltas["a"], 100 * control.deltas["b"], rtol=0.1)
    if len(shape) == 2:  # every input is still met as strongly
        x = torch.randn(shape[1], 5, generator=generator)
        strengths = [(d["a"] @ x).norm(dim=0) for d in (edit.deltas, control.deltas)]
        assert torch.allclose(*strengths, rtol=1e-4)


def test_a_random_direction_is_dense_where_the_edit_is(chat):
    edit = edit_of(chat, "dense", layer=0) + edit_of(chat, "low rank", layer=1)
    control = edit.randomised(seed=3)
    kinds = {name: type(delta) for name, delta in edit.deltas.items()}
    assert {name: type(delta) for name, delta in control.deltas.items()} == kinds
    assert control.norm().per_layer == pytest.approx(edit.norm().per_layer, rel=1e-5)
    before = logits(chat)
    with control.applied(chat):
        assert not torch.allclose(logits(chat), before)


def test_a_dense_random_direction_keeps_its_dtype():
    delta = torch.randn(40, 60).to(torch.bfloat16)
    new = WeightEdit({"a": delta}).randomised().deltas["a"]
    assert new.dtype == torch.bfloat16
    assert float(new.norm()) == pytest.approx(float(delta.norm()), rel=1e-2)


# Files


@pytest.mark.parametrize("kind", ["low rank", "dense"])
def test_save_and_load_are_exact(chat, tmp_path, kind):
    edit = edit_of(chat, kind)
    promise = Constraint(["a"], "last", {1: torch.randn(2, chat.d_model)}, {1: 0.5})
    edit = WeightEdit(edit.deltas, {**edit.info, "note": [1, "x"]}, promise)
    path = edit.save(tmp_path / "new" / "edit.safetensors")
    back = WeightEdit.load(path, chat)
    assert back.info == edit.info
    assert back.constraint.eps == {1: 0.5} and back.constraint.texts == ["a"]
    assert torch.equal(back.constraint.centres[1], promise.centres[1])
    with edit.applied(chat):
        expected = logits(chat)
    with back.applied(chat):
        assert torch.equal(logits(chat), expected)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_an_edit_can_be_tried_on_other_weights_on_purpose():
    edit = edit_of(tiny_chat("llama"), "low rank")
    for other in (tiny_chat("llama", seed=1), tiny_chat("mistral")):
        plain = logits(other)
        with edit.applied(other, strict=False):
            assert not torch.allclose(logits(other), plain)


def test_the_fingerprint_does_not_depend_on_the_dtype():
    chat = tiny_chat("gemma")
    names = [chat.weight_name(0)]
    full = base_fingerprint(chat, names)
    chat.model.to(torch.bfloat16)
    assert base_fingerprint(chat, names) == full


# Merge


def promise_of(chat, edit):
    """A constraint that the edit meets exactly: the concept is the old output."""
    texts = chat.render(WORDS[:1])
    batch = chat.encode(texts)
    layer = chat.down_projs[1]
    with torch.no_grad():
        with record([layer]) as old:
            chat.model(**batch)
        with edit.applied(chat), record([layer]) as new:
            chat.model(**batch)
    centre = old[0][1][0, -1:].float()
    eps = float((new[0][1][0, -1].float() - centre).norm())
    return Constraint(texts, "last", {1: centre}, {1: eps})


def test_merge_writes_a_folder_that_transformers_loads(chat, tmp_path):
    from transformers import AutoModelForCausalLM

    edit = edit_of(chat, "low rank")
    edit = WeightEdit(edit.deltas, edit.info, promise_of(chat, edit))
    before = state(chat)
    report = edit.merge(chat, tmp_path / "merged")
    assert same(before, state(chat))
    assert abs(report[1]["merged"]) < 1e-4
    with edit.applied(chat):
        expected = logits(chat)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        found = loaded(**chat.encode(chat.render(WORDS))).logits
    assert torch.allclose(found, expected, atol=1e-3)
    assert [p.name for p in tmp_path.iterdir()] == ["merged"]


@pytest.mark.parametrize(
    ("u", "v"), [((3, 2), (4, 1)), ((3,), (4,)), ((2, 3, 1), (3, 4, 1))]
)
def test_factors_must_fit(u, v):
    with pytest.raises(ValueError, match="U has shape"):
        LowRank(torch.zeros(u), torch.zeros(v))


def test_side_car_works_on_a_plain_linear_layer():
    class Small:
        name = "small"
        model = nn.Sequential(nn.Linear(4, 3))

    x = torch.randn(5, 4)
    delta = low_rank((3, 4))
    with WeightEdit({"0.weight": delta}).applied(Small):
        moved = Small.model(x)
    assert torch.allclose(moved - Small.model(x), x @ delta.dense().T, atol=1e-5)
