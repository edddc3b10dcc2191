"""Figures: one style, one colour for one method in the whole book.

Every function draws on axes that it is given or makes, and returns them; none reads a
file or runs a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import NullLocator
from matplotlib_inline.backend_inline import set_matplotlib_formats

# Okabe-Ito: told apart with any kind of colour vision.
COLORS: dict[str, str] = {
    "none": "#000000",
    "PCR": "#0072B2",
    "PCR, activation": "#56B4E9",
    "PCR, shared": "#009E73",
    "TSR": "#E69F00",
    "ARR": "#D55E00",
    "SmoothLLM": "#CC79A7",
    "Self-Reminder": "#8C6D1F",
    "random direction": "#999999",
    "concept 0": "#999999",
    "plainest": "#0072B2",
    "best weight edit": "#D55E00",
    "best activation edit": "#56B4E9",
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


def lines(
    frame: pd.DataFrame,
    x: str,
    hue: str,
    ax: Axes | None = None,
    dodge: float = 0.0,
    **style: Any,
) -> Axes:
    """Values with their intervals along an axis, one line for each group.

    Args:
        frame: tidy rows with columns value, low, high and those named by `x`, `hue`.
        x: column on the horizontal axis: numbers, or texts in their first order.
        hue: column that sets the colour and the legend's text.
        ax: where to draw.
        dodge: step to the side from group to group, in places of a text axis.
        style: further settings of the lines, such as `linestyle`.
    """
    ax = ax or plt.subplots()[1]
    texts = not pd.api.types.is_numeric_dtype(frame[x])
    places = list(dict.fromkeys(frame[x]))
    groups = list(dict.fromkeys(frame[hue]))
    for g, name in enumerate(groups):
        part = frame[frame[hue] == name]
        side = dodge * (g - (len(groups) - 1) / 2)
        at = [places.index(v) + side for v in part[x]] if texts else part[x]
        error = [part.value - part.low, part.high - part.value]
        look: dict[str, Any] = {"marker": "o", "markersize": 4, "capsize": 2}
        look |= {"color": color(name), "label": name} | style
        ax.errorbar(at, part.value, _clipped(error), **look)
    if texts:
        ax.set_xticks(range(len(places)), places)
    return ax


def log_axis(ax: Axes, ticks: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic, with plain numbers at these places only.

    Matplotlib's own labels (3 x 10^-3, ...) run into each other on an axis that spans
    little more than a decade.

    Args:
        ax: whose axis.
        ticks: where to put a number, all > 0.
    """
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())


def legend_below(figure: Figure, ax: Axes, columns: int = 3) -> None:
    """One legend for a figure of several panels, under them and so over no data.

    Args:
        figure: the figure; its panels share their lines' names and looks.
        ax: the panel that the legend is read from.
        columns: of the legend.
    """
    figure.legend(
        *ax.get_legend_handles_labels(),
        ncols=columns,
        fontsize="small",
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
    )


def _clipped(error: list[pd.Series]) -> np.ndarray:
    """Error bars, shape (2, n), without the tiny negatives of rounding."""
    return np.clip(np.asarray(error, dtype=float), 0, None)


LINEUP = (
    "none",
    "SmoothLLM",
    "Self-Reminder",
    "TSR",
    "ARR",
    "PCR",
    "PCR, shared",
    "control: concept 0",
)


def lineup(frame: pd.DataFrame) -> Figure:
    """Each defense under a static and an adaptive attack, one panel for each model.

    A line goes from the success of the replayed attack (dot) to that of the attack
    that knows the defense (triangle), over their 95 % intervals in gray; a cross is
    the share of benign requests that is *not* answered rightly.

    Args:
        frame: pooled rows with columns model, defense, column ("GCG, static", "GCG,
            adaptive" or "benign compliance"), value, low and high.
    """
    models = list(dict.fromkeys(frame.model))
    names = [name for name in LINEUP if name in set(frame.defense)]
    size = (3.1 * len(models) + 1.4, 0.42 * len(names) + 1.3)
    figure, axes = plt.subplots(1, len(models), figsize=size, sharey=True)
    for ax, model in zip(np.atleast_1d(axes), models, strict=True):
        cells = frame[frame.model == model].set_index(["defense", "column"])
        for place, name in enumerate(names):
            tint, ends = color(name.removeprefix("control: ")), []
            for column, mark, shift in (
                ("GCG, static", "o", -0.12),
                ("GCG, adaptive", "^", 0.12),
            ):
                if (name, column) in cells.index:
                    cell = cells.loc[(name, column)]
                    at = place + shift
                    ax.plot([cell.low, cell.high], [at, at], color="#CCCCCC")
                    ax.plot(cell.value, at, mark, color=tint, markersize=6)
                    ends.append((cell.value, at))
            ax.plot(*zip(*ends, strict=True), color=tint, linewidth=1)
            if (name, "benign compliance") in cells.index:
                lost = 1 - cells.loc[(name, "benign compliance")].value
                ax.plot(lost, place, "x", color="#000000", markersize=5)
        ax.set(xlim=(-0.04, 1.04), xlabel="share of requests", title=model)
        ax.set_yticks(range(len(names)), names)
        ax.grid(axis="y", color="#EEEEEE")
    ax.invert_yaxis()
    for mark, text in (
        ("o", "broken, attack replayed"),
        ("^", "broken, attacker knows the defense"),
        ("x", "benign requests lost"),
    ):
        ax.plot([], [], mark, color="#444444", label=text)
    figure.legend(loc="lower center", ncols=3, bbox_to_anchor=(0.5, -0.08))
    figure.tight_layout()
    return figure
