"""Bad input to the geometry, to weight edits, and to PCR, TSR and ARR."""

import pytest
import torch
from misuse import INF, LONG, NAN, PROMPTS, WORDS, Case, an_edit, case, check, inside

from safeedit.edits import (
    ARRConfig,
    LowRank,
    PCRConfig,
    TestTimePCR,
    TSRConfig,
    WeightEdit,
    arr,
    concept_vectors,
    pcr,
    project_out,
    tsr,
)
from safeedit.edits.dense import as_dense

AREA = "Edits"
V = ValueError
POINT, CENTRE = [0.0, 0.0], [[1.0, 0.0]]


def pcr_of(bench, concepts=WORDS, prompts=PROMPTS, **config):
    return pcr(bench.chat, prompts, concepts, PCRConfig(**({"eps": 1.0} | config)))


def dense(bench, change, name=None) -> WeightEdit:
    return WeightEdit({name or bench.chat.weight_name(1): change})


def wrong_batch(bench):
    """A prefill of two prompts, then a pass of one."""
    defense = TestTimePCR(bench.chat, WORDS, PCRConfig(eps=50.0))
    ids = bench.chat.encode(bench.chat.render(["boat", "kite"])).input_ids
    with defense.applied():
        bench.chat.model(ids)
        bench.chat.model(ids[:1])


def low(*lead: int, out: int = 3, into: int = 3) -> LowRank:
    return LowRank(torch.zeros(*lead, out, 1), torch.zeros(*lead, into, 1))


GEOMETRY = [
    case(
        "an empty point",
        lambda b: project_out([], CENTRE, 1.0),
        V,
        "point has shape (0,)",
    ),
    case(
        "a number for a point",
        lambda b: project_out(1.0, CENTRE, 1.0),
        V,
        "point has shape (); use (d,) or (batch, d), not empty",
    ),
    case(
        "a point with three axes",
        lambda b: project_out(torch.zeros(2, 2, 2), CENTRE, 1.0),
        V,
        "point has shape (2, 2, 2); use (d,) or (batch, d)",
    ),
    case(
        "a point with NaN",
        lambda b: project_out([NAN], [[1.0]], 1.0),
        V,
        "point holds NaN or infinite values; check the pass it came from",
    ),
    case(
        "a point at infinity",
        lambda b: project_out([INF, 0.0], CENTRE, 1.0),
        V,
        "point holds NaN or infinite",
    ),
    case(
        "centres of another width",
        lambda b: project_out(POINT, [[1.0]], 1.0),
        V,
        "centres have shape (1, 1); with these points use (n, 2) and n >= 1",
    ),
    case(
        "no centres",
        lambda b: project_out(POINT, [], 1.0),
        V,
        "centres have shape (0,)",
        "n >= 1",
    ),
    case(
        "one centre without its axis",
        lambda b: project_out(POINT, [1.0, 0.0], 1.0),
        V,
        "centres have shape (2,)",
        "use (n, 2)",
    ),
    case(
        "a centre with NaN",
        lambda b: project_out(POINT, [[NAN, 0.0]], 1.0),
        V,
        "centres holds NaN or infinite values",
    ),
    case(
        "radius 0",
        lambda b: project_out(POINT, CENTRE, 0.0),
        V,
        "radius is 0.0; it must be a",
    ),
    case(
        "radius < 0",
        lambda b: project_out(POINT, CENTRE, -1),
        V,
        "-1.0",
        "finite number > 0",
    ),
    case(
        "radius NaN",
        lambda b: project_out(POINT, CENTRE, NAN),
        V,
        "radius is nan; it must",
    ),
    case(
        "radius infinite",
        lambda b: project_out(POINT, CENTRE, INF),
        V,
        "radius is inf; it mu",
    ),
    case(
        "radius None",
        lambda b: project_out(POINT, CENTRE, None),
        V,
        "radius is None; it must",
    ),
    case(
        "radius a text",
        lambda b: project_out(POINT, CENTRE, "1"),
        V,
        "radius is '1'; it must",
    ),
    case(
        "radius a list",
        lambda b: project_out(POINT, CENTRE, [1.0]),
        V,
        "radius is [1.0]",
    ),
    case(
        "radius complex",
        lambda b: project_out(POINT, CENTRE, 1j),
        V,
        "radius is 1j; it must",
    ),
    case(
        "an unknown method of geometry",
        lambda b: project_out(POINT, CENTRE, 1.0, "best"),
        V,
        "method is 'best'; use one of ('exact', 'greedy')",
    ),
    case(
        "a row of a single projection",
        lambda b: project_out(POINT, CENTRE, 1.0).row(0),
        V,
        "holds one point already: no rows to take",
    ),
]

