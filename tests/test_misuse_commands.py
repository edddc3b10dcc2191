"""Wrong command lines, wrong notebooks, and wrong parameters of notebooks."""

import pytest
from misuse import INF, NAN, Bench, Case, case, check, says

from safeedit import __main__ as cli
from safeedit.workflow import notebooks
from safeedit.workflow.notebooks import NotebookError

AREA = "Commands and notebooks"
M = "standin-gemma"
UNREAD = "---\nx: [\n---\n# X\n"  # a header that is no YAML
KERNEL = "kernelspec: {display_name: Python 3, language: python, name: python3}"
HEADER = f"---\n{KERNEL}\nsafeedit: %s\n---\n# X\n"
SOURCES = {  # folder of notebooks -> its one source
    "unread": UNREAD,
    "tagged": "---\nx: !!python/object/apply:os.system ['true']\n---\n# X\n",
    "binary": b"\xff\xfe\x00",
    "header": HEADER % "[1]",
    "waits": HEADER % "{reads: [nothing]}",
    "models": HEADER % "{models: [standin-llama]}",
}

# Command line, status, what stderr says. {at} is the bench, {long} a long name.
LINES = [
    ("", 2, "required: COMMAND"),
    ("bake", 2, "invalid choice: 'bake'"),
    ("doctor now", 2, "unrecognized arguments: now"),
    ("picture now", 2, "unrecognized arguments: now"),
    ("fresh now", 2, "unrecognized arguments: now"),
    ("fresh --root nowhere", 1, "nowhere has no folder notebooks/src. Next step"),
    ("fresh --root edit", 1, "edit has no folder notebooks/src. Next step"),
    ("fresh --root unread", 1, "not a notebook in MyST Markdown", "Next step: correct"),
    ("notebooks --root nowhere", 1, "no folder notebooks/src. Next step"),
    ("notebooks --jobs x", 2, "'x': want a whole number from 1 on"),
    ("reproduce --scale x", 2, "'x'", "choose from 'smoke', 'cpu', 'gpu'"),
    ("reproduce --jobs 0", 2, "'0': want a whole number from 1 on"),
    ("reproduce --jobs -1", 2, "'-1': want a whole number from 1 on"),
    ("reproduce --seeds x", 2, "invalid int value: 'x'"),
    ("reproduce --root root --notebooks T9", 1, "no name begins with 'T9'; there are"),
    ("reproduce --root root --models standin-lama", 1, "mean 'standin-llama'?"),
    ("run 90 --root root -m standin-lama", 1, "mean 'standin-llama'? Known names"),
    ("reproduce --root root --models ,", 1, "models are ['', '']; give names such as"),
    ("run", 2, "required: notebook"),
    ("run 99 --root root", 1, "'99' names 0 notebooks, want 1; allowed: 90_demo"),
    ("run ../../x --root root", 1, "'../../x' names 0 notebooks", "allowed: 90_demo"),
    ("run {empty} --root root", 1, "the name of a notebook is ''; allowed: 90_demo"),
    ("run 90 --root root -p sede=1", 1, "no parameter 'sede'; allowed, with defaults"),
    ("run 90 --root root -p =1", 1, "no parameter ''; allowed, with defaults"),
    ("run 90 --root root -p seed", 1, "-p 'seed': want NAME=VALUE"),
    ("run 90 --root root -p seed=one", 1, "seed is 'one' (str), want a int such as 0"),
    ("run 90 --root root -p seed=", 1, "seed is '' (str), want a int such as 0"),
    ("run 90 --root root -p seed={deep}", 1, "seed is '((((", "want a int such as 0"),
    ("run 90 --root root -p scale=huge", 1, "scale is 'huge'; use one of ('smoke'"),
    ("run 90 --root root -p rate=1e999", 1, "rate is inf", "give a finite number"),
    ("compare nowhere mine", 1, "nowhere: no such folder of records"),
    ("compare mine nowhere", 1, "nowhere: no such folder of records"),
    ("compare edit mine", 1, "edit: no such folder of records"),
    ("compare broken mine", 1, "m.json: not a JSON document", "Next step: delete it"),
    ("train --architecture mamba", 2, "invalid choice: 'mamba'"),
    ("train --steps x", 2, "invalid int value: 'x'"),
    ("train --seeds x", 2, "invalid int value: 'x'"),
    (f"edit {M} --words bomb", 2, "required: --out"),
    (f"edit {M} --out o", 2, "required: --words"),
    ("edit nothing --words bomb --out o", 1, "Unknown model 'nothing'. Known names"),
    ("edit standin-gema --words bomb --out o", 1, "Did you mean 'standin-gemma'"),
    ("edit ./no --words bomb --out o", 1, "There is no model folder no. Give a folder"),
    ("edit truncated --words bomb --out o", 1, "truncated or damaged", "Delete it"),
    ("edit without-weights --words bomb --out o", 1, "no *.safetensors", "convert"),
    (f"edit {M} --words bomb --out o --dtype int8", 2, "invalid choice: 'int8'"),
    (f"edit {M} --words bomb --out o --device tpu", 1, "Unknown device 'tpu'; use"),
    (f"edit {M} --words bomb --out model", 1, "model exists; give the name of a new"),
    (f"edit {M} --words bomb --out .", 1, ". exists; give the name of a new folder"),
    (f"edit {M} --words bomb --out edit/x", 1, "edit/x cannot be written", "is a file"),
    (f"edit {M} --words bomb --out edit/x.safetensors", 1, "edit is a file; give a"),
    (f"edit {M} --words bomb --out {{nul}}", 1, r"'a\x00b' holds a NUL; give another"),
    (f"edit {M} --words bomb --out {{long}}", 1, "has 300 bytes; give one of at most"),
    (f"edit {M} --words bom --out o", 1, "'bom' is not a word", "did you mean bomb?"),
    (f"edit {M} --words , --out o", 1, "',' holds no words; give a file with one word"),
    (f"edit {M} --words {{empty}} --out o", 1, "'' holds no words; give a file"),
    (f"edit {M} --words ./model --out o", 1, "there is no file model; give a file"),
    (f"edit {M} --words ./no.txt --out o", 1, "there is no file no.txt; give a file"),
    (f"edit {M} --words bomb --out o --layers x", 2, "'x': want a number of last"),
    (f"edit {M} --words bomb --out o --layers 9", 1, "layers is 9", "has 6 blocks"),
    (f"edit {M} --words bomb --out o --layers ,", 1, "layers is empty; name at least"),
    (f"edit {M} --words bomb --out o --method ga", 2, "'ga'", "'pcr', 'tsr', 'arr'"),
    (
        f"edit {M} --words bomb --out o --eps-factor nan",
        1,
        "eps_factor is nan; it must",
    ),
    (f"edit {M} --words bomb --out o --eps-factor x", 2, "invalid float value: 'x'"),
    (f"edit {M} --words bomb --out o --steps 5", 1, "steps means nothing to pcr"),
    (f"edit {M} --words bomb --out o --method tsr --steps 0", 1, "steps is 0; give a"),
    (f"edit {M} --words bomb --out o --seed x", 2, "invalid int value: 'x'"),
    (f"edit {M} --words bomb --out o --limit -1", 1, "requests is -1; give at least 1"),
    (
        f"edit {M} --words bomb --out o --prompts model",
        1,
        "there is no file model; give",
    ),
    (
        f"edit {M} --words bomb --out o --prompts edit",
        1,
        "edit is not a UTF-8 text file",
    ),
    (
        f"edit {M} --words bomb --out o --prompts broken/90_demo/m.json",
        1,
        "m.json: not a JSON document",
    ),
    (
        f"edit {M} --words bomb --out o --prompts mine/90_demo/m.json",
        1,
        "m.json holds no prompts; give one a line",
    ),
    ("attack nothing", 1, "Unknown model 'nothing'. Known names"),
    (f"attack {M} --attack x", 2, "'x'", "'gcg', 'pgd', 'prefill', 'random-suffix'"),
    (f"attack {M} --attack pgd --width 3 --words bomb", 1, "--width means nothing to"),
    (
        f"attack {M} --suffix-length 0 --words bomb --limit 1",
        1,
        "suffix_length is 0; gi",
    ),
    (
        f"attack {M} --steps -1 --words bomb --limit 1",
        1,
        "num_steps is -1; give a whole",
    ),
    (f"attack {M} --limit 0 --words bomb", 1, "requests is 0; give at least 1"),
    (f"attack {M} --words bomb --prompts edit", 1, "--words and --prompts; give one"),
    (f"attack {M} --edit edit-half --words bomb", 1, "edit-half is corrupt or trunc"),
    (f"attack {M} --edit edit --words bomb", 1, "has shape (32, 48), the weight (128"),
    (f"attack {M} --checkpoint ./no --words bomb", 1, "There is no model folder no."),
    (f"attack {M} --checkpoint truncated --words bomb", 1, "truncated or damaged"),
    (f"attack {M} --out edit", 1, "edit exists; give the name of a new"),
    (f"attack {M} --out edit/x", 1, "edit/x cannot be written", "give a path in a fol"),
    (f"attack {M} --out {{long}}", 1, "has 300 bytes; give one of at most 240"),
    ("evaluate nothing", 1, "Unknown model 'nothing'. Known names"),
    (f"evaluate {M} --edit none --words bomb", 1, "there is no edit at none; check"),
    (f"evaluate {M} --edit edit-noise --words bomb", 1, "edit-noise is corrupt"),
    (f"evaluate {M} --edit edit --words bomb", 1, "was it made for another model?"),
    (f"evaluate {M} --edit a --checkpoint b", 2, "not allowed with argument --edit"),
    (f"evaluate {M} --checkpoint model --words bomb", 1, "model is no checkpoint of"),
    (f"evaluate {M} --limit 0 --words bomb", 1, "requests is 0; give at least 1"),
    (f"evaluate {M} --words bom", 1, "'bom' is not a word", "did you mean bomb?"),
    (f"evaluate {M} --prompts none.txt", 1, "there is no file none.txt; give one prom"),
    (f"evaluate {M} --out edit", 1, "edit exists; give the name of a new"),
    (f"evaluate {M} --out {{nul}}", 1, "holds a NUL; give another"),
]
SPECIAL = {"{empty}": "", "{nul}": "a\0b", "{long}": "x" * 300, "seed={deep}": None}


