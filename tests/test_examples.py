"""Texts and chats as tokens, batches, log-probabilities, and the order of data."""

import pytest
import torch
from tiny import ARCHITECTURES, tiny_chat

from safeedit.examples import (
    collate,
    from_chats,
    from_texts,
    take,
    token_log_probs,
)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_text_has_one_bos_and_ends(arch):
    chat = tiny_chat(arch)
    bos, end = chat.tokenizer.bos_token_id, chat.tokenizer.eos_token_id
    plain, with_bos = from_texts(chat, ["a boat", "<s>a boat"])
    assert plain == with_bos
    assert plain.ids.count(bos) == 1 and plain.ids[0] == bos and plain.ids[-1] == end
    assert plain.scored == (False, *[True] * (len(plain.ids) - 1))
    assert chat.tokenizer.decode(plain.ids[1:-1]) == "a boat"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_of_a_chat_only_the_answer_is_scored(arch):
    chat = tiny_chat(arch)
    (example,) = from_chats(chat, ["how is it made"], ["of paper."])
    scored = [i for i, s in zip(example.ids, example.scored, strict=True) if s]
    assert chat.tokenizer.decode(scored[:-1]) == "of paper."
    assert scored[-1] == chat.tokenizer.eos_token_id
    head = chat.encode_ids(chat.answer_heads(["how is it made"]))[0]
    assert list(example.ids[: len(head)]) == head


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_log_probs_do_not_depend_on_padding_and_equal_a_loop(arch):
    chat = tiny_chat(arch)
    examples = from_texts(chat, ["a", "a longer text about a boat"])
    examples += from_chats(chat, ["what is it"], ["a kite."])
    batch = collate(chat, examples)
    with torch.no_grad():
        together = token_log_probs(chat.model, batch)
        for row, example in enumerate(examples):
            ids = torch.tensor([example.ids])
            logits = chat.model(input_ids=ids).logits[0].double().log_softmax(-1)
            for place in range(1, len(example.ids)):
                expected = float(logits[place - 1, example.ids[place]])
                expected *= example.scored[place]
                assert float(together[row, place - 1]) == pytest.approx(
                    expected, abs=1e-4
                )
            assert not together[row, len(example.ids) - 1 :].any()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_weights_that_stand_in_leave_the_model_alone(arch):
    """The tied head of Gemma follows its embedding."""
    chat = tiny_chat(arch)
    batch = collate(chat, from_texts(chat, ["a boat"]))
    before = {name: p.detach().clone() for name, p in chat.model.named_parameters()}
    moved = {name: (p * 1.1).requires_grad_() for name, p in before.items()}
    value = token_log_probs(chat.model, batch, moved).sum()
    slopes = torch.autograd.grad(value, list(moved.values()))
    assert all(bool(slope.any()) for slope in slopes)
    for name, p in chat.model.named_parameters():
        assert torch.equal(p, before[name]) and not p.requires_grad
    with torch.no_grad():
        for name, p in chat.model.named_parameters():
            p.copy_(moved[name])
        assert float(token_log_probs(chat.model, batch).sum()) == pytest.approx(
            float(value.detach()), rel=1e-6
        )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda c: from_texts(c, []), "texts is"),
        (lambda c: from_texts(c, "boat"), "texts is 'boat'; give a list"),
        (lambda c: from_texts(c, ["boat", ""]), r"texts\[1\] is ''"),
        (lambda c: from_texts(c, ["boat " * 300]), "context"),
        (lambda c: from_chats(c, ["q"], ["a", "b"]), "1 questions and 2 answers"),
        (lambda c: from_chats(c, ["q"], [" "]), r"answers\[0\]"),
        (lambda c: from_chats(c, ["q"], ["a " * 300]), "context"),
    ],
)
def test_bad_texts_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_chat())


@pytest.mark.parametrize("size", [1, 3, 7])
def test_take_is_a_window_on_one_endless_sequence(size):
    items = list(range(7))
    whole = take(items, 0, 70, seed=3)
    assert all(sorted(whole[i : i + 7]) == items for i in range(0, 70, 7))
    assert len({tuple(whole[i : i + 7]) for i in range(0, 70, 7)}) > 1
    for start in range(0, 70 - size):
        assert take(items, start, size, seed=3) == whole[start : start + size]
    assert take(items, 0, 70, seed=4) != whole
    assert take(items, 5, 0, seed=3) == take([], 0, 0, seed=3) == []
