"""A prefix as tokens and as text: where it sits, and whether it survives typing.

The counterpart of `suffix` for one text in front of several questions,
"{prefix} {question}". Its tokens are the same before each of them, or it is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safeedit.attacks.suffix import Slot, make_slot
from safeedit.chat import Chat

Ids = tuple[int, ...]  # of a prefix


@dataclass(frozen=True)
class PrefixPlace:
    """Where a prefix goes in front of each question.

    Attributes:
        chat: the model, whose tokenizer and template count.
        questions: user turns.
        slots: ids around the prefix, one for each question. All have the same `prefix`,
            the template before the user's turn; `start` and `prompt` are of no use.
    """

    chat: Chat
    questions: tuple[str, ...]
    slots: tuple[Slot, ...]

    def texts(self, prefixes: Sequence[Ids]) -> list[str]:
        """What a user types for these ids; they may differ in length."""
        anchor = self.slots[0].anchor
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        cut = len(self.chat.tokenizer.decode([anchor], **options))
        rows = [[anchor, *ids] for ids in prefixes]
        # A first token may stand for a space and a word. The space is not typed, and
        # `survivors` keeps what is read as the same token without it.
        texts = self.chat.tokenizer.batch_decode(rows, **options) if rows else []
        return [text[cut:].strip() for text in texts]

    def survivors(
        self, prefixes: Sequence[Ids], banned: Sequence[str] = ()
    ) -> list[Ids]:
        """The prefixes whose ids come back when they are typed before each question.

        Args:
            prefixes: ids; they may differ in length.
            banned: words that no prefix may contain, whatever its tokens.
        """
        kept = [
            (ids, text)
            for ids, text in zip(prefixes, self.texts(prefixes), strict=True)
            if text and not any(word.lower() in text.lower() for word in banned)
        ]
        for question, slot in zip(self.questions, self.slots, strict=True):
            if not kept:
                break
            rendered = self.chat.render([f"{text} {question}" for _, text in kept])
            read = self.chat.encode_ids(rendered)
            kept = [
                one
                for one, ids in zip(kept, read, strict=True)
                if ids == [*slot.prefix, *one[0], *slot.post]
            ]
        return [ids for ids, _ in kept]

    def typed(self, text: str) -> Ids:
        """Ids of a prefix that somebody types.

        Raises:
            ValueError: its tokens are not the same before each question.
        """
        slot = self.slots[0]
        prompt = f"{text.strip()} {self.questions[0]}"
        whole = self.chat.encode_ids(self.chat.render([prompt]))[0]
        ids = tuple(whole[len(slot.prefix) : len(whole) - len(slot.post)])
        if not ids or not self.survivors([ids]):
            raise ValueError(
                f"The tokens of {text[:40]!r} depend on the question behind it; give "
                "another text."
            )
        return ids

    def draw(
        self,
        length: int,
        allowed: Tensor,
        generator: torch.Generator,
        banned: Sequence[str] = (),
    ) -> Ids:
        """A random prefix that survives being typed.

        Args:
            length: tokens.
            allowed: mask of the tokens that it may use, shape (vocab,).
            generator: source of randomness.
            banned: see `survivors`.

        Raises:
            RuntimeError: none of 6400 draws survived.
        """
        vocabulary = allowed.nonzero().squeeze(1)
        for _ in range(100):
            picks = torch.randint(len(vocabulary), (64, length), generator=generator)
            drawn = [tuple(row) for row in vocabulary[picks].tolist()]
            good = self.survivors(drawn, banned)
            if good:
                return good[0]
        raise RuntimeError(
            f"No random prefix of {length} tokens survived tokenization in 6400 draws; "
            "use a shorter length."
        )


def prefix_place(
    chat: Chat, questions: Sequence[str], targets: Sequence[str]
) -> PrefixPlace:
    """Take the rendered questions apart around a prefix.

    Raises:
        ValueError: an empty target, or a tokenizer that cannot tell where tokens lie.
    """
    slots = []
    for question, target in zip(questions, targets, strict=True):

        def render(place: list[str], question: str = question) -> list[str]:
            text = chat.render([f"{place[0]} {question}"])[0]
            # A space of the template belongs to the first token of the prefix.
            return [text.replace(" " + place[0], place[0])]

        if not target.strip():
            raise ValueError(
                f"The target of {question[:40]!r} is empty; give what the original "
                "model answers."
            )
        slots.append(make_slot(chat, "", target, "x", 2, render))
    return PrefixPlace(chat, tuple(questions), tuple(slots))
