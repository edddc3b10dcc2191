"""The recipes of the book, done as they are written, in the order of the page."""

import re
import shlex

import pytest
import torch

from safeedit.__main__ import main
from safeedit.records import ROOT

PAGE = (ROOT / "book" / "recipes.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def run_python(text: str, names: dict) -> None:
    for number, code in enumerate(blocks(text, "python")):
        exec(compile(code, f"recipe, block {number}", "exec"), names)


@pytest.fixture(scope="module")
def method() -> dict:
    """Everything that the first recipe defines."""
    names: dict = {"__name__": "recipe"}
    run_python(section("Add a method"), names)
    return names


def rate(rows, defense, dataset):
    found = [
        r["value"]
        for r in rows
        if (r["defense"], r["dataset"], r["metric"])
        == (defense, dataset, "success_rate")
    ]
    assert len(found) == 1
    return found[0]


def test_method_is_an_edit_and_is_measured_like_any_other(method):
    chat, edit, rows = (method[name] for name in ("chat", "edit", "rows"))
    (delta,) = edit.deltas.values()
    # What the method promises: on the mean input the output moves to the target.
    config = method["SteeringConfig"]()
    h, o = method["mean_at_last_token"](chat, method["fit"].prompts, config.layer)
    asked = [q.prompt for q in method["fit"].direct]
    _, target = method["mean_at_last_token"](chat, asked, config.layer)
    u = config.strength * (target - o)
    torch.testing.assert_close(delta.dense() @ h, u, rtol=1e-3, atol=1e-3)
    # Of least norm, by the formula of one constraint, and gone after use.
    assert float(edit.norm()) == pytest.approx(float(u.norm() / h.norm()), rel=1e-4)
    before = {k: p.clone() for k, p in chat.model.named_parameters()}
    with edit.applied(chat):
        pass
    assert all(torch.equal(p, before[k]) for k, p in chat.model.named_parameters())
    assert {r["defense"] for r in rows} == {"none", "steering", "control"}
    assert rate(rows, "none", "obedience") > 0.5  # there is something to defend
    assert rate(rows, "none", "benign") > 0.9
    # The page's example is one in which the direction matters, and not the size.
    assert rate(rows, "steering", "obedience") < rate(rows, "control", "obedience")
    assert rate(rows, "steering", "benign") > 0.9


def test_attack_runs_and_refuses_what_it_cannot_use(method):
    names = dict(method)
    run_python(section("Add an attack"), names)
    result = names["found"]
    assert result.attack == "transfer"
    assert len(result.prompts) == len(result.success) == len(result.steps)
    for prompt, plain, suffix in zip(
        result.prompts, names["prompts"], result.suffixes, strict=True
    ):
        assert prompt == plain + suffix and suffix
        # the suffix is one that was found for another request
        own = names["suffixes"][names["prompts"].index(plain)]
        assert suffix != own and suffix in names["suffixes"]
    with pytest.raises(ValueError, match="suffix that was found"):
        names["transfer"](names["chat"], names["prompts"], [])


def test_model_is_loaded_evaluated_and_edited(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = section("Add a model")
    names: dict = {"__name__": "recipe"}
    run_python(text, names)
    chat = names["chat"]
    assert chat.n_layers == 2 and chat.d_model == 32
    shell, notebook = blocks(text, "sh")
    for line in shell.splitlines():
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "safeedit"]
        assert main(words[3:]) == 0, line
    assert "forbidden requests answered" in capsys.readouterr().out
    assert (tmp_path / "tiny-edited" / "model.safetensors").is_file()
    assert notebook.startswith("python -m safeedit run 02 -m ")
