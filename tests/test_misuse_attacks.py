"""Bad input to unlearning, and to attacks on prompts, weights and activations."""

import pytest
import torch
from misuse import INF, LONG, NAN, PROMPTS, Case, case, check, inside

from safeedit.attacks import (
    GCGConfig,
    PGDConfig,
    PrefillConfig,
    RandomSuffixConfig,
    RelearnConfig,
    gcg,
    pgd,
    prefill,
    prune,
    prune_scores,
    quantize,
    random_suffix,
    relearn,
    set_difference_pruning,
)
from safeedit.attacks.logit_lens import logit_lens
from safeedit.attacks.orthogonalization import (
    OrthogonalizationConfig,
    find_directions,
    orthogonalized,
)
from safeedit.attacks.universal_prefix import (
    UniversalPrefixConfig,
    random_prefix,
    universal_prefix,
)
from safeedit.edits import SmoothingConfig, UnlearnConfig, UnlearnData, unlearn
from safeedit.examples import Example, from_chats, from_texts

AREA = "Unlearning and attacks"
V = ValueError
SHORT = dict(num_steps=1, suffix_length=4, search_width=4, topk=4, max_new_tokens=2)
TARGETS = ["a", "a"]
WHOLE, WHOLE0 = "give a whole number >= 1", "give a whole number >= 0"
POSITIVE, SHARE = "it must be finite and > 0", "give a share in [0, 1]"


def data(**changes) -> UnlearnData:
    rows = {"forget_texts": ("a b",), "retain_texts": ("c d",)}
    return UnlearnData(**(rows | changes))


def forget(bench, method="graddiff", rows=None, checkpoint=None, **config):
    settings = UnlearnConfig(**({"steps": 1, "batch_size": 1} | config))
    rows = rows or data()
    return unlearn(bench.chat, rows, method, settings, checkpoint=checkpoint)


def gcg_of(bench, prompts=PROMPTS, targets=PROMPTS, **config):
    return gcg(bench.chat, prompts, targets, GCGConfig(**(SHORT | config)))


def control_of(bench, prompts=PROMPTS, **config):
    return random_suffix(bench.chat, prompts, RandomSuffixConfig(**config))


def directions(bench, variant="ground_truth", prompts=PROMPTS, skip=1, **options):
    config = OrthogonalizationConfig(variant, skip=skip)
    return find_directions(bench.chat, prompts, config, **options)


def prefix(bench, questions=PROMPTS, targets=TARGETS, original=None, **config):
    settings = UniversalPrefixConfig(**config)
    return universal_prefix(bench.chat, questions, targets, settings, original=original)


