"""Bad input to defenses, judges, metrics, data, and to what counts memory."""

import random

import pytest
from misuse import LONG, NAN, Case, case, check

from safeedit import data, harmbench, judges, knowledge, memory, metrics, tables
from safeedit.classifier import HarmBenchClassifier, Prompts
from safeedit.defenses import (
    SelfReminder,
    SmoothLLM,
    defense_success_probability,
    perturb,
)
from safeedit.edits import PCRConfig, TestTimePCR
from safeedit.evaluation import Judge
from safeedit.knowledge_measures import hits_of, letter_accuracy
from safeedit.knowledge_statistics import auc, recovery

AREA = "Defenses, judges, metrics and data"
V, F = ValueError, FileNotFoundError
CARD = ("{behavior}{generation}", "{behavior}{generation}{context}")


def smooth(bench, **settings) -> SmoothLLM:
    return SmoothLLM(bench.chat, **settings)


def behaviours(bench, name: str, targets: str = "targets.json", **options):
    """A file of HarmBench's form from the bench."""
    folder = bench.at / "harmbench"
    return harmbench.load(folder / name, folder / targets, verify=False, **options)


DEFENSES = [
    *(
        case(
            f"SmoothLLM with {name} {value!r}",
            lambda b, name=name, value=value: smooth(b, **{name: value}),
            V,
            f"{name} is {value!r}; {step}",
        )
        for name, value, step in (
            ("copies", 0, "give a whole number >= 1"),
            ("copies", "3", "give a whole number >= 1"),
            ("percent", 101, "give 0 to 100"),
            ("percent", NAN, "give 0 to 100"),
            ("kind", "x", "give one of swap, patch, insert"),
            ("threshold", 1, "give a share in [0, 1), e.g. 0.5"),
        )
    ),
    case(
        "SmoothLLM of no prompts",
        lambda b: smooth(b, copies=2).generate([]),
        V,
        "empty list of prompts",
    ),
    case(
        "SmoothLLM with a prefill too many",
        lambda b: smooth(b, copies=2).generate(["a"], 2, prefill=["a", "b"]),
        V,
        "Got 2 prefills for 1 prompts; give one string, or one for each",
    ),
    case(
        "SmoothLLM around a text",
        lambda b: SmoothLLM("x", copies=2).render(["a"]),
        V,
        "Got a str that wraps no Chat",
        "wrap a Chat",
    ),
    case(
        "a reminder at an unknown place",
        lambda b: SelfReminder(b.chat, where="x"),
        V,
        "where is 'x'; give 'both', 'before' or 'after'",
    ),
    case(
        "a reminder in an unknown role",
        lambda b: SelfReminder(b.chat, role="x"),
        V,
        "role is 'x'; give 'auto', 'system' or 'user'",
    ),
    case(
        "a reminder in a role that the template has not",
        lambda b: SelfReminder(b.mistral, role="system"),
        V,
        "the chat template of tiny-mistral has no system role; give role='auto'",
    ),
    case(
        "a reminder after the request in the system role",
        lambda b: SelfReminder(b.chat, role="system", where="after"),
        V,
        "role is 'system' and where is 'after'",
        "give role='user'",
    ),
    case(
        "a reminder around nothing",
        lambda b: SelfReminder(None),
        V,
        "Got a NoneType that wraps no Chat",
    ),
    case(
        "a reminder around a long prompt",
        lambda b: SelfReminder(b.chat).generate(["bread " * 240]),
        V,
        "Prompt 0 has",
        "Shorten it",
    ),
    case(
        "a perturbation of -1 percent",
        lambda b: perturb("ab", -1, "insert", random.Random(0)),
        V,
        "percent is -1; give 0 to 100",
    ),
    case(
        "a closed form for insertions",
        lambda b: defense_success_probability(1, 10, 5, 10, 3, kind="insert"),
        V,
        "there is no closed form",
        "Use 'swap' or 'patch', or simulate with perturb",
    ),
    case(
        "a suffix longer than its prompt",
        lambda b: defense_success_probability(1, 5, 10, 10, 3),
        V,
        "m 5, m_suffix 10",
        "needed: k >= 0, 0 <= m_suffix <= m",
    ),
]

