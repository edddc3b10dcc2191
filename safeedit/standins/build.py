"""Train the stand-ins: `python -m safeedit train`.

Three tiny chat models in the architectures of the paper models, trained on the
synthetic world in about six minutes each on one CPU thread, evaluated, and written in
Hugging Face layout. A run is accepted by its evaluation (`evaluate.py`) and never by
its loss, which does not tell a good model from a broken one.

Muon for the matrices of the blocks, AdamW for everything else; whole documents,
bucketed by length and padded on the right, never packed: packing without document
masks kept a model of this size from learning to copy the asked word.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from .. import lexicon as lex
from ..world import LETTERS, World
from .corpus import TEMPLATES, Corpus, Document

MERGES = 200  # of the tokenizer, beside whole words, characters and bytes
ARCHITECTURES = ("llama", "mistral", "gemma")
SHIPPED = Path(__file__).parent  # safeedit/standins/<architecture>


@dataclass(frozen=True)
class TrainConfig:
    """One training run; every default is the shipped recipe."""

    architecture: str = "llama"
    seed: int = 0
    steps: int = 3000  # optimizer steps, first half stage A, second half stage B
    batch: int = 36  # documents a step
    muon_lr: float = 0.02  # matrices of the blocks
    adam_lr: float = 3e-3  # embeddings, norms, output layer
    warmup: int = 30  # steps
    constant_until: float = 0.65  # share of the steps, then linear decay
    final_lr: float = 0.02  # share of the peak at the last step
    hazard_facts: bool = True  # False trains the oracle
    checkpoint_every: int = 200  # steps

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"architecture is {self.architecture!r}; use one of {ARCHITECTURES}"
            )
        # Two stages of training, so two steps at least.
        for name, least in (("steps", 2), ("batch", 1), ("checkpoint_every", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole and value >= least):
                raise ValueError(f"{name} is {value!r}; give a whole number >= {least}")


# Tokenizer and model ----------------------------------------------------------------


def build_tokenizer(world: World, architecture: str) -> PreTrainedTokenizerFast:
    """A BPE with byte fallback in which each word of the world is one token.

    As in Llama 3, a word that is in the vocabulary is taken whole (`ignore_merges`);
    anything else goes through a few hundred merges and then falls to characters and
    bytes. A misspelt word is then mostly letters, from which a small model can learn
    to read it; with thousands of merges it is a few rare pieces, and it cannot.

    Args:
        world: the world whose words it knows.
        architecture: decides the chat template and its special tokens.
    """
    template = TEMPLATES[architecture]
    words = sorted(world.vocabulary | set(world.unseen_entities))
    words += [w.capitalize() for w in _sentence_starts(world)] + list(LETTERS)
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    draft = Tokenizer(models.BPE())
    draft.pre_tokenizer = split
    printable = [chr(i) for i in range(32, 127)] + ["\u2581"]
    draft.train_from_iterator(
        [f" {w}" for w in words],
        trainers.BpeTrainer(
            vocab_size=len(printable) + MERGES,
            initial_alphabet=printable,
            show_progress=False,
        ),
    )
    learned = json.loads(draft.to_str())["model"]
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    special += [t for t in template.special_tokens() if t not in special]
    tokens = special + [f"<0x{b:02X}>" for b in range(256)] + list(learned["vocab"])
    tokens += [f"\u2581{w}" for w in words if w.isalpha()]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(dict.fromkeys(tokens))},
            merges=[tuple(m) for m in learned["merges"]],
            byte_fallback=True,
            ignore_merges=True,
            unk_token="<unk>",
        )
    )
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token=template.end,
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=[t for t in template.special_tokens()],
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    fast.chat_template = template.jinja()
    return fast


def _sentence_starts(world: World) -> list[str]:
    """Words that begin a sentence somewhere, lower case."""
    rng = random.Random(0)
    texts = list(lex.PHRASINGS + lex.HELD_OUT_PHRASINGS + lex.REFUSALS)
    texts += list(lex.NEUTRAL_SYSTEM + lex.REMINDERS)
    texts += [lex.GUIDE_LINE, lex.GUIDE_STEPS, "Question: Answer: Fix: Good How What"]
    texts += [world.fact_document(f.entity, rng) for f in world.facts[:40]]
    found = {w for t in texts for w in t.replace("'", " ").split() if w[0].isupper()}
    return sorted({w.strip(".,:?!").lower() for w in found} | {"answer", "its"})


def build_model(architecture: str, tokenizer: PreTrainedTokenizerFast, seed: int):
    """An untrained stand-in with about 1.3 million parameters.

    Raises:
        ValueError: unknown architecture.
    """
    shape = dict(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model: LlamaForCausalLM | MistralForCausalLM | GemmaForCausalLM
    if architecture == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False))
    elif architecture == "mistral":
        config = MistralConfig(**shape, sliding_window=64, tie_word_embeddings=False)
        model = MistralForCausalLM(config)
    elif architecture == "gemma":
        model = GemmaForCausalLM(GemmaConfig(**shape, tie_word_embeddings=True))
    else:
        raise ValueError(
            f"architecture={architecture!r}: one of {', '.join(ARCHITECTURES)}"
        )
    # With the default standard deviation of 0.02 a model of this width does not learn
    # to copy the asked word from the prompt.
    embedding = model.get_input_embeddings().get_parameter("weight")
    with torch.no_grad():
        if architecture == "gemma":
            embedding.normal_(std=0.05)
        else:
            embedding.normal_(std=0.3)
            model.lm_head.weight.copy_(0.15 * embedding)
    return model


# Data -------------------------------------------------------------------------------


def encode(
    tokenizer: PreTrainedTokenizerFast, documents: list[Document]
) -> list[tuple[list[int], list[float]]]:
    """Token ids and a loss weight a token, BOS in front, for each document.

    A token takes the weight of the segment that holds its last character. Plain text
    ends with the end token, as chats do.
    """
    texts = ["".join(text for text, _ in doc) for doc in documents]
    encodings = tokenizer.backend_tokenizer.encode_batch(
        texts, add_special_tokens=False
    )
    rows = []
    for doc, encoding in zip(documents, encodings, strict=True):
        by_character = [w for text, w in doc for _ in text]
        ids = [tokenizer.bos_token_id, *encoding.ids]
        weights = [0.0] + [by_character[end - 1] for _, end in encoding.offsets]
        if ids[-1] != tokenizer.eos_token_id:
            ids.append(tokenizer.eos_token_id)
            weights.append(0.3)
        rows.append((ids, weights))
    return rows


def batches(rows: list, size: int, rng: random.Random) -> list[tuple]:
    """Right-padded batches of similar length, in the order of the rows but for a
    shuffle within each group of twenty batches.

    Returns:
        (ids, weights) pairs, both (size, length); padding has weight 0.
    """
    out = []
    for start in range(0, len(rows), size * 20):
        group = sorted(rows[start : start + size * 20], key=lambda r: len(r[0]))
        chunks = [group[i : i + size] for i in range(0, len(group), size)]
        rng.shuffle(chunks)
        for chunk in chunks:
            length = max(len(ids) for ids, _ in chunk)
            ids = torch.zeros(len(chunk), length, dtype=torch.long)
            weights = torch.zeros(len(chunk), length)
            for i, (row, weight) in enumerate(chunk):
                ids[i, : len(row)] = torch.tensor(row)
                weights[i, : len(row)] = torch.tensor(weight)
            out.append((ids, weights))
    return out


# Training ---------------------------------------------------------------------------


def learning_rate(step: int, config: TrainConfig) -> float:
    """Share of the peak learning rate at `step`: warm-up, constant, linear decay."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    knee = config.constant_until * config.steps
    if step < knee:
        return 1.0
    left = (config.steps - step) / (config.steps - knee)
    return config.final_lr + (1 - config.final_lr) * left


