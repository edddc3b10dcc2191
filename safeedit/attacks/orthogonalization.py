"""Orthogonalization: find the direction that unlearning has added, and take it out.

Some methods forget by pushing the residual stream away along one direction. Each block
has its own unit vector d, and while the attack is on, its output h becomes

    h <- h - (h.d) d        at every token

Where does d come from? With the original weights from the difference that unlearning
made on the same tokens. Without them, from how the unlearned model's activations on
forget prompts differ from its own on prompts that it was not made to forget.

Łucki et al. 2024, "An Adversarial Perspective on Machine Unlearning for AI Safety",
arXiv 2409.18025; directional ablation: Arditi et al. 2024, arXiv 2406.11717.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from safeedit.chat import Chat
from safeedit.hooks import hooked

VARIANTS = ("ground_truth", "benign", "text", "pca")
_FAIR = ("benign", "text")  # variants that need no original model
_SMALLEST_GAP = 1e-5  # of the norm; below it a gap of float32 means is rounding


@dataclass(frozen=True)
class OrthogonalizationConfig:
    """Where the directions come from.

    Variants: "ground_truth" mean(unlearned, forget) - mean(original, forget);
    "benign" and "text" mean(unlearned, forget) - mean(unlearned, benign prompts or
    plain text); "pca" first principal component of the standardised activations of
    unlearned and original model on the forget prompts, stacked.
    """

    variant: str = "ground_truth"  # one of VARIANTS
    skip: int = 1  # first tokens of each text left out: BOS; paper: 40, a fixed opening
    max_tokens: int = 2500  # drawn from each side, tokens; the paper's pca has 2500
    probe: int = 1000  # first of these tokens, among which outliers are looked for
    z: float = 3.0  # outlier: mean L1 distance to the others, standard deviations
    seed: int = 0  # of the draw of tokens

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant is {self.variant!r}; give one of {VARIANTS}.")
        for name, low in {"skip": 0, "max_tokens": 2, "probe": 2}.items():
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= low):
                raise ValueError(f"{name} is {value!r}; give a whole number >= {low}.")
        if not self.z > 0:
            raise ValueError(f"z is {self.z!r}; give a number > 0.")


@dataclass(frozen=True)
class Directions:
    """One direction for each block, and how it came about.

    Attributes:
        variant: see `OrthogonalizationConfig`.
        attacker_fair: whether they can be found without the original weights.
        vectors: unit vectors, shape (n_blocks, d_model), float32; a row is zero where
            the two sides have the same mean.
        trajectory: for each block its `layer`, the `gap` between the two means, the
            mean norms `forget_norm` and `reference_norm`, and the mean size of what is
            taken out as a share of them, `forget_removed` and `reference_removed`.
        dropped: token ids left out as outliers.
        n_tokens: tokens behind the forget side and the reference side.
    """

    variant: str
    attacker_fair: bool
    vectors: Tensor
    trajectory: list[dict[str, float]]
    dropped: tuple[int, ...]
    n_tokens: tuple[int, int]


@dataclass
class _Side:
    """Block outputs of one model on one set of texts."""

    states: Tensor  # (n_blocks, tokens, d_model), float32
    ids: Tensor  # (tokens,), the tokens they are of


def find_directions(
    chat: Chat,
    prompts: Sequence[str],
    config: OrthogonalizationConfig = OrthogonalizationConfig(),
    *,
    original: Chat | None = None,
    reference: Sequence[str] | None = None,
) -> Directions:
    """Find for each block the direction along which forgetting pushes.

    Args:
        chat: the unlearned model.
        prompts: forget prompts, user turns; in the paper those that the original model
            answers rightly and the unlearned one wrongly. Keep them apart from the
            prompts of the evaluation.
        config: settings.
        original: the model before unlearning, for "ground_truth" and "pca".
        reference: benign user turns for "benign", plain texts for "text".

    Raises:
        ValueError: no prompts, what the variant needs is missing, models that do not
            fit together, or no tokens left.
    """
    texts = chat.render(prompts)
    if config.variant in _FAIR:
        benign = config.variant == "benign"
        if reference is None:
            kind = "benign prompts" if benign else "plain texts"
            raise ValueError(f"reference is None; {config.variant!r} needs {kind}.")
        other, theirs = chat, chat.render(reference) if benign else list(reference)
    else:
        if original is None:
            raise ValueError(
                f"original is None; {config.variant!r} needs the model before "
                "unlearning; 'benign' and 'text' do without."
            )
        _check_pair(chat, original, texts)
        other, theirs = original, texts
    # The same draw on the same texts: tokens of the two models come in pairs.
    first, second = _side(chat, texts, config), _side(other, theirs, config)
    dropped = sorted(_outliers(first, config) | _outliers(second, config))
    forget, against = _without(first, dropped), _without(second, dropped)
    vectors, rows = [], []
    for layer, (a, b) in enumerate(zip(forget, against, strict=True)):
        gap = a.mean(0) - b.mean(0)
        vector = _first_component(a, b) if config.variant == "pca" else _unit(gap, a)
        row = {"layer": layer, "gap": float(gap.norm())}
        for name, states in (("forget", a), ("reference", b)):
            norm = states.norm(dim=1).mean()
            row[f"{name}_norm"] = float(norm)
            row[f"{name}_removed"] = float((states @ vector).abs().mean() / norm)
        vectors.append(vector)
        rows.append(row)
    return Directions(
        variant=config.variant,
        attacker_fair=config.variant in _FAIR,
        vectors=torch.stack(vectors),
        trajectory=rows,
        dropped=tuple(dropped),
        n_tokens=(forget.shape[1], against.shape[1]),
    )


def random_directions(chat: Chat, seed: int = 0) -> Tensor:
    """The control: unit vectors drawn uniformly, shape (n_blocks, d_model)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(chat.n_layers, chat.d_model, generator=generator)
    return (drawn / drawn.norm(dim=1, keepdim=True)).to(chat.device)