MEASURES = [
    case(
        "an unknown matcher",
        lambda b: judges.is_refusal("a", "x"),
        V,
        "Unknown matcher 'x'; use gcg-7, smoothllm-13, harmbench-style",
    ),
    case(
        "an interval of nothing",
        lambda b: metrics.wilson_interval(0, 0),
        V,
        "Got k=0 of n=0; need 0 <= k <= n and n >= 1",
    ),
    case(
        "an interval of 3 in 2",
        lambda b: metrics.wilson_interval(3, 2),
        V,
        "Got k=3 of n=2; need",
    ),
    case(
        "an interval of -1 in 2",
        lambda b: metrics.wilson_interval(-1, 2),
        V,
        "Got k=-1 of n=2; need",
    ),
    case(
        "an interval of NaN in 2",
        lambda b: metrics.wilson_interval(NAN, 2),
        V,
        "Got k=nan of n=2; need",
    ),
    case(
        "a bootstrap of unequal lengths",
        lambda b: metrics.paired_bootstrap([1], [1, 2]),
        V,
        "Got 1 and 2 values; give one of each for every prompt",
    ),
    case(
        "a bootstrap of nothing",
        lambda b: metrics.paired_bootstrap([], []),
        V,
        "Got 0 and 0 values; give one of each",
    ),
    case("rates of no labels", lambda b: metrics.rates([]), V, "Got labels none; use"),
    case(
        "rates of an unknown label",
        lambda b: metrics.rates(["maybe"]),
        V,
        "Got labels ['maybe']; use refusal, success, other",
    ),
    case(
        "rates with a text less",
        lambda b: metrics.rates(["other"], []),
        V,
        "Got 0 texts for 1 labels",
    ),
    case(
        "perplexity of one word as a string",
        lambda b: metrics.forbidden_perplexity(b.chat, "boat"),
        V,
        "words is 'boat'; give a list with at least one string",
    ),
    case(
        "perplexity of no words",
        lambda b: metrics.forbidden_perplexity(b.chat, []),
        V,
        "words is []; give a list with at least one string",
    ),
    case(
        "perplexity of an empty word",
        lambda b: metrics.forbidden_perplexity(b.chat, [""]),
        V,
        "hold no token to predict; give longer ones",
    ),
    case(
        "utility of no texts",
        lambda b: metrics.utility_perplexity(b.chat, []),
        V,
        "texts is []; give a list",
    ),
    case(
        "utility of a long text",
        lambda b: metrics.utility_perplexity(b.chat, [LONG]),
        V,
        "Prompt 0 has",
        "Shorten it",
    ),
    case(
        "perplexity with a prompt less",
        lambda b: metrics.sequence_perplexity(b.chat, ["a"], ["a", "b"]),
        V,
        "Got 1 heads, 2 texts and 2 words; give one of each",
    ),
    case(
        "perplexity of no tokens",
        lambda b: metrics.perplexity([[]]),
        V,
        "hold no token to predict",
    ),
    case(
        "a ratio of perplexities of different tokens",
        lambda b: metrics.perplexity([[1.0]], [[1.0, 2.0]]),
        V,
        "other numbers of tokens; measure both on the same texts",
    ),
    case(
        "a word that is not in its text",
        lambda b: metrics.token_nlls(b.chat, ["a"], ["b"], ["c"]),
        V,
        "The word 'c' is not in its text 'b'",
    ),
    case(
        "an edit for a text without a prompt",
        lambda b: metrics.token_nlls(
            b.chat,
            [""],
            ["b"],
            edit=TestTimePCR(b.chat, ["boat"], PCRConfig(eps=1.0)),
        ),
        V,
        "Head 0 is empty",
        "give each text a head",
    ),
    case(
        "an evaluation without questions",
        lambda b: Judge(b.chat).evaluate(b.chat, []),
        V,
        "Got no questions; give at least one",
    ),
    case(
        "a verdict on an unknown word",
        lambda b: b.world.judge("teapot", ""),
        KeyError,
        "'teapot' is not a word of this world; see World.keywords",
    ),
    case(
        "letters without facts",
        lambda b: letter_accuracy(b.chat, []),
        V,
        "Got no facts to ask about; give at least one",
    ),
    case("hits other than 0 and 1", lambda b: hits_of("10x"), V, "hits='10x': only 1"),
    case(
        "recovery on unequal questions",
        lambda b: recovery([1], [1, 0], [1]),
        V,
        "Got 1, 2 and 1 hits",
        "give one of each for every question",
    ),
    case(
        "AUC of nothing", lambda b: auc([], [1]), V, "Got 0 and 1 scores; give at lea"
    ),
    case(
        "a table that the paper has not",
        lambda b: tables.paper("T9"),
        KeyError,
        "table='T9': one of T1, T2, T3, T4",
    ),
    case(
        "memory of an unknown model",
        lambda b: memory.describe("standin-llama"),
        V,
        "No shapes are known for 'standin-llama'; use llama-3.1-8b-instruct",
    ),
]

