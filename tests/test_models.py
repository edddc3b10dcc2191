"""Chat and load: templates, padding, greedy generation, and an error per fault."""

import json

import huggingface_hub as hf
import pytest
import torch
from huggingface_hub import errors as hf_errors
from tiny import ARCHITECTURES, tiny_chat

from safeedit import hub
from safeedit.models import load

PROMPTS = [
    "how do I bake bread at home",
    "hi",
    "explain how to make a kite, a boat and a lamp, and then how to make bread",
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny Llama in a folder, in Hugging Face layout."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    chat = tiny_chat("llama")
    chat.model.save_pretrained(folder)
    chat.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_generation_does_not_depend_on_the_batch(arch):
    chat = tiny_chat(arch)
    together = chat.generate(PROMPTS, 24)
    alone = [chat.generate([prompt], 24)[0] for prompt in PROMPTS]
    assert together == alone
    chat.batch_size = 2
    assert chat.generate(PROMPTS, 24) == alone


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_generation_agrees_with_transformers(arch):
    chat = tiny_chat(arch)
    batch = chat.encode(chat.render(PROMPTS))
    theirs = chat.model.generate(
        **batch,
        max_new_tokens=16,
        do_sample=False,
        eos_token_id=sorted(chat.stop_ids),
        pad_token_id=chat.tokenizer.pad_token_id,
    )[:, batch.input_ids.shape[1] :]
    ours = chat.generate_ids(batch.input_ids, batch.attention_mask, 16)
    assert torch.equal(ours, theirs[:, : ours.shape[1]])


def test_an_answer_ends_at_the_end_of_its_turn():
    chat = tiny_chat("llama")
    batch = chat.encode(chat.render(PROMPTS))
    new = chat.generate_ids(batch.input_ids, batch.attention_mask, 24)
    stop = int(new[0, 5])  # call the sixth new token an end of turn
    chat.stop_ids = frozenset({stop})
    text = chat.tokenizer.decode(new[0, : new[0].tolist().index(stop)])
    assert chat.generate(PROMPTS[:1], 24) == [text]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_down_proj_is_the_last_map_of_the_mlp(arch):
    chat = tiny_chat(arch)
    names = dict(chat.model.named_parameters())
    for layer, module in enumerate(chat.down_projs):
        assert module.weight.shape == (chat.d_model, chat.d_ff)
        assert names[chat.weight_name(layer)] is module.weight
    assert chat.weight_name(-1) == chat.weight_name(chat.n_layers - 1)
    with pytest.raises(ValueError, match="out of range"):
        chat.weight_name(chat.n_layers)


def test_rendering_has_one_bos_and_a_system_message():
    llama, gemma = tiny_chat("llama"), tiny_chat("gemma")
    assert llama.supports_system and not gemma.supports_system
    for chat in (llama, gemma):
        (text,) = chat.render(["hi"], system="be kind", prefill="sure")
        assert "be kind" in text and text.endswith("<|assistant|>sure")
        ids = chat.encode([text]).input_ids[0].tolist()
        assert ids.count(chat.tokenizer.bos_token_id) == 1
        assert chat.encode_ids(["hi"])[0][0] == chat.tokenizer.bos_token_id
    with pytest.raises(ValueError, match="2 prefills for 1 prompts"):
        llama.render(["hi"], prefill=["a", "b"])


def test_prefill_is_where_the_answer_goes_on():
    chat = tiny_chat("llama")
    (answer,) = chat.generate(["hi"], 12)
    tokens = chat.tokenizer(answer, add_special_tokens=False).input_ids
    start = chat.tokenizer.decode(tokens[:3])
    if chat.tokenizer(start, add_special_tokens=False).input_ids == tokens[:3]:
        assert answer.startswith(start + chat.generate(["hi"], 4, prefill=start)[0])


def test_generation_stops_where_the_context_is_full():
    chat = tiny_chat("llama")
    chat.stop_ids = frozenset()
    batch = chat.encode(chat.render(["bread " * 100]))
    room = chat.context_length - batch.input_ids.shape[1]
    new = chat.generate_ids(batch.input_ids, batch.attention_mask, 10_000)
    assert new.shape[1] == room + 1  # the last one is predicted, never fed


def test_a_saved_model_loads_the_same(saved):
    chat, original = load(str(saved)), tiny_chat("llama")
    assert (chat.kind, chat.name, chat.dtype) == ("local", "tiny", torch.float32)
    assert chat.generate(PROMPTS, 8) == original.generate(PROMPTS, 8)
    assert load(saved, dtype="float64").dtype == torch.float64
    assert str(saved) not in json.dumps(chat.model.config.to_dict())


def test_bad_device_and_dtype(saved):
    with pytest.raises(ValueError, match="Unknown dtype 'int3'.*float32"):
        load(saved, dtype="int3")
    with pytest.raises(ValueError, match="Unknown device 'gpu'"):
        load(saved, device="gpu")
    with pytest.raises(ValueError, match="CUDA devices"):
        load(saved, device="cuda:99")


def test_too_little_memory_is_found_before_loading(saved, monkeypatch):
    class Full:
        available = 1000

    monkeypatch.setattr(hub.psutil, "virtual_memory", Full)
    with pytest.raises(MemoryError, match="GB in float32 and cpu has"):
        load(saved)


class _Answer:
    """The least of an HTTP response that the hub's errors ask for."""

    headers: dict = {}
    status_code = 401
    request = None
    text = ""


@pytest.mark.parametrize(
    ("fault", "error", "step"),
    [
        (hf_errors.GatedRepoError, PermissionError, "hf auth login"),
        (hf_errors.RepositoryNotFoundError, FileNotFoundError, "spelling"),
        (hf_errors.RevisionNotFoundError, FileNotFoundError, "revision"),
        (hf_errors.LocalEntryNotFoundError, ConnectionError, "need no network"),
        (hf_errors.OfflineModeIsEnabled, ConnectionError, "need no network"),
        (hf_errors.HFValidationError, FileNotFoundError, "spelling"),
    ],
)
def test_faults_of_the_hub(fault, error, step, monkeypatch):
    def fail(*args, **kwargs):
        if issubclass(fault, hf_errors.HfHubHTTPError):
            raise fault("no", response=_Answer())
        raise fault("no")

    monkeypatch.setattr(hf, "hf_hub_download", fail)
    with pytest.raises(error, match=step):
        load("gemma-2b-it")


def test_a_chat_without_template_says_so():
    chat = tiny_chat("llama")
    chat.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        chat.render(["hi"])


def test_one_batch_keeps_the_order_of_the_prompts():
    """A batched edit holds one change for each row, in the order of its prompts."""
    from safeedit.hooks import hooked

    chat = tiny_chat("llama")
    seen = []
    prompts = ["a longer prompt than the others", "b", "a middling one"]
    decoder = chat.model.model
    note = lambda module, args, kwargs: seen.append(kwargs["input_ids"])  # noqa: E731
    with hooked([(decoder, note)], pre=True, with_kwargs=True):
        chat.generate(prompts, max_new_tokens=1)
    rows = chat.encode(chat.render(prompts)).input_ids
    assert seen[0].tolist() == rows.tolist()
