"""What the tests of bad input share: a bench with good and damaged things, and cases.

A case is one mistake of a caller or one damaged file: what is done, which error it has
to end in, and what its message has to say. Every case is run, and afterwards all files
and all weights are as before. `tests/MISUSE.md` lists the cases; it is made by

    python tests/misuse.py
"""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_chat

from safeedit import records
from safeedit.edits import Constraint, LowRank, WeightEdit
from safeedit.edits.storage import base_fingerprint
from safeedit.examples import from_chats
from safeedit.hooks import record
from safeedit.world import World, add_noise

PAGE = records.ROOT / "tests" / "MISUSE.md"
PROMPTS = ["how do I make a boat", "explain a kite"]
WORDS = ["boat", "bread", "kite"]
LONG = "bread " * 300  # the context of a tiny model is 256 tokens
NAN, INF = float("nan"), float("inf")
NOTEBOOK = """---
kernelspec: {display_name: Python 3, language: python, name: python3}
---
# Empty

```{code-cell} python3
:tags: [parameters]
model_name: str = "standin-llama"  # which
seed: int = 0  # of nothing
rate: float = 0.5  # of everything
words: list = ["boat"]  # which
scale: str = "cpu"  # size
```
"""


@dataclass(frozen=True)
class Case:
    """One bad input, and what has to come of it."""

    what: str  # in words, for the list
    call: Callable[[Bench], object]
    error: type[BaseException]
    words: tuple[str, ...]  # parts of the message, in this order

    @property
    def key(self) -> str:
        """Its name in the output of pytest."""
        return re.sub(r"[^\w.<>=+-]+", "-", self.what).strip("-")


def case(what: str, call: Callable, error: type[BaseException], *words: str) -> Case:
    """A row of a table of cases."""
    return Case(what, call, error, words)


def a_record(**changes: Any) -> records.Record:
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
    less = {name: t for name, t in tensors.items() if name != "model.norm.weight"}
    save_file(less, copy("lacking") / weights, metadata={"format": "pt"})
    (copy("without-config") / "config.json").unlink()
    for name, text in (
        ("bad-config", "{"),
        ("list-config", "[1, 2]"),
        ("nested-config", '{"model_type": "llama", "x": ' + "[" * 10**5),
    ):
        (copy(name) / "config.json").write_text(text)
    for name, change in (
        ("wrong-shapes", {"intermediate_size": 40}),
        ("wrong-type", {"hidden_size": "many"}),
        ("wrong-kind", {"model_type": "abacus"}),
        ("wrong-heads", {"num_attention_heads": 5}),
        ("no-blocks", {"num_hidden_layers": -1}),
        ("zero-width", {"hidden_size": 0}),
        ("infinite-config", {"initializer_range": INF}),
        ("too-large", {"hidden_size": 2**22, "intermediate_size": 2**24}),
    ):
        config = json.loads((at / "model" / "config.json").read_text())
        (copy(name) / "config.json").write_text(json.dumps(config | change))
    for name, text in (
        ("lost-shard", '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'),
        ("bad-index", "{"),
        ("other-index", "{}"),
        ("outside-index", '{"weight_map": {"a": "../model/model.safetensors"}}'),
        ("absolute-index", '{"weight_map": {"a": "/etc/hostname"}}'),
        ("number-index", '{"weight_map": {"a": 1}}'),
        ("list-index", '{"weight_map": ["a"]}'),
    ):
        (copy(name) / "model.safetensors.index.json").write_text(text)
    (copy("bad-tokenizer") / "tokenizer.json").write_text("{}")
    (copy("half-tokenizer") / "tokenizer.json").write_text('{"version": "1.0", "mod')
    (copy("no-tokenizer") / "tokenizer.json").unlink()
    (copy("no-template") / "chat_template.jinja").unlink()


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


def damage_behaviours(at: Path) -> None:
    """Files in the form of HarmBench's, made up, each with one thing wrong."""
    head = "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID"
    for name, text in (
        ("good.csv", f"{head}\nx,standard,a,,,i\n"),
        ("columns.csv", "a,b\n1,2\n"),
        ("twice.csv", f"{head}\nx,standard,a,,,i\ny,standard,a,,,i\n"),
        ("empty.csv", f"{head}\n,standard,a,,,i\n"),
        ("odd.csv", f"{head}\nx,odd,a,,,i\n"),
        ("context.csv", f"{head}\nx,contextual,a,,,i\n"),
        ("huge.csv", f"{head}\n{'x' * 200_000},standard,a,,,i\n"),
        ("targets.json", '{"i": "a"}'),
        ("none.json", "{}"),
        ("half.json", '{"i": '),
        ("list.json", "[]"),
        ("number.json", '{"i": 3}'),
    ):
        records.write_atomic(at / "harmbench" / name, text)


