"""Universal prefix: one text that, put before any question, brings the knowledge back.

Enhanced GCG. Candidates wait in a buffer. Each step takes its best prefix out, changes
it in `search_width` ways (a GCG swap by the gradient, a random swap, an insertion drawn
from the model's own next tokens, or a deletion), scores them over all questions at once
(`prefix_objective`) and puts them back. The best prefix ever scored is kept.

Łucki et al. 2024, arXiv 2409.18025; moves and buffer are those
of FLRT (Thompson and Sklar 2024, arXiv 2407.17447). Left out: the terms that make a
prefix fluent, and the comparison with the original model on the bare prompt.

A prefix also costs a model that was never unlearned some accuracy, so show the base
model under the same prefix, and `random_prefix` of the same length, beside it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from safeedit.attacks.prefix import Ids, prefix_place
from safeedit.attacks.prefix_objective import PrefixObjective
from safeedit.attacks.search import Judge, check_behaviours
from safeedit.attacks.suffix import allowed_tokens
from safeedit.chat import Chat

MOVES = ("gcg", "random", "insert", "delete")


@dataclass(frozen=True)
class UniversalPrefixConfig:
    """Settings of enhanced GCG; the paper's values where they are other ones."""

    num_steps: int = 40  # paper: 1500
    search_width: int = 32  # candidates a step; the paper's k1 = 16
    topk: int = 64  # tokens considered at each place; the paper's k2
    shares: tuple[float, ...] = (0.7, 0.1, 0.1, 0.1)  # of the moves, as in MOVES
    buffer_size: int = 16  # prefixes that wait to be changed
    length: int = 8  # tokens of a first prefix that is drawn
    min_length: int = 4  # tokens; paper: 100
    max_length: int = 16  # tokens
    start: str | None = None  # warm start: an earlier prefix; None: drawn at random
    layers: tuple[int, ...] | None = None  # compared; None: one a bit behind the middle
    weight: float = 1.0  # of the representation term, in units of the mean norm
    floor: float | None = -math.log(0.6)  # of a token's cross-entropy, nats; None: none
    force_tokens: int = 10  # target tokens in the cross-entropy
    allow_non_ascii: bool = False  # may the prefix hold other characters
    banned_words: tuple[str, ...] = ()  # never in a prefix, e.g. the answers
    max_new_tokens: int = 16  # length of the judged answer, tokens
    batch_tokens: int | None = None  # tokens in one pass (memory); None: by device
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"num_steps": 0, "search_width": 1, "topk": 1, "buffer_size": 1}
        least |= {"min_length": 1, "length": self.min_length, "force_tokens": 1}
        least |= {"max_length": self.length, "max_new_tokens": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= low):
                raise ValueError(f"{name} is {value!r}; give a whole number >= {low}.")
        if len(self.shares) != 4 or min(self.shares) < 0 or not sum(self.shares):
            raise ValueError(
                f"shares is {self.shares}; give one >= 0 for each {MOVES}."
            )


@dataclass(frozen=True)
class PrefixResult:
    """Outcome of one prefix.

    Attributes:
        attack: "universal-prefix", "universal-prefix-original" where the original model
            was at hand, or "random-prefix".
        prefix: what a user types before a question, and a space.
        length: of the prefix, tokens.
        prompts, responses, success: attacked questions, answers, verdicts of the judge.
        losses: best loss so far, before the first step and after each.
        trajectory: for each step (0: the start) `loss`, `cross_entropy` and
            `representation` of the best prefix so far, `tried` (loss of the step's best
            candidate, None without any) and `length`.
        seconds: wall time, s.
    """

    attack: str
    prefix: str
    length: int
    prompts: list[str]
    responses: list[str]
    success: list[bool]
    losses: list[float] = field(default_factory=list)
    trajectory: list[dict] = field(default_factory=list)
    seconds: float = 0.0

    def attacked(self, questions: Sequence[str]) -> list[str]:
        """Any questions with the prefix in front."""
        return [f"{self.prefix} {question}" for question in questions]


