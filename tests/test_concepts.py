"""Concept vectors: each provider against the model read by hand."""

from __future__ import annotations

import pytest
import torch
from tiny import ARCHITECTURES, tiny_chat

from safeedit.edits import concept_vectors, random_like, zero_like
from safeedit.hooks import record

WORDS = ["boat", "bread", "lighthouse"]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def chat(request):
    return tiny_chat(request.param)


def outputs(chat, text, layer):
    with torch.no_grad(), record([chat.down_projs[layer]]) as captured:
        chat.model(**chat.encode([text]))
    return captured[0][1][0]


def test_mlp_output_is_read_at_the_last_token_of_the_bare_word(chat):
    found = concept_vectors(chat, WORDS, [0, 2])
    assert sorted(found) == [0, 2] and found[0].shape == (3, chat.d_model)
    for row, word in enumerate(WORDS):
        expected = outputs(chat, " " + word, 2)[-1]
        assert torch.allclose(found[2][row], expected, atol=1e-4)
    bare = concept_vectors(chat, WORDS, [2], leading_space=False)
    assert torch.allclose(bare[2][0], outputs(chat, "boat", 2)[-1], atol=1e-4)


def test_completion_is_the_mean_over_the_answers_tokens(chat):
    texts = ["sure, here is a guide", ("how do I bake", "sure, here")]
    found = concept_vectors(chat, texts, [1], "completion")[1]
    assert torch.allclose(found[0], outputs(chat, texts[0], 1)[1:].mean(0), atol=1e-4)
    rendered = chat.render(["how do I bake"])[0]
    start = chat.encode([rendered])["input_ids"].shape[1]
    whole = outputs(chat, rendered + "sure, here", 1)
    assert torch.allclose(found[1], whole[start:].mean(0), atol=1e-4)


def test_embedding_rows_are_means_over_the_words_tokens(chat):
    ids = chat.tokenizer(" lighthouse", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    head = concept_vectors(chat, WORDS, [0, 1], "unembedding")
    assert torch.allclose(head[1][2], chat.model.lm_head.weight[ids].mean(0), atol=1e-5)
    rows = concept_vectors(chat, WORDS, [0], "input_embedding")[0]
    table = chat.model.get_input_embeddings().weight[ids].mean(0)
    factor = chat.d_model**0.5 if "gemma" in chat.name else 1.0
    assert torch.allclose(rows[2], factor * table, rtol=1e-3, atol=1e-4)


def test_rescaled_rows_have_the_norm_of_the_words_output(chat):
    plain = concept_vectors(chat, WORDS, [1], "unembedding")[1]
    scaled = concept_vectors(chat, WORDS, [1], "unembedding", rescale=True)[1]
    outs = concept_vectors(chat, WORDS, [1])[1]
    assert torch.allclose(scaled.norm(dim=1), outs.norm(dim=1), rtol=1e-4)
    cosine = torch.cosine_similarity(scaled, plain)
    assert torch.allclose(cosine, torch.ones(3), atol=1e-5)


def test_duplicates_are_dropped_with_a_warning(chat):
    with pytest.warns(UserWarning, match="1 duplicated concepts dropped"):
        found = concept_vectors(chat, [*WORDS, "boat"], [0])
    assert len(found[0]) == 3
    rows = torch.randn(2, chat.d_model)
    with pytest.warns(UserWarning, match="2 duplicated concepts of layer 0"):
        found = concept_vectors(chat, rows.repeat(2, 1), [0])
    assert torch.equal(found[0], rows)


def test_given_vectors_are_used_as_they_are(chat):
    rows = torch.randn(2, 3, chat.d_model)
    found = concept_vectors(chat, rows, [0, 2])
    assert torch.equal(found[0], rows[0]) and torch.equal(found[2], rows[1])
    named = concept_vectors(chat, {0: rows[0], 2: rows[1]}, [0, 2])
    assert torch.equal(named[2], rows[1])


def test_controls_keep_norms_and_differ(chat):
    found = concept_vectors(chat, WORDS, [0])
    control = random_like(found, seed=1)
    assert torch.allclose(control[0].norm(dim=1), found[0].norm(dim=1), rtol=1e-5)
    assert not torch.equal(control[0], random_like(found, seed=2)[0])
    assert torch.equal(zero_like(found)[0], torch.zeros(1, chat.d_model))


@pytest.mark.parametrize(
    ("concepts", "options", "words"),
    [
        (["boat"], {"provider": "none"}, "'mlp_output'"),
        ([""], {"provider": "completion"}, "completion is empty"),
        (torch.zeros(3, 2, 32), {}, "for the 1 edited layers"),
        ({1: torch.zeros(2, 32)}, {}, "layers [0] are missing"),
        (torch.full((1, 32), torch.inf), {}, "NaN or infinite"),
    ],
)
def test_bad_concepts_are_refused(concepts, options, words):
    with pytest.raises(ValueError) as error:
        concept_vectors(tiny_chat("llama"), concepts, [0], **options)
    assert words in str(error.value)
