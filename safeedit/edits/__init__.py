"""Interventions on weights, each returned as a value (`WeightEdit`)."""

from safeedit.edits.concepts import concept_vectors, random_like, zero_like
from safeedit.edits.constraint import Constraint
from safeedit.edits.geometry import Projection, project_out
from safeedit.edits.low_rank import LowRank
from safeedit.edits.pcr import PCRConfig, TestTimePCR, pcr
from safeedit.edits.regions import ARRConfig, TSRConfig, arr, tsr
from safeedit.edits.smoothing import SmoothingConfig
from safeedit.edits.unlearning import UnlearnConfig, UnlearnData, unlearn
from safeedit.edits.weight_edit import WeightEdit

__all__ = [
    "ARRConfig",
    "Constraint",
    "LowRank",
    "PCRConfig",
    "Projection",
    "SmoothingConfig",
    "TSRConfig",
    "TestTimePCR",
    "UnlearnConfig",
    "UnlearnData",
    "WeightEdit",
    "arr",
    "concept_vectors",
    "pcr",
    "project_out",
    "random_like",
    "tsr",
    "unlearn",
    "zero_like",
]
