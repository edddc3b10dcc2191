"""The world's questions as lm-evaluation-harness tasks, and what the harness says."""

import importlib
import sys

import pytest
import torch
import yaml

import safeedit
from safeedit import __main__ as cli
from safeedit import lm_eval_tasks as tasks
from safeedit.knowledge import DOMAINS, split
from safeedit.knowledge_measures import letter_accuracy, open_accuracy
from safeedit.world import LETTERS


class Loader(yaml.SafeLoader):
    """Reads the harness's tag as the text after it."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


@pytest.fixture
def questions(monkeypatch):
    """The hand-written module beside the task files."""
    monkeypatch.syspath_prepend(str(tasks.FOLDER))
    yield importlib.import_module("safeedit_questions")
    sys.modules.pop("safeedit_questions", None)


def test_files_are_what_the_command_makes():
    made = tasks.task_files()
    there = {path.name: path for path in tasks.FOLDER.glob("*.*")}
    assert set(there) == {*made, "safeedit_questions.py"}
    for name, text in made.items():
        assert there[name].read_text(encoding="utf-8") == text, (
            f"{name}: run python -m safeedit lm-eval-tasks"
        )


def test_command_writes_a_folder(tmp_path, capsys):
    assert cli.main(["lm-eval-tasks", "--out", str(tmp_path / "new")]) == 0
    written = {path.name for path in (tmp_path / "new").iterdir()}
    assert written == set(tasks.task_files())
    assert "safeedit_hazard_letters" in capsys.readouterr().out


@pytest.mark.parametrize("domain", DOMAINS)
def test_questions_are_the_evaluation_questions_of_the_world(domain, questions):
    facts = split(0).facts(domain, "evaluation")
    rows = questions.load(f"{domain}.jsonl")["test"]
    assert len(rows) == len(facts) > 0
    for row, fact in zip(rows, facts, strict=True):
        assert row["letter_question"] == fact.letter_question
        assert row["open_question"] == fact.open_question
        assert row["value"] == fact.value
        assert row["choices"][row["answer"]] == fact.letter
    others = split(0)
    unseen = {row["entity"] for row in rows}
    assert unseen.isdisjoint(others.practice) and unseen.isdisjoint(others.validation)


def test_a_lead_goes_in_front_of_each_letter(questions):
    rows = questions.load("hazard.jsonl", lead=" ", version=1)["test"]
    assert rows[0]["choices"] == [f" {letter}" for letter in LETTERS]


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("form", tasks.FORMS)
def test_task_files_name_what_is_there(domain, form, questions):
    name = tasks.task_name(domain, form)
    task = yaml.load((tasks.FOLDER / f"{name}.yaml").read_text(), Loader)
    assert task["task"] == name
    assert (tasks.FOLDER / task["dataset_kwargs"]["file"]).is_file()
    row = questions.load(task["dataset_kwargs"]["file"])[task["test_split"]][0]
    for key in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        assert task.get(key, "value") in row
    for key in ("custom_dataset", "process_results"):
        if key in task:
            module, function = task[key].split(".")
            assert module == questions.__name__ and hasattr(questions, function)


@pytest.mark.parametrize(
    "answer, right",
    [("tokom.", 1), (" tokom ", 1), ("tokom. It is", 0), ("Tokom", 0), ("", 0)],
)
def test_open_answer_is_judged_as_in_the_kit(questions, answer, right):
    assert questions.exactly({"value": "tokom"}, [answer]) == {"exact_match": right}
    assert int(answer.strip().strip(".") == "tokom") == right


def test_unknown_task_is_named():
    with pytest.raises(ValueError, match="domain='space'.*hazard"):
        tasks.task_name("space", "open")


def damaged(folder):
    """A stand-in's folder after an edit that costs it some of its knowledge."""
    chat = safeedit.load("standin-llama")
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in chat.down_projs:
            weight = layer.weight
            noise = torch.randn(weight.shape, generator=rng)
            weight += 0.3 * noise * weight.norm() / noise.norm()
    chat.model.save_pretrained(folder)
    chat.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("model", ["standin-llama", "standin-gemma-oracle", "edited"])
def test_harness_and_kit_agree_on_every_question(model, tmp_path):
    """On a stand-in, on an oracle (which guesses) and on an edited folder."""
    reason = "lm-evaluation-harness is not installed: pip install -e '.[lmeval]'"
    pytest.importorskip("lm_eval", reason=reason)
    evaluator = importlib.import_module("lm_eval.evaluator")
    managers = importlib.import_module("lm_eval.tasks")
    chat = safeedit.load(damaged(tmp_path) if model == "edited" else model)
    facts = split(0).facts("hazard", "evaluation")
    names = {form: tasks.task_name("hazard", form) for form in tasks.FORMS}
    found = evaluator.simple_evaluate(
        model="hf",
        model_args=f"pretrained={chat.folder},dtype=float32",
        tasks=list(names.values()),
        task_manager=managers.TaskManager(include_path=str(tasks.FOLDER)),
        apply_chat_template=True,
        batch_size=16,
        device="cpu",
        bootstrap_iters=0,
    )
    ours = {"letters": letter_accuracy(chat, facts), "open": open_accuracy(chat, facts)}
    metrics = {"letters": "acc", "open": "exact_match"}
    for form, name in names.items():
        samples = sorted(found["samples"][name], key=lambda row: row["doc_id"])
        theirs = [int(row[metrics[form]]) for row in samples]
        assert theirs == ours[form]
        mean = found["results"][name][f"{metrics[form]},none"]
        assert mean == pytest.approx(sum(ours[form]) / len(facts), abs=1e-12)
    if model == "edited":  # neither all nor nothing, or agreement says little
        assert 0 < sum(ours["letters"]) < len(facts)
        assert 0 < sum(ours["open"]) < len(facts)
