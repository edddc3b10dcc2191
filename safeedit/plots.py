"""Figures: one style, one colour for one method in the whole book.

Every function draws on axes that it is given or makes, and returns them; none reads a
file or runs a model.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Circle
from matplotlib_inline.backend_inline import set_matplotlib_formats

# Okabe-Ito: told apart with any kind of colour vision.
COLORS: dict[str, str] = {
    "none": "#000000",
    "PCR": "#0072B2",
    "PCR, activation": "#56B4E9",
    "PCR, shared": "#009E73",
    "random direction": "#999999",
    "concept 0": "#E69F00",
    "greedy": "#D55E00",
    "exact": "#0072B2",
    "refusal": "#0072B2",
    "success": "#D55E00",
    "other": "#999999",
    "broken": "#CC79A7",
    "forbidden": "#D55E00",
    "benign": "#009E73",
    "standin-llama": "#0072B2",
    "standin-mistral": "#D55E00",
    "standin-gemma": "#009E73",
}


def set_style() -> None:
    """Use the book's figure style in this session: small, reproducible SVG."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind")
    plt.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.hashsalt": "safeedit",  # the same picture gives the same bytes
            "legend.frameon": False,
        }
    )
    set_matplotlib_formats("svg", metadata={"Date": None})


def color(name: str) -> str:
    """The colour of a method, defense, label or model."""
    return COLORS.get(name, "#CC79A7")


def loss_curves(
    losses: Sequence[Sequence[float]], success: Sequence[bool], ax: Axes | None = None
) -> Axes:
    """Target loss of an attack against its steps, one line a behaviour.

    Args:
        losses: a trajectory for each behaviour, in nats per target token; empty where
            no step was needed, and then not drawn.
        success: whether the attack on it succeeded; decides the colour.
        ax: where to draw.
    """
    ax = ax or plt.subplots()[1]
    for trajectory, won in zip(losses, success, strict=True):
        if not trajectory:
            continue
        name = "success" if won else "refusal"
        ax.plot(trajectory, color=color(name), alpha=0.5, linewidth=1)
        ax.plot(len(trajectory) - 1, trajectory[-1], ".", color=color(name))
    for name, text in (("success", "jailbroken"), ("refusal", "not jailbroken")):
        ax.plot([], [], color=color(name), label=text)
    ax.set(xlabel="attack step", ylabel="target loss (nats per token)")
    ax.legend()
    return ax


def balls(
    centres: np.ndarray,
    radius: float,
    paths: dict[str, np.ndarray],
    ax: Axes | None = None,
) -> Axes:
    """Forbidden balls in the plane and how solvers leave them.

    Args:
        centres: concepts, shape (n, 2).
        radius: radius of every ball.
        paths: name of a solver -> points it visits, shape (steps, 2), start first.
        ax: where to draw.
    """
    ax = ax or plt.subplots(figsize=(4, 4))[1]
    for centre in np.asarray(centres):
        ax.add_patch(Circle(centre, radius, color="#D55E00", alpha=0.15, linewidth=0))
        ax.plot(*centre, "+", color="#D55E00")
    for name, path in paths.items():
        path = np.atleast_2d(path)
        nearest = np.linalg.norm(path[-1] - centres, axis=1).min()
        moved = np.linalg.norm(path[-1] - path[0])
        end = f"moves {moved:.2f}" if nearest > radius - 1e-6 else "stays inside"
        label = f"{name}: {end}"
        ax.plot(*path.T, "-o", markersize=3, color=color(name), label=label)
    start = next(iter(paths.values()))[0]
    ax.plot(*start, "ko", markersize=6)
    ax.set_aspect("equal")
    ax.autoscale_view()
    ax.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.12))
    return ax


def rates(
    frame: pd.DataFrame, x: str, hue: str, ax: Axes | None = None, ylabel: str = "rate"
) -> Axes:
    """Rates with their 95 % intervals as points.

    Args:
        frame: tidy rows with columns value, low, high and those named by `x`, `hue`.
        x: column on the horizontal axis.
        hue: column that sets the colour.
        ax: where to draw.
        ylabel: what the rate is of.
    """
    ax = ax or plt.subplots()[1]
    places = list(dict.fromkeys(frame[x]))
    groups = list(dict.fromkeys(frame[hue]))
    markers = "osD^v"
    for g, name in enumerate(groups):
        part = frame[frame[hue] == name]
        at = [places.index(v) + 0.12 * (g - (len(groups) - 1) / 2) for v in part[x]]
        error = [part.value - part.low, part.high - part.value]
        ax.errorbar(
            at,
            part.value,
            _clipped(error),
            fmt=markers[g % len(markers)],
            markersize=5,
            label=name,
            color=color(name),
        )
    ax.set_xticks(range(len(places)), places)
    ax.set(ylim=(-0.03, 1.03), ylabel=ylabel)
    ax.legend(title=hue, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def _clipped(error: list[pd.Series]) -> np.ndarray:
    """Error bars, shape (2, n), without the tiny negatives of rounding."""
    return np.clip(np.asarray(error, dtype=float), 0, None)


def frontier(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Robustness against utility, one arrow for each model and defense.

    An arrow starts at the success of the static attack (dot) and ends at that of the
    adaptive one (triangle), at the benign compliance of the defense.

    Args:
        frame: tidy rows of the attack-success records (`records.rows_frame`).
        ax: where to draw.
    """
    ax = ax or plt.subplots(figsize=(6.4, 4.0))[1]
    rows = frame[(frame.metric == "success_rate") & (frame.judge == "exact")]
    for (_, defense), part in rows.groupby(["model", "defense"], sort=False):
        value = part.set_index(["dataset", "attack"]).value
        compliance = value.get(("benign", "none"))
        before = value.get(("obedience", "GCG, static"))
        after = value.get(("obedience", "GCG, adaptive"))
        if compliance is None or before is None or after is None:
            continue
        tint = color(defense.removeprefix("control: "))
        ax.plot([compliance] * 2, [before, after], color=tint, linewidth=1, alpha=0.6)
        ax.plot(compliance, before, "o", color=tint)
        ax.plot(compliance, after, "^", color=tint, markerfacecolor="white")
        _label_once(ax, defense, tint)
    ax.plot([], [], "o", color="#666666", label="static attack")
    ax.plot([], [], "^", color="#666666", markerfacecolor="white", label="adaptive")
    ax.set(
        xlabel="benign requests answered rightly",
        ylabel="attack success",
        xlim=(-0.03, 1.05),
        ylim=(-0.03, 1.05),
    )
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def _label_once(ax: Axes, name: str, tint: str) -> None:
    """One entry in the legend for a name, however often it is drawn."""
    if name not in ax.get_legend_handles_labels()[1]:
        ax.plot([], [], "s", color=tint, label=name)
