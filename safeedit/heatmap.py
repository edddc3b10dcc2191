"""The picture of a cross table: methods by attacks, one number in each cell."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

UNFAIR = "\N{DAGGER}"  # behind attacks that need the model before unlearning


def heat(
    ax: Axes,
    rows: pd.DataFrame,
    methods: Sequence[str],
    attacks: Sequence[str],
    starred: Collection[tuple[str, str]] = (),
    unfair: Collection[str] = (),
    title: str = "",
) -> None:
    """Draw shares in percent, dark where much is known.

    Args:
        ax: where to draw.
        rows: tidy rows with defense, attack and value (a share); at most one a cell.
        methods: the lines, in order.
        attacks: the columns, in order.
        starred: (method, attack) of cells that get a star.
        unfair: attacks that get a dagger.
        title: of the panel.

    Raises:
        ValueError: two rows for one cell (from pandas).
    """
    grid = rows.pivot(index="defense", columns="attack", values="value")
    grid = grid.reindex(index=list(methods), columns=list(attacks)).astype(float)
    words = grid.map(lambda v: "" if pd.isna(v) else f"{100 * v:.0f}")
    for name, attack in starred:
        if name in grid.index and attack in grid.columns and words.loc[name, attack]:
            words.loc[name, attack] += "*"
    sns.heatmap(
        grid,
        annot=words,
        fmt="",
        vmin=0.25,
        vmax=1,
        cbar=False,
        cmap="viridis_r",
        ax=ax,
        annot_kws={"size": 7},
        linewidths=0.5,
    )
    labels = [f"{a} {UNFAIR}" if a in unfair else a for a in attacks]
    ax.set_xticks([i + 0.5 for i in range(len(labels))], labels)
    ax.set(xlabel="", ylabel="", title=title)
    ax.tick_params(axis="x", labelsize=7, rotation=60)
    for label in ax.get_xticklabels():
        label.set_horizontalalignment("right")