class Told(Exception):
    """What a command line printed to stderr, and its exit status."""


def command(line: str, status: int):
    """A call that runs a command line in the bench's folder."""

    def call(bench: Bench) -> None:
        words = [SPECIAL.get(word, word) for word in line.split()]
        words = ["seed=" + "(" * 1000 if word is None else word for word in words]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(bench.at)
            try:
                ended = cli.main(words)
            except SystemExit as stop:  # argparse
                ended = stop.code
        said = bench.capsys.readouterr().err
        assert ended == status, said
        assert "Traceback" not in said
        raise Told(said)

    return call


def run_of(bench: Bench, **parameters) -> notebooks.Run:
    source = notebooks.load_source("90", bench.at / "root")
    return notebooks.make_run(source, parameters)


def prepare(bench: Bench) -> None:
    """Write the folders of notebooks of this module into the bench, once."""
    if (bench.at / "unread").exists():
        return
    for name, text in SOURCES.items():
        folder = bench.at / name / "notebooks" / "src"
        folder.mkdir(parents=True)
        content = text if isinstance(text, bytes) else text.encode()
        (folder / "91_demo.md").write_bytes(content)
    vars(bench).pop("as_it_was", None)  # with these files the bench begins anew


PARAMETERS = [
    case(
        f"the notebook parameter {name} = {value!r:.20}",
        lambda b, name=name, value=value: run_of(b, **{name: value}),
        NotebookError,
        *words,
    )
    for name, value, words in (
        ("sede", 1, ("has no parameter 'sede'; allowed", "seed=0")),
        ("seed", "1", ("seed is '1' (str), want a int such as 0",)),
        ("seed", True, ("seed is True (bool), want a int",)),
        ("seed", 0.5, ("seed is 0.5 (float), want a int",)),
        ("seed", 2**70, ("seed has 71 bits; give", "such as 0")),
        ("rate", "high", ("rate is 'high' (str), want a float such as 0.5",)),
        ("rate", NAN, ("rate is nan, which no record can hold; give a finite",)),
        ("rate", -INF, ("rate is -inf, which no record can hold",)),
        ("model_name", 3, ("model_name is 3 (int), want a str such as 'standin-",)),
        ("words", "boat", ("words is 'boat' (str), want a list such as ['boat']",)),
        ("scale", "huge", ("scale is 'huge'; use one of ('smoke', 'cpu', 'gpu')",)),
    )
]

