"""Prefill attack and the random-suffix control."""

import pytest
import torch
from tiny import ARCHITECTURES, CORPUS, SPECIAL, WITH_SYSTEM, tiny_chat
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from safeedit.attacks import (
    GCGConfig,
    PrefillConfig,
    RandomSuffixConfig,
    gcg,
    prefill,
    random_suffix,
)
from safeedit.models import Chat

PROMPTS = ["how do I bake bread", "explain a lamp"]
TARGETS = ["sure, here is a guide", "sure, a lamp"]


def metaspace_chat() -> Chat:
    """A tiny Llama with a tokenizer in the manner of Mistral's and Gemma's.

    Its words begin with a space mark, and its decoder drops the first space.
    """
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    special = [*SPECIAL, "<unk>", *bytes_]
    trainer = trainers.BpeTrainer(
        vocab_size=338, special_tokens=special, show_progress=False
    )
    core.train_from_iterator([*CORPUS, "x x x x"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = WITH_SYSTEM
    return Chat.from_parts(tiny_chat("llama").model, tokenizer, "tiny-metaspace")


def test_decoders_that_drop_a_space_lose_none():
    chat = metaspace_chat()
    config = GCGConfig(num_steps=4, suffix_length=6, search_width=64, topk=16)
    result = gcg(chat, PROMPTS, TARGETS, config, judge=lambda i, p, r: False)
    bare = [len(ids) for ids in chat.encode_ids(chat.render(PROMPTS))]
    full = [len(ids) for ids in chat.encode_ids(chat.render(result.prompts))]
    assert [b - a for a, b in zip(bare, full, strict=True)] == [6, 6]
    ids = chat.tokenizer("sure, how to", add_special_tokens=False).input_ids
    cut = len(chat.tokenizer("sure,", add_special_tokens=False).input_ids)
    rest = torch.tensor([ids[cut:]])
    assert chat.decode(rest) == ["how to"]  # the trap
    assert chat.decode(rest, before=[ids[cut - 1]]) == [" how to"]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_prefill_starts_each_answer_with_its_target(arch):
    chat = tiny_chat(arch)
    config = PrefillConfig(max_new_tokens=8)
    result = prefill(chat, PROMPTS, TARGETS, config, judge=lambda i, p, r: i == 1)
    for prompt, target, response in zip(
        PROMPTS, TARGETS, result.responses, strict=True
    ):
        assert response == target + chat.generate([prompt], 8, prefill=target)[0]
    assert result.prompts == PROMPTS and result.prefills == TARGETS
    assert result.success == [False, True] and result.steps_per_second == 0
    assert result.attack == "prefill"


def test_one_text_for_all_answers_and_the_default_judge():
    chat = tiny_chat("llama")
    sorry = PrefillConfig(text="I'm sorry, I cannot", max_new_tokens=4)
    result = prefill(chat, PROMPTS, TARGETS, sorry)
    assert result.success == [False, False]  # the prefill itself refuses
    assert all(text.startswith("I'm sorry") for text in result.responses)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_random_suffixes_have_the_length_of_the_search(arch):
    chat = tiny_chat(arch)
    config = RandomSuffixConfig(suffix_length=6, max_new_tokens=4, banned_words=("e",))
    result = random_suffix(chat, PROMPTS, config, judge=lambda i, p, r: True)
    bare = [len(ids) for ids in chat.encode_ids(chat.render(PROMPTS))]
    full = [len(ids) for ids in chat.encode_ids(chat.render(result.prompts))]
    assert [b - a for a, b in zip(bare, full, strict=True)] == [6, 6]
    assert not any("e" in suffix.lower() for suffix in result.suffixes)
    again = random_suffix(chat, PROMPTS, config, judge=lambda i, p, r: True)
    assert again.prompts == result.prompts


def test_random_suffix_tries_until_the_judge_is_satisfied():
    chat = tiny_chat("llama")
    asked = []

    def judge(index, prompt, response):
        asked.append(index)
        return index == 0 and asked.count(0) == 2

    config = RandomSuffixConfig(suffix_length=4, tries=3, max_new_tokens=4)
    result = random_suffix(chat, PROMPTS, config, judge=judge)
    assert asked == [0, 1, 0, 1, 1] and result.success == [True, False]
    assert chat.generate(result.prompts, 4) == result.responses
