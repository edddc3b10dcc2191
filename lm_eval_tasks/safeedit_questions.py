"""What the task files call: read the questions, judge an open answer.

It needs lm-evaluation-harness's own packages only, so that the folder can be copied.
"""

import json
from pathlib import Path
from typing import Any

import datasets

LETTERS = ("A", "B", "C", "D")


def load(file: str, lead: str = "", **other: Any) -> dict[str, datasets.Dataset]:
    """Questions of one domain as the split "test".

    Args:
        file: name of a file beside this one.
        lead: white space that a chat template puts between its prompt and an answer,
            given as `--metadata '{"lead": " "}'`. Most templates put none.
        other: further metadata of the harness.
    """
    lines = Path(__file__).with_name(file).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    choices = [lead + letter for letter in LETTERS]
    rows = [row | {"choices": choices} for row in rows]
    return {"test": datasets.Dataset.from_list(rows)}


def exactly(doc: dict[str, Any], results: list[str]) -> dict[str, int]:
    """1 when the answer is the value, white space and full stops around it aside."""
    return {"exact_match": int(results[0].strip().strip(".") == doc["value"])}
