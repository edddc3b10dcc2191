"""Explorers: sliders in Jupyter, and pages on which they still move without Python.

Each explorer is one object. Its display holds a live widget, which calls the kit, and
HTML, which a script of the book (`book/_static/explorer-*.js`) makes movable. Where
neither a kernel nor the script is there, the HTML is a picture or a table that says
the same, so no reader meets a dead slider.
"""

from .attack import AttackExplorer, AttackStep, attack_steps
from .budget import BudgetExplorer, measure
from .frames import Frames, FramesExplorer
from .geometry import CASES, Scene, Solved, describe, solve
from .geometry_explorer import GeometryExplorer

__all__ = [
    "CASES",
    "AttackExplorer",
    "AttackStep",
    "BudgetExplorer",
    "Frames",
    "FramesExplorer",
    "GeometryExplorer",
    "Scene",
    "Solved",
    "attack_steps",
    "describe",
    "measure",
    "solve",
]
