"""Version, notes, citation and workflows of a release, and what they name."""

import re
import shlex
import subprocess
import zipfile

import pytest
import yaml

from safeedit import __main__ as cli
from safeedit import release
from safeedit.records import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# Who may write what; every other job only reads.
WRITES = {
    ("pages.yml", "deploy"): {"pages", "id-token"},
    ("pages.yml", "release"): {"contents"},
    ("weekly.yml", "report"): {"issues"},
}
FILES = ("CHANGELOG.md", "CITATION.cff", "pyproject.toml", "safeedit/__init__.py")


def test_all_places_name_one_version():
    section = release.check()
    assert f"v{section.version}" == f"v{release.changelog()[0].version}"
    assert "**Records**" in section.text


@pytest.fixture
def copy(tmp_path):
    """A repository with what names the version, and one record."""
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text((ROOT / name).read_text())
    (tmp_path / "results" / "T9").mkdir(parents=True)
    (tmp_path / "results" / "T9" / "m.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    "name, old, new, place",
    [
        ("CHANGELOG.md", "## 0.1.0", "## 9.9.9", "CHANGELOG.md says '9.9.9'"),
        ("CITATION.cff", "version: 0.1.0", "version: 9.9.9", "CITATION.cff, version"),
        ("CITATION.cff", 'date-released: "2', 'date-released: "1', "date-released"),
        ("CITATION.cff", "date-released", "released", "date-released says None"),
        ("safeedit/__init__.py", '"0.1.0"', '"9.9.9"', "__init__.py says '9.9.9'"),
        ("pyproject.toml", 'version = "0.1.0"', 'version = "9.9.9"', "want '9.9.9'"),
    ],
)
def test_a_place_that_says_something_else_is_named(copy, name, old, new, place):
    path = copy / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(release.ReleaseError, match=place):
        release.check(copy)


def test_the_tag_has_to_be_the_version(copy, capsys):
    version = release.check(copy).version
    assert release.check(copy, f"v{version}").version == version
    with pytest.raises(release.ReleaseError, match="the tag says 'v7.0.0'"):
        release.check(copy, "v7.0.0")
    assert cli.main(["release", "v7.0.0"]) == 1
    assert "the tag says" in capsys.readouterr().err


def test_a_changelog_without_versions_is_an_error(copy):
    (copy / "CHANGELOG.md").write_text("# Changelog\n")
    with pytest.raises(release.ReleaseError, match="no heading such as"):
        release.changelog(copy)


def test_notes_end_where_the_next_version_begins(copy):
    path = copy / "CHANGELOG.md"
    older = "\n## 0.0.9 (2026-01-01)\n\nOlder.\n"
    path.write_text(path.read_text() + older)
    newest, other = release.changelog(copy)
    assert "Older" not in newest.text and other.text == "Older."
    assert (other.version, other.date) == ("0.0.9", "2026-01-01")


def test_notes_and_records_are_written(copy):
    tag = f"v{release.check(copy).version}"
    with pytest.raises(release.ReleaseError, match="git cannot pack"):
        release.write(copy / "out", tag, copy)
    name = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    for words in (["init", "-q"], ["add", "results"], ["commit", "-q", "-m", "one"]):
        subprocess.run(["git", "-C", str(copy), *name, *words], check=True)
    notes, archive = release.write(copy / "out", tag, copy)
    assert archive.name in notes.read_text()
    assert "results/T9/m.json" in zipfile.ZipFile(archive).namelist()


# Workflows


def load(path):
    """A workflow; YAML reads its key `on` as True."""
    document = yaml.safe_load(path.read_text())
    return {("on" if key is True else key): value for key, value in document.items()}


def commands():
    """(file, command) of every step."""
    for path in WORKFLOWS:
        for job in load(path)["jobs"].values():
            for step in job["steps"]:
                if "run" in step:
                    yield path.name, step["run"]


def ids(pair):
    return pair if isinstance(pair, str) and pair.endswith(".yml") else None


