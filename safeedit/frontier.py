"""The robustness-utility frontier: what an unlearned model keeps, and what comes back.

For each method: the general letters it has before any attack, and the recovery of
hazard letters under the attack that brings back most of them, among those that leave
the model working (`utility_kept`). The worst of many noisy figures lies above the true
one, so the frontier is a cautious picture and not an estimate.
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

TINTS = {  # Okabe-Ito; smoothed NPO shares the colour of NPO
    "GradDiff": "#CC79A7",
    "NPO": "#0072B2",
    "DPO": "#E69F00",
    "RMU": "#D55E00",
    "TSR": "#009E73",
    "ARR": "#8C6D1F",
    "PCR": "#000000",
}
MARKS = {"SAM": "^", "RS": "v", "GP": "<", "CR": ">", "WA": "s"}


def frontier(rows: pd.DataFrame) -> pd.DataFrame:
    """The points of the picture.

    Args:
        rows: tidy rows of the cross table over all runs (`over_runs.frame`).

    Returns:
        A row for each model and method: model, defense, general, general_low,
        general_high (share of general letters), needed (nine tenths of the base's),
        recovery, low, high (of the recovery) and attack, the worst one. Methods
        without an attack that leaves them working are left out.
    """
    back = rows[
        (rows.metric == "recovery")
        & (rows.measure == "letter_accuracy")
        & (rows.attack != "none")
    ]
    gate = rows[rows.metric == "utility_kept"]
    kept = gate.set_index(["model", "defense", "attack"]).value.rename("kept")
    back = back.join(kept, on=["model", "defense", "attack"])
    # The logit lens changes nothing, so it has no gate.
    back = back[back.kept.fillna(1) > 0.5]
    worst = back.sort_values("value").groupby(["model", "defense"]).tail(1)
    worst = worst.rename(columns={"value": "recovery"})
    general = rows[
        (rows.metric == "letter_accuracy")
        & (rows.dataset == "general")
        & (rows.attack == "none")
    ].rename(columns={"value": "general", "low": "general_low", "high": "general_high"})
    base = general[general.defense == "base"].groupby("model").general.first()
    sides = ["general", "general_low", "general_high"]
    both = worst[["model", "defense", "attack", "recovery", "low", "high"]].merge(
        general[["model", "defense", *sides]], on=["model", "defense"]
    )
    both["needed"] = 0.9 * both.model.map(base).astype(float)
    order = {name: i for i, name in enumerate(dict.fromkeys(rows.model))}
    return both.sort_values("model", key=lambda m: m.map(order), kind="stable")


def draw(points: pd.DataFrame) -> Figure:
    """One panel for each model; the lower right corner is robust and useful.

    Args:
        points: from `frontier`.
    """
    models = list(dict.fromkeys(points.model))
    size = (3.1 * len(models) + 1.2, 3.6)
    figure, axes = plt.subplots(
        1, len(models), figsize=size, sharey=True, squeeze=False
    )
    for ax, model in zip(axes.flat, models, strict=True):
        own = points[points.model == model]
        for r in own.itertuples():
            plain, _, smoother = str(r.defense).partition("+")
            tint, mark = TINTS.get(plain, "#999999"), MARKS.get(smoother, "o")
            ax.plot([r.general] * 2, [r.low, r.high], color="#CCCCCC", lw=1, zorder=1)
            across = [r.general_low, r.general_high]
            ax.plot(across, [r.recovery] * 2, color="#CCCCCC", lw=1, zorder=1)
            ax.plot(
                r.general,
                r.recovery,
                mark,
                color=tint,
                markersize=7,
                markerfacecolor=tint if mark == "o" else "none",
                label=r.defense,
                zorder=2,
            )
        for y in (0, 1):
            ax.axhline(y, color="#BBBBBB", lw=1, ls=":")
        ax.axvline(own.needed.iloc[0], color="#BBBBBB", lw=1, ls=":")
        ax.set(
            xlim=(0.2, 1.03),
            ylim=(-0.3, 1.2),
            xlabel="general letters right",
            title=model.removeprefix("standin-"),
        )
        ax.set_yticks(np.arange(0, 1.01, 0.25))
    axes[0, 0].set_ylabel("recovery, worst attack")
    handles: dict[str, Any] = {}
    for ax in axes.flat:
        found = zip(*ax.get_legend_handles_labels(), strict=True)
        handles |= {label: handle for handle, label in found}
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="upper center",
        ncols=6,
        fontsize="small",
        bbox_to_anchor=(0.5, 0.02),
    )
    figure.tight_layout()
    return figure
