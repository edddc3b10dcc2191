"""Interventions on weights, each returned as a value (`WeightEdit`)."""

from safeedit.edits.concepts import concept_vectors, random_like, zero_like
from safeedit.edits.constraint import Constraint
from safeedit.edits.geometry import Projection, project_out
from safeedit.edits.low_rank import LowRank
from safeedit.edits.pcr import PCRConfig, TestTimePCR, pcr
from safeedit.edits.weight_edit import WeightEdit

__all__ = [
    "Constraint",
    "LowRank",
    "PCRConfig",
    "Projection",
    "TestTimePCR",
    "WeightEdit",
    "concept_vectors",
    "pcr",
    "project_out",
    "random_like",
    "zero_like",
]
