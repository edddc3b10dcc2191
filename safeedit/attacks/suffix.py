"""A suffix as tokens and as text: where it sits, and whether it survives typing.

An attack searches over token ids, a user types characters. `Slot` knows the ids around
the suffix of one prompt; `typed` turns suffix ids into text, puts it into the rendered
prompt, tokenizes the whole of it again, and keeps a suffix only if exactly the searched
ids come back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from safeedit.chat import Chat

_PLACE = "q7zx"  # marks where the suffix goes while the template is taken apart
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True)
class Slot:
    """One behaviour: the text and the tokens around its suffix.

    Attributes:
        prompt: what the user types, without the suffix.
        head, tail: rendered text before and after the suffix, a defense's own words
            included.
        prefix, post: token ids before and after the suffix.
        target: token ids of the answer that the attack asks for.
        start: ids of the initial suffix.
        anchor: a token decoded before the suffix, so that the suffix's leading space
            is kept by decoders that strip the first one.
    """

    prompt: str
    head: str
    tail: str
    prefix: list[int]
    post: list[int]
    target: list[int]
    start: list[int]
    anchor: int

    @property
    def ids(self) -> list[int]:
        """The whole sequence, with the initial suffix and the target."""
        return self.prefix + self.start + self.post + self.target


def make_slot(
    chat: Chat,
    prompt: str,
    target: str,
    init: str,
    length: int,
    render: Callable[[list[str]], list[str]] | None = None,
) -> Slot:
    """Take the rendered prompt apart around a suffix of `length` times `init`.

    Args:
        chat: model under attack.
        prompt: what the user types, without the suffix.
        target: first words of the answer that the attack asks for.
        init: word repeated as the first suffix.
        length: tokens of the suffix.
        render: what the model sees of what users type, e.g.
            `partial(seen_through, SelfReminder(chat))`; None: `chat.render`.

    Raises:
        ValueError: empty target, or an `init` that does not make `length` tokens.
    """
    if not chat.tokenizer.is_fast:
        raise ValueError(
            f"{chat.name} has a slow tokenizer; suffix attacks need the character "
            "offsets of a fast one (tokenizer.json)."
        )
    head, tail = (render or chat.render)([prompt + _PLACE])[0].rsplit(_PLACE, 1)
    head = chat.with_bos(head)
    text = _repeat_until(chat, head, tail, init, length)
    before, suffix, post = _split(chat, head, text, tail)
    rendered = before + suffix + post
    spoken = chat.answer_lead + target if target else ""
    joint = chat.encode_ids([head + text + tail + spoken])[0]
    if joint[: len(rendered)] == rendered:
        answer = joint[len(rendered) :]
    else:  # the target's first character would merge into the template
        answer = chat.tokenizer(target, add_special_tokens=False).input_ids
    if not answer:
        raise ValueError(
            f"The target of {prompt[:40]!r} is empty; give its first words."
        )
    return Slot(prompt, head, tail, before, post, answer, suffix, before[-1])


def make_slots(
    chat: Chat,
    prompts: Sequence[str],
    targets: Sequence[str],
    init: str,
    length: int,
    render: Callable[[list[str]], list[str]] | None = None,
) -> list[Slot]:
    """`make_slot` for each prompt and target.

    Raises:
        ValueError: as `make_slot`, or a prompt that is too long with suffix and target.
    """
    slots = []
    for index, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        slots.append(make_slot(chat, prompt, target, init, length, render))
        chat.check_length(index, len(slots[-1].ids))
    return slots


def _repeat_until(chat: Chat, head: str, tail: str, init: str, length: int) -> str:
    """Repeat `init` until it makes exactly `length` tokens between head and tail."""
    # Where " x" is two tokens, an odd length needs one more "x" without a space.
    for more in ("", init, 2 * init) if init.strip() else ():
        for repeats in range(1, length + 1):
            text = f" {init}" * repeats + more
            if len(_split(chat, head, text, tail)[1]) == length:
                return text
    raise ValueError(
        f"init={init!r} repeated does not make {length} tokens with the tokenizer of "
        f"{chat.name}; use an init that is one token, such as 'x' or '!'."
    )


def _split(chat: Chat, head: str, text: str, tail: str) -> tuple[list[int], ...]:
    """Ids before, inside and after the characters of `text`."""
    whole = head + text + tail
    encoded = chat.tokenizer(
        whole, add_special_tokens=False, return_offsets_mapping=True
    )
    ids, offsets = encoded.input_ids, encoded.offset_mapping
    first = sum(1 for low, _ in offsets if low < len(head))
    last = sum(1 for low, _ in offsets if low < len(head) + len(text))
    return ids[:first], ids[first:last], ids[last:]


def suffix_texts(chat: Chat, slot: Slot, ids: torch.Tensor) -> list[str]:
    """Text of suffixes, shape (n, length), as it follows the prompt."""
    anchored = [[slot.anchor, *row] for row in ids.tolist()]
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    cut = len(chat.tokenizer.decode([slot.anchor], **options))
    return [text[cut:] for text in chat.tokenizer.batch_decode(anchored, **options)]


def typed(
    chat: Chat,
    slots: Sequence[Slot],
    suffixes: Sequence[torch.Tensor],
    banned_words: Sequence[str] = (),
) -> list[torch.Tensor]:
    """Which suffixes come back unchanged when their whole prompt is tokenized again.

    Args:
        slots: behaviours.
        suffixes: per behaviour, candidate ids, shape (n_b, length).
        banned_words: words that no suffix may contain, whatever its tokens.

    Returns:
        Per behaviour, a mask of the suffixes that may be used, shape (n_b,).
    """
    texts = [suffix_texts(chat, s, ids) for s, ids in zip(slots, suffixes, strict=True)]
    whole = [
        slot.head + text + slot.tail
        for slot, some in zip(slots, texts, strict=True)
        for text in some
    ]
    again = iter(chat.encode_ids(whole) if whole else [])  # one call for all of them
    masks = []
    for slot, ids, some in zip(slots, suffixes, texts, strict=True):
        keep = []
        for row, text in zip(ids.tolist(), some, strict=True):
            same = next(again) == slot.prefix + row + slot.post
            ends_well = text == text.rstrip()  # templates trim the user turn
            lower = text.lower()
            clean = not any(word.lower() in lower for word in banned_words)
            keep.append(same and ends_well and clean)
        masks.append(torch.tensor(keep, dtype=torch.bool))
    return masks


def allowed_tokens(
    chat: Chat, allow_non_ascii: bool, banned_words: Sequence[str] = ()
) -> torch.Tensor:
    """Mask over the vocabulary of tokens that a suffix may use, shape (vocab,).

    Left out: special and added tokens, raw bytes, rows of the embedding without a
    token, text that is not printable ASCII (unless allowed), and tokens that contain
    a banned word.
    """
    if isinstance(banned_words, str):
        raise ValueError(f"banned_words is {banned_words!r}; give a tuple of words.")
    size = chat.model.get_input_embeddings().num_embeddings
    mask = torch.zeros(size, dtype=torch.bool)
    names = chat.tokenizer.convert_ids_to_tokens(list(range(len(chat.tokenizer))))
    texts = chat.tokenizer.batch_decode(
        [[token] for token in range(len(names))], clean_up_tokenization_spaces=False
    )
    special = set(chat.tokenizer.added_tokens_decoder)
    words = [word.lower() for word in banned_words]
    for token, (name, text) in enumerate(zip(names, texts, strict=True)):
        if token in special or name is None or _BYTE_TOKEN.fullmatch(name):
            continue
        if not text or "\ufffd" in text:
            continue
        if not allow_non_ascii and not (text.isascii() and text.isprintable()):
            continue
        mask[token] = not any(word in text.lower() for word in words)
    if not mask.any():
        raise ValueError("No token of the vocabulary is allowed; ban fewer words.")
    return mask
