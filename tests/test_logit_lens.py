"""Logit lens: against the model's own outputs and a pass without hooks."""

import pytest
import torch
from tiny import ARCHITECTURES, tiny_chat

from safeedit.attacks.logit_lens import STAGES, logit_lens

PROMPTS = ["how do I bake bread", "explain a lamp", "tell me how to make a paper boat"]
TOKENS = [30, 41, 52, 63]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_last_block_is_the_model_itself(arch):
    chat = tiny_chat(arch)
    lens = logit_lens(chat, PROMPTS, TOKENS)
    assert lens.logits.shape == (chat.n_layers, len(STAGES), len(PROMPTS), len(TOKENS))
    assert lens.predictions.shape == (chat.n_layers, len(STAGES), len(PROMPTS))
    for index, prompt in enumerate(PROMPTS):  # one at a time: no padding
        with torch.no_grad():
            own = chat.model(**chat.encode(chat.render([prompt]))).logits[0, -1]
        torch.testing.assert_close(lens.logits[-1, -1, index], own[TOKENS])
        choice = int(lens.predictions[-1, -1, index])
        assert own[TOKENS[choice]] == own[TOKENS].max()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_stages_against_the_hidden_states(arch):
    """Block output is transformers' own; residual = input + attention, and so on."""
    chat = tiny_chat(arch)
    batch = chat.encode(chat.render(PROMPTS[:1]))
    lens = logit_lens(chat, PROMPTS[:1], TOKENS)
    with torch.no_grad():
        states = chat.model(**batch, output_hidden_states=True).hidden_states
        model = chat.model.model
        for layer, block in enumerate(chat.blocks):
            enters = states[layer]
            place = torch.arange(enters.shape[1])[None]
            angles = model.rotary_emb(enters, position_ids=place)
            # Without a mask this attention is causal only through is_causal.
            attention, _ = block.self_attn(
                block.input_layernorm(enters),
                position_embeddings=angles,
                attention_mask=None,
            )
            residual = enters + attention
            mlp = block.mlp(block.post_attention_layernorm(residual))
            vectors = [attention, residual, mlp, residual + mlp]
            for stage, vector in enumerate(vectors):
                want = chat.model.lm_head(model.norm(vector[:, -1]))[0, TOKENS]
                torch.testing.assert_close(
                    lens.logits[layer, stage, 0], want, msg=f"{layer} {STAGES[stage]}"
                )


def test_batches_and_the_template_do_what_they_say():
    chat = tiny_chat("gemma")
    whole = logit_lens(chat, PROMPTS, TOKENS).logits
    chat.batch_size = 2
    torch.testing.assert_close(logit_lens(chat, PROMPTS, TOKENS).logits, whole)
    rendered = chat.render(PROMPTS)
    plain = logit_lens(chat, rendered, TOKENS, template=False).logits
    torch.testing.assert_close(plain, whole)
    assert not torch.equal(
        logit_lens(chat, PROMPTS, TOKENS, template=False).logits, whole
    )


def test_accuracy_and_the_best_read_out():
    lens = logit_lens(tiny_chat(), PROMPTS, TOKENS)
    answers = lens.predictions[1, 2].tolist()
    assert lens.accuracy(answers)[1, 2] == 1
    assert lens.best(answers)[2] == 1
    block, stage, value = lens.best([0, 1, 2])
    table = lens.accuracy([0, 1, 2])
    assert value == table.max() == table[block, STAGES.index(stage)]


def test_the_model_is_left_as_it_was():
    chat = tiny_chat()
    before = {k: v.clone() for k, v in chat.model.state_dict().items()}
    logit_lens(chat, PROMPTS, TOKENS)
    with pytest.raises(ValueError, match="context"):
        logit_lens(chat, ["bread " * 300], TOKENS)
    assert not any(m._forward_hooks for m in chat.model.modules())
    assert all(torch.equal(v, before[k]) for k, v in chat.model.state_dict().items())
    assert not any(p.requires_grad for p in chat.model.parameters())


@pytest.mark.parametrize(
    ("tokens", "match"),
    [([30], "two or more"), ([30, 30], "different"), ([30, 99999], "vocabulary")],
)
def test_bad_tokens(tokens, match):
    with pytest.raises(ValueError, match=match):
        logit_lens(tiny_chat(), PROMPTS, tokens)


def test_bad_answers():
    lens = logit_lens(tiny_chat(), PROMPTS, TOKENS)
    with pytest.raises(ValueError, match="2 answers for 3"):
        lens.accuracy([0, 1])
    with pytest.raises(ValueError, match="out of range"):
        lens.best([0, 1, 4])