# Settings: config, field, value, what the message says after the value.
SETTINGS = [
    (UnlearnConfig, "steps", 0, WHOLE),
    (UnlearnConfig, "steps", "1", WHOLE0),
    (UnlearnConfig, "learning_rate", -1, POSITIVE),
    (UnlearnConfig, "learning_rate", NAN, POSITIVE),
    (UnlearnConfig, "batch_size", 0, WHOLE),
    (UnlearnConfig, "warmup", 2, "give a share of the steps in [0, 1]"),
    (UnlearnConfig, "decay", "x", "use one of ('linear', 'constant')"),
    (UnlearnConfig, "weight_decay", -1, "it must be finite and >= 0"),
    (UnlearnConfig, "clip", 0, "give a norm > 0, or None for no limit"),
    (UnlearnConfig, "gamma", -1, "it must be finite and >= 0"),
    (UnlearnConfig, "chats", 2, "it must be finite and in [0, 1]"),
    (UnlearnConfig, "beta", 0, POSITIVE),
    (UnlearnConfig, "normalize", "x", "use one of ('sum', 'mean')"),
    (UnlearnConfig, "rmu_scale", 0, POSITIVE),
    (UnlearnConfig, "rmu_layers", (), "give a tuple, not empty"),
    (UnlearnConfig, "lora_rank", 0, WHOLE),
    (UnlearnConfig, "lora_targets", "q_proj", "give a tuple, not empty"),
    (UnlearnConfig, "prompts", 0, WHOLE),
    (UnlearnConfig, "tokens", "x", "give a tuple, not empty"),
    (UnlearnConfig, "checkpoint_every", 0, WHOLE),
    (SmoothingConfig, "kind", "x", "use one of (None, 'sam', 'rs'"),
    (SmoothingConfig, "rho", 0, POSITIVE),
    (SmoothingConfig, "draws", 0, WHOLE),
    (SmoothingConfig, "every", True, WHOLE),
    (GCGConfig, "search_width", 0, WHOLE),
    (GCGConfig, "search_width", NAN, WHOLE),
    (GCGConfig, "search_width", "5", WHOLE),
    (GCGConfig, "suffix_length", 0, WHOLE),
    (GCGConfig, "topk", 2.5, WHOLE),
    (GCGConfig, "num_steps", -1, WHOLE0),
    (GCGConfig, "max_new_tokens", 0, WHOLE),
    (GCGConfig, "batch_tokens", 0, WHOLE),
    (GCGConfig, "n_replace", 99, "give 1 to suffix_length = 20"),
    (PGDConfig, "learning_rate", 0, "give a finite number > 0"),
    (PGDConfig, "clip", NAN, "give a finite number > 0"),
    (PGDConfig, "entropy", 1.5, SHARE),
    (PGDConfig, "schedule", "x", "give 'constant' or 'cosine'"),
    (PGDConfig, "num_steps", -1, WHOLE0),
    (PGDConfig, "samples", -1, WHOLE0),
    (RandomSuffixConfig, "tries", 0, "and suffix_length is 20; give at least 1"),
    (RelearnConfig, "epochs", 0, WHOLE),
    (RelearnConfig, "samples", -1, WHOLE0),
    (RelearnConfig, "lora_rank", 0, WHOLE),
    (RelearnConfig, "lora_alpha", 0, "it must be > 0"),
    (RelearnConfig, "learning_rate", INF, POSITIVE),
    (OrthogonalizationConfig, "variant", "x", "give one of ('ground_truth'"),
    (OrthogonalizationConfig, "skip", -1, WHOLE0),
    (OrthogonalizationConfig, "max_tokens", 1, "give a whole number >= 2"),
    (OrthogonalizationConfig, "z", NAN, "give a number > 0"),
    (UniversalPrefixConfig, "num_steps", -1, WHOLE0),
    (UniversalPrefixConfig, "max_length", 2, "give a whole number >= 8"),
    (UniversalPrefixConfig, "shares", (1,), "give one >= 0 for each ('gcg'"),
    (UniversalPrefixConfig, "shares", (1, -1, 0, 0), "give one >= 0 for each"),
]

UNLEARNING = [
    case(
        "nothing to forget",
        lambda b: data(forget_texts=()),
        V,
        "the forget set is empty; give forget_texts or forget_chats",
    ),
    case(
        "nothing to keep",
        lambda b: data(retain_texts=()),
        V,
        "the retain set is empty; give retain_texts or retain_chats",
    ),
    case(
        "one string to forget",
        lambda b: data(forget_texts="abc"),
        V,
        "forget_texts is one string, 'abc'; give a tuple of texts",
    ),
    case(
        "an empty text to forget",
        lambda b: data(forget_texts=("a", " ")),
        V,
        "forget_texts[1] is ' '; give a text",
    ),
    case(
        "a number to forget",
        lambda b: data(forget_texts=(3,)),
        V,
        "forget_texts[0] is 3; give a text",
    ),
    case(
        "a chat that is one string",
        lambda b: data(forget_chats=("ab",)),
        V,
        "forget_chats[0] is 'ab'; give a pair (question, answer)",
    ),
    case(
        "a chat of three turns",
        lambda b: data(retain_chats=(("a", "b", "c"),)),
        V,
        "retain_chats[0] is ('a', 'b', 'c'); give a pair",
    ),
    case(
        "a row in both sets",
        lambda b: data(forget_texts=("c  d",)),
        V,
        "overlap in 1 rows: forget_texts[0] is retain_texts[0]",
        "Remove them from one of the two",
    ),
    case(
        "an unknown method of unlearning",
        lambda b: forget(b, "forget"),
        V,
        "method is 'forget'; use one of ('graddiff', 'npo'",
    ),
    case(
        "an unknown smoothing",
        lambda b: unlearn(b.chat, data(), "npo", smoothing="xyz"),
        V,
        "kind is 'xyz'; use one of (None, 'sam'",
    ),
    case(
        "adapters of unknown layers",
        lambda b: forget(b, lora_rank=2, lora_targets=("x",)),
        V,
        "lora_targets has 'x'; this model has ['down_proj'",
    ),
    case(
        "averaging after the last step",
        lambda b: UnlearnConfig(steps=5, smoothing=SmoothingConfig(kind="wa", start=9)),
        V,
        "starts at step 9, after the last of 5; give SmoothingConfig",
    ),
    case(
        "RMU of a block beyond the last",
        lambda b: forget(b, "rmu", rmu_layer=9),
        V,
        "Layer 9 is out of range: tiny-llama has blocks 0 to 2",
    ),
    case(
        "RMU that trains a block too late",
        lambda b: forget(b, "rmu", rmu_layer=0, rmu_layers=(2,)),
        V,
        "block 2 comes after it and would learn nothing; use 0 to 0",
    ),
    case(
        "DPO without questions",
        lambda b: forget(b, "dpo"),
        V,
        "forget_chats is empty; give UnlearnData(forget_chats=..., refusals=...)",
    ),
    case(
        "PCR as unlearning without questions",
        lambda b: forget(b, "pcr"),
        V,
        "forget_chats is empty; give UnlearnData(forget_chats=...)",
    ),
    case(
        "PCR as unlearning with adapters",
        lambda b: forget(b, "pcr", lora_rank=2),
        V,
        "neither smoothing (None) nor lora_rank (2); set both to None",
    ),
    case(
        "PCR as unlearning of answers without a word",
        lambda b: forget(b, "pcr", data(forget_chats=(("a?", "b"),))),
        V,
        "no word of two letters or more, such as ['b']",
        "add open questions to forget_chats",
    ),
    case(
        "a long text to forget",
        lambda b: forget(b, rows=data(forget_texts=(LONG,))),
        V,
        "Prompt 0 has",
        "Shorten it",
    ),
    case(
        "an edit for a checkpoint",
        lambda b: forget(b, checkpoint=b.at / "edit"),
        V,
        "edit is not a checkpoint of a training run; give another path, or remove",
    ),
    case(
        "noise for a checkpoint",
        lambda b: forget(b, checkpoint=b.at / "edit-noise"),
        V,
        "edit-noise is corrupt",
        "give another path, or remove the file to start anew",
    ),
    case(
        "a checkpoint under a file",
        lambda b: forget(b, checkpoint=b.at / "edit" / "x"),
        FileExistsError,
        "File exists",
    ),
]

