"""Relearning: fine-tune an unlearned model on a few samples and see what comes back.

The attacker has the weights and N samples: of the forgotten topic, or of nothing that
has to do with it. Plain training on the mean token NLL, all weights or LoRA factors,

    W + (alpha / r) B A,   A (r, d_in) random,   B (d_out, r) zero at the start,

on every linear layer of the blocks. The settings of arXiv 2502.05374 (all weights,
N = 20, 40, 60 samples, or 20 samples for M epochs) and of arXiv 2409.18025 (LoRA of
rank 128) differ in `RelearnConfig` only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random

import torch
from torch import Tensor

from safeedit.attacks.weights import (
    WeightAttack,
    block_linears,
    check_examples,
    mean_nll,
    provenance,
)
from safeedit.chat import Chat
from safeedit.edits.low_rank import LowRank
from safeedit.edits.weight_edit import WeightEdit
from safeedit.examples import Batch, Example, collate
from safeedit.finetuning import Diverged, FinetuneConfig, Parameters, finetune

Deltas = dict[str, LowRank | Tensor]


@dataclass(frozen=True)
class RelearnConfig:
    """Settings of the relearning attack; defaults of arXiv 2502.05374."""

    samples: int | None = None  # N, drawn by the seed; None: all that are given
    epochs: int = 1  # M, rounds over the N samples
    learning_rate: float = 1e-5  # for 7B parameters; a stand-in needs 3e-4 to 1e-3
    batch_size: int = 4  # sequences; the last batch of an epoch may be smaller
    lora_rank: int | None = None  # r; None: train all weights. 2409.18025: 128
    lora_alpha: float = 16.0  # the factors' product is scaled by alpha / r
    warmup: float = 0.0  # share of the steps; 2409.18025: .05
    decay: str = "constant"  # or "linear"; see `relearn` on evaluations along the way
    weight_decay: float = 0.0  # 2409.18025: .01
    clip: float | None = None  # largest gradient norm
    seed: int = 0  # of the samples drawn, their order, and LoRA's start

    def __post_init__(self) -> None:
        for name, least in (("samples", 0), ("epochs", 1), ("lora_rank", 1)):
            value = getattr(self, name)
            if value is None and name != "epochs":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is {value!r}; give a whole number >= {least}")
        if not 0 < self.lora_alpha < float("inf"):
            raise ValueError(f"lora_alpha is {self.lora_alpha!r}; it must be > 0")
        self.schedule(0)  # its own checks

    def schedule(self, steps: int) -> FinetuneConfig:
        """The settings of the training loop for so many steps."""
        return FinetuneConfig(
            steps=steps,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            warmup=self.warmup,
            decay=self.decay,
            weight_decay=self.weight_decay,
            clip=self.clip,
            seed=self.seed,
        )


def relearn(
    chat: Chat,
    examples: Sequence[Example],
    config: RelearnConfig = RelearnConfig(),
    evaluate: Callable[[], dict] | None = None,
    evaluate_at: Sequence[int] | None = None,
    progress: bool = False,
) -> WeightAttack:
    """Fine-tune on N samples for M epochs.

    Draws are nested: the samples of N = 20 are the first 20 of N = 40, in the same
    order. So with one epoch, constant rate and no warmup, the state after n samples (n
    a multiple of the batch) is that of a run on n samples, and one run with
    `evaluate_at` serves all n. With decay or warmup the rate depends on where the run
    ends, and each n needs a run of its own.

    Args:
        chat: the attacked model; bit for bit the same afterwards.
        examples: what the attacker has, at least N.
        config: settings.
        evaluate: called with the weights of that moment in place; what it returns is
            kept.
        evaluate_at: numbers of samples seen, repetitions counted, 0 to N * M; measured
            after the first step that reaches the number. None: only at the end.
        progress: show a progress bar.

    Returns:
        WeightAttack. The edit is dense for every weight that moved, or low-rank with
        `lora_rank`. The trajectory has one row for each step: "samples" seen, "loss"
        (nats per token, before the update), the columns of `finetune`, and, where it
        was measured, "evaluation" (after the update). A measurement at 0 samples makes
        a first row of its own, with "samples" and "evaluation" only.

    Raises:
        ValueError: fewer than N examples, one without scored tokens, or `evaluate_at`
            beyond the run or without `evaluate`.
        Diverged: a loss or a gradient is not finite; its `edit` is the last good state.
    """
    began = time.perf_counter()
    check_examples(chat, examples, "examples")
    order = _Order(len(examples), config)
    due = _moments(evaluate, evaluate_at, order)
    trained = _All(chat) if config.lora_rank is None else _Lora(chat, config)
    evaluations: dict[int, dict] = {}  # samples seen -> what evaluate returned

    def gradient(step: int, masters: Parameters) -> tuple[dict, dict[str, float]]:
        batch = collate(chat, [examples[index] for index in order.batch(step)])
        leaves = {n: m.detach().requires_grad_() for n, m in masters.items()}
        loss = trained.loss(batch, leaves)
        found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, found, strict=True)), {"loss": loss.item()}

    def look(seen: int, masters: Parameters) -> None:
        reached = [count for count in due if count <= seen]
        if reached and evaluate is not None:
            # The edit itself, so that applying the result gives what was measured.
            with WeightEdit(trained.deltas(masters)).applied(chat, strict=False):
                evaluations[seen] = dict(evaluate())
        del due[: len(reached)]

    def edit(masters: Parameters) -> WeightEdit:
        deltas = trained.deltas(masters) if order.steps else {}
        settings = asdict(config) | {"samples": order.samples}
        info = provenance(chat, name, settings, list(deltas))
        return WeightEdit(deltas, info)

    name = "relearning" if config.lora_rank is None else "relearning-lora"
    masters = trained.start()
    look(0, masters)
    try:
        rows = finetune(
            masters,
            gradient,
            config.schedule(order.steps),
            progress=progress,
            after_step=lambda step, now: look(order.seen(step), now),
        )
    except Diverged as error:
        error.edit = edit(masters)
        raise
    trajectory: list[dict] = []
    if 0 in evaluations:
        trajectory.append({"samples": 0, "evaluation": evaluations[0]})
    for row in rows:
        seen = order.seen(row["step"])
        more = {"evaluation": evaluations[seen]} if seen in evaluations else {}
        trajectory.append({"samples": seen} | row | more)
    seconds = time.perf_counter() - began
    return WeightAttack(name, edit(masters), trajectory, seconds)


class _Order:
    """Which samples each step sees: a function of the seed and the step."""

    def __init__(self, available: int, config: RelearnConfig) -> None:
        self.samples = available if config.samples is None else config.samples
        if self.samples > available:
            raise ValueError(
                f"samples is {self.samples} and there are {available} examples; give "
                "more examples, or a smaller number (repeat them with epochs)"
            )
        self.size, self.seed = config.batch_size, config.seed
        # Shuffle all, then cut: a smaller N is the beginning of a larger one.
        drawn = list(range(available))
        Random(f"relearn-{self.seed}").shuffle(drawn)
        self.drawn = drawn[: self.samples]
        self.per_epoch = -(-self.samples // self.size)
        self.steps = config.epochs * self.per_epoch
        self.total = config.epochs * self.samples

    def batch(self, step: int) -> list[int]:
        """Indices of the examples of a step."""
        epoch, place = divmod(step, self.per_epoch)
        order = list(self.drawn)
        if epoch:  # the first round keeps the order drawn, see `relearn`
            Random(f"relearn-{self.seed}-{epoch}").shuffle(order)
        return order[place * self.size : (place + 1) * self.size]

    def seen(self, step: int) -> int:
        """Samples seen once a step is done."""
        epoch, place = divmod(step, self.per_epoch)
        return epoch * self.samples + min((place + 1) * self.size, self.samples)


class _All:
    """All weights of a model, trained as float32 copies."""

    def __init__(self, chat: Chat) -> None:
        self.chat, self.weights = chat, dict(chat.model.named_parameters())

    def start(self) -> dict[str, Tensor]:
        return {n: w.detach().float().clone() for n, w in self.weights.items()}

    def loss(self, batch: Batch, masters: Parameters) -> Tensor:
        # A bfloat16 model computes in bfloat16; the small steps add up in float32.
        weights = {n: m.to(self.weights[n].dtype) for n, m in masters.items()}
        return mean_nll(self.chat.model, batch, weights)

    def deltas(self, masters: Parameters) -> Deltas:
        changes = {n: m - self.weights[n].detach() for n, m in masters.items()}
        return {n: change for n, change in changes.items() if bool(change.any())}


class _Lora:
    """LoRA factors (arXiv 2106.09685) beside every linear layer of the blocks."""

    def __init__(self, chat: Chat, config: RelearnConfig) -> None:
        assert config.lora_rank is not None
        self.chat, self.rank, self.seed = chat, config.lora_rank, config.seed
        self.scale = config.lora_alpha / self.rank
        self.linears = block_linears(chat)

    def start(self) -> dict[str, Tensor]:
        """A uniform on +-1/sqrt(d_in), as an nn.Linear starts and as peft has it."""
        generator = torch.Generator().manual_seed(self.seed)
        factors = {}
        for name, linear in self.linears.items():
            d_out, d_in = linear.weight.shape
            drawn = 2 * torch.rand(self.rank, d_in, generator=generator) - 1
            factors[f"{name}::A"] = drawn.to(linear.weight.device) * d_in**-0.5
            factors[f"{name}::B"] = factors[f"{name}::A"].new_zeros(d_out, self.rank)
        return factors

    def loss(self, batch: Batch, factors: Parameters) -> Tensor:
        # The side-car of a low-rank edit is the LoRA layer; gradients go through it.
        with WeightEdit(self.deltas(factors)).applied(self.chat, strict=False):
            return mean_nll(self.chat.model, batch)

    def deltas(self, factors: Mapping[str, Tensor]) -> Deltas:
        """U = (alpha / r) B and V = A^T of each layer."""
        return {
            name: LowRank(self.scale * factors[f"{name}::B"], factors[f"{name}::A"].mT)
            for name in self.linears
        }


def _moments(
    evaluate: Callable[[], dict] | None, counts: Sequence[int] | None, order: _Order
) -> list[int]:
    """Numbers of samples at which to measure, in rising order."""
    if evaluate is None:
        if counts:
            raise ValueError(
                f"evaluate_at is {tuple(counts)} and evaluate is None; give the "
                "function that measures, without arguments and returning a dict"
            )
        return []
    if counts is None:
        return [order.total]
    for count in counts:
        whole = isinstance(count, int) and not isinstance(count, bool)
        if not (whole and 0 <= count <= order.total):
            raise ValueError(
                f"evaluate_at holds {count!r}; the run sees {order.total} samples "
                f"({order.samples} in each epoch): use whole numbers from 0 to that"
            )
    return sorted(set(counts))