@contextmanager
def orthogonalized(
    chat: Chat, directions: Tensor, layers: Sequence[int] | None = None
) -> Iterator[None]:
    """Ablate each block's own direction from its output, at every token, in the body.

    Args:
        chat: model under attack; only hooks are added, and they are always removed.
        directions: shape (n_blocks, d_model), of any length; a zero row leaves its
            block alone.
        layers: blocks to treat; None: all.

    Raises:
        ValueError: directions of another shape or not finite, or no such block.
    """
    shape = (chat.n_layers, chat.d_model)
    if directions.shape != shape or not bool(directions.isfinite().all()):
        raise ValueError(
            f"directions have shape {tuple(directions.shape)}; give finite vectors of "
            f"shape {shape}, one for each block of {chat.name}."
        )
    chosen = range(chat.n_layers) if layers is None else layers
    for layer in chosen:
        chat.weight_name(layer)  # raises for a block that does not exist
    some = [
        n for n in sorted({n % chat.n_layers for n in chosen}) if directions[n].any()
    ]
    with hooked([(chat.blocks[n], _ablation(directions[n])) for n in some]):
        yield


def _ablation(direction: Tensor) -> Callable:
    """Hook that takes the component along `direction`, shape (d_model,), away."""
    unit = direction / direction.norm()

    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        # In at least float32, or the component would come back as rounding.
        dtype = torch.promote_types(output.dtype, torch.float32)
        h, d = output.to(dtype), unit.to(output.device, dtype)
        return (h - (h @ d)[..., None] * d).to(output.dtype)

    return hook


def _check_pair(chat: Chat, original: Chat, texts: Sequence[str]) -> None:
    """Raise ValueError unless the two models read the same tokens in the same shape."""
    here, there = (chat.n_layers, chat.d_model), (original.n_layers, original.d_model)
    if here != there or chat.encode_ids(texts) != original.encode_ids(texts):
        raise ValueError(
            f"{chat.name} has (blocks, d_model) = {here} and {original.name} {there}, "
            "or their tokenizers differ; give the model that was unlearned."
        )


@torch.no_grad()
def _side(chat: Chat, texts: Sequence[str], config: OrthogonalizationConfig) -> _Side:
    """Block outputs at a draw of tokens, in the order of the texts."""
    rows = chat.encode_ids(texts)
    places = [(i, j) for i, r in enumerate(rows) for j in range(config.skip, len(r))]
    if len(places) < 2:
        raise ValueError(
            f"{len(rows)} texts have {len(places)} tokens after the first skip = "
            f"{config.skip}; give more or longer texts, or a smaller skip."
        )
    generator = torch.Generator().manual_seed(config.seed)
    drawn = torch.randperm(len(places), generator=generator)[: config.max_tokens]
    chosen = [torch.zeros(len(row), dtype=torch.bool) for row in rows]
    for place in drawn.tolist():
        i, j = places[place]
        chosen[i][j] = True
    ids = [torch.tensor(r)[c] for r, c in zip(rows, chosen, strict=True)]
    parts: list[list[Tensor]] = [[] for _ in chat.blocks]
    for low in range(0, len(texts), chat.batch_size):
        some = chosen[low : low + chat.batch_size]
        batch = chat.encode(texts[low : low + chat.batch_size])
        keep = torch.zeros_like(batch.input_ids, dtype=torch.bool)
        for row, mask in zip(keep, some, strict=True):
            row[len(row) - len(mask) :] = mask  # left padding

        def collector(part: list[Tensor], keep: Tensor = keep) -> Callable:
            def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
                part.append(output[keep].float())

            return hook

        with hooked(zip(chat.blocks, map(collector, parts), strict=True)):
            chat.model.model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=(batch.attention_mask.cumsum(-1) - 1).clamp(min=0),
                use_cache=False,
            )
    states = torch.stack([torch.cat(part) for part in parts])
    return _Side(states, torch.cat(ids).to(states.device))


def _outliers(side: _Side, config: OrthogonalizationConfig) -> set[int]:
    """Ids of tokens far from the others in some block: a few would decide a mean."""
    found = set()
    for states in side.states[:, : config.probe]:
        far = torch.cdist(states, states, p=1).sum(1) / (len(states) - 1)
        spread = far.std(correction=0)
        if spread > 0:
            odd = (far - far.mean()) / spread > config.z
            found |= set(side.ids[: config.probe][odd].tolist())
    return found


def _without(side: _Side, dropped: Sequence[int]) -> Tensor:
    """The states of all tokens but the dropped ones."""
    gone = torch.isin(side.ids, torch.tensor(dropped).to(side.ids))
    kept = side.states[:, ~gone]
    if not kept.shape[1]:
        n = side.states.shape[1]
        raise ValueError(f"All {n} tokens are outliers; give more texts or a larger z.")
    return kept


def _unit(gap: Tensor, states: Tensor) -> Tensor:
    """The gap scaled to length one, or zero where it is nothing but rounding."""
    if gap.norm() <= _SMALLEST_GAP * states.norm(dim=1).mean():
        return torch.zeros_like(gap)
    return gap / gap.norm()


def _first_component(a: Tensor, b: Tensor) -> Tensor:
    """First principal component of the stacked states, each feature standardised.

    As in the paper the component is used as it is, in standardised coordinates. It is
    a direction also in blocks where the two models agree.
    """
    stack = torch.cat([a, b]).double()
    scale = stack.std(0, correction=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    scaled = (stack - stack.mean(0)) / scale
    return torch.linalg.eigh(scaled.T @ scaled).eigenvectors[:, -1].to(a.dtype)
