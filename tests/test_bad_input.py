"""Bad input, in one table: a clear error each, nothing written, no model changed.

Each row is one mistake of a caller or one damaged file. Schemas of records, settings
of the geometry, faults of the hub and wrong parameters of notebooks have tables of
their own in the tests of their modules.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_chat

from safeedit import __main__ as cli
from safeedit import data, load, records
from safeedit.attacks import (
    GCGConfig,
    PrefillConfig,
    RandomSuffixConfig,
    gcg,
    prefill,
    random_suffix,
)
from safeedit.edits import (
    Constraint,
    LowRank,
    PCRConfig,
    TestTimePCR,
    WeightEdit,
    concept_vectors,
    pcr,
    project_out,
    storage,
)
from safeedit.edits.storage import base_fingerprint
from safeedit.hooks import record
from safeedit.world import World, add_noise

PROMPTS = ["how do I make a boat", "explain a kite"]
WORDS = ["boat", "bread", "kite"]
LONG = "bread " * 300  # the context of a tiny model is 256 tokens
NAN = float("nan")
GCG = dict(num_steps=1, suffix_length=4, search_width=4, topk=4, max_new_tokens=2)
NOTEBOOK = """---
kernelspec: {display_name: Python 3, language: python, name: python3}
---
# Empty

```{code-cell} python3
:tags: [parameters]
model_name: str = "standin-llama"  # which
seed: int = 0  # of nothing
scale: str = "cpu"  # size
```
"""


# A folder of good and of damaged things


def a_record(**changes) -> records.Record:
    fields = dict(
        kit_version="0.1.0",
        commit="abc",
        notebook="90_demo",
        parameters={},
        fingerprint="f",
        model={"name": "m", "id": "m", "revision": None, "weights": "local"},
        device="cpu",
        dtype="float32",
        seed=0,
        versions={},
        seconds={},
        peak_memory_mb=None,
        started="2026-01-01T00:00:00+00:00",
        rows=[records.row("loss", 1.0)],
    )
    return records.Record(**(fields | changes))


def an_edit(chat, batch: int | None = None, layer: int = 1) -> WeightEdit:
    name, lead = chat.weight_name(layer), () if batch is None else (batch,)
    delta = LowRank(torch.ones(*lead, chat.d_model, 1), torch.ones(*lead, chat.d_ff, 1))
    return WeightEdit({name: delta}, {"base": base_fingerprint(chat, [name])})


def lost_in_rounding():
    """A bfloat16 model, and an edit whose margin its coarse weights cannot hold."""
    chat = tiny_chat("llama")
    name, texts = chat.weight_name(1), chat.render(PROMPTS[:1])
    batch = chat.encode(texts)
    with torch.no_grad(), record([chat.down_projs[1]]) as captured:
        chat.model(**batch)
    h, o = (t[0, -1] for t in captured[0])
    # Large weights that this prompt's h does not see: the output stays of the same
    # size, the spacing of bfloat16 numbers near the weights becomes coarse.
    noise = torch.randn(chat.d_model, chat.d_ff, generator=torch.Generator())
    noise = noise - torch.outer(noise @ h, h) / h.square().sum()
    chat.model.get_parameter(name).add_(100 * noise)
    chat.model.to(torch.bfloat16)
    delta = LowRank(0.5 * o[:, None], h[:, None] / h.square().sum())
    edit = WeightEdit({name: delta}, {"base": base_fingerprint(chat, [name])})
    ends = []
    for place in (WeightEdit({}), edit):
        with place.applied(chat), record([chat.down_projs[1]]) as captured:
            chat.model(**batch)
        ends.append(captured[0][1][0, -1:].float())
    promise = Constraint(texts, "last", {1: ends[0]}, {1: float(torch.dist(*ends))})
    return chat, WeightEdit(edit.deltas, edit.info, promise)


def damage_models(at: Path) -> None:
    """Copies of a model folder, each with one thing wrong."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(at / "model", at / name))

    weights = "model.safetensors"
    whole = (at / "model" / weights).read_bytes()
    (copy("truncated") / weights).write_bytes(whole[: len(whole) // 2])
    (copy("empty") / weights).write_bytes(b"")
    (copy("noise") / weights).write_bytes(b"\xff" * 64)
    (copy("without-weights") / weights).unlink()
    tensors = load_file(at / "model" / weights)
    tensors.pop("model.norm.weight")
    save_file(tensors, copy("lacking") / weights, metadata={"format": "pt"})
    (copy("without-config") / "config.json").unlink()
    (copy("bad-config") / "config.json").write_text("{")
    for name, change in (
        ("wrong-shapes", {"intermediate_size": 40}),
        ("wrong-type", {"hidden_size": "many"}),
        ("wrong-kind", {"model_type": "abacus"}),
    ):
        config = json.loads((at / "model" / "config.json").read_text())
        (copy(name) / "config.json").write_text(json.dumps(config | change))
    for name, text in (
        ("lost-shard", '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'),
        ("bad-index", "{"),
        ("other-index", "{}"),
    ):
        (copy(name) / "model.safetensors.index.json").write_text(text)
    (copy("bad-tokenizer") / "tokenizer.json").write_text("{}")


def damage_files(at: Path, chat) -> None:
    """Copies of an edit and of a record, each with one thing wrong."""
    whole = an_edit(chat).save(at / "edit").read_bytes()
    middle = len(whole) - 40  # inside the numbers
    for name, content in (
        ("edit-half", whole[: len(whole) // 2]),
        ("edit-start", whole[:5]),
        ("edit-empty", b""),
        ("edit-noise", b"\xff" * 64),
        ("edit-flipped", whole[:middle] + b"\x00\x01" + whole[middle + 2 :]),
    ):
        (at / name).write_bytes(content)
    save_file({"a": torch.zeros(1)}, at / "edit-other")
    whole = a_record().write(at / "mine" / "90_demo" / "m.json").read_bytes()
    for name, content in (
        ("record-half", whole[: len(whole) // 2]),
        ("record-last", whole[:-3]),
        ("record-empty", b""),
        ("record-noise", b"\xff" * 64),
        ("record-list", b"[]"),
        ("record-nan", whole.replace(b"1.0,", b"NaN,")),
    ):
        (at / name).write_bytes(content)
    records.write_atomic(at / "broken" / "90_demo" / "m.json", "{")
    source = at / "root" / "notebooks" / "src" / "90_demo.md"
    records.write_atomic(source, NOTEBOOK)


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    chat = tiny_chat("llama")
    chat.model.save_pretrained(folder / "model")
    chat.tokenizer.save_pretrained(folder / "model")
    damage_models(folder)
    damage_files(folder, chat)
    return folder


@pytest.fixture(scope="module")
def w(at):
    """What the rows of the table work with."""
    chat, other, (coarse, lost) = tiny_chat(), tiny_chat(seed=1), lost_in_rounding()
    return SimpleNamespace(
        at=at,
        chat=chat,
        other=other,
        mistral=tiny_chat("mistral"),
        coarse=coarse,
        lost=lost,
        edit=an_edit(chat),
        batched=an_edit(chat, batch=2),
        world=World(),
    )


def state(w) -> list[torch.Tensor]:
    """Clones of all weights; there must be no hook either."""
    models = [chat.model for chat in (w.chat, w.other, w.mistral, w.coarse)]
    assert not any(m._forward_hooks for model in models for m in model.modules())
    assert not any(m._forward_pre_hooks for model in models for m in model.modules())
    return [p.detach().clone() for model in models for p in model.parameters()]


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


def run(context, body):
    with context:
        return body()


def pcr_of(w, concepts=WORDS, prompts=PROMPTS, **config):
    return pcr(w.chat, prompts, concepts, PCRConfig(**({"eps": 1.0} | config)))


def gcg_of(w, prompts=PROMPTS, targets=PROMPTS, **config):
    return gcg(w.chat, prompts, targets, GCGConfig(**(GCG | config)))


def control_of(w, prompts=PROMPTS, **config):
    return random_suffix(w.chat, prompts, RandomSuffixConfig(**config))


def wrong_batch(w):
    """A prefill of two prompts, then a pass of one."""
    defense = TestTimePCR(w.chat, WORDS, PCRConfig(eps=50.0))
    ids = w.chat.encode(w.chat.render(["boat", "kite"])).input_ids
    with defense.applied():
        w.chat.model(ids)
        w.chat.model(ids[:1])


V, F, D, R = ValueError, FileNotFoundError, OSError, records.RecordError
TABLE = [
    # Models
    ("no name", lambda w: load(""), V, "give a name"),
    ("unknown model", lambda w: load("something"), V, "Unknown model.*Known names"),
    (
        "misspelt model",
        lambda w: load("standin-lama"),
        V,
        "Did you mean 'standin-llama'.*gemma-2b-it",
    ),
    ("missing folder", lambda w: load("./no/such"), F, "no model folder no/such"),
    ("file for a folder", lambda w: load(w.at / "edit"), F, "no model folder"),
    ("no config", lambda w: load(w.at / "without-config"), F, "no config.json"),
    ("damaged config", lambda w: load(w.at / "bad-config"), V, "json is damaged"),
    ("config of a wrong type", lambda w: load(w.at / "wrong-type"), V, "hidden_size"),
    ("unknown architecture", lambda w: load(w.at / "wrong-kind"), V, "abacus"),
    ("no weights", lambda w: load(w.at / "without-weights"), F, r"no \*.safetensors"),
    ("half the weights", lambda w: load(w.at / "truncated"), D, "truncated.*Delete it"),
    ("empty weights", lambda w: load(w.at / "empty"), D, "truncated or damaged"),
    ("corrupt weights", lambda w: load(w.at / "noise"), D, "truncated or damaged"),
    ("a tensor less", lambda w: load(w.at / "lacking"), D, "lack 1 .*model.norm.weig"),
    ("wrong shapes", lambda w: load(w.at / "wrong-shapes"), D, "do not have the shap"),
    ("a shard less", lambda w: load(w.at / "lost-shard"), F, "lacks model-00001-of-0"),
    ("damaged index", lambda w: load(w.at / "bad-index"), D, "index.json is damaged"),
    ("other index", lambda w: load(w.at / "other-index"), D, "index.json is damaged"),
    ("no tokenizer", lambda w: load(w.at / "bad-tokenizer"), D, "tokenizer in"),
    # Prompts
    ("no prompts", lambda w: w.chat.generate([]), V, "empty list of prompts"),
    ("one string", lambda w: w.chat.generate("hi"), V, "give a list of strings"),
    ("a number", lambda w: w.chat.generate(["hi", 3]), V, "Prompt 1 is of type int"),
    (
        "prompt longer than the context",
        lambda w: w.chat.generate(["hi", LONG, "hi"]),
        V,
        r"Prompt 1 has \d+ tokens.*is 256",
    ),
    ("no new tokens", lambda w: w.chat.generate(["hi"], 0), V, "max_new_tokens is 0"),
    ("PCR of no prompts", lambda w: pcr_of(w, prompts=[]), V, "empty list of prompts"),
    ("PCR of a long prompt", lambda w: pcr_of(w, prompts=[LONG]), V, "Shorten it"),
    # Radius
    ("eps 0", lambda w: PCRConfig(eps=0.0), V, "eps is 0.0.*finite and > 0"),
    ("eps < 0", lambda w: PCRConfig(eps=-1.0), V, "eps is -1.0"),
    ("eps NaN", lambda w: PCRConfig(eps=NAN), V, "eps is nan"),
    ("eps a text", lambda w: PCRConfig(eps="1"), V, "eps is '1'"),
    ("eps_factor 0", lambda w: PCRConfig(eps_factor=0), V, "eps_factor is 0"),
    ("eps_factor NaN", lambda w: PCRConfig(eps_factor=NAN), V, "eps_factor is nan"),
    ("radius 0", lambda w: project_out([0.0], [[1.0]], 0.0), V, "radius is 0.0"),
    ("radius < 0", lambda w: project_out([0.0], [[1.0]], -1), V, "finite number > 0"),
    ("radius NaN", lambda w: project_out([0.0], [[1.0]], NAN), V, "radius is nan"),
    ("radius a text", lambda w: project_out([0.0], [[1.0]], "1"), V, "radius is '1'"),
    ("point NaN", lambda w: project_out([NAN], [[1.0]], 1.0), V, "point holds NaN"),
    # Layers
    ("no last layers", lambda w: pcr_of(w, layers=0), V, "layers is 0.*use 1 to 3"),
    ("too many layers", lambda w: pcr_of(w, layers=4), V, "layers is 4.*use 1 to 3"),
    ("layer too high", lambda w: pcr_of(w, layers=(3,)), V, "blocks 0 to 2"),
    ("layer too low", lambda w: pcr_of(w, layers=(0, -4)), V, "blocks 0 to 2"),
    ("no layers", lambda w: pcr_of(w, layers=()), V, "layers is empty"),
    ("layers a text", lambda w: PCRConfig(layers="12"), V, "layers is '12'"),
    ("half a layer", lambda w: PCRConfig(layers=(0.5,)), V, r"layers is \(0.5,\)"),
    ("vectors of layer 7", lambda w: concept_vectors(w.chat, WORDS, [7]), V, "0 to 2"),
    ("vectors of none", lambda w: concept_vectors(w.chat, WORDS, []), V, "name at le"),
    ("name of layer 3", lambda w: w.chat.weight_name(3), V, "out of range.*0 to 2"),
    ("no sweeps", lambda w: PCRConfig(sweeps=0), V, "sweeps is 0"),
    ("ridge NaN", lambda w: PCRConfig(ridge=NAN), V, "ridge is nan"),
    # Concepts
    ("no concepts", lambda w: pcr_of(w, []), V, "give a list of words"),
    ("concepts None", lambda w: pcr_of(w, None), V, "concepts are None"),
    ("one word", lambda w: pcr_of(w, "boat"), V, "give a list of words"),
    ("empty word", lambda w: pcr_of(w, ["boat", " "]), V, "not a word"),
    ("no vectors", lambda w: pcr_of(w, torch.zeros(0, 32)), V, r"needs \(n, 32\)"),
    ("wrong width", lambda w: pcr_of(w, torch.zeros(3, 31)), V, r"needs \(n, 32\)"),
    ("NaN vectors", lambda w: pcr_of(w, torch.full((3, 32), NAN)), V, "hold NaN"),
    (
        "half a completion",
        lambda w: pcr_of(w, [("a prompt",)], provider="completion"),
        V,
        "a pair \\(prompt, text\\)",
    ),
    # Edits
    ("no edit there", lambda w: WeightEdit.load(w.at / "none"), F, "no edit at"),
    (
        "half an edit",
        lambda w: WeightEdit.load(w.at / "edit-half"),
        V,
        "edit-half is c",
    ),
    ("start of an edit", lambda w: WeightEdit.load(w.at / "edit-start"), V, "corrupt"),
    ("empty edit", lambda w: WeightEdit.load(w.at / "edit-empty"), V, "corrupt"),
    ("noise for an edit", lambda w: WeightEdit.load(w.at / "edit-noise"), V, "corrupt"),
    ("flipped bits", lambda w: WeightEdit.load(w.at / "edit-flipped"), V, "corrupt"),
    (
        "no edit at all",
        lambda w: WeightEdit.load(w.at / "edit-other"),
        V,
        "format None",
    ),
    (
        "edit file for another base",
        lambda w: WeightEdit.load(w.at / "edit", w.other),
        V,
        "made for another model.*its weights differ",
    ),
    (
        "edit for another base",
        lambda w: run(w.edit.applied(w.other), int),
        V,
        "its weights differ.*strict=False",
    ),
    (
        "edit for another architecture",
        lambda w: run(w.edit.applied(w.mistral), int),
        V,
        "its configuration or parameter shapes differ",
    ),
    ("sum over bases", lambda w: w.edit + an_edit(w.other), V, "different models"),
    ("edit times NaN", lambda w: w.edit * NAN, V, "factor is nan"),
    (
        "wrong batch for a batched edit",
        lambda w: run(w.batched.applied(w.chat), lambda: w.chat.generate(["hi"], 1)),
        V,
        "holds 2 prompts, the forward pass 1",
    ),
    (
        "wrong batch after a prefill",
        wrong_batch,
        V,
        "had 2 prompts and this pass has 1",
    ),
    (
        "merge into an existing folder",
        lambda w: w.edit.merge(w.chat, w.at / "model"),
        FileExistsError,
        "model exists; give the name of a new folder",
    ),
    (
        "merge of one change per prompt",
        lambda w: w.batched.merge(w.chat, w.at / "merged"),
        V,
        'scope="shared"',
    ),
    (
        "merge into another base",
        lambda w: w.edit.merge(w.other, w.at / "merged"),
        V,
        "its weights differ",
    ),
    (
        "merge that loses its margin",
        lambda w: w.lost.merge(w.coarse, w.at / "merged"),
        V,
        "loses the constraint.*Nothing was written.*float32",
    ),
    # Records
    ("half a record", lambda w: records.read(w.at / "record-half"), R, "record-half"),
    (
        "most of a record",
        lambda w: records.read(w.at / "record-last"),
        R,
        "record-last",
    ),
    ("empty record", lambda w: records.read(w.at / "record-empty"), R, "not a JSON"),
    (
        "noise for a record",
        lambda w: records.read(w.at / "record-noise"),
        R,
        "not a JS",
    ),
    ("list for a record", lambda w: records.read(w.at / "record-list"), R, "a dict"),
    (
        "NaN in a record",
        lambda w: records.read(w.at / "record-nan"),
        R,
        r"\].value is n",
    ),
    ("no such record", lambda w: records.read(w.at / "none.json"), F, "none.json"),
    (
        "record that is not valid",
        lambda w: a_record(seed="0").write(w.at / "new.json"),
        R,
        "field seed is '0'",
    ),
    ("unknown field", lambda w: records.find(w.at / "mine", colour=1), R, "colour"),
    # World and data
    ("unknown kind", lambda w: w.world.requests("evil"), V, "'forbidden', 'benign'"),
    ("unknown split", lambda w: data.obedience("test"), V, "'train', 'heldout'"),
    ("limit 0", lambda w: data.benign(limit=0), V, "limit=0"),
    ("limit < 0", lambda w: data.obedience(limit=-1), V, "limit=-1"),
    ("unknown domain", lambda w: data.questions("medical"), V, "'medical'.*'hazard'"),
    ("no sentences", lambda w: data.utility_text(0), V, "n=0"),
    ("unknown skill", lambda w: w.world.skill_question("x", None), V, "'sentiment'"),
    ("unknown word", lambda w: w.world.judge("teapot", ""), KeyError, "teapot"),
    ("too much noise", lambda w: add_noise("a", 101, None), V, "percent=101"),
    # Attacks
    ("GCG of no prompts", lambda w: gcg_of(w, [], []), V, "empty list of prompts"),
    ("GCG of one string", lambda w: gcg_of(w, "ab", "cd"), V, "list of strings"),
    ("a target less", lambda w: gcg_of(w, targets=["a"]), V, "2 prompts and 1 targ"),
    ("targets a string", lambda w: gcg_of(w, targets="ab"), V, "2 prompts and one s"),
    (
        "empty target",
        lambda w: gcg_of(w, targets=["a", ""]),
        V,
        "target of .* is empty",
    ),
    ("GCG of a long prompt", lambda w: gcg_of(w, [LONG], ["a"]), V, "Prompt 0 has"),
    ("useless init", lambda w: gcg_of(w, init="qqq", suffix_length=5), V, "init='qqq'"),
    ("empty init", lambda w: gcg_of(w, init=""), V, "init=''"),
    ("banned a string", lambda w: gcg_of(w, banned_words="ab"), V, "tuple of words"),
    ("all tokens banned", lambda w: gcg_of(w, banned_words=("",)), V, "ban fewer"),
    ("no candidates", lambda w: GCGConfig(search_width=0), V, "search_width is 0"),
    ("candidates NaN", lambda w: GCGConfig(search_width=NAN), V, "search_width is nan"),
    ("no suffix", lambda w: GCGConfig(suffix_length=0), V, "suffix_length is 0"),
    ("half a token", lambda w: GCGConfig(topk=2.5), V, "topk is 2.5"),
    ("steps < 0", lambda w: GCGConfig(num_steps=-1), V, "num_steps is -1"),
    ("no answer", lambda w: GCGConfig(max_new_tokens=0), V, "max_new_tokens is 0"),
    ("no batch", lambda w: GCGConfig(batch_tokens=0), V, "batch_tokens is 0"),
    (
        "more changes than tokens",
        lambda w: GCGConfig(n_replace=9, suffix_length=5),
        V,
        "n_replace is 9",
    ),
    ("prefill of none", lambda w: prefill(w.chat, [], []), V, "empty list of prompts"),
    (
        "prefill, a target less",
        lambda w: prefill(w.chat, PROMPTS, ["a"], PrefillConfig()),
        V,
        "2 prompts and 1 targets",
    ),
    ("control of none", lambda w: control_of(w, []), V, "empty list of prompts"),
    ("no tries", lambda w: control_of(w, tries=0), V, "tries is 0"),
]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [row[1:] for row in TABLE],
    ids=[row[0].replace(" ", "-") for row in TABLE],
)
def test_error_is_clear_and_nothing_is_changed(w, call, error, words):
    weights, before = state(w), files(w.at)
    with pytest.raises(error) as caught:
        call(w)
    message = str(caught.value)
    assert re.search(words, message, re.DOTALL), message
    assert files(w.at) == before
    assert all(map(torch.equal, state(w), weights))


@pytest.mark.parametrize("part", ["", "config.json", "model.safetensors"])
def test_unreadable_folders_are_named(at, part):
    folder = Path(shutil.copytree(at / "model", at / "closed", dirs_exist_ok=True))
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
def test_duplicated_concepts_count_once(w, kind, scope):
    concepts = WORDS if kind == "words" else concept_vectors(w.chat, WORDS, [1])[1]
    twice = [*WORDS, "kite"] if kind == "words" else concepts[[0, 1, 2, 2]]
    options = dict(layers=(1,), eps=50.0, scope=scope)
    once = pcr_of(w, concepts, **options)
    with pytest.warns(UserWarning, match="1 duplicated concepts"):
        again = pcr_of(w, twice, **options)
    (delta,), (other) = once.deltas.values(), next(iter(again.deltas.values()))
    assert torch.equal(delta.U, other.U) and torch.equal(delta.V, other.V)


def test_a_failed_calibration_keeps_the_old_radius(w):
    defense = TestTimePCR(w.chat, WORDS, PCRConfig(layers=2, calibration=("a kite",)))
    eps = dict(defense.eps)
    with pytest.raises(ValueError, match="Shorten it"):
        defense.calibrate([LONG])
    assert defense.eps == eps


# The command line


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, "required: COMMAND"),
        (["bake"], 2, "invalid choice: 'bake'"),
        (["run"], 2, "required: notebook"),
        (["reproduce", "--scale", "x"], 2, "choose from 'smoke', 'cpu', 'gpu'"),
        (["reproduce", "--jobs", "0"], 2, "whole number from 1 on"),
        (["train", "--architecture", "mamba"], 2, "invalid choice: 'mamba'"),
        (["run", "99", "--root", "root"], 1, "allowed: 90_demo"),
        (["run", "90", "--root", "root", "-p", "sede=1"], 1, "no parameter 'sede'"),
        (["run", "90", "--root", "root", "-p", "seed"], 1, "NAME=VALUE"),
        (["run", "90", "--root", "root", "-p", "seed=one"], 1, "want a int"),
        (["run", "90", "--root", "root", "-p", "scale=huge"], 1, "'smoke', 'cpu'"),
        (["fresh", "--root", "nowhere"], 1, "no folder notebooks/src"),
        (["notebooks", "--root", "nowhere"], 1, "no folder notebooks/src"),
        (["compare", "broken", "mine"], 1, "m.json: not a JSON document"),
        (["compare", "nowhere", "mine"], 1, "nowhere: no such folder"),
        (["compare", "mine", "nowhere"], 1, "nowhere: no such folder"),
    ],
)
def test_wrong_commands_say_what_is_wrong(
    at, capsys, monkeypatch, words, status, message
):
    monkeypatch.chdir(at)
    before = files(at)
    try:
        ended = cli.main(words)
    except SystemExit as stop:  # argparse
        ended = stop.code
    said = capsys.readouterr().err
    assert (ended, message in said) == (status, True), said
    assert "Traceback" not in said and files(at) == before


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
    w, tmp_path, monkeypatch, writer, broken
):
    write, path = WRITERS[writer], tmp_path / "out"
    if writer != "merged model":  # which never replaces
        write(w.chat, path)
    weights, before = state(w), files(tmp_path)
    broken(monkeypatch)
    with pytest.raises((KeyboardInterrupt, OSError)):
        write(w.chat, path)
    monkeypatch.undo()
    assert files(tmp_path) == before
    assert all(map(torch.equal, state(w), weights))
    write(w.chat, path)  # the next run goes on
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