NOTEBOOKS = [
    case(
        what,
        lambda b, name=name: notebooks.plan(root=b.at / name),
        NotebookError,
        *words,
    )
    for what, name, words in (
        (
            "a notebook whose header is no YAML",
            "unread",
            ("91_demo.md: not a notebook in MyST Markdown", "correct its YAML header"),
        ),
        (
            "a notebook whose header makes an object",
            "tagged",
            ("91_demo.md: not a notebook", "could not determine a constructor"),
        ),
        ("a notebook that is no text", "binary", ("91_demo.md: not a notebook",)),
        (
            "a notebook whose header is a list",
            "header",
            ("header says safeedit: [1], want a mapping",),
        ),
        (
            "a notebook that waits for one that is not there",
            "waits",
            ("{'91_demo': ['nothing']}", "correct `reads` in their headers"),
        ),
        (
            "a notebook that compares models and has no model_name",
            "models",
            ("91_demo.md: its header compares models", "add the parameter"),
        ),
    )
]

COMMANDS = [
    case(f"`safeedit {line}`", command(line, status), Told, *words)
    for line, status, *words in LINES
]
CASES = [*PARAMETERS, *NOTEBOOKS, *COMMANDS]


@pytest.mark.parametrize("one", CASES, ids=[one.key for one in CASES])
@pytest.mark.filterwarnings("ignore:PCR changes nothing")
def test_error_is_clear_and_nothing_is_changed(bench, capsys, one: Case):
    prepare(bench)
    bench.capsys = capsys
    check(bench, one)


def test_labels_of_runs_are_names_of_files(bench):
    """A model's name becomes part of a path; nothing in it leads out of the folder."""
    root = bench.at / "root"
    for name in ("..", "../../x", "/etc/x", "a\0b", ".", "x" * 500, "\u20ac" * 500, ""):
        run = run_of(bench, model_name=name)
        assert run.label and len(run.label.encode()) <= notebooks.LABEL
        for path in (*run.editions.values(), run.record_path, run.status_path):
            inside = path.resolve().relative_to(root.resolve())
            assert inside.parts[0] in ("runs", "results")
            assert "\0" not in str(path)
    labels = [run_of(bench, model_name=n * 500).label for n in ("x", "y", "\u20ac")]
    assert len(set(labels)) == 3


def test_the_words_of_a_command_line_are_said_once():
    lines = [line for line, *_ in LINES]
    assert len(lines) == len(set(lines))
    says("a b", ("a", "b"))
