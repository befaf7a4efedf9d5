"""The original's `main.py --do_train`, step by step: its rows, losses, rates, gradient norms and last weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from glm_case import load_model, tokenizer_folder
from golden_case import Case, close
from torch import nn

from hanlin.core.batch import IGNORED, Batch
from hanlin.formats.rules import find_moves
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.record import ChatGlm2Options
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import TrainSettings
from hanlin.training.optimizer import build_optimizer
from hanlin.training.optimizers.adamw import AdamWSettings
from hanlin.training.schedules import learning_rate
from hanlin.training.step import Step

ABSENT = -1
"""What fills the rows that a short batch lacks."""

# Against the original's own update; a replay that shares its formula comes to 1.5e-6.
UPDATE_RELATIVE = 1e-4


def check(case: Case, vocab: Path) -> None:
    del vocab
    folder = case / case.flag("model_name_or_path", default="model")
    model = load_model(folder)
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    check_rows(case, model.config)
    train_as_recorded(model, case)
    theirs = final_weights(case, model.config)
    # The bias of the keys has no gradient on the unrotated channels, and Adam makes full steps of rounding noise.
    compared = [name for name in theirs if not name.endswith("attention.key.bias")]
    changes = {name: weight.detach() - start[name] for name, weight in model.named_parameters()}
    if compared:
        wanted = {name: weight - start[name] for name, weight in theirs.items()}
        assert relative_error(changes, wanted, compared) < UPDATE_RELATIVE


def check_rows(case: Case, config: ChatGlm2Config) -> None:
    """Every row that the original trained on is one that we make of the file."""
    name, folder = str(case.flag("train_file")), tokenizer_folder(case)
    if folder is None or not case.holds(name):
        return
    options = ChatGlm2Options(
        prompt_column=case.flag("prompt_column"),
        response_column=case.flag("response_column"),
        history_column=case.flag("history_column", default="no history"),
        source_prefix=case.flag("source_prefix", default=""),
        prompt_length=case.flag("max_source_length", int, 1024),
        answer_length=case.flag("max_target_length", int, 128),
        learn_padding=case.flag("ignore_pad_token_for_loss", default="True").lower() == "false",
        compatible=True,
    )
    processor = family.processor(family.tokenizer(folder), config, options)
    ours = [processor.original_row(json.loads(line)) for line in (case / name).read_text("utf-8").splitlines()]
    for batch in recorded_batches(case):
        for ids, labels in zip(*batch, strict=True):
            assert (ids.tolist(), labels.tolist()) in ours


def train_as_recorded(model: nn.Module, case: Case) -> None:
    """Train on the case's batches; every number of every step must be the original's."""
    expected, settings, batches = case.arrays(), settings_of(case), recorded_batches(case)
    atol, norm_rtol = case.tolerance("step_loss_atol", default=1e-4), case.tolerance("grad_norm_rtol", default=1e-3)
    assert settings.steps is not None
    parallel_model = parallelize(model, torch.device("cpu"))
    optimizer = build_optimizer(parallel_model.parameters, settings.optimizer)
    step, per_step = Step(parallel_model, optimizer, settings, settings.steps), len(batches) // settings.steps
    reports = [step.run(as_batch(batches[n * per_step : (n + 1) * per_step])) for n in range(settings.steps)]
    losses = [report.loss for report in reports]
    # They logged the rate of the step that follows.
    rates = [learning_rate(settings, number + 2, settings.steps) for number in range(settings.steps)]
    if "step_loss_unrounded" in expected:
        wanted = expected["step_loss_unrounded"].reshape(settings.steps, per_step).mean(1)
        assert losses == pytest.approx(wanted.tolist(), abs=atol)
    close("losses", losses, expected, atol + 5e-5, 0)  # rounded to four digits
    close("grad_norms_before_clip", [report.grad_norm for report in reports], expected, 0, norm_rtol)
    close("lrs", rates, expected, 1e-12, 0)


def settings_of(case: Case) -> TrainSettings:
    """The original's flags, and the defaults of its trainer."""
    micro = case.flag("per_device_train_batch_size", int, 8)
    clip = case.flag("max_grad_norm", float, 1.0)
    return TrainSettings(
        steps=case.flag("max_steps", int),
        batch_size=micro * case.flag("gradient_accumulation_steps", int, 1),
        micro_batch_size=micro,
        lr=case.flag("learning_rate", float, 5e-5),
        schedule=case.flag("lr_scheduler_type", default="linear"),
        warmup_steps=case.flag("warmup_steps", int, 0),
        first_step_at_zero=True,  # with linear decay and no warm-up: the first step has the full rate
        optimizer=AdamWSettings(weight_decay=case.flag("weight_decay", float, 0.0), eps_before_correction=True),
        clip=clip or None,
        loss_mean="batch",
    )


def recorded_batches(case: Case) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each forward pass its input_ids and labels `[rows, length]`."""
    arrays = case.arrays("inputs.npz")
    pairs = zip(arrays["batches_input_ids"].numpy(), arrays["batches_labels"].numpy(), strict=True)
    return [(ids[is_there], labels[is_there]) for ids, labels in pairs for is_there in [ids[:, 0] != ABSENT]]


def as_batch(parts: list[tuple[np.ndarray, np.ndarray]]) -> Batch:
    """One optimizer step; our labels stand one place before theirs."""
    ids, labels = (np.concatenate(arrays).astype(np.int64) for arrays in zip(*parts, strict=True))
    labels = np.concatenate([labels[:, 1:], np.full_like(labels[:, :1], IGNORED)], axis=1)
    return Batch({"tokens": torch.from_numpy(ids)}, torch.from_numpy(labels), torch.ones(labels.shape))


def final_weights(case: Case, config: ChatGlm2Config) -> dict[str, torch.Tensor]:
    """The original's last weights by our names."""
    theirs = dict(case.arrays().under("final.").items())
    moves = find_moves(family.formats["original"].rules(config), theirs, "to_ours")
    return {
        name: tensor
        for move in moves
        for name, tensor in zip(move.targets, move.run(tuple(theirs[n] for n in move.sources)), strict=True)
    }


def relative_error(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor], names: list[str]) -> float:
    """The length of the difference over the length of the original's update."""
    difference = sum(float((ours[name] - theirs[name]).double().square().sum()) for name in names)
    return (difference / sum(float(theirs[name].double().square().sum()) for name in names)) ** 0.5
