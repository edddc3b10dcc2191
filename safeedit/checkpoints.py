"""The state of a training run in one file, so that a killed run can go on.

The file says of which run it is: its settings and a sample of the weights it started
from. Another run does not go on from it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "safeedit-checkpoint-1"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state of one weight
SAMPLE = 4096  # entries of a weight by which a checkpoint knows its start


class Checkpoint:
    """One safetensors file with the weights, AdamW's state and the trajectory.

    Args:
        path: the file; its folder is made if need be.
        run: what identifies the run, as JSON.
        start: the weights that the run begins with.
    """

    def __init__(self, path: Path, run: dict, start: Mapping[str, Tensor]) -> None:
        self.path = path
        begun = {}
        for name, weight in start.items():
            flat = weight.reshape(-1)
            sample = flat[:: max(1, flat.numel() // SAMPLE)].double()
            begun[name] = [list(weight.shape), float(sample.square().sum())]
        self.run = json.loads(json.dumps(run | {"start": begun}))

    def write(
        self,
        masters: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer | None,
        trajectory: list[dict],
        state: Mapping[str, Tensor] | None = None,
        diverged: dict | None = None,
    ) -> None:
        """Replace the file, whole or not at all.

        Args:
            masters: the weights.
            optimizer: AdamW over them, in their order; None: its state is not kept.
            trajectory: the rows of the steps made.
            state: further tensors of the run.
            diverged: why the run cannot go on, if it cannot.
        """
        tensors = {f"{name}::weight": master for name, master in masters.items()}
        tensors |= {f"::{key}": value for key, value in (state or {}).items()}
        if optimizer is not None:
            for name, master in masters.items():
                state = optimizer.state[master]
                tensors |= {f"{name}::{key}": state[key] for key in MOMENTS}
        tensors = {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}
        notes = {"run": self.run, "trajectory": trajectory, "diverged": diverged}
        metadata = {"format": FORMAT, "notes": json.dumps(notes)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, suffix=".partial")
        os.close(handle)
        try:
            save_file(tensors, temporary, metadata=metadata)
            os.replace(temporary, self.path)
        finally:
            Path(temporary).unlink(missing_ok=True)

    def read(
        self,
        masters: dict[str, Tensor],
        optimizer: torch.optim.Optimizer,
        state: dict[str, Tensor] | None = None,
    ) -> tuple[list[dict], dict | None]:
        """Put what was saved into weights, optimizer and further state.

        Returns:
            The trajectory, empty if there is no file, and what `write` was given as
            `diverged`.

        Raises:
            ValueError: a corrupt file, one of another kind, or one of another run.
        """
        if not self.path.exists():
            return [], None
        advice = "give another path, or remove the file to start anew"
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}
            if metadata.get("format") != FORMAT:
                raise ValueError(
                    f"{self.path} is not a checkpoint of a training run; {advice}"
                )
            notes = json.loads(metadata["notes"])
        except (SafetensorError, json.JSONDecodeError, KeyError) as error:
            raise ValueError(
                f"the checkpoint {self.path} is corrupt ({error}); {advice}"
            ) from error
        if differ := _differences(notes["run"], self.run):
            raise ValueError(
                f"the checkpoint {self.path} is of another run: {'; '.join(differ)}. "
                f"Next step: {advice}"
            )
        with torch.no_grad():
            for name, master in masters.items():
                master.copy_(tensors[f"{name}::weight"])
        if notes["diverged"] is not None:
            return notes["trajectory"], notes["diverged"]
        for name, master in masters.items():
            moments = {key: tensors[f"{name}::{key}"] for key in MOMENTS}
            optimizer.state[master] = {
                key: value if key == "step" else value.to(master.device)
                for key, value in moments.items()
            }
        if state is not None:
            state.clear()
            extra = {key: value for key, value in tensors.items() if key[:2] == "::"}
            state.update({key.removeprefix("::"): v for key, v in extra.items()})
        return notes["trajectory"], None


def _differences(old: dict, new: dict, path: str = "") -> list[str]:
    """Up to four places in which two settings differ, with both values."""
    found: list[str] = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            found += _differences(before, now, f"{path}{key}.")
        elif before != now:
            found.append(f"{path}{key} was {before!r} and is {now!r}")
    return found[:4]
