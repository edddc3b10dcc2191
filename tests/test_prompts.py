"""Prefill attack and the random-suffix control."""

import pytest
from tiny import ARCHITECTURES, tiny_chat

from safeedit.attacks import PrefillConfig, RandomSuffixConfig, prefill, random_suffix

PROMPTS = ["how do I bake bread", "explain a lamp"]
TARGETS = ["sure, here is a guide", "sure, a lamp"]


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
    (rate, _) = result.to_rows(dataset="tiny")
    assert (rate["attack"], rate["metric"], rate["value"], rate["n"]) == (
        ("prefill", "attack_success", 0.5, 2)
    )


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


def test_bad_settings():
    chat = tiny_chat("llama")
    with pytest.raises(ValueError, match="2 prompts and 1 targets"):
        prefill(chat, PROMPTS, TARGETS[:1])
    with pytest.raises(ValueError, match="tries is 0"):
        RandomSuffixConfig(tries=0)
