"""Steps per second of GCG against a plain reference, with the same loss.

    python benchmarks/bench_gcg.py [--steps 20] [--repeats 3]

One behaviour, 16 suffix tokens, float32, one thread, search widths 64 and 512, on a
random model of the shape on which nanoGCG 0.3.0 made 2.0 and 1.0 steps/s. The reference
below is the algorithm as one would first write it: no prefix cache, logits at every
position, the one-hot matrix in the graph. Both draw the same candidates, so after the
same number of steps both must have the same loss. The peer's figures were taken once,
elsewhere: the ratio to the reference is the one that this run vouches for.
"""

from __future__ import annotations

import argparse

import torch
from common import clock, pseudo_words, random_chat, report

from safeedit import records
from safeedit.attacks import GCGConfig, gcg
from safeedit.attacks.suffix import allowed_tokens, make_slot, typed
from safeedit.models import Chat

PEER = {64: 2.0, 512: 1.0}  # steps/s of nanoGCG 0.3.0 on this shape


def reference(chat: Chat, prompt: str, target: str, config: GCGConfig) -> list[float]:
    """Plain GCG on one behaviour; returns the best loss so far after each step."""
    slot = make_slot(chat, prompt, target, config.init, config.suffix_length)
    allowed = allowed_tokens(chat, config.allow_non_ascii)
    table = chat.model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(config.seed * 1_000_003)
    answer = torch.tensor(slot.target)
    first, last = len(slot.prefix), len(slot.prefix) + config.suffix_length
    ids = torch.tensor(slot.ids)

    def losses(logits: torch.Tensor) -> torch.Tensor:
        logits = logits[:, -len(answer) - 1 : -1].transpose(1, 2)
        labels = answer.expand(len(logits), -1)
        each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        return each.mean(1)

    trace: list[float] = []
    for _ in range(config.num_steps):
        hot = torch.nn.functional.one_hot(ids, len(table)).to(table.dtype)
        hot.requires_grad_(True)
        loss = losses(chat.model(inputs_embeds=(hot @ table)[None]).logits)
        slope = torch.autograd.grad(loss.sum(), hot)[0][first:last]
        trace = trace or [float(loss.detach())]
        best = (-slope).masked_fill(~allowed, -torch.inf).topk(config.topk, 1).indices
        width, length = config.search_width, config.suffix_length
        places = torch.rand(width, length, generator=generator).argsort(1)[:, :1]
        picks = torch.randint(config.topk, (width, 1), generator=generator)
        pool = ids[first:last].repeat(width, 1).scatter(1, places, best[places, picks])
        pool = pool.unique(dim=0)
        pool = pool[(pool != ids[first:last]).any(1)]
        pool = pool[typed(chat, [slot], [pool])[0]]
        whole = ids.repeat(len(pool), 1)
        whole[:, first:last] = pool
        with torch.no_grad():
            scores = torch.cat(
                [losses(chat.model(part).logits) for part in whole.split(64)]
            )
        ids = whole[scores.argmin()]
        trace.append(min(trace[-1], float(scores.min())))
    return trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="steps at width 64")
    parser.add_argument("--repeats", type=int, default=3, help="alternating runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    chat = random_chat()
    words = pseudo_words(400, seed=1)
    prompts = [" ".join(words[i * 20 : i * 20 + 20]) for i in range(4)]
    targets = [" ".join(words[i * 20 + 9 : i * 20 + 16]) for i in range(4)]
    slot = make_slot(chat, prompts[0], targets[0], "x", 16)
    print(
        f"{sum(p.numel() for p in chat.model.parameters()) / 1e6:.2f} M parameters, "
        f"prompt {len(slot.prefix)} tokens, target {len(slot.target)} tokens"
    )
    rows, began = [], clock()
    for width in (64, 512):
        steps = max(2, args.steps * 64 // width)
        config = GCGConfig(
            num_steps=steps,
            suffix_length=16,
            search_width=width,
            early_stop=False,
            max_new_tokens=1,
        )
        speed: dict[str, list[float]] = {"ours": [], "four": [], "reference": []}
        for _ in range(args.repeats):
            start = clock()
            mine = gcg(chat, prompts[:1], targets[:1], config).losses[0]
            middle = clock()
            theirs = reference(chat, prompts[0], targets[0], config)
            end = clock()
            gcg(chat, prompts, targets, config)
            speed["ours"].append(steps / (middle - start))
            speed["reference"].append(steps / (end - middle))
            speed["four"].append(4 * steps / (clock() - end))
        gap = abs(mine[-1] - theirs[-1])
        if gap > 1e-4:
            raise SystemExit(
                f"Width {width}: loss {mine[-1]:.6f} after {steps} steps, the "
                f"reference has {theirs[-1]:.6f}. They must agree to 1e-4."
            )
        medians = {name: sorted(v)[len(v) // 2] for name, v in speed.items()}
        name = f"gcg-{width}"
        for metric, value, unit in (
            ("steps_per_second", medians["ours"], "steps/s"),
            ("steps_per_second_four_behaviours", medians["four"], "steps/s"),
            ("steps_per_second_reference", medians["reference"], "steps/s"),
            ("ratio_to_reference", medians["ours"] / medians["reference"], "ratio"),
            ("ratio_to_nanogcg", medians["ours"] / PEER[width], "ratio"),
            ("loss_after_the_same_steps", mine[-1], "nats/token"),
            ("loss_gap_to_reference", gap, "nats/token"),
        ):
            rows.append(records.row(metric, value, steps, attack=name, unit=unit))
    parameters = {"steps": args.steps, "repeats": args.repeats, "seed": 0}
    report("bench_gcg", chat, rows, parameters, clock() - began)


if __name__ == "__main__":
    main()
