"""Unlearning: weights that have forgotten one set of texts and kept another.

    min_theta  forget(theta) + gamma retain(theta)

    graddiff   forget = -NLL; the retain loss is the NLL (Liu et al. 2022)
    npo        negative preference optimization (Zhang et al. 2024)
    dpo        a refusal is preferred to the answer (Rafailov et al. 2023)
    rmu        hidden states of a block are misdirected (Li et al. 2024)
    pcr, tsr, arr   the constrained interventions of arXiv 2510.03567

The formulas are in `losses`. Like every edit of the kit, the result is a value, and the
model is left as it was: training happens on float32 masters, next to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from safeedit.edits.lora import add_adapters, linear_names, low_rank_changes, twin
from safeedit.edits.low_rank import LowRank
from safeedit.edits.misdirection import RMU, rmu_layers
from safeedit.edits.pcr import PCRConfig, pcr
from safeedit.edits.regions import ARRConfig, TSRConfig, arr, tsr
from safeedit.edits.smoothing import RunningAverage, smoothed_gradient
from safeedit.edits.storage import base_fingerprint
from safeedit.edits.unlearning_config import (
    CONSTRAINED_METHODS,
    METHODS,
    UnlearnConfig,
    UnlearnData,
)
from safeedit.edits.unlearning_problem import DPO, NPO, GradDiff, Problem
from safeedit.edits.weight_edit import WeightEdit
from safeedit.finetuning import Diverged, Parameters, finetune

__all__ = ["UnlearnConfig", "UnlearnData", "unlearn"]

PROBLEMS = {"graddiff": GradDiff, "npo": NPO, "dpo": DPO, "rmu": RMU}


def unlearn(
    chat,
    data: UnlearnData,
    method: str = "graddiff",
    config: UnlearnConfig | None = None,
    smoothing: str | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> WeightEdit:
    """Forget the forget set of `data` and keep its retain set.

    "pcr", "tsr" and "arr" are fitted on the questions of `forget_chats`. PCR's concepts
    are the words of the answers; TSR wants answers to start with a refusal, ARR that no
    suffix makes them start affirmatively. With gamma > 0 the questions of
    `retain_chats` are kept in place by our extensions of them (`weighting`, `keep`);
    with gamma = 0 they are the paper's.

    Args:
        chat: the model; it is left as it is, bit for bit, whatever happens.
        data: forget set and retain set.
        method: "graddiff", "npo", "dpo", "rmu", "pcr", "tsr" or "arr".
        config: settings.
        smoothing: short for `config.smoothing.kind`.
        checkpoint: file for the state of the training; a run that was killed goes on
            from it to the same bits. Not used by pcr, tsr and arr, which are short.
        progress: show a progress bar.

    Returns:
        A `WeightEdit`: dense changes of all weights that moved, or low-rank ones with
        `lora_rank`. Its info holds the method, the settings, and the "trajectory": for
        each step the "forget" and "retain" losses and the norms of their gradients
        ("forget_gradient_norm", "retain_gradient_norm", "gradient_norm" of the sum) and
        of the change ("change_norm"; with LoRA, of the adapters).

    Raises:
        Diverged: a loss or gradient that is not finite; `.edit` of the error is the
            change up to the last good state.
        ValueError: an unknown method, a block that does not exist, a text longer than
            the context, a method without the data it needs, a setting that the method
            does not take, or a checkpoint of another run.
    """
    config = config or UnlearnConfig()
    if smoothing is not None:
        config = replace(config, smoothing=replace(config.smoothing, kind=smoothing))
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; use one of {METHODS}")
    if method in CONSTRAINED_METHODS:
        return _constrained(chat, data, method, config)
    model = twin(chat.model)
    trained = _trained(chat, method, config)
    rank, alpha = config.lora_rank, config.lora_alpha
    frozen: dict[str, Tensor] = {}
    if rank is None:
        # In float32 throughout: in a bfloat16 forward pass the small changes of a step,
        # and SAM's perturbation, would be rounded away.
        weights = {name: p.float() for name, p in model.named_parameters()}
        masters = {name: weights[name].clone() for name in trained}
        if chat.dtype != torch.float32:
            frozen = weights
    else:
        layers = linear_names(model, config.lora_targets, trained)
        masters = add_adapters(model, layers, rank, alpha, config.seed)
    start = {name: master.clone() for name, master in masters.items()}
    problem = PROBLEMS[method](chat, model, frozen, data, config)

    def edit_of(now: Parameters, trajectory: list[dict]) -> WeightEdit:
        deltas: dict[str, LowRank | Tensor] = {}
        if rank is not None:
            deltas = low_rank_changes(now, rank, alpha)
        else:
            for name, weight in now.items():
                change = weight - start[name]
                if bool(change.any()):
                    deltas[name] = change
        info = _provenance(chat, data, method, config) | problem.notes()
        info["trajectory"] = trajectory
        info["base"] = base_fingerprint(chat, list(deltas))
        return WeightEdit(deltas, info)

    average = RunningAverage()
    state: dict[str, Tensor] = {}  # of weight averaging, for the checkpoint

    def after_step(step: int, now: Parameters) -> None:
        if not config.smoothing.averages(step + 1):
            return
        if state:
            average.count = int(state["count"])
            average.values = {name: state[name] for name in now}
        average.add(now)
        state.update(average.values or {}, count=torch.tensor(average.count))

    run = {"method": method, "unlearn": _settings(config), "data": data.digest()}
    names = [name for name, _ in chat.model.named_parameters()]
    run["base"] = base_fingerprint(chat, names)
    try:
        trajectory = finetune(
            masters,
            lambda step, now: _gradient(problem, config, step, now),
            config.finetuning,
            checkpoint=Path(checkpoint) if checkpoint is not None else None,
            settings=run,
            state=state,
            progress=progress,
            after_step=after_step,
        )
    except Diverged as error:
        error.edit = edit_of(masters, error.trajectory)
        raise
    if config.smoothing.kind == "wa":
        masters = {name: state[name].to(masters[name].device) for name in masters}
    return edit_of(masters, trajectory)


def _gradient(
    problem: Problem, config: UnlearnConfig, step: int, weights: Parameters
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradient of smoothed forget + weight * retain, and what is logged of it."""
    # Another number for each step, and no simple relation between those of two seeds.
    seed = Random(f"{config.seed}-{step}").getrandbits(48)
    weights = dict(weights)
    forget, away = smoothed_gradient(
        problem.forget(step), weights, config.smoothing, seed
    )
    leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
    retain = problem.retain(step)(leaves)
    slopes = torch.autograd.grad(retain, list(leaves.values()), materialize_grads=True)
    back = dict(zip(leaves, slopes, strict=True))
    joint = {name: away[name] + problem.retain_weight * back[name] for name in weights}
    return joint, {
        "forget": float(forget),
        "retain": float(retain.detach()),
        "forget_gradient_norm": _norm(away),
        "retain_gradient_norm": _norm(back),
    }


