"""The unlearned models of the cross table, as their authors would release them.

The settings are those that the page on settings chose and put in its record. An edit is
dense, as in a released model, and kept if its run is killed (`cells`).
"""

from __future__ import annotations

from dataclasses import asdict, replace

from . import cells, records
from .chat import Chat
from .edits import unlearn
from .edits.dense import as_dense
from .edits.unlearning_config import UnlearnData
from .edits.weight_edit import WeightEdit
from .unlearning_lineup import Candidate, chosen


def chosen_settings(model: str) -> dict[str, Candidate]:
    """The setting of each method that U1 chose for a model, in its order.

    Args:
        model: name of the model, as in its record.

    Raises:
        ValueError: there is no record of U1 for this model.
    """
    found = {
        row["defense"]: int(row["value"])
        for record in records.find(notebook="U1_settings", model=model)
        for row in record.rows
        if row["metric"] == "chosen"
    }
    if not found:
        raise ValueError(
            f"no record of U1_settings says which settings {model!r} has; make it with "
            f"python -m safeedit run U1_settings -m {model}, or use scale 'smoke', "
            "which needs none"
        )
    return chosen(found)


def released(
    chat: Chat,
    data: UnlearnData,
    name: str,
    candidate: Candidate,
    seed: int,
    steps: int | None = None,
) -> WeightEdit:
    """Unlearn with one setting and give the change of the weights.

    Args:
        chat: the model; it is not changed.
        data: forget set and retain set.
        name: of the method in the table.
        candidate: its setting.
        seed: of the training.
        steps: in place of the setting's, for a quick look.
    """
    config = replace(candidate.config, seed=seed)
    if steps is not None:
        config = replace(config, steps=steps)
    key = [name, asdict(config)]

    def made() -> WeightEdit:
        checkpoint = cells.checkpoint_of(key)
        return as_dense(
            unlearn(chat, data, candidate.method, config, checkpoint=checkpoint)
        )

    return cells.edit_of(key, made)