WEIGHT_EDITS = [
    case(
        "an edit for other weights",
        lambda b: inside(b.edit.applied(b.other)),
        V,
        "made for another model than tiny-llama: its weights differ",
        "Load the base model of the edit",
        "strict=False",
    ),
    case(
        "an edit for another architecture",
        lambda b: inside(b.edit.applied(b.mistral)),
        V,
        "its configuration or parameter shapes differ",
        "strict=False",
    ),
    case(
        "an edit of a weight that is not there",
        lambda b: inside(dense(b, torch.zeros(3, 3), "x.y").applied(b.chat)),
        V,
        "changes 'x.y', which this model does not have; its names look like 'model.",
    ),
    case(
        "an edit of the wrong shape",
        lambda b: inside(dense(b, torch.zeros(3, 3)).applied(b.chat)),
        V,
        "has shape (3, 3), the weight (32, 48); was it made for another model?",
    ),
    case(
        "an edit of a tied head",
        lambda b: inside(
            dense(b, torch.zeros(340, 32), "lm_head.weight").applied(b.gemma)
        ),
        V,
        "changes 'lm_head.weight', which this model does not have",
    ),
    case(
        "a low-rank edit of an embedding",
        lambda b: inside(
            dense(b, low(out=340, into=32), "model.embed_tokens.weight").applied(b.chat)
        ),
        V,
        "belongs to a Embedding; a low-rank change needs an nn.Linear, use a dense",
    ),
    case(
        "the wrong batch for a batched edit",
        lambda b: inside(b.batched.applied(b.chat), lambda: b.chat.generate(["hi"], 1)),
        V,
        "holds 2 prompts, the forward pass 1",
        "edit.select",
    ),
    case(
        "the wrong batch after a prefill",
        wrong_batch,
        V,
        "the prefill had 2 prompts and this pass has 1; open a new applied()",
    ),
    case(
        "an edit of two batch sizes",
        lambda b: WeightEdit({"a": low(2), "b": low(3)}).batch,
        V,
        "mixes batches of [2, 3] prompts",
    ),
    case(
        "a selection from a shared edit",
        lambda b: b.edit.select([0]),
        V,
        "shared by all prompts; nothing to select",
    ),
    case(
        "an edit times NaN", lambda b: b.edit * NAN, V, "factor is nan; give a finite"
    ),
    case("an edit times infinity", lambda b: b.edit * INF, V, "factor is inf; give a"),
    case(
        "a sum of edits of two models",
        lambda b: b.edit + an_edit(b.other),
        V,
        "made for different models; not added",
    ),
    case(
        "a sum of edits of 2 and of 3 prompts",
        lambda b: b.batched + an_edit(b.chat, batch=3),
        V,
        "cannot add edits of 2 and 3 prompts",
    ),
    case(
        "a sum of a dense and a batched edit",
        lambda b: dense(b, torch.zeros(32, 48)) + WeightEdit(b.batched.deltas),
        V,
        "mlp.down_proj.weight: cannot add one change per prompt to a dense one",
    ),
    case(
        "a sum of low-rank changes of two shapes",
        lambda b: low(out=3, into=4) + low(out=4, into=3),
        V,
        "cannot add changes of (3, 4) and (4, 3)",
    ),
    case(
        "a norm relative to another model",
        lambda b: dense(b, torch.zeros(3, 3)).norm(b.chat),
        V,
        "has shape (3, 3), the weight (32, 48)",
    ),
    case(
        "a dense form of an edit for each prompt",
        lambda b: as_dense(b.batched),
        V,
        "a change for each of 2 prompts; take a shared one (scope='shared')",
    ),
    case(
        "factors without columns",
        lambda b: LowRank(torch.zeros(3), torch.zeros(3)),
        V,
        "U has shape (3,) and V (3,); use (d_out, r) and (d_in, r)",
    ),
    case(
        "factors of two batches",
        lambda b: LowRank(torch.zeros(2, 3, 1), torch.zeros(3, 3, 1)),
        V,
        "U has shape (2, 3, 1) and V (3, 3, 1); use",
    ),
    case(
        "a merge into a folder that exists",
        lambda b: b.edit.merge(b.chat, b.at / "model"),
        FileExistsError,
        "model exists; give the name of a new folder",
    ),
    case(
        "a merge under a file",
        lambda b: b.edit.merge(b.chat, b.at / "edit" / "x"),
        FileExistsError,
        "File exists",
        "edit",
    ),
    case(
        "a merge of one change for each prompt",
        lambda b: b.batched.merge(b.chat, b.at / "merged"),
        V,
        "one change for each of 2 prompts",
        'make it with scope="shared"',
    ),
    case(
        "a merge into other weights",
        lambda b: b.edit.merge(b.other, b.at / "merged"),
        V,
        "its weights differ",
    ),
    case(
        "a merge that loses its margin",
        lambda b: b.lost.merge(b.coarse, b.at / "merged"),
        V,
        "rounding the edit into torch.bfloat16 weights loses the constraint: layer 1",
        "Nothing was written. Load the model with dtype=torch.float32",
    ),
    case(
        "a file name of a merge with a NUL",
        lambda b: b.edit.merge(b.chat, b.at / "merged", files={"a\0b": "x"}),
        V,
        "null byte",
    ),
    case(
        "an edit saved under a file",
        lambda b: b.edit.save(b.at / "edit" / "x"),
        FileExistsError,
        "File exists",
    ),
    case(
        "an edit saved onto a folder",
        lambda b: b.edit.save(b.at / "model"),
        IsADirectoryError,
        "Is a directory",
        "model",
    ),
    case(
        "an edit whose notes go round in a circle",
        lambda b: WeightEdit(b.edit.deltas, b.circle).save(b.at / "new"),
        V,
        "Circular reference",
    ),
]