PROMPT_ATTACKS = [
    case("GCG of no prompts", lambda b: gcg_of(b, [], []), V, "empty list of prompts"),
    case("GCG of one string", lambda b: gcg_of(b, "ab", "cd"), V, "one string, 'ab'"),
    case(
        "GCG with a target less",
        lambda b: gcg_of(b, targets=["a"]),
        V,
        "2 prompts and 1 targets",
    ),
    case(
        "GCG with one string for targets",
        lambda b: gcg_of(b, targets="ab"),
        V,
        "2 prompts and one string",
    ),
    case(
        "GCG with an empty target",
        lambda b: gcg_of(b, targets=["a", ""]),
        V,
        "target of 'explain a kite' is empty; give its first words",
    ),
    case("GCG of a long prompt", lambda b: gcg_of(b, [LONG], ["a"]), V, "Prompt 0 has"),
    case(
        "GCG with an init of several tokens",
        lambda b: gcg_of(b, init="qqq", suffix_length=5),
        V,
        "init='qqq' repeated does not make 5 tokens",
        "use an init that is one token",
    ),
    case(
        "GCG with an empty init", lambda b: gcg_of(b, init=""), V, "init=''", "use an"
    ),
    case(
        "GCG with one string of banned words",
        lambda b: gcg_of(b, banned_words="ab"),
        V,
        "banned_words is 'ab'; give a tuple of words",
    ),
    case(
        "GCG with all tokens banned",
        lambda b: gcg_of(b, banned_words=("",)),
        V,
        "No token of the vocabulary is allowed; ban fewer words",
    ),
    case(
        "GCG against a text for a defense",
        lambda b: gcg(b.chat, PROMPTS, PROMPTS, GCGConfig(**SHORT), defense="x"),
        V,
        "Got a str that wraps no Chat",
        "wrap a Chat",
    ),
    case(
        "PGD of no prompts", lambda b: pgd(b.chat, [], []), V, "empty list of prompts"
    ),
    case("PGD of one string", lambda b: pgd(b.chat, "ab", "cd"), V, "one string, 'ab'"),
    case("PGD of a long prompt", lambda b: pgd(b.chat, [LONG], ["a"]), V, "Shorten it"),
    case(
        "prefill of no prompts", lambda b: prefill(b.chat, [], []), V, "empty list of"
    ),
    case(
        "prefill with a target less",
        lambda b: prefill(b.chat, PROMPTS, ["a"], PrefillConfig()),
        V,
        "2 prompts and 1 targets",
    ),
    case(
        "prefill without a token",
        lambda b: prefill(b.chat, PROMPTS, TARGETS, PrefillConfig(max_new_tokens=0)),
        V,
        "max_new_tokens is 0; give at least 1",
    ),
    case("random suffixes of no prompts", lambda b: control_of(b, []), V, "empty list"),
    case(
        "random suffixes with a useless init",
        lambda b: control_of(b, init="zzqq", suffix_length=3),
        V,
        "init='zzqq' repeated does not make 3 tokens",
    ),
    case(
        "a prefix of no questions", lambda b: prefix(b, [], []), V, "empty list of pro"
    ),
    case(
        "a prefix for an empty target",
        lambda b: prefix(b, targets=["a", " "]),
        V,
        "target of 'explain a kite' is empty; give what the original model answers",
    ),
    case(
        "a prefix compared in a block beyond the last",
        lambda b: prefix(b, layers=(9,)),
        V,
        "Layer 9 is out of range",
        "blocks 0 to 2",
    ),
    case(
        "a prefix that starts too short",
        lambda b: prefix(b, start="a"),
        V,
        "start has 1 tokens; min_length is 4 and max_length 16: change these",
    ),
    case(
        "a prefix of a long question", lambda b: prefix(b, [LONG], ["a"]), V, "Shorten"
    ),
    case(
        "a prefix longer than its least",
        lambda b: UniversalPrefixConfig(min_length=9),
        V,
        "length is 8; give a whole number >= 9",
    ),
    case(
        "no random prefix",
        lambda b: random_prefix(b.chat, PROMPTS, TARGETS, draws=0),
        V,
        "draws is 0; give at least 1",
    ),
]

