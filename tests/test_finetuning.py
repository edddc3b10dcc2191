"""The training loop on a dict of weights: AdamW by hand, divergence, going on."""

import math
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from safeedit.finetuning import Diverged, FinetuneConfig, finetune


def config(**changes):
    settings = dict(steps=12, learning_rate=0.1, batch_size=2, checkpoint_every=4)
    return FinetuneConfig(**settings | changes)


def weights():
    g = torch.Generator().manual_seed(0)
    return {"a": torch.randn(4, 3, generator=g), "b": torch.randn(5, generator=g)}


def bowl(step, masters):
    """Gradient of |w|^2 / 2 plus noise that depends on the step alone."""
    g = torch.Generator().manual_seed(step)
    slopes = {
        name: w + torch.randn(w.shape, generator=g) for name, w in masters.items()
    }
    loss = sum(float(w.square().sum()) for w in masters.values()) / 2
    return slopes, {"loss": loss}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize("decay", ["linear", "constant"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_equals_adamw_worked_out_in_float64(decay, clip):
    settings = config(decay=decay, clip=clip, warmup=0.25, weight_decay=0.02)
    masters = weights()
    rows = finetune(masters, bowl, settings)
    w = {n: v.double() for n, v in weights().items()}
    m = {n: torch.zeros_like(v) for n, v in w.items()}
    v = {n: torch.zeros_like(x) for n, x in w.items()}
    for t in range(12):
        grads, _ = bowl(t, w)
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads.values()))
        rate = 0.1 * (t + 1) / 3 if t < 3 else 0.1
        if decay == "linear" and t >= 3:
            rate = 0.1 * (12 - t) / 9
        assert rows[t]["learning_rate"] == pytest.approx(rate)
        assert rows[t]["gradient_norm"] == pytest.approx(norm, rel=1e-4)
        for n, g in grads.items():
            g = g * (1 if clip is None else min(1, clip / norm))
            m[n] = 0.9 * m[n] + 0.1 * g
            v[n] = 0.999 * v[n] + 0.001 * g**2
            step = m[n] / (1 - 0.9 ** (t + 1))
            step = step / ((v[n] / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8)
            w[n] = w[n] * (1 - rate * 0.02) - rate * step
    for n in w:
        torch.testing.assert_close(masters[n].double(), w[n], rtol=1e-4, atol=1e-5)


def test_the_trajectory_says_what_happened():
    masters, seen = weights(), []
    start = weights()
    rows = finetune(masters, bowl, config(), after_step=lambda t, w: seen.append(t))
    assert [row["step"] for row in rows] == seen == list(range(12))
    square = sum(float((masters[n] - start[n]).square().sum()) for n in start)
    assert rows[-1]["change_norm"] == pytest.approx(math.sqrt(square), rel=1e-5)
    assert rows[0]["loss"] == pytest.approx(bowl(0, start)[1]["loss"])


def test_weights_are_changed_in_place_and_keep_no_gradient():
    masters = weights()
    places = {name: w.data_ptr() for name, w in masters.items()}
    finetune(masters, bowl, config())
    assert {name: w.data_ptr() for name, w in masters.items()} == places
    assert all(w.grad is None and not w.requires_grad for w in masters.values())
    assert not same(masters, weights())


def test_no_steps_change_nothing():
    masters = weights()
    assert finetune(masters, bowl, config(steps=0)) == []
    assert same(masters, weights())


@pytest.mark.parametrize("stop", [0, 3, 4, 5, 10, 11])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, stop):
    whole, parts = weights(), weights()
    expected = finetune(whole, bowl, config())

    def fail(step, _):
        if step == stop:
            raise InterruptedError

    path = tmp_path / "run.safetensors"
    with pytest.raises(InterruptedError):
        finetune(parts, bowl, config(), checkpoint=path, after_step=fail)
    parts, asked = weights(), []

    def gradient(step, masters):
        asked.append(step)
        return bowl(step, masters)

    rows = finetune(parts, gradient, config(), checkpoint=path)
    assert rows == expected and same(parts, whole)
    assert asked[0] == stop // 4 * 4  # no further back than the last checkpoint
    asked.clear()
    parts = weights()
    assert finetune(parts, gradient, config(), checkpoint=path) == expected
    assert same(parts, whole) and asked == []  # a finished run is free
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_killed_process_goes_on_to_the_same_bits(tmp_path):
    path = tmp_path / "run.safetensors"
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_finetuning import bowl, config, finetune, weights
        def die(step, _):
            if step == 9:
                os.kill(os.getpid(), signal.SIGKILL)
        finetune(weights(), bowl, config(), checkpoint={str(path)!r}, after_step=die)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    whole, parts = weights(), weights()
    assert finetune(whole, bowl, config()) == finetune(
        parts, bowl, config(), checkpoint=path
    )
    assert same(whole, parts)


def test_another_run_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    finetune(weights(), bowl, config(), checkpoint=path, settings={"data": "one"})

    def again(start=None, data="one", **changes):
        masters = start or weights()
        settings = config(**changes)
        return finetune(
            masters, bowl, settings, checkpoint=path, settings={"data": data}
        )

    with pytest.raises(ValueError, match="learning_rate was 0.1 and is 0.2.*remove"):
        again(learning_rate=0.2)
    with pytest.raises(ValueError, match="settings.data was 'one' and is 'two'"):
        again(data="two")
    moved = {name: w + 1 for name, w in weights().items()}
    with pytest.raises(ValueError, match="start.a"):
        again(start=moved)
    assert len(again(checkpoint_every=7)) == 12  # how often is no other run


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"text of another kind"])
def test_a_corrupt_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "run.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="run.safetensors is corrupt.*remove the file"):
        finetune(weights(), bowl, config(), checkpoint=path)


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_run_that_diverges_stops_at_the_last_good_weights(tmp_path, what, value):
    states = {}

    def gradient(step, masters):
        slopes, values = bowl(step, masters)
        if step == 6 and what == "loss":
            values["loss"] = value
        if step == 6 and what == "gradient":
            slopes["b"][2] = value
        return slopes, values

    def keep(step, masters):
        states[step] = {name: w.clone() for name, w in masters.items()}

    path, masters = tmp_path / "run.safetensors", weights()
    with pytest.raises(Diverged, match=rf"step 6: {what} is .*learning_rate") as caught:
        finetune(masters, gradient, config(), checkpoint=path, after_step=keep)
    # The weights after step 5 gave the bad loss; those after step 4 a good one.
    assert same(masters, states[4])
    assert caught.value.step == 6 and caught.value.name == what
    assert len(caught.value.trajectory) == 6
    assert not math.isfinite(caught.value.value)
    again = weights()
    with pytest.raises(Diverged, match="step 6"):
        finetune(again, gradient, config(), checkpoint=path)
    assert same(again, states[4])


def test_masters_are_float32_and_gradients_have_their_names():
    half = {name: w.bfloat16() for name, w in weights().items()}
    with pytest.raises(ValueError, match="a is torch.bfloat16; give float32 masters"):
        finetune(half, bowl, config())
    with pytest.raises(ValueError, match=r"\['b'\]"):
        finetune(weights(), lambda t, w: ({"a": w["a"]}, {}), config())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": -1}, "steps is -1"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"warmup": 10}, "warmup is 10; give a share"),
        ({"decay": "cosine"}, "decay is 'cosine'; use one of"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"clip": 0}, "clip is 0"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)
