"""Hooks are gone after use, whatever happens in between."""

import pytest
import torch
from torch import nn

from safeedit.hooks import hooked, record


def test_hooks_change_the_output_and_go_away():
    layer, x = nn.Linear(3, 2), torch.ones(1, 3)
    plain = layer(x)
    with hooked([(layer, lambda module, args, output: output + 1)]):
        assert torch.allclose(layer(x), plain + 1)
    assert torch.equal(layer(x), plain)
    assert not layer._forward_hooks


def test_hooks_go_away_after_an_exception():
    layer = nn.Linear(3, 2)
    with pytest.raises(RuntimeError), hooked([(layer, lambda *a: None)] * 2):
        raise RuntimeError
    assert not layer._forward_hooks


def test_a_pair_that_cannot_be_hooked_leaves_no_hook_behind():
    layer = nn.Linear(3, 2)
    pairs = [(layer, lambda *a: None), (None, lambda *a: None)]
    with pytest.raises(AttributeError), hooked(pairs):
        pass
    assert not layer._forward_hooks


def test_pre_hooks_see_the_input():
    layer, seen = nn.Linear(3, 2), []
    with hooked([(layer, lambda module, args: seen.append(args[0]))], pre=True):
        layer(torch.ones(1, 3))
    assert torch.equal(seen[0], torch.ones(1, 3))
    assert not layer._forward_pre_hooks


def test_record_sees_what_an_outer_hook_changed():
    layer, x = nn.Linear(3, 2), torch.ones(1, 3)
    plain = layer(x)
    with (
        hooked([(layer, lambda module, args, output: output * 2)]),
        record([layer, nn.Linear(3, 2)]) as captured,
    ):
        layer(x)
    assert torch.equal(captured[0][0], x)
    assert torch.equal(captured[0][1], plain * 2)
    assert captured[1] is None
