"""Price of per-prompt PCR: its generation against the undefended one.

    python benchmarks/bench_pcr.py [--model standin-llama] [--prompts 32] [--repeats 7]

Both sides answer the same prompts with 32 new tokens and without an early end, in
alternating runs; the medians' ratio is what the limit of 1.25 is about.
"""

from __future__ import annotations

import argparse

import torch
from common import clock, interleaved, pseudo_words, random_chat, report

from safeedit import records
from safeedit.edits import PCRConfig, TestTimePCR
from safeedit.models import load

LIMIT = 1.25  # generation under per-prompt PCR over undefended generation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="random", help="random, or a name to load")
    parser.add_argument("--prompts", type=int, default=32, help="prompts in the batch")
    parser.add_argument("--concepts", type=int, default=20, help="concept vectors")
    parser.add_argument("--repeats", type=int, default=7, help="alternating runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    chat = random_chat() if args.model == "random" else load(args.model)
    chat.stop_ids = frozenset()  # every answer has its 32 tokens on both sides
    words = pseudo_words(40 * args.prompts, seed=2)
    prompts = [" ".join(words[i * 20 : i * 20 + 20]) for i in range(args.prompts)]
    rows, began = [], clock()
    for count in sorted({1, min(4, chat.n_layers), chat.n_layers}):
        layers = tuple(range(chat.n_layers - count, chat.n_layers))
        generator = torch.Generator().manual_seed(0)
        concepts = torch.randn(args.concepts, chat.d_model, generator=generator)
        config = PCRConfig(layers=layers, calibration=tuple(prompts[:8]))
        defended = TestTimePCR(chat, concepts, config)
        sides = {
            "plain": lambda: chat.generate(prompts, 32),
            "pcr": lambda defended=defended: defended.generate(prompts, 32),
        }
        seconds = interleaved(sides, args.repeats)
        ratio = seconds["pcr"] / seconds["plain"]
        scope = {"scope": "per_prompt", "defense": f"pcr-{len(layers)}-layers"}
        for metric, value, unit in (
            (f"generate_seconds_plain_{len(layers)}_layers", seconds["plain"], "s"),
            (f"generate_seconds_pcr_{len(layers)}_layers", seconds["pcr"], "s"),
            (f"ratio_{len(layers)}_layers", ratio, "ratio"),
        ):
            rows.append(records.row(metric, value, args.repeats, unit=unit, **scope))
        print(f"{len(layers)} layers: ratio {ratio:.3f} (limit {LIMIT})")
    report("bench_pcr", chat, rows, vars(args), clock() - began)


if __name__ == "__main__":
    main()
