"""Figures show the numbers that they are given."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from safeedit import plots

FRAME = pd.DataFrame(
    [
        {"at": at, "group": g, "value": v, "low": v - 0.1, "high": v + 0.2}
        for g, values in (("PCR", (0.2, 0.4, 0.5)), ("none", (0.7, 0.7, 0.6)))
        for at, v in zip(("c", "a", "b"), values, strict=True)
    ]
)


@pytest.mark.parametrize("dodge", [0.0, 0.2])
def test_lines_draw_values_and_intervals_in_first_order(dodge):
    ax = plots.lines(FRAME, "at", "group", dodge=dodge)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["c", "a", "b"]
    for g, (bar, name) in enumerate(zip(ax.containers, ("PCR", "none"), strict=True)):
        line, _, (spans,) = bar.lines
        part = FRAME[FRAME.group == name]
        assert list(line.get_ydata()) == part.value.tolist()
        assert line.get_xdata() == pytest.approx(np.arange(3) + dodge * (g - 0.5))
        ends = np.array([segment[:, 1] for segment in spans.get_segments()])
        assert ends == pytest.approx(part[["low", "high"]].to_numpy())
        assert line.get_color() == plots.color(name)
    plt.close("all")


def test_lines_keep_a_numeric_axis():
    frame = FRAME.assign(at=[1.0, 2.0, 8.0] * 2)
    ax = plots.lines(frame, "at", "group", dodge=0.2, linestyle="--")
    assert list(ax.containers[0].lines[0].get_xdata()) == [1, 2, 8]
    assert ax.containers[1].lines[0].get_linestyle() == "--"
    plt.close("all")


def test_log_axis_numbers_are_plain_and_do_not_overlap():
    """On a narrow panel over little more than a decade, as in the figure of budgets."""
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.6))
    ticks = (0.0025, 0.01, 0.04)
    for ax in axes:
        ax.plot([0.0025, 0.08], [0, 1])
        plots.log_axis(ax, ticks)
    figure.canvas.draw()
    for ax in axes:
        labels = [t for t in ax.get_xticklabels(which="both") if t.get_text()]
        assert [t.get_text() for t in labels] == ["0.0025", "0.01", "0.04"]
        boxes = [t.get_window_extent() for t in labels]
        assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False))
        places = ax.transData.transform([(tick, 0) for tick in ticks])[:, 0]
        assert np.diff(places) == pytest.approx([np.diff(places)[0]] * 2)  # factors 4
    plt.close("all")


def test_legend_below_names_the_lines_and_covers_no_panel():
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.0))
    for ax in axes:
        plots.lines(FRAME, "at", "group", ax)
        ax.set(xlabel="edited block")
    plots.legend_below(figure, axes[-1])
    figure.tight_layout()
    figure.canvas.draw()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["PCR", "none"]
    top = legend.get_window_extent().y1
    assert all(top <= ax.get_tightbbox().y0 for ax in axes)
    plt.close("all")
