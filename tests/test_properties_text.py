"""Text through tokenizers and back, intervals, and records, on drawn examples."""

import dataclasses

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from misuse import a_record
from properties import stable

from safeedit import load, records
from safeedit.attacks.suffix import allowed_tokens, make_slot, suffix_texts, typed
from safeedit.metrics import paired_bootstrap, wilson_interval

STANDINS = ("standin-llama", "standin-mistral", "standin-gemma")
# Every character but lone surrogates, which are no text, and control characters.
PRINTABLE = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"]))
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(
    -(2**53), 2**53
)


@pytest.fixture(scope="module", params=STANDINS)
def chat(request):
    return load(request.param)


def special(chat) -> list[str]:
    return [str(token) for token in chat.tokenizer.added_tokens_decoder.values()]


# Tokenizers


@stable(60)
@given(PRINTABLE)
@example("two  spaces, and\u00a0one that does not break")
@example("\u65e5\u672c \U0001f600 e\u0301")
@example("a  ")
@example("   a")
def test_a_text_comes_back_from_its_tokens(chat, text):
    assume(not any(token in text for token in special(chat)))
    (ids,) = chat.encode_ids([f"x{text}"])  # a first space is the tokenizer's own
    back = chat.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert back == f"x{text}"
    assert all(0 <= token < len(chat.tokenizer) for token in ids)
    assert chat.tokenizer.unk_token_id not in ids


@stable(40)
@given(PRINTABLE)
@example("")
@example("<s> </s> [INST] <|user|> <start>user")
def test_a_prompt_stands_in_its_template_as_it_is(chat, text):
    (rendered,) = chat.render([text])
    head, _, tail = chat.render(["q7zx"])[0].partition("q7zx")
    assert rendered == head + text + tail
    batch = chat.encode([rendered, "x"])
    assert batch.input_ids.shape == batch.attention_mask.shape
    row = batch.input_ids[0][batch.attention_mask[0].bool()].tolist()
    assert row == chat.encode_ids([rendered])[0]
    assert row[0] == chat.tokenizer.bos_token_id
    if not any(token in text for token in special(chat)):
        assert row.count(row[0]) == 1  # BOS once, whatever was typed


@stable(40)
@given(st.lists(PRINTABLE, min_size=1, max_size=4))
def test_a_batch_has_the_rows_of_its_texts(chat, texts):
    rendered = chat.render(texts)
    batch = chat.encode(rendered)
    for ids, mask, text in zip(
        batch.input_ids, batch.attention_mask, rendered, strict=True
    ):
        assert ids[mask.bool()].tolist() == chat.encode_ids([text])[0]
        assert mask.tolist() == sorted(mask.tolist())  # padding is on the left
        assert (ids[~mask.bool()] == chat.tokenizer.pad_token_id).all()


@stable(40)
@given(
    st.integers(0, 2**20), st.integers(1, 8), st.sampled_from(["a boat", "Tell me!"])
)
def test_a_suffix_that_is_kept_survives_typing(chat, seed, length, prompt):
    """What the filter keeps is read as the searched tokens when a user types it."""
    slot = make_slot(chat, prompt, "Sure", "x", length)
    vocabulary = allowed_tokens(chat, False).nonzero().squeeze(1)
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(vocabulary), (12, length), generator=generator)
    ids = vocabulary[picks]
    (kept,) = typed(chat, [slot], [ids])
    texts = suffix_texts(chat, slot, ids)
    for row, text, good in zip(ids.tolist(), texts, kept.tolist(), strict=True):
        whole = chat.encode_ids(chat.render([prompt + text]))[0]
        assert (whole == slot.prefix + row + slot.post) or not good
        if good:
            assert text.isascii() and text.isprintable() and text == text.rstrip()


@stable(40)
@given(PRINTABLE, st.integers(0, 30))
def test_an_answer_is_cut_at_its_end(chat, text, place):
    """Tokens after the first end-of-turn token are never part of an answer."""
    assume(not any(token in text for token in special(chat)))
    (ids,) = chat.encode_ids([f"x{text}"])
    place = min(place, len(ids))
    stop = sorted(chat.stop_ids)[0]
    (whole,) = chat.decode(torch.tensor([[*ids[:place], stop, *ids]]))
    (part,) = chat.decode(torch.tensor([[*ids[:place], stop]]))
    assert whole == part


# Intervals


@stable(200)
@given(st.integers(1, 5000), st.data())
@example(1, None)
def test_wilson_holds_the_estimate_and_is_monotone(n, data):
    k = 0 if data is None else data.draw(st.integers(0, n))
    low, high = wilson_interval(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert low < high
    mirrored = wilson_interval(n - k, n)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-12)
    if k < n:
        more = wilson_interval(k + 1, n)
        assert more[0] >= low and more[1] >= high
    wider = wilson_interval(k, n, 0.99)
    assert wider[0] <= low and wider[1] >= high
    tighter = wilson_interval(2 * k, 2 * n)
    assert tighter[1] - tighter[0] < high - low


@stable(40)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40),
    st.integers(0, 1000),
)
def test_a_bootstrap_is_ordered_and_turns_around(pairs, seed):
    a, b = ([float(pair[side]) for pair in pairs] for side in (0, 1))
    mean, low, high = paired_bootstrap(a, b, seed, resamples=400)
    assert -1 <= low <= high <= 1
    assert mean == pytest.approx(sum(a) / len(a) - sum(b) / len(b))
    turned = paired_bootstrap(b, a, seed, resamples=400)
    assert (-mean, -high, -low) == pytest.approx(turned, abs=1e-12)
    if a == b:
        assert (mean, low, high) == (0, 0, 0)


# Records


@st.composite
def rows(draw):
    words = {name: draw(ANY_TEXT) for name in ("dataset", "defense", "attack", "scope")}
    more = draw(
        st.dictionaries(
            st.sampled_from(["judge", "unit", "layer", "seen"]),
            ANY_TEXT | NUMBERS | st.booleans() | st.none(),
        )
    )
    ends = [draw(st.none() | NUMBERS) for _ in range(3)]
    return records.row(draw(ANY_TEXT), draw(NUMBERS), *ends, **words, **more)


@stable(60)
@given(
    st.lists(rows(), max_size=3),
    st.dictionaries(ANY_TEXT, ANY_TEXT | NUMBERS | st.booleans(), max_size=3),
    st.integers(-(2**62), 2**62),
    st.lists(
        st.dictionaries(ANY_TEXT, ANY_TEXT | st.booleans(), max_size=3), max_size=2
    ),
)
def test_a_record_comes_back_from_its_file(tmp_path, table, parameters, seed, prompts):
    record = a_record(rows=table, parameters=parameters, seed=seed, prompts=prompts)
    path = record.write(tmp_path / "90_demo" / "m.json")
    back = records.read(path)
    assert dataclasses.asdict(back) == dataclasses.asdict(record)
    text = path.read_bytes()
    assert back.write(path).read_bytes() == text
    assert records.find(tmp_path) == [record]
    assert len(records.rows_frame([back])) == len(table)
