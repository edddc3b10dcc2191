"""Bad input to `safeedit.load` and to a chat: names, folders, prompts."""

import pytest
import torch
from misuse import LONG, NAN, Case, case, check

from safeedit import load

AREA = "Models and prompts"
V, F, D = ValueError, FileNotFoundError, OSError
STANDIN = "standin-llama"

CASES = [
    # Names
    case("no name", lambda b: load(""), V, "got ''; give a name (standin-llama"),
    case("None for a name", lambda b: load(None), V, "got None; give a name"),
    case("a number for a name", lambda b: load(3), V, "got 3; give a name"),
    case("bytes for a name", lambda b: load(b"x"), V, "got b'x'; give a name"),
    case(
        "an unknown model",
        lambda b: load("something"),
        V,
        "Unknown model 'something'. Known names: standin-llama",
        "existing folder works too",
    ),
    case(
        "a misspelt model",
        lambda b: load("standin-lama"),
        V,
        "Unknown model 'standin-lama'. Did you mean 'standin-llama'?",
        "gemma-2b-it",
    ),
    case("a name with a NUL", lambda b: load("a\0b"), V, r"Unknown model 'a\x00b'"),
    case("a name with two slashes", lambda b: load("a/b/c"), V, "'a/b/c'", "Known nam"),
    case(
        "an id that no repository can have",
        lambda b: load("ow ner/mo del"),
        F,
        "has no model 'ow ner/mo del'",
        "Check the spelling",
    ),
    case("dots for a repository", lambda b: load("a/.."), F, "no model 'a/..'"),
    case(
        "a folder that is not there",
        lambda b: load("./no/such"),
        F,
        "no model folder no/such. Give a folder that holds config.json",
    ),
    case(
        "a file for a folder",
        lambda b: load(b.at / "edit"),
        F,
        "There is no model folder",
        "edit. Give a folder",
    ),
    # Where and how
    case(
        "an unknown device",
        lambda b: load(STANDIN, device="tpu"),
        V,
        "Unknown device 'tpu'; use 'cpu', 'cuda' or",
    ),
    case(
        "a number for a device",
        lambda b: load(STANDIN, device=3.5),
        V,
        "Unknown device 3.5; use 'cpu'",
    ),
    case(
        "a CUDA device that is not there",
        lambda b: load(STANDIN, device="cuda:99"),
        V,
        "'cuda:99' is not here: torch sees",
        "Use device='cpu'",
    ),
    case(
        "a device of another kind",
        lambda b: load(STANDIN, device="mps"),
        V,
        "'mps' is not supported; use 'cpu' or 'cuda'",
    ),
    case(
        "an integer dtype",
        lambda b: load(STANDIN, dtype=torch.int8),
        V,
        "Unknown dtype torch.int8; use one of float64, float32",
    ),
    case(
        "an unknown dtype",
        lambda b: load(STANDIN, dtype="int8"),
        V,
        "Unknown dtype 'int8'; use one of float64",
    ),
    case("a number for a dtype", lambda b: load(STANDIN, dtype=32), V, "dtype 32; use"),
    case(
        "an unknown attention",
        lambda b: load(STANDIN, attention="flash"),
        V,
        "Unknown attention 'flash'; use one of sdpa, eager",
    ),
    case(
        "attention without its package",
        lambda b: load(STANDIN, attention="flash_attention_2"),
        V,
        "attention='flash_attention_2' cannot be used here",
        "Use attention='sdpa'",
    ),
    case(
        "an unknown device map",
        lambda b: load(STANDIN, device_map="all"),
        V,
        "Unknown device_map 'all'; use one of auto, balanced",
    ),
    case(
        "a device and a device map",
        lambda b: load(STANDIN, device="cpu", device_map="auto"),
        V,
        "device='cpu' and device_map='auto'; give one of them",
    ),
    # Folders
    case(
        "no config",
        lambda b: load(b.at / "without-config"),
        F,
        "without-config holds no config.json. Save the model there",
    ),
    case(
        "half a config",
        lambda b: load(b.at / "bad-config"),
        V,
        "config.json is damaged",
        "Fetch or save the model again",
    ),
    case(
        "a list for a config",
        lambda b: load(b.at / "list-config"),
        V,
        "list-config/config.json is damaged",
        "Fetch or save the model again",
    ),
    case(
        "a text for a number in a config",
        lambda b: load(b.at / "wrong-type"),
        V,
        "wrong-type/config.json",
        "hidden_size",
    ),
    case(
        "infinity in a config",
        lambda b: load(b.at / "infinite-config"),
        V,
        "infinite-config/config.json is damaged",
        "initializer_range",
    ),
    case(
        "heads that do not divide the width",
        lambda b: load(b.at / "wrong-heads"),
        V,
        "wrong-heads/config.json is damaged or describes a model",
    ),
    case(
        "an unknown architecture",
        lambda b: load(b.at / "wrong-kind"),
        V,
        "abacus",
        "Fetch or save the model again",
    ),
    case(
        "a model larger than the memory",
        lambda b: load(b.at / "too-large"),
        MemoryError,
        "The weights need",
        "GB free. Use a stand-in, a smaller dtype",
    ),
    case(
        "no weights",
        lambda b: load(b.at / "without-weights"),
        F,
        "holds no *.safetensors",
        "convert them with model.save_pretrained",
    ),
    case(
        "half the weights",
        lambda b: load(b.at / "truncated"),
        D,
        "truncated/model.safetensors is truncated or damaged",
        "Delete it and fetch or build the model again",
    ),
    case(
        "an empty weights file",
        lambda b: load(b.at / "empty"),
        D,
        "empty/model.safetensors is truncated or damaged",
    ),
    case(
        "noise for weights",
        lambda b: load(b.at / "noise"),
        D,
        "noise/model.safetensors is truncated or damaged",
    ),
    case(
        "a tensor less",
        lambda b: load(b.at / "lacking"),
        D,
        "lack 1 tensors, among them model.norm.weight. Fetch the model again",
    ),
    case(
        "weights of other shapes than the config says",
        lambda b: load(b.at / "wrong-shapes"),
        D,
        "do not have the shapes of its config.json",
        "Fetch or save the model again",
    ),
    case(
        "a width of 0",
        lambda b: load(b.at / "zero-width"),
        D,
        "do not have the shapes of its config.json",
    ),
    case(
        "a shard less than the index says",
        lambda b: load(b.at / "lost-shard"),
        F,
        "lacks model-00001-of-00002.safetensors of its index. Copy or download",
    ),
    case(
        "half an index of shards",
        lambda b: load(b.at / "bad-index"),
        D,
        "model.safetensors.index.json is damaged",
        "Fetch or save the model again",
    ),
    case(
        "an index without shards",
        lambda b: load(b.at / "other-index"),
        D,
        "index.json is damaged ('weight_map')",
    ),
    case(
        "a list for an index",
        lambda b: load(b.at / "list-index"),
        D,
        "list-index/model.safetensors.index.json is damaged",
    ),
    case(
        "no tokenizer",
        lambda b: load(b.at / "no-tokenizer"),
        D,
        "The tokenizer in",
        "Copy tokenizer.json and tokenizer_config.json there",
    ),
    case(
        "an empty tokenizer",
        lambda b: load(b.at / "bad-tokenizer"),
        D,
        "The tokenizer in",
        "Copy tokenizer.json",
    ),
    case(
        "half a tokenizer",
        lambda b: load(b.at / "half-tokenizer"),
        D,
        "half-tokenizer cannot be read",
        "Copy tokenizer.json",
    ),
    case(
        "a model without a chat template",
        lambda b: load(b.at / "no-template").generate(["hi"]),
        V,
        "no-template has no chat template, so it is not a chat model",
        "Use its instruction-tuned sibling",
    ),
    # Prompts
    case(
        "no prompts",
        lambda b: b.chat.generate([]),
        V,
        "Got an empty list of prompts; give at least one",
    ),
    case("None for prompts", lambda b: b.chat.generate(None), V, "empty list of prom"),
    case(
        "one string for prompts",
        lambda b: b.chat.generate("hi"),
        V,
        "Got one string, 'hi'; give a list of strings",
    ),
    case(
        "a number among prompts",
        lambda b: b.chat.generate(["hi", 3]),
        V,
        "Prompt 1 is of type int; give a string",
    ),
    case(
        "None among prompts",
        lambda b: b.chat.generate([None]),
        V,
        "Prompt 0 is of type NoneType; give a string",
    ),
    case(
        "bytes among prompts",
        lambda b: b.chat.generate([b"hi"]),
        V,
        "Prompt 0 is of type bytes; give a string",
    ),
    case(
        "a list among prompts",
        lambda b: b.chat.generate([["hi"]]),
        V,
        "Prompt 0 is of type list; give a string",
    ),
    case(
        "a prompt longer than the context",
        lambda b: b.chat.generate(["hi", LONG, "hi"]),
        V,
        "Prompt 1 has 306 tokens",
        "context of tiny-llama is 256. Shorten it",
    ),
    case(
        "a system message longer than the context",
        lambda b: b.chat.generate(["hi"], 2, system=LONG),
        V,
        "Prompt 0 has 309 tokens",
        "is 256. Shorten it",
    ),
    case(
        "a prefill longer than the context",
        lambda b: b.chat.generate(["hi"], 2, prefill=LONG),
        V,
        "Prompt 0 has 308 tokens",
        "is 256. Shorten it",
    ),
    case(
        "two prefills for one prompt",
        lambda b: b.chat.generate(["hi"], 2, prefill=["a", "b"]),
        V,
        "Got 2 prefills for 1 prompts; give one string, or one for each",
    ),
    case(
        "no new tokens",
        lambda b: b.chat.generate(["hi"], 0),
        V,
        "max_new_tokens is 0; give at least 1",
    ),
    case(
        "fewer than no new tokens",
        lambda b: b.chat.generate(["hi"], -3),
        V,
        "max_new_tokens is -3; give at least 1",
    ),
    case("nothing to encode", lambda b: b.chat.encode([]), V, "empty list of prompts"),
    case("one string to encode", lambda b: b.chat.encode("hi"), V, "Got one string"),
    case(
        "a text too long to encode",
        lambda b: b.chat.encode([LONG]),
        V,
        "Prompt 0 has",
        "Shorten it",
    ),
    case("nothing to complete", lambda b: b.chat.complete([], 2), V, "empty list of"),
    case(
        "a block beyond the last",
        lambda b: b.chat.weight_name(3),
        V,
        "Layer 3 is out of range: tiny-llama has blocks 0 to 2 (or -3 to -1)",
    ),
    case(
        "a block before the first",
        lambda b: b.chat.weight_name(-4),
        V,
        "Layer -4 is out of range",
        "0 to 2",
    ),
    case(
        "a percentage of noise that is NaN",
        lambda b: b.noisy(NAN),
        V,
        "percent=nan: must lie in [0, 100]",
    ),
]


@pytest.mark.parametrize("one", CASES, ids=[one.key for one in CASES])
def test_error_is_clear_and_nothing_is_changed(bench, one: Case):
    check(bench, one)
