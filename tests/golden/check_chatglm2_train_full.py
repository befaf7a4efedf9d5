"""The original's `main.py --do_train`, step by step: its rows, losses, rates, gradient norms and last weights."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from glm_case import facts_of, load_model
from torch import nn

from hanlin.core.batch import IGNORED, Batch
from hanlin.formats.rules import find_moves
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.record import ChatGlm2Options
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import TrainSettings
from hanlin.train.optimizer import build_optimizer
from hanlin.train.optimizers.adamw import AdamWSettings
from hanlin.train.step import Step

ABSENT = -1
"""What fills the rows that a short batch lacks."""

# Against the original's own update; a replay that shares its formula comes to 1.5e-6.
UPDATE_RELATIVE = 1e-4


def check(case: Path, vocab: Path) -> None:
    del vocab
    model = load_model(case / "model")
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    check_rows(case)
    train_as_recorded(model, case)
    changes = {name: weight.detach() - start[name] for name, weight in model.named_parameters()}
    theirs = {name: weight - start[name] for name, weight in final_weights(case, model.config).items()}
    # The bias of the keys has no gradient on the unrotated channels, and Adam makes full steps of rounding noise.
    compared = [name for name in changes if not name.endswith("attention.key.bias")]
    assert changes.keys() == theirs.keys()
    assert relative_error(changes, theirs, compared) < UPDATE_RELATIVE


def check_rows(case: Path) -> None:
    """Every row that the original trained on is one that we make of the file."""
    flags = flags_of(case)
    options = ChatGlm2Options(
        prompt_column=flags.prompt_column,
        response_column=flags.response_column,
        prompt_length=flags.max_source_length,
        answer_length=flags.max_target_length,
        compatible=True,
    )
    model, file = case / "model", case / flags.train_file
    processor = family.processor(family.tokenizer(model), load_model(model).config, options)
    ours = [processor.original_row(json.loads(line)) for line in file.read_text("utf-8").splitlines()]
    for batch in recorded_batches(case):
        for ids, labels in zip(*batch, strict=True):
            assert (ids.tolist(), labels.tolist()) in ours


def train_as_recorded(model: nn.Module, case: Path) -> None:
    """Train on the case's batches; every number of every step must be the original's."""
    tolerance, expected = facts_of(case)["tolerance"], np.load(case / "expected.npz")
    atol = float(str(tolerance["step_loss_atol"]).split(" ")[0])
    settings, batches = settings_of(case), recorded_batches(case)
    assert settings.steps is not None
    parallel_model = parallelize(model, torch.device("cpu"))
    optimizer = build_optimizer(parallel_model.parameters, settings.optimizer)
    step = Step(parallel_model, optimizer, settings, settings.steps)
    per_step = len(batches) // settings.steps
    losses = expected["step_loss_unrounded"].reshape(settings.steps, per_step).mean(1)
    for number in range(settings.steps):
        report = step.run(as_batch(batches[number * per_step : (number + 1) * per_step]))
        assert report.loss == pytest.approx(losses[number], abs=atol), number
        norm = expected["grad_norms_before_clip"][number]
        assert report.grad_norm == pytest.approx(norm, rel=tolerance["grad_norm_rtol"]), number
        # They logged the rate of the step that follows.
        following = report.lr - settings.lr / settings.steps
        assert following == pytest.approx(expected["lrs"][number], abs=1e-12), number


def settings_of(case: Path) -> TrainSettings:
    """The original's flags, and the defaults of its trainer."""
    flags = flags_of(case)
    return TrainSettings(
        steps=flags.max_steps,
        batch_size=flags.per_device_train_batch_size * flags.gradient_accumulation_steps,
        micro_batch_size=flags.per_device_train_batch_size,
        lr=flags.learning_rate,
        schedule="linear",
        first_step_at_zero=True,  # with linear decay and no warm-up: the first step has the full rate
        optimizer=AdamWSettings(weight_decay=0, eps_before_correction=True),
        loss_mean="batch",
    )


def flags_of(case: Path) -> Namespace:
    parser = ArgumentParser()
    for name in ("train_file", "prompt_column", "response_column"):
        parser.add_argument(f"--{name}")
    for name in ("max_steps", "max_source_length", "max_target_length", "pre_seq_len"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        parser.add_argument(f"--{name}", type=int, default=1)
    parser.add_argument("--learning_rate", type=float)
    return parser.parse_known_args(facts_of(case)["cli"])[0]


def recorded_batches(case: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each forward pass its input_ids and labels `[rows, length]`."""
    arrays = np.load(case / "inputs.npz")
    pairs = zip(arrays["batches_input_ids"], arrays["batches_labels"], strict=True)
    return [(ids[is_there], labels[is_there]) for ids, labels in pairs for is_there in [ids[:, 0] != ABSENT]]


def as_batch(parts: list[tuple[np.ndarray, np.ndarray]]) -> Batch:
    """One optimizer step; our labels stand one place before theirs."""
    ids, labels = (np.concatenate(arrays).astype(np.int64) for arrays in zip(*parts, strict=True))
    labels = np.concatenate([labels[:, 1:], np.full_like(labels[:, :1], IGNORED)], axis=1)
    return Batch({"tokens": torch.from_numpy(ids)}, torch.from_numpy(labels), torch.ones(labels.shape))


def final_weights(case: Path, config: ChatGlm2Config) -> dict[str, torch.Tensor]:
    """The original's last weights by our names."""
    arrays = np.load(case / "expected.npz")
    theirs = {n.removeprefix("final."): torch.from_numpy(arrays[n]) for n in arrays if n.startswith("final.")}
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