class Bench:
    """What the cases work with: models, edits, and a folder of damaged files."""

    def __init__(self, at: Path) -> None:
        self.at = at
        self.chat, self.other = tiny_chat(), tiny_chat(seed=1)
        self.mistral, self.gemma = tiny_chat("mistral"), tiny_chat("gemma")
        self.coarse, self.lost = lost_in_rounding()
        self.edit, self.batched = an_edit(self.chat), an_edit(self.chat, batch=2)
        self.world = World()
        self.chat.model.save_pretrained(at / "model")
        self.chat.tokenizer.save_pretrained(at / "model")
        damage_models(at)
        damage_files(at, self.chat)
        damage_behaviours(at)

        self.circle: dict = {}
        self.circle["itself"] = self.circle

    def noisy(self, percent: float) -> str:
        return add_noise("abc", percent, Random(0))

    @cached_property
    def examples(self):
        return from_chats(self.chat, PROMPTS, ["a boat", "a kite"])

    def weights(self) -> list[torch.Tensor]:
        """All weights of all models; there must be no hook either."""
        chats = (self.chat, self.other, self.mistral, self.gemma, self.coarse)
        modules = [m for chat in chats for m in chat.model.modules()]
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)
        return [p.detach() for chat in chats for p in chat.model.parameters()]

    @cached_property
    def as_it_was(self) -> tuple[list[torch.Tensor], dict]:
        """Clones of all weights, and the state of all files, before the first case."""
        return [w.clone() for w in self.weights()], state(self.at)

    def unchanged(self) -> bool:
        """Whether all weights are bit for bit as before, and nobody wrote a file."""
        weights, before = self.as_it_was
        same = map(torch.equal, self.weights(), weights)
        return all(same) and state(self.at) == before


def state(folder: Path) -> dict[str, tuple]:
    """Kind, place on the disk, size and time of change of everything in a folder."""
    found = {}
    for path in folder.rglob("*"):
        s = (
            path.lstat()
        )  # a folder in which a temporary file came and went is as before
        written = () if path.is_dir() else (s.st_size, s.st_mtime_ns)
        found[str(path)] = (s.st_mode, s.st_ino, *written)
    return found


def files(folder: Path) -> dict[str, bytes]:
    """What is in a folder, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


def check(bench: Bench, one: Case) -> None:
    """Run a case: the right error in the right words, and nothing lost by it."""
    assert bench.unchanged()
    try:
        one.call(bench)
    except one.error as error:
        message = str(error)
    else:
        raise AssertionError(f"{one.what}: no {one.error.__name__}")
    says(message, one.words)
    assert bench.unchanged()


def says(message: str, words: Sequence[str]) -> None:
    """Assert that a message holds all words, in their order."""
    place = 0
    for part in words:
        found = message.find(part, place)
        assert found >= 0, f"{part!r} is not in its place in: {message}"
        place = found + len(part)


def inside(context, body: Callable[[], object] = int):
    """Run a body in a context, as a with statement does."""
    with context:
        return body()


MODULES = ("models", "edits", "attacks", "measures", "files", "commands")
INTRO = """# Bad input, and what comes of it

<!-- Made by `python tests/misuse.py`. Do not edit: test_misuse_page.py compares. -->

What happens when something is wrong with what we give the kit? The tables below list
{count} bad inputs. Each of them is run in the tests, and each has to end in the error
that is named, with the words that are quoted, in their order. A dash stands for words
in between.

After each of them every weight of every model is bit for bit what it was, no hook is
left on a model, and no file was written, changed or removed. The models of these tests
have three blocks and random weights, but for the commands, which load a stand-in.
"""
HARM = """## Files made to do harm

A model folder, an edit, a record or a notebook may come from a stranger. In these tests
they carry code that leaves a mark if it is ever run, or names that lead out of their
folder. The tests say:
"""


def cases() -> dict[str, list[Case]]:
    """All cases, by area."""
    modules = [import_module(f"test_misuse_{name}") for name in MODULES]
    return {module.AREA: module.CASES for module in modules}


def page() -> str:
    """The list of bad inputs as a page of Markdown."""
    areas = cases()
    parts = [INTRO.format(count=sum(map(len, areas.values())))]
    for area, rows in areas.items():
        lines = ["| bad input | error | the message says |", "|---|---|---|"]
        for one in rows:
            said = " \u2014 ".join(map(_code, one.words))
            lines.append(f"| {_what(one)} | {_error(one)} | {said} |")
        parts.append(f"## {area}\n\n{len(rows)} bad inputs.\n\n" + "\n".join(lines))
    tree = ast.parse((PAGE.parent / "test_malicious_files.py").read_text())
    names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
    told = [n[5:].replace("_", " ") for n in names if n.startswith("test_")]
    parts.append(HARM + "\n" + "\n".join(f"- {line}" for line in told))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _what(one: Case) -> str:
    """A command line as code, anything else as words."""
    if one.what.startswith("`"):
        return _code(one.what.strip("`"))
    return re.sub(r"([\\`*_{}\[\]<>|$%~^])", r"\\\1", one.what)


def _error(one: Case) -> str:
    return "one line, exit status" if one.error.__name__ == "Told" else _name(one.error)


def _name(error: type[BaseException]) -> str:
    return f"`{error.__name__}`"


def _code(text: str) -> str:
    """Text as code in a cell of a table."""
    text = text.replace("\0", "\\x00").replace("\n", " ").replace("|", "\\|")
    fence = "``" if "`" in text else "`"
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


if __name__ == "__main__":
    import conftest  # noqa: F401  (no network, one thread)

    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