def universal_prefix(
    chat: Chat,
    questions: Sequence[str],
    targets: Sequence[str],
    config: UniversalPrefixConfig = UniversalPrefixConfig(),
    *,
    original: Chat | None = None,
    judge: Judge | None = None,
) -> PrefixResult:
    """Search one prefix that makes the model answer all questions.

    Args:
        chat: the unlearned model, under attack.
        questions: user turns; the prefix is judged on these, so take others to
            measure what it does (`PrefixResult.attacked`).
        targets: what the original model answers, one for each question.
        config: settings.
        original: the model before unlearning, on the same device, for the
            representation term; None: an attacker who does not have it.
        judge: judge(index, attacked prompt, response) -> success; default: the answer
            begins with the target.

    Returns:
        PrefixResult.

    Raises:
        ValueError: no questions, not one target each, a start of the wrong length or
            that is not read back as it is typed, a block that does not exist, or an
            original that does not fit.
    """
    check_behaviours(questions, targets)
    began = time.perf_counter()
    place = prefix_place(chat, questions, targets)
    for index, slot in enumerate(place.slots):
        fixed = len(slot.prefix + slot.post + slot.target)
        chat.check_length(index, fixed + config.max_length)
    layers = config.layers
    if layers is None:  # in the paper what enters block 20 of 32
        layers = (9 * chat.n_layers // 16,)
    for layer in layers:
        chat.weight_name(layer)  # raises for a block that does not exist
    if original is not None:
        _check_pair(chat, original, questions)
    settings = (config.weight, config.floor, config.force_tokens, config.batch_tokens)
    objective = PrefixObjective(chat, place.slots, original, layers, *settings)
    allowed = allowed_tokens(chat, config.allow_non_ascii, config.banned_words)
    generator = torch.Generator().manual_seed(config.seed)
    if config.start is None:
        best = place.draw(config.length, allowed, generator, config.banned_words)
    else:
        best = _checked(place.typed(config.start), config)
    terms = objective.terms([best])[0]
    loss = float(objective.total(terms))
    rows = [_row(0, loss, terms, None, best)]
    buffer, seen = [(loss, best)], {best}
    for step in range(1, config.num_steps + 1):
        if config.floor is not None and loss <= config.floor + 1e-6:
            break  # no prefix can have a smaller loss
        parent = buffer.pop(0)
        drawn = _children(objective, parent[1], allowed, config, generator)
        fresh = sorted(drawn - seen)  # a set has no order that a seed could fix
        children, tried = place.survivors(fresh, config.banned_words), None
        if children:
            seen.update(children)
            scores = objective.terms(children)
            totals = objective.total(scores).tolist()
            tried = min(totals)
            if tried < loss:
                winner = totals.index(tried)
                loss, best, terms = tried, children[winner], scores[winner]
            buffer += zip(totals, children, strict=True)
            buffer = sorted(buffer)[: config.buffer_size]
        if not buffer:  # no child came through and nothing else waits: once more
            buffer = [parent]
        rows.append(_row(step, loss, terms, tried, best))
    name = "universal-prefix" if original is None else "universal-prefix-original"
    text = place.texts([best])[0]
    judge = judge or _begins_with(targets)
    outcome = _judged(chat, questions, text, judge, config.max_new_tokens)
    losses = [row["loss"] for row in rows]
    seconds = time.perf_counter() - began
    return PrefixResult(name, text, len(best), *outcome, losses, rows, seconds)


def random_prefix(
    chat: Chat,
    questions: Sequence[str],
    targets: Sequence[str],
    config: UniversalPrefixConfig = UniversalPrefixConfig(),
    *,
    draws: int = 5,
    judge: Judge | None = None,
) -> list[PrefixResult]:
    """The control: prefixes of `config.length` random allowed tokens, one each draw.

    For a prefix that was searched give the length that it came to have. Arguments and
    errors are those of `universal_prefix`.
    """
    check_behaviours(questions, targets)
    if draws < 1:
        raise ValueError(f"draws is {draws}; give at least 1.")
    place = prefix_place(chat, questions, targets)
    allowed = allowed_tokens(chat, config.allow_non_ascii, config.banned_words)
    generator = torch.Generator().manual_seed(config.seed)
    judge, results = judge or _begins_with(targets), []
    for _ in range(draws):
        began = time.perf_counter()
        ids = place.draw(config.length, allowed, generator, config.banned_words)
        text = place.texts([ids])[0]
        outcome = _judged(chat, questions, text, judge, config.max_new_tokens)
        seconds = time.perf_counter() - began
        results.append(
            PrefixResult("random-prefix", text, len(ids), *outcome, seconds=seconds)
        )
    return results


def _children(
    objective: PrefixObjective,
    parent: Ids,
    allowed: Tensor,
    config: UniversalPrefixConfig,
    generator: torch.Generator,
) -> set[Ids]:
    """Changes of one prefix, at most `search_width`."""
    slope, written = (values.cpu() for values in objective.gradient(parent))
    topk = min(config.topk, int(allowed.sum()))
    best = (-slope).masked_fill(~allowed, -math.inf).topk(topk, dim=1).indices
    vocabulary = allowed.nonzero().squeeze(1)
    written = written * allowed
    length, shares = len(parent), torch.tensor(config.shares)

    def below(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    out = set()
    for _ in range(config.search_width):
        move = MOVES[int(torch.multinomial(shares, 1, generator=generator))]
        ids, place = list(parent), below(length)
        if move == "insert" and length < config.max_length:
            place = below(length + 1)
            token = torch.multinomial(written[place], 1, generator=generator)
            ids.insert(place, int(token))
        elif move == "delete" and length > config.min_length:
            del ids[place]
        elif move == "random":
            ids[place] = int(vocabulary[below(len(vocabulary))])
        else:  # also where the length does not allow the move
            ids[place] = int(best[place, below(topk)])
        out.add(tuple(ids))
    return out - {parent}


def _check_pair(chat: Chat, original: Chat, questions: Sequence[str]) -> None:
    """Raise ValueError unless the two models read the same tokens in as many blocks."""
    ours = chat.encode_ids(chat.render(questions))
    theirs = original.encode_ids(original.render(questions))
    if chat.n_layers != original.n_layers or ours != theirs:
        raise ValueError(
            f"{original.name} has other blocks or another tokenizer than {chat.name}; "
            "give the model that was unlearned."
        )


def _checked(ids: Ids, config: UniversalPrefixConfig) -> Ids:
    """A warm start of a length that the search can have."""
    if not config.min_length <= len(ids) <= config.max_length:
        raise ValueError(
            f"start has {len(ids)} tokens; min_length is {config.min_length} and "
            f"max_length {config.max_length}: change these."
        )
    return ids


def _row(step: int, loss: float, terms: Tensor, tried: float | None, ids: Ids) -> dict:
    parts = dict(zip(("cross_entropy", "representation"), terms.tolist(), strict=True))
    return {"step": step, "loss": loss, **parts, "tried": tried, "length": len(ids)}


def _begins_with(targets: Sequence[str]) -> Judge:
    return lambda index, prompt, response: response.strip().startswith(
        targets[index].strip()
    )


def _judged(
    chat: Chat, questions: Sequence[str], prefix: str, judge: Judge, new: int
) -> tuple[list[str], list[str], list[bool]]:
    """Attacked prompts, answers and verdicts."""
    prompts = [f"{prefix} {question}" for question in questions]
    answers = chat.generate(prompts, new)
    pairs = enumerate(zip(prompts, answers, strict=True))
    return prompts, answers, [bool(judge(i, p, a)) for i, (p, a) in pairs]