PCR = [
    *(
        case(
            f"PCR with {name} {value!r}",
            lambda b, name=name, value=value: PCRConfig(**{name: value}),
            V,
            f"{name} is {value!r}; {step}",
        )
        for name, value, step in (
            ("eps", 0.0, "it must be finite and > 0"),
            ("eps", -1.0, "it must be finite and > 0"),
            ("eps", NAN, "it must be finite and > 0"),
            ("eps", "1", "it must be finite and > 0"),
            ("eps_factor", 0, "it must be finite and > 0"),
            ("eps_factor", NAN, "it must be finite and > 0"),
            ("sweeps", 0, "give a whole number >= 1"),
            ("sweeps", "5", "give a whole number >= 1"),
            ("ridge", NAN, "it must be finite and >= 0"),
            ("ridge", -1, "it must be finite and >= 0"),
            ("provider", "x", "use one of ('mlp_output', 'completion'"),
            ("positions", "first", "use one of ('last', 'prompt'"),
            ("scope", "all", "use one of ('per_prompt', 'shared')"),
            ("kind", "both", "use one of ('weight', 'activation')"),
            ("method", "best", "use one of ('exact', 'greedy')"),
            ("shared_solver", "x", "use one of ('joint', 'cyclic')"),
            ("weighting", "x", "use one of (None, 'covariance')"),
            ("layers", "12", "give the number of last blocks, or a tuple"),
            ("layers", (0.5,), "give the number of last blocks, or a tuple"),
            ("layers", {1}, "give the number of last blocks, or a tuple"),
        )
    ),
    case(
        "PCR weighted without prompts",
        lambda b: PCRConfig(weighting="covariance"),
        V,
        "'covariance' with 0 weighting_prompts; give both, or neither",
    ),
    case(
        "PCR weighted and not shared",
        lambda b: PCRConfig(weighting="covariance", weighting_prompts=("a",)),
        V,
        "scope is 'per_prompt': use scope=\"shared\"",
    ),
    case(
        "PCR of weights at tokens to come",
        lambda b: PCRConfig(positions="generated"),
        V,
        'positions="generated" moves tokens that a weight edit',
        'use kind="activation"',
    ),
    case(
        "PCR of activations, shared",
        lambda b: PCRConfig(kind="activation", scope="shared"),
        V,
        'use scope="per_prompt" or kind="weight"',
    ),
    case(
        "PCR calibrated on one string",
        lambda b: PCRConfig(calibration="a"),
        V,
        "calibration is one string; give a tuple of prompts",
    ),
    case(
        "PCR calibrated on a number",
        lambda b: pcr_of(b, eps=None, calibration=(3,)),
        V,
        "Prompt 0 is of type int; give a string",
    ),
    case("PCR of no prompts", lambda b: pcr_of(b, prompts=[]), V, "empty list of prom"),
    case("PCR of a long prompt", lambda b: pcr_of(b, prompts=[LONG]), V, "Shorten it"),
    case(
        "PCR of no last blocks",
        lambda b: pcr_of(b, layers=0),
        V,
        "layers is 0; tiny-llama has 3 blocks: use 1 to 3",
    ),
    case(
        "PCR of more blocks than there are",
        lambda b: pcr_of(b, layers=4),
        V,
        "layers is 4; tiny-llama has 3 blocks: use 1 to 3",
    ),
    case(
        "PCR of a block beyond the last",
        lambda b: pcr_of(b, layers=(3,)),
        V,
        "layers are (3,); tiny-llama has blocks 0 to 2",
    ),
    case(
        "PCR of no blocks",
        lambda b: pcr_of(b, layers=()),
        V,
        "layers is empty; name at least one block",
    ),
    case(
        "PCR of activations as an edit",
        lambda b: pcr_of(b, kind="activation"),
        V,
        "not a weight edit; run it with TestTimePCR",
    ),
    case("no concepts", lambda b: pcr_of(b, []), V, "are []; give a list of words"),
    case("None for concepts", lambda b: pcr_of(b, None), V, "concepts are None; give"),
    case(
        "one word for concepts",
        lambda b: pcr_of(b, "boat"),
        V,
        "concepts are 'boat'; give a list of words, or a tensor (n, d_model)",
    ),
    case(
        "an empty word among concepts",
        lambda b: pcr_of(b, ["boat", " "]),
        V,
        "concept ' ' is not a word; give non-empty strings",
    ),
    case(
        "a number among concepts",
        lambda b: pcr_of(b, [3]),
        V,
        "concept 3 is not a word; give non-empty strings",
    ),
    case(
        "a long concept", lambda b: pcr_of(b, [LONG]), V, "Prompt 0 has", "Shorten it"
    ),
    case(
        "no concept vectors",
        lambda b: pcr_of(b, torch.zeros(0, 32)),
        V,
        "have shape (0, 32); this model needs (n, 32), n >= 1",
    ),
    case(
        "concept vectors of another width",
        lambda b: pcr_of(b, torch.zeros(3, 31)),
        V,
        "have shape (3, 31); this model needs (n, 32)",
    ),
    case(
        "concept vectors with four axes",
        lambda b: pcr_of(b, torch.zeros(1, 1, 1, 32)),
        V,
        "concepts have shape (1, 1, 1, 32); use (n, 32) or (3, n, 32)",
    ),
    case(
        "concept vectors with NaN",
        lambda b: pcr_of(b, torch.full((3, 32), NAN)),
        V,
        "hold NaN or infinite values",
    ),
    case(
        "concept vectors of another block",
        lambda b: pcr_of(b, {0: torch.ones(1, 32)}, layers=(1,)),
        V,
        "concepts hold layers [0]; layers [1] are missing",
    ),
    case(
        "half a completion for a concept",
        lambda b: pcr_of(b, [("a prompt",)], provider="completion"),
        V,
        "give a text or a pair (prompt, text)",
    ),
    case(
        "an empty completion for a concept",
        lambda b: pcr_of(b, [("a", "")], provider="completion"),
        V,
        "a completion is empty; give the text of an answer",
    ),
    case(
        "concept vectors of block 7",
        lambda b: concept_vectors(b.chat, WORDS, [7]),
        V,
        "layers are [7]; tiny-llama has blocks 0 to 2",
    ),
    case(
        "concept vectors of no block",
        lambda b: concept_vectors(b.chat, WORDS, []),
        V,
        "layers are []",
        "name at least one",
    ),
    case(
        "test-time PCR, shared",
        lambda b: TestTimePCR(b.chat, WORDS, PCRConfig(scope="shared")),
        V,
        'for scope="shared" use pcr()',
    ),
    case(
        "test-time PCR without a radius",
        lambda b: inside(
            TestTimePCR(b.chat, WORDS, PCRConfig()).applied(),
            lambda: b.chat.generate(["hi"], 1),
        ),
        V,
        "eps is not set: give PCRConfig(eps=...) or calibration=(...)",
    ),
    case(
        "test-time PCR calibrated on nothing",
        lambda b: TestTimePCR(b.chat, WORDS, PCRConfig()).calibrate([]),
        V,
        "empty list of prompts",
    ),
]

