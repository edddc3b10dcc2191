"""Quantization: the levels of an independent loop, and deltas that are exact."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny import ARCHITECTURES, tiny_chat
from torch import nn

from safeedit.attacks import quantize
from safeedit.attacks.quantization import rounded_to_levels
from safeedit.edits import LowRank, WeightEdit

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def chat(request):
    return tiny_chat(request.param)


def state(chat):
    return {name: p.detach().clone() for name, p in chat.model.named_parameters()}


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def by_loops(weight, bits, group):
    """Nearest of the listed levels of each group, one weight at a time."""
    most = 2 ** (bits - 1) - 1
    out = np.empty_like(weight, dtype=np.float64)
    for i, row in enumerate(weight.astype(np.float64)):
        for start in range(0, len(row), group):
            part = row[start : start + group]
            levels = np.arange(-most, most + 1) * (np.abs(part).max() / most)
            for j, w in enumerate(part):
                out[i, start + j] = levels[np.abs(levels - w).argmin()]
    return out


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, None), (4, 8), (2, 16)])
def test_weights_in_the_blocks_go_to_the_nearest_level_and_no_others(chat, bits, group):
    before = state(chat)
    attack = quantize(chat, bits, group)
    assert same(before, state(chat))
    linears = {
        f"{name}.weight"
        for name, m in chat.model.named_modules()
        if isinstance(m, nn.Linear) and name.startswith("model.layers.")
    }
    assert set(attack.edit.deltas) == linears and len(linears) == 7 * chat.n_layers
    name = sorted(linears)[3]
    with attack.edit.applied(chat):
        found = chat.model.get_parameter(name).detach().numpy().copy()
    wanted = by_loops(before[name].numpy(), bits, group or before[name].shape[1])
    assert np.allclose(found, wanted, rtol=1e-5, atol=1e-7)
    assert same(before, state(chat))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 16), (3, None)])
def test_weights_plus_delta_are_the_dequantized_weights_bit_for_bit(dtype, bits, group):
    chat = tiny_chat("llama")
    chat.model.to(dtype)
    before = state(chat)
    attack = quantize(chat, bits, group)
    with attack.edit.applied(chat):
        for name in attack.edit.deltas:
            weight = chat.model.get_parameter(name)
            assert weight.dtype == dtype
            assert torch.equal(weight, rounded_to_levels(before[name], bits, group))
    assert same(before, state(chat))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_difference_is_exact_for_many_scales_and_at_half_steps(dtype):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 64, generator=generator)
    rows *= 10 ** (4 * torch.rand(200, 1, generator=generator) - 4)  # 1e-4 to 1
    halves = torch.arange(-7, 8).repeat(200, 1) + 0.5
    halves = halves.clamp(-7, 7) * rows[:, :1]  # midway between two levels of 4 bits
    for values in (rows, halves):
        weight = values.to(dtype)
        for bits in range(2, 9):
            wanted = rounded_to_levels(weight, bits)
            assert torch.equal(weight + (wanted - weight), wanted)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_levels_are_few_and_even_and_the_error_is_half_a_step(bits):
    weight = torch.randn(16, 4096, generator=torch.Generator().manual_seed(1))
    rounded = rounded_to_levels(weight, bits)
    most = 2 ** (bits - 1) - 1
    for row, now in zip(weight, rounded, strict=True):
        step = row.abs().max() / most
        codes = (now / step).double()
        assert torch.allclose(codes, codes.round(), atol=1e-4)
        assert len(codes.round().unique()) <= 2 * most + 1
        assert codes.abs().max().round() == most  # the largest weight is kept
        assert (now - row).abs().max() <= step / 2 * (1 + 1e-4)


def test_quantizing_twice_changes_nothing_more():
    chat = tiny_chat("mistral")
    first = quantize(chat, 4, 16).edit
    with first.applied(chat):
        second = quantize(chat, 4, 16).edit
        assert second.norm(chat).relative < 1e-6
        # The base of the second is the quantized model, not the one before.
        assert second.info["base"] != first.info["base"]
    with pytest.raises(ValueError, match="made for another model"):
        with second.applied(chat):
            pass


def test_fewer_bits_and_wider_groups_cost_more():
    chat = tiny_chat("llama")
    size = {
        key: quantize(chat, *key).edit.norm(chat).relative
        for key in [(8, None), (4, 8), (4, None), (2, None)]
    }
    assert list(size.values()) == sorted(size.values())
    assert size[8, None] > 0


def test_a_row_of_zeros_stays_zero():
    weight = torch.zeros(2, 4)
    weight[1, 2] = -3.0
    assert torch.equal(rounded_to_levels(weight, 4), weight)


def test_bad_input_is_refused_with_what_to_do():
    chat = tiny_chat("llama")
    for bits in (1, 9, 8.0, True, "8"):
        with pytest.raises(ValueError, match="whole number from 2 to 8"):
            quantize(chat, bits)
    for group in (0, 7, -8, 32, 2.0):  # 32 divides d_model, but not the width 48
        with pytest.raises(ValueError, match=r"divides the input widths \[32, 48\]"):
            quantize(chat, 8, group)
    name = chat.weight_name(1)
    broken = copy.deepcopy(chat.model.get_parameter(name).data)
    broken[0, 0] = float("nan")
    with torch.no_grad():
        chat.model.get_parameter(name).copy_(broken)
    with pytest.raises(ValueError, match=f"{name} holds nan"):
        quantize(chat)


def test_a_low_rank_edit_beside_a_weight_is_not_overlooked():
    chat = tiny_chat("llama")
    name = chat.weight_name(0)
    change = LowRank(torch.ones(32, 1), torch.ones(48, 1))
    with WeightEdit({name: change}).applied(chat):
        with pytest.raises(ValueError, match=f"a hook stands beside {name}"):
            quantize(chat)
    with WeightEdit({name: change.dense()}).applied(chat):
        quantize(chat)