WEIGHT_ATTACKS = [
    case(
        "relearning of nothing", lambda b: relearn(b.chat, []), V, "examples is empty"
    ),
    case(
        "relearning of a text",
        lambda b: relearn(b.chat, ["a"]),
        V,
        "examples[0] is a str; give an Example, made with from_texts or from_chats",
    ),
    case(
        "relearning of more samples than there are",
        lambda b: relearn(b.chat, b.examples, RelearnConfig(samples=9)),
        V,
        "samples is 9 and there are 2 examples; give more examples",
    ),
    case(
        "relearning measured after its end",
        lambda b: relearn(b.chat, b.examples, evaluate=dict, evaluate_at=[99]),
        V,
        "evaluate_at holds 99; the run sees 2 samples",
    ),
    case(
        "relearning measured by nothing",
        lambda b: relearn(b.chat, b.examples, evaluate_at=[1]),
        V,
        "evaluate_at is (1,) and evaluate is None; give the function",
    ),
    case(
        "relearning of an example without a scored token",
        lambda b: relearn(b.chat, [Example((1, 2), (False, False))]),
        V,
        "examples[0] has no scored token",
        "mark tokens in `scored`",
    ),
    case(
        "relearning of a long example",
        lambda b: relearn(b.chat, [Example((1,) * 300, (False,) + (True,) * 299)]),
        V,
        "Prompt 0 has 300 tokens",
        "Shorten it",
    ),
    case(
        "no texts to train on", lambda b: from_texts(b.chat, []), V, "texts is []; give"
    ),
    case(
        "one string to train on",
        lambda b: from_texts(b.chat, "abc"),
        V,
        "texts is 'abc'; give a list of at least one text",
    ),
    case(
        "an empty text to train on",
        lambda b: from_texts(b.chat, [""]),
        V,
        "texts[0] is ''; give a text",
    ),
    case(
        "an answer less than questions",
        lambda b: from_chats(b.chat, ["a", "b"], ["c"]),
        V,
        "2 questions and 1 answers; give one answer for each question",
    ),
    case(
        "pruning with p = 2",
        lambda b: prune(b.chat, {}, {}, 2, 0.1),
        V,
        "p is 2; give a share from 0 to 1",
    ),
    case(
        "pruning with q = NaN",
        lambda b: prune(b.chat, {}, {}, 0.1, NAN),
        V,
        "q is nan; give a share from 0 to 1",
    ),
    case(
        "pruning without scores",
        lambda b: prune(b.chat, {}, {}, 0.1, 0.1),
        V,
        "forget_scores and the model differ in the weights ['model.layers.0",
        "compute them with prune_scores on this model",
    ),
    case(
        "scores of no examples",
        lambda b: prune_scores(b.chat, []),
        V,
        "examples is empty; give at least one",
    ),
    case(
        "scores beside a low-rank edit",
        lambda b: inside(
            b.edit.applied(b.chat), lambda: prune_scores(b.chat, b.examples)
        ),
        V,
        "a hook stands beside model.layers.1.mlp.down_proj.weight",
        "make each low-rank change D of the edit dense",
    ),
    case(
        "set difference without utility samples",
        lambda b: set_difference_pruning(b.chat, b.examples, [], 0.1, 0.1),
        V,
        "utility_examples is empty; give at least one",
    ),
    case(
        "quantization to 1 bit", lambda b: quantize(b.chat, 1), V, "bits is 1; give a"
    ),
    case("quantization to '8' bits", lambda b: quantize(b.chat, "8"), V, "bits is '8'"),
    case(
        "quantization to True", lambda b: quantize(b.chat, True), V, "bits is True; gi"
    ),
    case(
        "quantization in groups that do not fit",
        lambda b: quantize(b.chat, 8, 7),
        V,
        "group is 7; give a number that divides the input widths [32, 48]",
    ),
    case(
        "quantization beside a low-rank edit",
        lambda b: inside(b.edit.applied(b.chat), lambda: quantize(b.chat)),
        V,
        "a hook stands beside",
        "make each low-rank change D of the edit dense",
    ),
]

