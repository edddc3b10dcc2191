"""What the README shows is what a reader gets."""

import contextlib
import io
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", README, re.S).group(1)


def test_the_example_prints_what_is_printed_under_it():
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block("python"), "README", "exec"), {})
    assert out.getvalue() == block("text")


def test_every_file_that_it_links_to_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_every_path_of_the_file_tree_exists():
    tree = README.split("## What is where")[1].split("```")[1]
    folder = ""
    for line in tree.strip().splitlines():
        names = re.match(r"(\s*)((?:[\w./]+\s?)+)(?:\s{2,}|$)", line)
        if not names[1]:
            folder = names[2].strip() if names[2].strip() == "safeedit/" else ""
        for name in names[2].split():
            if name != "...":
                path = ROOT / (folder if names[1] else "") / name
                assert path.exists(), path


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^make (\w+)", README, re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_the_pictures_are_drawn_from_the_published_records():
    from safeedit.commands.pictures import pictures

    for path, draw in pictures().items():
        assert f"book/{path.name}" in README
        assert path.read_text() == draw(), f"{path.name}: python -m safeedit picture"


def test_the_speeds_it_states_are_those_on_record():
    from safeedit.records import read

    folder = ROOT / "results" / "benchmarks"
    ratios = [
        row["value"]
        for path in folder.glob("pcr-*.json")
        for row in read(path).rows
        if row["metric"].startswith("ratio")
    ]
    assert f"| {min(ratios):.2f} to {max(ratios):.2f} |" in README
    speeds = {
        row["attack"]: row["value"]
        for row in read(folder / "gcg.json").rows
        if row["metric"] == "steps_per_second"
    }
    assert f"| {speeds['gcg-64']:.1f}; {speeds['gcg-512']:.1f} |" in README
