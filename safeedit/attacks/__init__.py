"""Attacks on a chat model: a config, one run, one result."""

from safeedit.attacks.gcg import GCGConfig, gcg
from safeedit.attacks.prompts import (
    PrefillConfig,
    RandomSuffixConfig,
    prefill,
    random_suffix,
)
from safeedit.attacks.result import AttackResult

__all__ = [
    "AttackResult",
    "GCGConfig",
    "PrefillConfig",
    "RandomSuffixConfig",
    "gcg",
    "prefill",
    "random_suffix",
]
