"""The radius and the blocks of a PCR edit, on one jailbroken prompt.

Each setting makes an edit of its own: for the prompt that broke the model, and, with
the same radius, for a benign request that should be answered as before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import product

import ipywidgets
from torch import Tensor

from safeedit.chat import Chat
from safeedit.edits import PCRConfig, pcr
from safeedit.evaluation import Question

from .frames import Cell, Frames, FramesExplorer, readout

TITLE = "Radius and blocks of a PCR edit"
Label = Callable[[str, str], str]  # (word, response) -> label


def measure(
    chat: Chat,
    asked: tuple[Question, Question],
    concepts: Sequence[str] | Mapping[int, Tensor],
    layers: tuple[int, ...],
    factor: float,
    label: Label,
    max_new_tokens: int = 40,
) -> dict[str, Cell]:
    """What two prompts get with one setting of the edit.

    Args:
        chat: the unedited model.
        asked: a jailbroken prompt and a benign one. The first sets the radius.
        concepts: as for `pcr`.
        layers: blocks to edit.
        factor: eps over the distance of the first prompt's output to its nearest
            concept, in each block; up to 1 nothing moves.
        label: labels an answer, such as `Judge.label`.
        max_new_tokens: length of an answer.

    Returns:
        A frame: the verdict and the answer of each, and of the first prompt's edit
        eps and the norm ||D||, absolute and as a share of the edited weights; the
        smallest margin of both prompts' edits, in units of eps. Where several blocks
        are edited eps is the mean over them.
    """
    prompts = [question.prompt for question in asked]
    config = PCRConfig(layers=layers, eps_factor=factor, calibration=(prompts[0],))
    with warnings.catch_warnings():
        # That a small radius changes nothing is a result here.
        warnings.filterwarnings("ignore", "PCR changes nothing")
        edit = pcr(chat, prompts, concepts, config)
    with edit.applied(chat):
        answers = chat.generate(prompts, max_new_tokens)
    verdicts = [label(q.word, a) for q, a in zip(asked, answers, strict=True)]
    norm = edit.norm(chat)
    own = float(norm.per_prompt[0])
    weights = sum(
        float(chat.model.get_parameter(name).detach().float().norm()) ** 2
        for name in edit.deltas
    )
    eps = edit.info["eps"]
    margins = [
        row["smallest_margin"] / eps[layer]
        for layer, row in edit.info["layers"].items()
    ]
    return {
        "verdict": verdicts[0],
        "answer": answers[0],
        "radius eps": sum(eps.values()) / len(eps),
        "norm of the edit": own,
        "norm as a share of the weights": own / weights**0.5,
        "smallest margin over eps": round(min(margins), 6),
        "benign verdict": verdicts[1],
        "benign answer": answers[1],
    }


class BudgetExplorer(FramesExplorer):
    """Sliders for the blocks and for the radius.

    Args:
        chat: the unedited model; the live widget asks it at every move.
        asked: a jailbroken prompt and a benign one.
        concepts: as for `pcr`.
        blocks: positions of the first slider: name -> blocks to edit.
        factors: positions of the second slider, rising; see `measure`.
        label: labels an answer.
        start: position of both sliders at first.
    """

    def __init__(
        self,
        chat: Chat,
        asked: tuple[Question, Question],
        concepts: Sequence[str] | Mapping[int, Tensor],
        blocks: Mapping[str, tuple[int, ...]],
        factors: Sequence[float],
        label: Label,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        if list(factors) != sorted(set(factors)):
            raise ValueError(f"factors are {list(factors)}; give them rising")
        self.chat, self.asked, self.concepts = chat, asked, concepts
        self.blocks, self.label = dict(blocks), label
        rows = [self.ask(*pair) for pair in product(self.blocks, factors)]
        sliders = {"blocks": list(self.blocks), "radius factor": _texts(factors)}
        self.factors = list(factors)
        super().__init__(Frames(TITLE, sliders, rows, list(start), "verdict"))

    def ask(self, blocks: str, factor: float) -> dict[str, Cell]:
        """The frame of one setting, from the model."""
        layers = self.blocks[blocks]
        concepts = self.concepts
        if isinstance(concepts, Mapping):
            concepts = {layer: concepts[layer] for layer in layers}
        return measure(self.chat, self.asked, concepts, layers, factor, self.label)

    def widget(self) -> ipywidgets.Widget:
        """Sliders that ask the model, also between the positions of the page."""
        at = self.frames.start
        blocks = ipywidgets.SelectionSlider(
            options=list(self.blocks),
            value=list(self.blocks)[at[0]],
            description="blocks",
            continuous_update=False,
        )
        factor = ipywidgets.FloatSlider(
            value=self.factors[at[1]],
            min=self.factors[0],
            max=self.factors[-1],
            step=0.25,
            description="factor",
            continuous_update=False,
        )
        shown = ipywidgets.HTML(value=readout(self.frames.at(*at)))

        def show(_: object) -> None:
            shown.value = readout(self.ask(blocks.value, factor.value))

        blocks.observe(show, "value")
        factor.observe(show, "value")
        return ipywidgets.VBox([blocks, factor, shown])


def _texts(numbers: Sequence[float]) -> list[str]:
    return [f"{number:g}" for number in numbers]
