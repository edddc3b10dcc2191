"""Logit lens: read an answer out of every block, not only out of the last one.

The last steps of a model's own reading, final norm and unembedding, are applied to the
vectors inside block l at the last prompt token:

    logits(x) = lm_head(final_norm(x))

for four vectors x: the attention's output, the residual stream after attention, the
MLP's output, and the block's output. Where an unlearned model answers wrongly and one
of these read-outs answers rightly, the knowledge is hidden and not gone.

nostalgebraist 2020, "interpreting GPT: the logit lens"; as an attack on unlearning:
Łucki et al. 2024, arXiv 2409.18025.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from safeedit.chat import Chat, check_prompts
from safeedit.hooks import hooked

STAGES = ("attention", "residual", "mlp", "block")  # in the order of the computation


@dataclass(frozen=True)
class LogitLens:
    """What every read-out says.

    Attributes:
        token_ids: the tokens among which the read-outs choose.
        logits: of these tokens, shape (n_blocks, 4, n_prompts, n_tokens), stages in the
            order of `STAGES`, float32 on the CPU.
    """

    token_ids: tuple[int, ...]
    logits: Tensor

    @property
    def predictions(self) -> Tensor:
        """Index into `token_ids` of each choice, shape (n_blocks, 4, n_prompts)."""
        return self.logits.argmax(-1)

    def accuracy(self, answers: Sequence[int]) -> Tensor:
        """Share of right choices, shape (n_blocks, 4).

        Args:
            answers: index into `token_ids` of the right token for each prompt.

        Raises:
            ValueError: not one answer for each prompt, or an index out of range.
        """
        n_prompts = self.logits.shape[2]
        if len(answers) != n_prompts:
            raise ValueError(
                f"{len(answers)} answers for {n_prompts} prompts; give one for each."
            )
        wrong = [a for a in answers if not 0 <= a < len(self.token_ids)]
        if wrong:
            raise ValueError(
                f"Answer {wrong[0]} is out of range; give an index into token_ids, "
                f"0 to {len(self.token_ids) - 1}."
            )
        return (self.predictions == torch.tensor(answers)).double().mean(-1)

    def best(self, answers: Sequence[int]) -> tuple[int, str, float]:
        """Block, stage and accuracy of the best read-out, as the paper reports it.

        It is the largest of 4 n_blocks accuracies on the same prompts, so it lies above
        chance for a model that knows nothing. For a fair figure choose block and stage
        on other prompts, and give the base model and the oracle the same choice.
        """
        accuracy = self.accuracy(answers)
        block, stage = divmod(int(accuracy.argmax()), len(STAGES))
        return block, STAGES[stage], float(accuracy.max())


def logit_lens(
    chat: Chat, prompts: Sequence[str], token_ids: Sequence[int], template: bool = True
) -> LogitLens:
    """Choose among some tokens at the end of each prompt, by every read-out.

    Args:
        chat: a model with the blocks of Llama, Mistral or Gemma.
        prompts: user turns, e.g. questions that are answered by a letter.
        token_ids: first tokens of the possible answers, as they follow the prompt.
        template: put the prompts into the chat template; False: they are plain texts.

    Returns:
        LogitLens. Its last block's output is what the model itself answers with.

    Raises:
        ValueError: no prompts, one that is too long, fewer than two tokens, a token
            twice or out of the vocabulary, or a model with other blocks.
    """
    check_prompts(prompts)
    tokens = _check_tokens(chat, token_ids)
    places = _read_outs(chat)
    head, norm = chat.model.lm_head, chat.model.model.norm
    # Only the rows that are read: a whole vocabulary for each read-out is too much.
    rows = head.weight[tokens]
    bias = None if head.bias is None else head.bias[tokens]
    texts = chat.render(prompts) if template else list(prompts)
    parts = []
    for low in range(0, len(texts), chat.batch_size):
        vectors = _last_vectors(chat, texts[low : low + chat.batch_size], places)
        logits = nn.functional.linear(norm(vectors), rows, bias)
        parts.append(logits.float().cpu())
    every = torch.cat(parts, dim=1).unflatten(0, (chat.n_layers, len(STAGES)))
    return LogitLens(tuple(tokens.tolist()), every)


def _check_tokens(chat: Chat, token_ids: Sequence[int]) -> Tensor:
    """The tokens as a tensor, or ValueError."""
    size = chat.model.get_input_embeddings().num_embeddings
    tokens = [int(token) for token in token_ids]
    if len(tokens) < 2 or len(set(tokens)) < len(tokens):
        raise ValueError(f"token_ids is {tokens}; give two or more different tokens.")
    if not all(0 <= token < size for token in tokens):
        raise ValueError(
            f"token_ids is {tokens}; the vocabulary of {chat.name} has 0 to {size - 1}."
        )
    return torch.tensor(tokens, device=chat.device)


def _read_outs(chat: Chat) -> list[tuple[nn.Module, bool]]:
    """Four modules for each block, and whether the vector is what the module reads."""
    if hasattr(chat.blocks[0], "pre_feedforward_layernorm"):
        raise ValueError(
            f"The blocks of {chat.name} have norms after attention and MLP, as Gemma 2 "
            "has; the read-outs are those of Llama, Mistral and Gemma (1)."
        )
    places = []
    for block in chat.blocks:
        places += [
            (block.get_submodule("self_attn.o_proj"), False),
            (block.get_submodule("post_attention_layernorm"), True),
            (block.get_submodule("mlp"), False),
            (block, False),
        ]
    return places


@torch.no_grad()
def _last_vectors(
    chat: Chat, texts: Sequence[str], places: Sequence[tuple[nn.Module, bool]]
) -> Tensor:
    """Vectors at the last token, shape (places, texts, d_model), in one pass."""
    batch = chat.encode(texts)
    out: list[Tensor] = [torch.empty(0)] * len(places)

    def keep(index: int, reads: bool) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            # Left padding: the last column is the last token of every row.
            out[index] = (args[0] if reads else output)[:, -1]

        return hook

    pairs = [(m, keep(i, reads)) for i, (m, reads) in enumerate(places)]
    with hooked(pairs):
        chat.model.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=(batch.attention_mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
        )
    return torch.stack(out)