ACTIVATION_ATTACKS = [
    case(
        "a logit lens on no prompts",
        lambda b: logit_lens(b.chat, [], [1, 2]),
        V,
        "empty list of prompts",
    ),
    case(
        "a logit lens for one token",
        lambda b: logit_lens(b.chat, PROMPTS, [1]),
        V,
        "token_ids is [1]; give two or more different tokens",
    ),
    case(
        "a logit lens for a token beyond the vocabulary",
        lambda b: logit_lens(b.chat, PROMPTS, [1, 99999]),
        V,
        "token_ids is [1, 99999]; the vocabulary of tiny-llama has 0 to 339",
    ),
    case(
        "a logit lens with an answer less",
        lambda b: logit_lens(b.chat, PROMPTS, [1, 2]).accuracy([0]),
        V,
        "1 answers for 2 prompts; give one for each",
    ),
    case(
        "a logit lens with an answer that is no choice",
        lambda b: logit_lens(b.chat, PROMPTS, [1, 2]).accuracy([0, 5]),
        V,
        "Answer 5 is out of range; give an index into token_ids, 0 to 1",
    ),
    case(
        "directions without the original model",
        lambda b: directions(b),
        V,
        "original is None; 'ground_truth' needs the model before unlearning",
    ),
    case(
        "directions without benign prompts",
        lambda b: directions(b, "benign"),
        V,
        "reference is None; 'benign' needs benign prompts",
    ),
    case(
        "directions that skip all tokens",
        lambda b: directions(b, "text", skip=50, reference=["a"]),
        V,
        "2 texts have 0 tokens after the first skip = 50; give more or longer texts",
    ),
    case(
        "directions of no prompts",
        lambda b: directions(b, prompts=[], original=b.other),
        V,
        "empty list of prompts",
    ),
    case(
        "directions of the wrong shape",
        lambda b: inside(orthogonalized(b.chat, torch.zeros(2, 2))),
        V,
        "have shape (2, 2); give finite vectors of shape (3, 32)",
    ),
    case(
        "directions with NaN",
        lambda b: inside(orthogonalized(b.chat, torch.full((3, 32), NAN))),
        V,
        "give finite vectors of shape (3, 32)",
    ),
    case(
        "directions in a block beyond the last",
        lambda b: inside(orthogonalized(b.chat, torch.ones(3, 32), [9])),
        V,
        "Layer 9 is out of range",
        "blocks 0 to 2",
    ),
]

CASES = [
    *(
        case(
            f"{kind.__name__.removesuffix('Config')} with {name} {value!r}",
            lambda b, kind=kind, name=name, value=value: kind(**{name: value}),
            V,
            f"{name} is {value!r}",
            step,
        )
        for kind, name, value, step in SETTINGS
    ),
    *UNLEARNING,
    *PROMPT_ATTACKS,
    *WEIGHT_ATTACKS,
    *ACTIVATION_ATTACKS,
]


@pytest.mark.parametrize("one", CASES, ids=[one.key for one in CASES])
def test_error_is_clear_and_nothing_is_changed(bench, one: Case):
    check(bench, one)