def _trained(chat, method: str, config: UnlearnConfig) -> list[str]:
    """Names of the weights that a method may change."""
    if method == "rmu":
        return [chat.weight_name(layer) for layer in rmu_layers(chat, config)[1]]
    return [name for name, _ in chat.model.named_parameters()]


def _constrained(
    chat, data: UnlearnData, method: str, config: UnlearnConfig
) -> WeightEdit:
    """PCR, TSR or ARR, fitted on forget questions, retain questions kept in place."""
    if config.smoothing.kind is not None or config.lora_rank is not None:
        raise ValueError(
            f'method "{method}" does not train with a forget loss, so it takes neither '
            f"smoothing ({config.smoothing.kind!r}) nor lora_rank "
            f"({config.lora_rank!r}); set both to None"
        )
    if not data.forget_chats:
        raise ValueError(
            f'method "{method}" is fitted on questions, and forget_chats is empty; '
            "give UnlearnData(forget_chats=...)"
        )
    asked = _some(data.forget_chats, config, "forget")
    kept = _some(data.retain_chats, config, "retain") if config.gamma else []
    prompts, keep = [q for q, _ in asked], tuple(q for q, _ in kept)
    if method == "pcr":
        settings = PCRConfig(
            layers=config.layers,
            scope="shared",
            eps_factor=config.radius,
            weighting="covariance" if keep else None,
            weighting_prompts=keep,
            seed=config.seed,
        )
        edit = pcr(chat, prompts, answer_words([a for _, a in asked]), settings)
    else:
        shared: dict[str, Any] = dict(
            layers=config.layers,
            eps_relative=config.budget,
            tokens=config.tokens,
            keep=keep,
            keep_weight=config.gamma or 1.0,
            seed=config.seed,
        )
        if method == "tsr":
            edit = tsr(chat, prompts, TSRConfig(**shared))
        else:
            # Few inner steps, since each goes on from the suffixes of the last one.
            edit = arr(chat, prompts, ARRConfig(**shared, inner_steps=5))
    info = edit.info | {"unlearning": _provenance(chat, data, method, config)}
    return replace(edit, info=info)


def answer_words(answers: list[str]) -> list[str]:
    """The words of answers, each once; single letters name options and do not count."""
    words = [w for answer in answers for w in re.findall(r"[^\W\d_]+", answer)]
    found = list(dict.fromkeys(word for word in words if len(word) > 1))
    if not found:
        raise ValueError(
            f"the answers have no word of two letters or more, such as {answers[:3]}; "
            "PCR needs words as concepts: add open questions to forget_chats"
        )
    return found


def _some(
    rows: tuple[tuple[str, str], ...], config: UnlearnConfig, part: str
) -> list[tuple[str, str]]:
    """At most `config.prompts` of the rows, drawn by seed."""
    rng = Random(f"{config.seed}-{part}")
    return rng.sample(rows, min(config.prompts, len(rows)))


def _settings(config: UnlearnConfig) -> dict:
    settings = asdict(config)
    del settings["checkpoint_every"]
    return settings


def _provenance(chat, data: UnlearnData, method: str, config: UnlearnConfig) -> dict:
    return {
        "method": method,
        "model": chat.name,
        "revision": chat.revision,
        "dtype": str(chat.dtype),
        "config": _settings(config),
        "data": data.sizes() | {"digest": data.digest()},
    }


def _norm(values: Mapping[str, Tensor]) -> float:
    return float(nn.utils.get_total_norm(list(values.values())))
