"""The frontier: worst attack that leaves the model working, against what is kept."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from safeedit import records
from safeedit.frontier import draw, frontier


def rows_of(defense, recoveries, general, kept=None):
    """Rows of one method on one model: recovery by attack, general letters."""
    kept = kept or {}
    out = [
        records.row(
            "recovery",
            value,
            72,
            value - 0.1,
            value + 0.1,
            defense=defense,
            attack=attack,
            dataset="hazard",
            measure="letter_accuracy",
        )
        for attack, value in recoveries.items()
    ]
    out += [
        records.row(
            "utility_kept", value, 32, defense=defense, attack=attack, dataset="general"
        )
        for attack, value in kept.items()
    ]
    out += [
        records.row(
            "letter_accuracy",
            share,
            32,
            share - 0.1,
            share + 0.1,
            defense=name,
            attack="none",
            dataset="general",
        )
        for name, share in ((defense, general), ("base", 0.8))
    ]
    return pd.DataFrame(out).assign(model="standin-gemma")


def test_the_worst_attack_counts_and_no_attack_does_not():
    rows = rows_of("RMU", {"none": 0.99, "a": 0.2, "b": 0.7}, 0.75)
    (point,) = frontier(rows).itertuples()
    assert (point.attack, point.recovery, point.general) == ("b", 0.7, 0.75)
    assert point.general_low < 0.75 < point.general_high
    assert point.low < 0.7 < point.high
    assert point.needed == pytest.approx(0.72)  # nine tenths of the base's


def test_an_attack_that_wrecks_the_model_does_not_count():
    rows = rows_of("RMU", {"a": 0.2, "b": 0.7}, 0.75, {"a": 1.0, "b": 0.0})
    (point,) = frontier(rows).itertuples()
    assert point.attack == "a"
    every = rows_of("RMU", {"a": 0.2}, 0.75, {"a": 0.5})  # half of the runs
    assert frontier(every).empty


def test_the_picture_has_every_method_once_in_the_legend():
    rows = pd.concat(
        [
            rows_of("RMU", {"a": 0.2}, 0.75),
            rows_of("NPO", {"a": 0.1}, 0.9),
            rows_of("NPO+SAM", {"a": 0.1}, 0.9),
        ]
    )
    figure = draw(frontier(rows))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(names) == ["NPO", "NPO+SAM", "RMU"]
    plt.close(figure)