TOKENS = ("a",)  # a word that the tiny model has as a token
REGIONS = [
    *(
        case(
            f"{kind.__name__[:3]} with {name} {value!r}",
            lambda b, kind=kind, name=name, value=value: kind(**{name: value}),
            V,
            f"{name} is {value!r}; {step}",
        )
        for kind, name, value, step in (
            (TSRConfig, "eps", 0, "it must be finite and > 0"),
            (TSRConfig, "eps_relative", NAN, "it must be finite and > 0"),
            (TSRConfig, "steps", 0, "give a whole number >= 1"),
            (TSRConfig, "step_size", -1, "it must be finite and > 0"),
            (TSRConfig, "tokens", "ab", "give a tuple of strings"),
            (TSRConfig, "tokens", (), "give a tuple of strings"),
            (TSRConfig, "keep", "a", "give a tuple of strings"),
            (TSRConfig, "keep_weight", 0, "it must be finite and > 0"),
            (TSRConfig, "layers", "x", "give the number of last blocks"),
            (ARRConfig, "inner_steps", 0, "give a whole number >= 1"),
            (ARRConfig, "inner_rate", INF, "it must be finite and > 0"),
            (ARRConfig, "entropy", 2, "it must be in [0, 1]"),
            (ARRConfig, "suffix_length", 0, "give a whole number >= 1"),
            (ARRConfig, "restarts", 0, "give a whole number >= 1"),
            (ARRConfig, "restart_steps", 1.5, "give a whole number >= 1"),
            (ARRConfig, "banned_words", "x", "give a tuple of words"),
        )
    ),
    case("TSR of no prompts", lambda b: tsr(b.chat, []), V, "empty list of prompts"),
    case("TSR of one string", lambda b: tsr(b.chat, "hi"), V, "one string, 'hi'; give"),
    case(
        "TSR toward words that are no tokens",
        lambda b: tsr(b.chat, PROMPTS, TSRConfig(steps=1, tokens=("zzzz",))),
        V,
        "not a token of tiny-llama: 'zzzz'",
        "Give the words with which its answers start in tokens=(...)",
    ),
    case(
        "TSR of more blocks than there are",
        lambda b: tsr(b.chat, PROMPTS, TSRConfig(layers=9, tokens=TOKENS)),
        V,
        "layers is 9; tiny-llama has 3 blocks",
    ),
    case(
        "TSR of a long prompt",
        lambda b: tsr(b.chat, [LONG], TSRConfig(tokens=TOKENS)),
        V,
        "Prompt 0 has",
        "Shorten it",
    ),
    case(
        "TSR that keeps a long prompt",
        lambda b: tsr(b.chat, PROMPTS, TSRConfig(tokens=TOKENS, keep=(LONG,), steps=1)),
        V,
        "Prompt 0 has",
        "Shorten it",
    ),
    case("ARR of no prompts", lambda b: arr(b.chat, []), V, "empty list of prompts"),
    case(
        "ARR with an empty init",
        lambda b: arr(b.chat, PROMPTS, ARRConfig(init="", tokens=TOKENS)),
        V,
        "init='' repeated does not make 20 tokens",
        "use an init that is one token",
    ),
    case(
        "ARR of a prompt that leaves no room for a suffix",
        lambda b: arr(b.chat, ["bread " * 240], ARRConfig(tokens=TOKENS)),
        V,
        "Prompt 0 has 267 tokens",
        "Shorten it",
    ),
]

CASES = [*GEOMETRY, *WEIGHT_EDITS, *PCR, *REGIONS]


@pytest.mark.parametrize("one", CASES, ids=[one.key for one in CASES])
def test_error_is_clear_and_nothing_is_changed(bench, one: Case):
    check(bench, one)