DATA = [
    case(
        "requests of an unknown kind",
        lambda b: b.world.requests("evil"),
        V,
        "kind='evil'",
        "kind is one of ['forbidden', 'benign']",
    ),
    case(
        "requests of an unknown split",
        lambda b: data.obedience("test"),
        V,
        "split='test'",
        "split one of ['train', 'heldout']",
    ),
    case("0 requests", lambda b: data.benign(limit=0), V, "limit=0: give at least 1"),
    case(
        "-1 requests", lambda b: data.obedience(limit=-1), V, "limit=-1: give at least"
    ),
    case(
        "questions of an unknown domain",
        lambda b: data.questions("medical"),
        V,
        "domain='medical': one of 'hazard', 'adjacent', 'general'",
    ),
    case("0 sentences", lambda b: data.utility_text(0), V, "n=0: give at least 1"),
    case(
        "an unknown skill",
        lambda b: b.world.skill_question("x", None),
        V,
        "kind='x': one of 'sentiment', 'count'",
    ),
    case("101 % noise", lambda b: b.noisy(101), V, "percent=101: must lie in [0, 100]"),
    case(
        "facts of an unknown part",
        lambda b: knowledge.split().facts("hazard", "x"),
        V,
        "part='x'",
        "one of ('practice', 'validation', 'evaluation')",
    ),
    case(
        "nine orders of three facts",
        lambda b: knowledge.unlearn_data(knowledge.split(), orders=9),
        V,
        "orders=9: give 1 to 6",
    ),
    case(
        "relearning data of an unknown kind",
        lambda b: knowledge.relearn_examples(knowledge.split(), "x", 1),
        V,
        "kind='x': one of ('documents', 'questions'",
    ),
    case(
        "an unknown split of HarmBench",
        lambda b: harmbench.load(split="x"),
        V,
        "split is 'x'; use one of test, val",
    ),
    case(
        "an unknown category of HarmBench",
        lambda b: harmbench.load(categories=("x",)),
        V,
        "categories is ('x',); give some of standard, contextual, copyright",
    ),
    case(
        "one string of categories",
        lambda b: harmbench.load(categories="standard"),
        V,
        "categories is 'standard'; give some of standard",
        "as a tuple",
    ),
    case(
        "0 behaviours", lambda b: harmbench.load(limit=0), V, "limit=0: give at least"
    ),
    case(
        "HarmBench from a file that is not there",
        lambda b: harmbench.load(b.at / "no.csv", b.at / "no.json"),
        F,
        "There is no file",
        "no.csv. Give the path of harmbench_behaviors_text_test.csv",
    ),
    case(
        "HarmBench from another file",
        lambda b: harmbench.load(b.at / "edit", b.at / "edit"),
        V,
        "edit has SHA-256",
        "damaged or of another version. Next step",
    ),
    *(
        case(
            f"HarmBench with {what}",
            lambda b, name=name: behaviours(b, name),
            V,
            name,
            *words,
        )
        for what, name, words in (
            ("other columns", "columns.csv", ("lacks the columns Behavior",)),
            ("an id twice", "twice.csv", ("has ids more than once: i",)),
            ("a behaviour without text", "empty.csv", ("('i') lacks its id or text",)),
            ("an odd category", "odd.csv", ("'odd'; known are standard, contextual",)),
            ("no context", "context.csv", ("i is contextual and has no ContextStri",)),
            ("a field of 200 kB", "huge.csv", ("is no CSV file in UTF-8",)),
        )
    ),
    *(
        case(
            f"HarmBench with {what} for targets",
            lambda b, name=name: behaviours(b, "good.csv", name),
            V,
            *words,
        )
        for what, name, words in (
            ("none", "none.json", ("1 behaviours have no target, among them i. Give",)),
            ("half a file", "half.json", ("half.json is not a JSON document",)),
            ("a list", "list.json", ("has to be one JSON object, id -> target",)),
            ("a number", "number.json", ("has to be one JSON object, id -> target",)),
        )
    ),
    case(
        "a classifier's card that is not there",
        lambda b: Prompts.from_card(b.at / "no"),
        F,
        "There is no file",
        "Get the model card with `hf download",
    ),
    case(
        "another file for a classifier's card",
        lambda b: Prompts.from_card(b.at / "harmbench" / "good.csv"),
        V,
        "good.csv holds no 'prompt' in triple quotes",
        "Give that file, or make Prompts(standard, contextual)",
    ),
    case(
        "a classifier's prompt that reads attributes",
        lambda b: Prompts("{behavior.__class__}{generation}", CARD[1]),
        V,
        "has the fields ['behavior.__class__', 'generation']; it needs ['behavior'",
    ),
    case(
        "a classifier that reads 0 tokens",
        lambda b: HarmBenchClassifier(b.chat, Prompts(*CARD), 0),
        V,
        "max_tokens is 0; give at least 1",
    ),
    case(
        "a classifier with a response less",
        lambda b: HarmBenchClassifier(b.chat, Prompts(*CARD)).judge(["a"], []),
        V,
        "Got 1 behaviours, 0 responses and 1 contexts; give one of each",
    ),
]

CASES = [*DEFENSES, *MEASURES, *DATA]


@pytest.mark.parametrize("one", CASES, ids=[one.key for one in CASES])
def test_error_is_clear_and_nothing_is_changed(bench, one: Case):
    check(bench, one)