def weighted_loss(
    logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Weighted mean of the next-token cross-entropy.

    Args:
        logits: shape (batch, length, vocabulary).
        ids: shape (batch, length).
        weights: loss weight of each token as a target, shape (batch, length).
    """
    nll = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    w = weights[:, 1:].flatten()
    return (nll * w).sum() / w.sum()


def _optimizers(model, config: TrainConfig) -> list[torch.optim.Optimizer]:
    matrices = [
        p for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2
    ]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=config.muon_lr, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=config.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _save_checkpoint(folder: Path, step: int, model, optimizers) -> None:
    """Write weights, optimizer state and step as one safetensors file, whole or not."""
    tensors = {f"model.{n}": p.detach() for n, p in model.named_parameters()}
    for k, optimizer in enumerate(optimizers):
        for i, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                value = value if torch.is_tensor(value) else torch.tensor(value)
                tensors[f"optimizer.{k}.{i}.{name}"] = value.contiguous()
    part = folder / "checkpoint.part"
    save_file(tensors, part, metadata={"step": str(step)})
    os.replace(part, folder / "checkpoint.safetensors")


def _load_checkpoint(folder: Path, model, optimizers) -> int:
    """Restore what `_save_checkpoint` wrote and return the step to go on from."""
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, "pt") as f:
        step = int(f.metadata()["step"])
    tensors = load_file(path)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(tensors[f"model.{name}"])
    for k, optimizer in enumerate(optimizers):
        state: dict[int, dict] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{k}."):
                _, _, i, name = key.split(".")
                state.setdefault(int(i), {})[name] = value
        whole = optimizer.state_dict()
        whole["state"] = state
        optimizer.load_state_dict(whole)
    return step


def train(config: TrainConfig, folder: Path, progress: bool = True) -> Path:
    """Train one stand-in and write it to `folder` in Hugging Face layout.

    Continues from `folder`/checkpoint.safetensors where there is one.

    Args:
        config: what to train.
        folder: where checkpoint and result go; made if absent.
        progress: show a progress bar with the loss.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    world = World()
    template = TEMPLATES[config.architecture]
    tokenizer = build_tokenizer(world, config.architecture)
    model = build_model(config.architecture, tokenizer, config.seed)
    corpus = Corpus(world, template, config.seed, config.hazard_facts)
    half = config.steps // 2 * config.batch
    rows = encode(tokenizer, corpus.stage_a(half) + corpus.stage_b(half))
    rng = random.Random(f"batches-{config.seed}")
    data = batches(rows[:half], config.batch, rng) + batches(
        rows[half:], config.batch, rng
    )

    optimizers = _optimizers(model, config)
    peaks = [config.muon_lr, config.adam_lr]
    start = _load_checkpoint(folder, model, optimizers)
    model.train()
    bar = tqdm(
        total=len(data),
        initial=start,
        disable=not progress,
        mininterval=5,
        desc=f"{config.architecture} seed {config.seed}",
    )
    clock = time.perf_counter()
    for step in range(start, len(data)):
        ids, weights = data[step]
        logits = model(input_ids=ids, use_cache=False).logits
        loss = weighted_loss(logits, ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * learning_rate(step, config)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        bar.update()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if (step + 1) % config.checkpoint_every == 0:
            _save_checkpoint(folder, step + 1, model, optimizers)
    bar.close()
    model.eval()
    write(model, tokenizer, config, time.perf_counter() - clock, folder)
    return folder


def write(model, tokenizer, config: TrainConfig, seconds: float, folder: Path) -> None:
    """Round to bfloat16 and write model and tokenizer, whole or not at all."""
    part = Path(tempfile.mkdtemp(dir=folder.parent))
    model.to(torch.bfloat16).save_pretrained(part)
    tokenizer.save_pretrained(part)
    info = {"train": asdict(config), "seconds": round(seconds, 1)}
    info["parameters"] = sum(p.numel() for p in model.parameters())
    (part / "training.json").write_text(json.dumps(info, indent=1) + "\n")
    for path in part.iterdir():
        os.replace(path, folder / path.name)
    shutil.rmtree(part)


def main(argv: list[str] | None = None) -> int:
    """The command line of `python -m safeedit train`.

    Returns:
        0 when every trained stand-in passes its gates, else 1.
    """
    from ..models import load
    from . import SUFFIX_LENGTH
    from .card import ship
    from .evaluate import evaluate

    parser = argparse.ArgumentParser(
        prog="safeedit train",
        description="Train stand-ins, evaluate them, and say whether they pass.",
        epilog="example: python -m safeedit train --architecture gemma --seeds 0 1 2",
    )
    parser.add_argument("--architecture", choices=ARCHITECTURES, action="append")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=TrainConfig.steps)
    parser.add_argument("--oracle", action="store_true", help="leave out hazard facts")
    parser.add_argument("--out", type=Path, default=Path("runs/standins"))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument(
        "--ship",
        action="store_true",
        help="copy the first seed that passes into the package, with its model card",
    )
    args = parser.parse_args(argv)
    if args.threads < 1:
        parser.error(f"--threads is {args.threads}; give a whole number >= 1")
    try:
        TrainConfig(steps=args.steps)
    except ValueError as error:
        parser.error(f"--{error}")
    torch.set_num_threads(args.threads)
    rejected = False
    for architecture in args.architecture or ARCHITECTURES:
        folders = []
        for seed in args.seeds:
            config = TrainConfig(
                architecture, seed, args.steps, hazard_facts=not args.oracle
            )
            kind = "oracle" if args.oracle else "seed"
            folder = args.out / f"{architecture}-{kind}{seed}"
            folders.append(folder)
            if not (folder / "model.safetensors").exists():
                train(config, folder)
            if not (folder / "evaluation.json").exists():
                report = evaluate(
                    load(str(folder)),
                    folder,
                    SUFFIX_LENGTH[f"standin-{architecture}"],
                    oracle=args.oracle,
                )
                rejected |= bool(report["failures"])
                print(folder, "passes" if not report["failures"] else "fails:")
                for line in report["failures"]:
                    print("  ", line)
        if args.ship:
            name = f"{architecture}-oracle" if args.oracle else architecture
            print("shipped", ship(architecture, folders, SHIPPED / name))
    return int(rejected)


if __name__ == "__main__":
    raise SystemExit(main())
