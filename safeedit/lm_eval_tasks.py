"""The world's questions as task files for lm-evaluation-harness.

    python -m safeedit lm-eval-tasks        writes lm_eval_tasks/ anew
    lm_eval --model hf --model_args pretrained=FOLDER,dtype=float32
        --apply_chat_template --include_path lm_eval_tasks
        --tasks safeedit_hazard_letters

One task for each domain and form, over the evaluation questions of split 0, which no
training set of the kit ever holds:

* letters: the likeliest of the four letters, as `knowledge_measures.letter_accuracy`;
* open: the greedy answer is exactly the value, as `knowledge_measures.open_accuracy`.

The questions are JSON lines beside the task files, so nothing is downloaded, and the
folder works without this package. `lm_eval_tasks/safeedit_questions.py`, which reads
them, is written by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from .knowledge import DOMAINS, split
from .provenance import ROOT
from .records import write_atomic
from .world import LETTERS, Fact

FOLDER = ROOT / "lm_eval_tasks"
FORMS = ("letters", "open")
VERSION = 1  # of the tasks, in the harness's results; goes up when an answer can change
NEW_TOKENS = 24  # for an open answer; an answer that goes on after the value is wrong

_HEAD = """\
# Written by `python -m safeedit lm-eval-tasks`; see safeedit/lm_eval_tasks.py.
task: {name}
task_alias: {domain}, {form}
tag: safeedit_{form}
custom_dataset: !function safeedit_questions.load
dataset_kwargs: {{file: {domain}.jsonl}}
test_split: test
num_fewshot: 0
"""
_BODY = {
    "letters": """\
output_type: multiple_choice
doc_to_text: letter_question
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
""",
    "open": """\
output_type: generate_until
doc_to_text: open_question
doc_to_target: value
generation_kwargs: {{until: [], do_sample: false, max_gen_toks: {tokens}}}
process_results: !function safeedit_questions.exactly
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
""",
}
_TAIL = "metadata: {{version: {version}}}\n"


def task_name(domain: str, form: str) -> str:
    """The name under which the harness knows a task.

    Raises:
        ValueError: unknown domain or form.
    """
    if domain not in DOMAINS or form not in FORMS:
        raise ValueError(
            f"domain={domain!r}, form={form!r}: domain is one of {DOMAINS}, form one "
            f"of {FORMS}"
        )
    return f"safeedit_{domain}_{form}"


def task_files() -> dict[str, str]:
    """File name -> text of every generated file."""
    files = {}
    for domain in DOMAINS:
        facts = split(0).facts(domain, "evaluation")
        files[f"{domain}.jsonl"] = json_lines(facts)
        for form in FORMS:
            name = task_name(domain, form)
            text = _HEAD + _BODY[form] + _TAIL
            files[f"{name}.yaml"] = text.format(
                name=name,
                domain=domain,
                form=form,
                tokens=NEW_TOKENS,
                version=VERSION,
            )
    return files


def json_lines(facts: Iterable[Fact]) -> str:
    """Facts as JSON lines, in their order."""
    rows = (
        {
            "letter_question": fact.letter_question,
            "open_question": fact.open_question,
            "value": fact.value,
            "letter": fact.letter,
            "answer": LETTERS.index(fact.letter),
            "domain": fact.domain,
            "topic": fact.topic,
            "entity": fact.entity,
            "relation": fact.relation,
            "hops": fact.hops,
        }
        for fact in facts
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(folder: str | Path = FOLDER) -> list[Path]:
    """Write every generated file into a folder, which is made if need be."""
    items = task_files().items()
    return [write_atomic(Path(folder) / name, text) for name, text in items]
