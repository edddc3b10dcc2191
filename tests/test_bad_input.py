"""Bad input that is no error: closed folders, warnings, and writes cut short.

The tables of errors are in the modules `test_misuse_*`.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from misuse import LONG, PROMPTS, WORDS, a_record, an_edit, files

from safeedit import load, records
from safeedit.edits import PCRConfig, TestTimePCR, concept_vectors, pcr, storage


def pcr_of(bench, concepts, **config):
    return pcr(bench.chat, PROMPTS, concepts, PCRConfig(**config))


@pytest.mark.parametrize("part", ["", "config.json", "model.safetensors"])
def test_unreadable_folders_are_named(bench, tmp_path, part):
    folder = Path(shutil.copytree(bench.at / "model", tmp_path / "closed"))
    (folder / part).chmod(0)
    # Nothing is closed to root, so root becomes somebody else for a moment.
    root, parents = os.geteuid() == 0, [*folder.parents][:3]
    modes = {path: path.stat().st_mode for path in parents}
    if root:
        for path in parents:
            path.chmod(0o755)
        os.seteuid(65534)
    try:
        with pytest.raises(
            PermissionError, match="closed.*cannot be read.*permissions"
        ):
            load(folder)
    finally:
        if root:
            os.seteuid(0)
            for path, mode in modes.items():
                path.chmod(mode)
        (folder / part).chmod(0o755)
        shutil.rmtree(folder)


# What is accepted with a warning


@pytest.mark.parametrize("kind", ["words", "vectors"])
@pytest.mark.parametrize("scope", ["per_prompt", "shared"])
def test_duplicated_concepts_count_once(bench, kind, scope):
    concepts = WORDS if kind == "words" else concept_vectors(bench.chat, WORDS, [1])[1]
    twice = [*WORDS, "kite"] if kind == "words" else concepts[[0, 1, 2, 2]]
    options = dict(layers=(1,), eps=50.0, scope=scope)
    once = pcr_of(bench, concepts, **options)
    with pytest.warns(UserWarning, match="1 duplicated concepts"):
        again = pcr_of(bench, twice, **options)
    (delta,), (other) = once.deltas.values(), next(iter(again.deltas.values()))
    assert torch.equal(delta.U, other.U) and torch.equal(delta.V, other.V)


def test_a_failed_calibration_keeps_the_old_radius(bench):
    defense = TestTimePCR(
        bench.chat, WORDS, PCRConfig(layers=2, calibration=("a kite",))
    )
    eps = dict(defense.eps)
    with pytest.raises(ValueError, match="Shorten it"):
        defense.calibrate([LONG])
    assert defense.eps == eps


# Killed while it writes


def break_replace(monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr(os, "rename", fail)


def break_write(monkeypatch):
    def fail(*args, **kwargs):
        if args and isinstance(args[-1], str):  # half a file, then a full disk
            Path(args[-1]).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(storage, "save_file", fail)
    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", fail)


WRITERS = {
    "record": lambda chat, path: a_record(seed=int(path.exists())).write(path),
    "edit": lambda chat, path: an_edit(chat, layer=int(path.exists())).save(path),
    "merged model": lambda chat, path: an_edit(chat).merge(chat, path),
}


@pytest.mark.parametrize("broken", [break_replace, break_write])
@pytest.mark.parametrize("writer", WRITERS)
def test_an_interrupted_write_leaves_what_was_there(
    bench, tmp_path, monkeypatch, writer, broken
):
    write, path = WRITERS[writer], tmp_path / "out"
    if writer != "merged model":  # which never replaces
        write(bench.chat, path)
    assert bench.unchanged()
    before = files(tmp_path)
    broken(monkeypatch)
    with pytest.raises((KeyboardInterrupt, OSError)):
        write(bench.chat, path)
    monkeypatch.undo()
    assert files(tmp_path) == before
    assert bench.unchanged()
    write(bench.chat, path)  # the next run goes on
    assert path.exists() and len(list(tmp_path.iterdir())) == 1


def test_a_record_survives_a_real_kill(tmp_path):
    path = a_record().write(tmp_path / "90_demo" / "m.json")
    child = os.fork()
    if child == 0:
        os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
        records.write_atomic(path, "half a record")
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert len(list(path.parent.iterdir())) == 2  # what was killed lies beside it
    assert records.find(tmp_path) == [a_record()]