def test_the_workflows_are_there():
    wanted = {"ci.yml", "lm-eval.yml", "pages.yml", "records.yml", "weekly.yml"}
    assert {path.name for path in WORKFLOWS} >= wanted


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_do_no_more_than_it_needs(path):
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in workflow["on"]
    for name, job in workflow["jobs"].items():
        granted = job.get("permissions", {})
        assert set(granted.values()) <= {"write"}
        assert set(granted) == WRITES.get((path.name, name), set())
        assert job["timeout-minutes"] <= 90
        for step in job["steps"]:
            # What others can name (a branch, a title) never becomes part of a script.
            assert "${{" not in step.get("run", "")
            if "checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_the_forges_own_with_a_pinned_major_version(path):
    for job in load(path)["jobs"].values():
        for step in job["steps"]:
            assert len({"uses", "run"} & set(step)) == 1
            if "uses" in step:
                assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])


def test_schedules_are_valid_and_weekly():
    for path in WORKFLOWS:
        for entry in (load(path)["on"] or {}).get("schedule", []):
            minute, hour, day, month, weekday = entry["cron"].split()
            assert 0 <= int(minute) < 60 and 0 <= int(hour) < 24
            assert (day, month) == ("*", "*") and 0 <= int(weekday) < 7


def test_needed_jobs_exist():
    for path in WORKFLOWS:
        jobs = load(path)["jobs"]
        for job in jobs.values():
            needs = job.get("needs", [])
            assert set([needs] if isinstance(needs, str) else needs) <= set(jobs)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    texts = [text for _, text in commands()]
    texts.append((ROOT / ".ci" / "run").read_text())
    found = {t for text in texts for t in re.findall(r"^make ([a-z]+)$", text, re.M)}
    assert {"book", "test", "fresh"} <= found
    for target in found:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_files_that_are_named_exist():
    """Paths in commands and filters, but for what is built."""
    names = set()
    for path in WORKFLOWS:
        for event in load(path)["on"].values():
            if isinstance(event, dict):
                names |= set(event.get("paths", []))
    made = re.compile(r"https?:|\.venv|_build|origin|release|\$|\.\[0")
    for _, text in commands():
        words = shlex.split(text.replace("\n", " ; "))
        names |= {word for word in words if "/" in word and not made.match(word)}
        names |= set(re.findall(r"[\w/.-]+\.(?:txt|yml|toml|py)\b", text))
    assert ".ci/run" in names and "constraints.txt" in names
    for name in names:
        assert list(ROOT.glob(name.removeprefix("./"))), name


def test_extras_exist():
    text = (ROOT / "pyproject.toml").read_text()
    for _, command in commands():
        for extras in re.findall(r'-e "\.\[([\w,]+)\]"', command):
            for extra in extras.split(","):
                assert re.search(rf"^{extra} = \[", text, re.M), extra


@pytest.mark.parametrize(
    "file, command", [c for c in commands() if "-m safeedit" in c[1]], ids=ids
)
def test_commands_of_the_kit_parse(file, command):
    words = shlex.split(command)
    given = words[words.index("safeedit") + 1 :]
    parsed = cli._parser().parse_args(given)
    assert callable(parsed.command)


def test_a_failed_week_opens_one_issue():
    report = load(ROOT / ".github" / "workflows" / "weekly.yml")["jobs"]["report"]
    assert report["if"] == "failure()"
    script = report["steps"][0]["run"]
    assert script.index("gh issue list") < script.index("gh issue create")
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def test_only_a_tag_publishes():
    pages = load(ROOT / ".github" / "workflows" / "pages.yml")
    assert pages["on"] == {"push": {"tags": ["v*"]}}
    assert pages["jobs"]["deploy"]["needs"] == "build"
    build = [step.get("run") for step in pages["jobs"]["build"]["steps"]]
    assert ".ci/run" in build and "make fresh" in build
