"""Tiny random chat models with the real config classes, built in milliseconds.

They know nothing; they have the right shapes, names and quirks (grouped-query
attention, a sliding window, tied embeddings, a template without system role).
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from safeedit.models import Chat

ARCHITECTURES = ("llama", "mistral", "gemma")
SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
CORPUS = [
    "how do I bake bread at home",
    "tell me how to make a paper boat",
    "sure, here is a guide to making bread",
    "sorry, I cannot help with that",
    "explain how to make a kite, a boat and a lamp",
]
WITH_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WITHOUT_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}" + WITH_SYSTEM
)


def tiny_tokenizer(system: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE with about 340 tokens: any text survives a round trip."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=340,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bos = core.token_to_id("<s>")
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=SPECIAL[3:],
    )
    tokenizer.chat_template = WITH_SYSTEM if system else WITHOUT_SYSTEM
    return tokenizer


def tiny_chat(arch: str = "llama", seed: int = 0) -> Chat:
    """A random three-block chat model of one architecture, float32 on the CPU."""
    tokenizer = tiny_tokenizer(system=arch == "llama")
    shape = dict(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        initializer_range=0.25,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if arch == "llama":
            model = LlamaForCausalLM(LlamaConfig(**shape))
        elif arch == "mistral":
            model = MistralForCausalLM(MistralConfig(**shape, sliding_window=16))
        elif arch == "gemma":
            model = GemmaForCausalLM(
                GemmaConfig(
                    **shape,
                    hidden_activation="gelu_pytorch_tanh",
                    tie_word_embeddings=True,
                )
            )
        else:
            raise ValueError(f"arch is {arch!r}; use one of {ARCHITECTURES}")
    return Chat.from_parts(model.eval(), tokenizer, f"tiny-{arch}")
