"""Attacks on a chat model, by prompts or by weights: a config, one run, one result."""

from safeedit.attacks.gcg import GCGConfig, gcg
from safeedit.attacks.pgd import PGDConfig, pgd
from safeedit.attacks.prompts import (
    PrefillConfig,
    RandomSuffixConfig,
    prefill,
    random_suffix,
)
from safeedit.attacks.pruning import prune, prune_scores, set_difference_pruning
from safeedit.attacks.quantization import quantize
from safeedit.attacks.relearning import RelearnConfig, relearn
from safeedit.attacks.result import AttackResult
from safeedit.attacks.weights import WeightAttack

__all__ = [
    "AttackResult",
    "GCGConfig",
    "PGDConfig",
    "PrefillConfig",
    "RandomSuffixConfig",
    "RelearnConfig",
    "WeightAttack",
    "gcg",
    "pgd",
    "prefill",
    "prune",
    "prune_scores",
    "quantize",
    "random_suffix",
    "relearn",
    "set_difference_pruning",
]
