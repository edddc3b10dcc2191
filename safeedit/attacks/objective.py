"""Target loss of many suffixes at once, and its gradient over the vocabulary.

    L(s) = -1/T sum_t log p(y_t | prefix, s, post, y_<t)

the mean cross-entropy of the target y (nats per token) after the rendered prompt. Rows
of a batch are laid out as [left padding | prefix | suffix | post | target | padding], so
that every row's suffix starts in the same column.

What makes it fast: the prefix runs once and its keys and values are shared by all
candidates; a candidate that differs from the current suffix only from position p on also
shares the current suffix up to p; logits are computed at target positions only.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from safeedit.attacks.suffix import Slot
from safeedit.models import Chat


class Defense(Protocol):
    """A defence that an adaptive attack can look through, e.g. `TestTimePCR`."""

    def applied(self, last_prompt: Tensor | None): ...  # context manager

    def generate(self, prompts: list[str], max_new_tokens: int = 64) -> list[str]: ...


class _SharedLayer(DynamicLayer):
    """Keys and values of a prefix, read by every row and never copied into the cache.

    `new` keeps what the last pass added, shape (rows, heads, tokens, head size).
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        self.new = (key_states, value_states)
        rows = len(key_states)
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
            torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2),
        )


class Objective:
    """Losses and gradients for the suffixes of several behaviours.

    Args:
        chat: model under attack.
        slots: behaviours; the suffix lengths agree.
        batch_tokens: tokens in one forward pass, the limit on memory.
        defense: None, or a defence in place: then each row is a full forward pass under
            the defence, since its edit changes the prefix too.
        prefix_cache: share the prefix (off only to check that it changes nothing).
    """

    def __init__(
        self,
        chat: Chat,
        slots: list[Slot],
        batch_tokens: int,
        defense: Defense | None = None,
        prefix_cache: bool = True,
    ) -> None:
        self.chat, self.defense, self.batch_tokens = chat, defense, batch_tokens
        device, pad = chat.device, chat.tokenizer.pad_token_id
        self.length = len(slots[0].start)
        tails = [slot.post + slot.target[:-1] for slot in slots]
        self.prefix = _pad([slot.prefix for slot in slots], pad, left=True).to(device)
        self.tail = _pad(tails, pad).to(device)
        self.labels = _pad([slot.target for slot in slots], -100).to(device)
        # Column, counted from the suffix's first, whose logits predict the target's.
        first = [self.length + len(slot.post) - 1 for slot in slots]
        self.first = torch.tensor(first, device=device)
        width = self.prefix.shape[1]
        self.padding = torch.tensor([width - len(slot.prefix) for slot in slots])
        self.padding = self.padding.to(device)
        embed = chat.model.get_input_embeddings()
        # Gemma scales its embeddings, so its table is not the bare weight.
        plain = type(embed) is nn.Embedding
        ids = torch.arange(embed.num_embeddings, device=device)
        self.table = embed.weight if plain else embed(ids)
        self.embed = embed
        self.shared: list[tuple[Tensor, Tensor]] | None = None
        if prefix_cache and defense is None:
            self.shared = self._run_prefix()

    @torch.no_grad()
    def _run_prefix(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every behaviour's prefix, one pair for each block."""
        mask, positions = self._mask(torch.arange(len(self.prefix)), 0)
        cache = self.chat.model.model(
            input_ids=self.prefix,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=Cache(layer_class_to_replicate=DynamicLayer),
            use_cache=True,
        ).past_key_values
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _mask(self, owner: Tensor, more: int) -> tuple[Tensor | None, Tensor]:
        """Attention mask (None without padding) and positions of prefix + `more`."""
        columns = torch.arange(self.prefix.shape[1] + more, device=self.chat.device)
        padding = self.padding[owner][:, None]
        positions = (columns - padding).clamp(min=0)
        mask = (columns >= padding).long() if bool(self.padding.any()) else None
        return mask, positions

    def _forward(
        self,
        embeds: Tensor,
        owner: Tensor,
        shared: list[tuple[Tensor, Tensor]] | None,
        start: int = 0,
    ) -> Tensor:
        """Loss of each row.

        Args:
            embeds: suffix from position `start` on, then post and target, shape
                (rows, length - start + tail, d_model).
            owner: behaviour of each row, shape (rows,).
            shared: per block, keys and values of what comes before; None: run it too.
        """
        mask, positions = self._mask(owner, start + embeds.shape[1])
        cache, guard = None, nullcontext()
        before = self.prefix.shape[1] + start
        if shared is None:
            embeds = torch.cat([self.embed(self.prefix[owner]), embeds], dim=1)
            if self.defense is not None:
                last = self.prefix.shape[1] + self.first[owner]
                guard = self.defense.applied(last)
        else:
            positions = positions[:, before:]
            cache = Cache(layers=[_SharedLayer(*pair) for pair in shared])
        if not bool(self.padding.any()):
            positions = positions[:1]
        with guard:
            hidden = self.chat.model.model(
                inputs_embeds=embeds,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
            ).last_hidden_state
        self._cache = cache
        labels = self.labels[owner]
        column = self.first[owner] - start + (before if shared is None else 0)
        steps = torch.arange(labels.shape[1], device=labels.device)
        # Shorter targets reach past the end; their label there is -100 (ignored).
        columns = (column[:, None] + steps).clamp(max=hidden.shape[1] - 1)
        rows = torch.arange(len(hidden), device=labels.device)[:, None]
        logits = self.chat.model.lm_head(hidden[rows, columns])
        losses = nn.functional.cross_entropy(
            logits.transpose(1, 2).to(torch.promote_types(logits.dtype, torch.float32)),
            labels,
            reduction="none",
        )
        return losses.sum(1) / (labels >= 0).sum(1)

    def gradient(self, suffixes: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of the loss with respect to the one-hot suffix.

        The one-hot matrix is never formed: with e = onehot @ E, dL/donehot = dL/de E^T.

        Args:
            suffixes: current ids, one row for each behaviour, shape (behaviours, length).

        Returns:
            Gradient, shape (behaviours, length, vocab), and loss, shape (behaviours,).
        """
        owner = torch.arange(len(suffixes), device=suffixes.device)
        point = self.embed(suffixes).detach().requires_grad_(True)
        embeds = torch.cat([point, self.embed(self.tail)], dim=1)
        with torch.enable_grad():
            losses = self._forward(embeds, owner, self.shared)
            (slope,) = torch.autograd.grad(losses.sum(), point)
        return slope @ self.table.T, losses.detach()

    @torch.no_grad()
    def remember(self, suffixes: Tensor) -> None:
        """Keep keys and values of the current suffixes, for candidates that share them.

        Call it right after `gradient(suffixes)`, whose pass has computed them.
        """
        self.current = suffixes
        if self.shared is not None:
            added = [layer.new for layer in self._cache.layers]
            self.reach = [
                tuple(
                    torch.cat([old, new[:, :, : self.length].detach()], dim=-2)
                    for old, new in zip(pair, news, strict=True)
                )
                for pair, news in zip(self.shared, added, strict=True)
            ]

    @torch.no_grad()
    def losses(self, candidates: Tensor, owner: Tensor) -> Tensor:
        """Loss of candidate suffixes.

        Args:
            candidates: ids, shape (rows, length), variations of the remembered suffixes.
            owner: behaviour of each row, shape (rows,).

        Returns:
            Loss of each row, nats per target token, shape (rows,).
        """
        changed = candidates != self.current[owner]
        first = torch.where(changed.any(1), changed.int().argmax(1), self.length - 1)
        order = first.argsort(stable=True) if self.shared else torch.arange(len(owner))
        out = torch.empty(len(owner), device=owner.device, dtype=self.table.dtype)
        width = self.length + self.tail.shape[1]
        width += 0 if self.shared else self.prefix.shape[1]
        size = max(1, self.batch_tokens // width)
        for rows in order.split(size):
            start, shared = 0, None
            who = owner[rows]
            if self.shared is not None:
                start = int(first[rows[0]])
                before = self.prefix.shape[1] + start
                shared = [
                    tuple(_rows(part[:, :, :before], who) for part in pair)
                    for pair in self.reach
                ]
            embeds = self.embed(
                torch.cat([candidates[rows, start:], self.tail[who]], dim=1)
            )
            out[rows] = self._forward(embeds, who, shared, start).to(out.dtype)
        return out


def _rows(part: Tensor, owner: Tensor) -> Tensor:
    """Rows of a shared tensor for each candidate; one behaviour is expanded instead."""
    return part if len(part) == 1 else part[owner]


def _pad(rows: list[list[int]], value: int, left: bool = False) -> Tensor:
    """Rows of different length as one tensor."""
    width = max(map(len, rows))
    fill = [[value] * (width - len(row)) for row in rows]
    pairs = zip(fill, rows, strict=True)
    return torch.tensor([gap + row if left else row + gap for gap, row in pairs])
