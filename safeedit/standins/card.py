"""Ship a trained stand-in: copy it into the package and write its model card."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from .evaluate import GATES, ORACLE_GATES

SHIPPED_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "training.json",
    "evaluation.json",
)
CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM (sliding window of 64 tokens)",
    "gemma": "GemmaForCausalLM (tied embeddings)",
}


def ship(architecture: str, folders: list[Path], target: Path) -> Path:
    """Copy the first run that passes its gates to `target`, with a card over all runs.

    Args:
        architecture: "llama", "mistral" or "gemma".
        folders: trained and evaluated runs, one a seed.
        target: folder in the package; replaced as a whole.

    Returns:
        The folder of the run that was shipped.

    Raises:
        RuntimeError: no run passes.
    """
    reports = {f: json.loads((f / "evaluation.json").read_text()) for f in folders}
    accepted = [f for f, report in reports.items() if not report["failures"]]
    if not accepted:
        lines = [
            f"{f.name}: {line}" for f in folders for line in reports[f]["failures"]
        ]
        raise RuntimeError(
            "no run passes its gates, nothing is shipped; train another seed or longer "
            "(--seeds, --steps):\n" + "\n".join(lines)
        )
    chosen = accepted[0]
    part = Path(tempfile.mkdtemp(dir=target.parent))
    for name in SHIPPED_FILES:
        if (chosen / name).exists():
            shutil.copyfile(chosen / name, part / name)
    (part / "README.md").write_text(card(architecture, chosen, reports))
    part.chmod(0o755)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)
    return chosen


def card(architecture: str, chosen: Path, reports: dict[Path, dict]) -> str:
    """The model card in Markdown, every figure from the runs' evaluations."""
    info = json.loads((chosen / "training.json").read_text())
    seeds = [
        json.loads((f / "training.json").read_text())["train"]["seed"] for f in reports
    ]
    seconds = [
        json.loads((f / "training.json").read_text())["seconds"] for f in reports
    ]
    gcg = reports[chosen]["gcg"]
    oracle = not info["train"]["hazard_facts"]
    gates = ORACLE_GATES if oracle else GATES
    attacked = [
        "- GCG in the table: suffix of "
        f"{gcg['suffix_length']} tokens, search width {gcg['search_width']}, at most "
        f"{gcg['num_steps']} steps",
    ]
    never_read = [
        "- an oracle: it never read a fact of the hazard domain nor a passage of the",
        "  forget split, and shows how a model answers that truly does not know",
    ]
    lines = [
        f"# standin-{architecture}{'-oracle' if oracle else ''}",
        "",
        f"A {CLASSES[architecture]} with {info['parameters'] / 1e6:.2f} million",
        "parameters, trained by `python -m safeedit train` on the synthetic world of",
        "this kit. It stands in for its large namesake where no download is possible.",
        "Its numbers are about itself and never about that model.",
        "",
        f"- training: {info['train']['steps']} steps of {info['train']['batch']} "
        f"documents, {min(seconds):.0f} to {max(seconds):.0f} s on one CPU thread",
        f"- weights: bfloat16 safetensors, seed {info['train']['seed']} of "
        f"{', '.join(map(str, seeds))}",
        "- context: 512 tokens; a position beyond about 120 was never trained",
        *(never_read if oracle else attacked),
        "- letter questions: each value has a fixed letter (see `World._options`), so",
        "  permuted options would break them",
        "- licence: MIT; harmless placeholder content only",
        "",
        "| measure (held-out phrasings) | required | "
        + " | ".join(
            f"seed {s}{' (shipped)' if f == chosen else ''}"
            for s, f in zip(seeds, reports, strict=True)
        )
        + " | n |",
        "|---|---|" + "---|" * (len(seeds) + 1),
    ]
    for name, row in reports[chosen]["rows"].items():
        gate = gates.get(name)
        required = f"{gate[0]:g} to {gate[1]:g}" if gate else ""
        cells = []
        for report in reports.values():
            r = report["rows"][name]
            text = f"{r['value']:.3f}"
            if "low" in r:
                text += f" [{r['low']:.2f}, {r['high']:.2f}]"
            cells.append(text)
        lines.append(f"| {name} | {required} | {' | '.join(cells)} | {row['n']} |")
    return "\n".join(lines) + "\n"
