"""Loss of one prefix over several questions, and its gradient over the vocabulary.

    L(p) = mean over questions of  CE(target | p, question) + c R(p, question)

CE is the mean cross-entropy of the first target tokens (nats), each token floored at
-log 0.6: a token that is likely enough needs no more work. R compares the unlearned
model with the original one on the same attacked prompt, the mean over chosen blocks and
tokens of ||h_unlearned - h_original||_2. Without the original model there is no R.

The paper has c = 1 at residual norms of a few units. Models differ in these norms by
orders of magnitude, so R is counted in units of the original's mean norm.

Łucki et al. 2024, arXiv 2409.18025, enhanced GCG, after Thompson and Sklar 2024, "FLRT:
Fluent Student-Teacher Redteaming", arXiv 2407.17447.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from safeedit.attacks.objective import embedding_table
from safeedit.attacks.prefix import Ids
from safeedit.attacks.suffix import Slot
from safeedit.chat import Chat
from safeedit.hooks import record


class PrefixObjective:
    """Losses and gradients of prefixes.

    Args:
        chat: the unlearned model, under attack.
        slots: of the questions, from `prefix_place`.
        original: the model before unlearning, or None.
        layers: blocks whose outputs are compared.
        weight: of the representation term, c.
        floor: least cross-entropy that counts for a token, nats; None: no floor.
        force_tokens: target tokens in the cross-entropy; all of them are compared.
        batch_tokens: tokens in one forward pass; None: as for GCG.
    """

    def __init__(
        self,
        chat: Chat,
        slots: Sequence[Slot],
        original: Chat | None = None,
        layers: Sequence[int] = (),
        weight: float = 1.0,
        floor: float | None = None,
        force_tokens: int = 10,
        batch_tokens: int | None = None,
    ) -> None:
        self.chat, self.slots, self.original = chat, list(slots), original
        self.layers, self.weight, self.floor = tuple(layers), weight, floor
        device = chat.device
        self.batch_tokens = batch_tokens or (1024 if device.type == "cpu" else 16384)
        self.head = list(slots[0].prefix)
        self.tails = [slot.post + slot.target for slot in slots]
        self.answers = [slot.target[:force_tokens] for slot in slots]
        self.table = embedding_table(chat)
        self.unit = self._mean_norm() if len(self._models()) > 1 else 1.0

    @torch.no_grad()
    def _mean_norm(self) -> float:
        """Mean norm of the original's vectors on the questions without a prefix."""
        _, original = self._models()
        ids = self._padded([self.head + tail for tail in self.tails])
        _, outputs = _pass(
            original, original.model.get_input_embeddings()(ids), self.layers
        )
        inside = self._inside([len(tail) for tail in self.tails], ids.shape[1])
        norms = torch.stack(outputs)[:, :, len(self.head) :].float().norm(dim=-1)
        return float(norms[:, inside.to(norms.device)].mean())

    def _inside(self, sizes: Sequence[int], width: int) -> Tensor:
        """Mask of the tokens after the head, shape (rows, width - head)."""
        return torch.arange(width - len(self.head)) < torch.tensor(sizes)[:, None]

    @torch.no_grad()
    def terms(self, prefixes: Sequence[Ids]) -> Tensor:
        """Cross-entropy and representation term of each prefix, shape (n, 2)."""
        rows = [(i, q) for i in range(len(prefixes)) for q in range(len(self.slots))]
        rows.sort(key=lambda row: len(prefixes[row[0]]) + len(self.tails[row[1]]))
        out = torch.zeros(len(prefixes), len(self.slots), 2)
        width = max(map(len, prefixes)) + max(map(len, self.tails)) + len(self.head)
        size = max(1, self.batch_tokens // width)
        for some in (rows[low : low + size] for low in range(0, len(rows), size)):
            texts = [self.head + [*prefixes[i]] + self.tails[q] for i, q in some]
            ids = self._padded(texts)
            inputs = [chat.model.get_input_embeddings()(ids) for chat in self._models()]
            lengths = [len(prefixes[i]) for i, _ in some]
            values = self._terms(inputs, lengths, [q for _, q in some]).cpu()
            for (i, q), value in zip(some, values, strict=True):
                out[i, q] = value
        return out.mean(1)

    def total(self, terms: Tensor) -> Tensor:
        """The loss, shape (...), from its two terms, shape (..., 2)."""
        return terms[..., 0] + self.weight * terms[..., 1]

    def gradient(self, ids: Ids) -> tuple[Tensor, Tensor]:
        """Gradient over the one-hot prefix, and what the model itself would write.

        Returns:
            dL/donehot, shape (length, vocab); and probabilities of the token at each
            place, given the template and the prefix before it, shape (length + 1,
            vocab): from these, tokens to insert are drawn.
        """
        length, vocab = len(ids), len(self.table)
        hot = nn.functional.one_hot(torch.tensor(ids), vocab)
        hot = hot.to(self.table).requires_grad_(True)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.relaxed(hot), hot)
        with torch.no_grad():
            whole = self._padded([self.head + [*ids]])
            hidden = self.chat.model.model(input_ids=whole).last_hidden_state
            logits = self.chat.model.lm_head(hidden[0, -length - 1 :])
        return slope, logits.float().softmax(-1)

    def relaxed(self, hot: Tensor) -> Tensor:
        """The loss of a point that need not be one-hot, shape (length, vocab)."""
        questions = range(len(self.slots))
        rest, inputs = self._padded(self.tails), []
        for chat in self._models():
            embed = chat.model.get_input_embeddings()
            table = self.table if chat is self.chat else embedding_table(chat)
            parts = [embed(self._padded([self.head])), (hot @ table.to(hot))[None]]
            parts = [part.expand(len(rest), -1, -1) for part in parts]
            inputs.append(torch.cat([*parts, embed(rest)], dim=1))
        terms = self._terms(inputs, [len(hot)] * len(rest), list(questions))
        return self.total(terms).mean()

    def _models(self) -> list[Chat]:
        compared = self.original is not None and self.weight and self.layers
        return [self.chat, self.original] if compared else [self.chat]  # type: ignore[list-item]

    def _terms(
        self, inputs: list[Tensor], lengths: list[int], questions: list[int]
    ) -> Tensor:
        """Both terms of each row, shape (rows, 2).

        Args:
            inputs: for each model its input, shape (rows, width, d_model), padded on
                the right: attention is causal, so padding needs no mask.
            lengths: tokens of each row's prefix.
            questions: of each row.
        """
        device, start = inputs[0].device, len(self.head)
        passes = [
            _pass(chat, x, self.layers if len(inputs) > 1 else ())
            for chat, x in zip(self._models(), inputs, strict=True)
        ]
        posts = [len(self.tails[q]) - len(self.slots[q].target) for q in questions]
        first = torch.tensor(lengths) + torch.tensor(posts) + start - 1
        labels = self._padded([self.answers[q] for q in questions], -100)
        columns = first.to(device)[:, None] + torch.arange(labels.shape[1]).to(device)
        columns = columns.clamp(max=inputs[0].shape[1] - 1)  # there the label is -100
        hidden = passes[0][0]
        hidden = hidden[torch.arange(len(hidden), device=device)[:, None], columns]
        logits = self.chat.model.lm_head(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        each = nn.functional.cross_entropy(
            logits.transpose(1, 2), labels, reduction="none"
        )
        if self.floor is not None:
            each = each.clamp(min=self.floor)
        scored = labels >= 0
        ce = (each * scored).sum(1) / scored.sum(1)
        if len(passes) == 1:
            return torch.stack([ce, torch.zeros_like(ce)], dim=1)
        # From the prefix on: what stands before it does not depend on it.
        ends = [n + len(self.tails[q]) for n, q in zip(lengths, questions, strict=True)]
        inside = self._inside(ends, inputs[0].shape[1])
        distance = torch.zeros_like(ce)
        for ours, theirs in zip(passes[0][1], passes[1][1], strict=True):
            gap = (ours - theirs.to(ours))[:, start:].to(ce.dtype).norm(dim=-1)
            distance = distance + (gap * inside.to(device)).sum(1)
        sizes = torch.tensor(ends, device=device) * len(self.layers)
        return torch.stack([ce, distance / sizes / self.unit], dim=1)

    def _padded(
        self, rows: Sequence[Sequence[int]], value: int | None = None
    ) -> Tensor:
        """Rows of ids padded on the right, on the model's device."""
        fill = self.chat.tokenizer.pad_token_id if value is None else value
        width = max(map(len, rows))
        padded = [[*row, *[fill] * (width - len(row))] for row in rows]
        return torch.tensor(padded, device=self.chat.device)


def _pass(
    chat: Chat, inputs: Tensor, layers: Sequence[int]
) -> tuple[Tensor, list[Tensor]]:
    """Last hidden states, and outputs of some blocks, each (rows, width, d_model)."""
    with record([chat.blocks[layer] for layer in layers]) as seen:
        last = chat.model.model(inputs_embeds=inputs, use_cache=False).last_hidden_state
    return last, [output for _, output in seen]
