"""The original's fine-tuning, step by step: loss, learning rate, gradient norm, and the weights at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hanlin.core.batch import Batch
from hanlin.formats.load import load_into
from hanlin.formats.source import read_config
from hanlin.models.cpm_bee import family
from hanlin.models.cpm_bee.model import CpmBee
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import TrainSettings
from hanlin.train.optimizer import build_optimizer
from hanlin.train.optimizers.adamw import AdamWSettings
from hanlin.train.step import Step

INPUT_NAMES = {
    "inputs": "tokens",
    "inputs_sub": "subs",
    "length": "lengths",
    "context": "is_context",
    "sample_ids": "sample_ids",
    "num_segments": "num_segments",
    "segment_ids": "segments",
    "segment_rel_offset": "relation_offsets",
    "segment_rel": "relations",
    "spans": "spans",
    "ext_ids": "ext_tokens",
    "ext_sub": "ext_subs",
}


def check(case: Path, vocab: Path) -> None:
    del vocab
    facts = json.loads((case / "case.json").read_text())
    model = load_model(case, case / "pytorch_model.bin")
    train_as_recorded(model, case, facts)
    tuned = load_model(case, next(case.glob("*-best.pt")))
    assert_same_weights(model, tuned, facts["tolerance"]["final_param_atol"])


def load_model(case: Path, weights: Path) -> CpmBee:
    with torch.device("meta"):
        model = CpmBee(read_config(case / "pytorch_model.bin", family))
    load_into(model, weights, family, dtype=torch.float32)
    return model


def train_as_recorded(model: CpmBee, case: Path, facts: dict[str, Any]) -> None:
    """Train on the case's batches; every number of every step must be the original's."""
    recorded, rel = facts["steps"], facts["tolerance"]["loss_rel"]
    settings = settings_of(facts)
    parallel_model = parallelize(model, torch.device("cpu"))
    step = Step(parallel_model, build_optimizer(parallel_model.parameters, settings.optimizer), settings, len(recorded))
    for theirs, batch in zip(recorded, load_batches(case / "batches.npz", len(recorded)), strict=True):
        ours = step.run(batch)
        assert ours.lr == pytest.approx(theirs["lr"], rel=1e-9)
        assert ours.loss == pytest.approx(theirs["loss"], rel=rel), theirs
        assert ours.grad_norm == pytest.approx(theirs["grad_norm"], rel=10 * rel), theirs
        assert (batch.size, ours.tokens, ours.loss_tokens) == (theirs["rows"], theirs["tokens"], theirs["targets"])


def settings_of(facts: dict[str, Any]) -> TrainSettings:
    hyper = facts["hyper"]
    return TrainSettings(
        lr=hyper["lr"],
        schedule="noam",
        warmup_steps=hyper["warmup_iters"],
        first_step_at_zero=True,
        optimizer=AdamWSettings(
            weight_decay=hyper["weight_decay"], decay_all=True, betas=hyper["betas"], eps=hyper["eps"]
        ),
        clip=hyper["clip_grad"],
        loss_mean="batch",
    )


def load_batches(path: Path, count: int) -> list[Batch]:
    arrays = np.load(path)
    return [
        _batch({name: arrays[f"step{number}.{name}"] for name in [*INPUT_NAMES, "target"]}) for number in range(count)
    ]


def _batch(arrays: dict[str, np.ndarray]) -> Batch:
    inputs = {INPUT_NAMES[name]: torch.from_numpy(array) for name, array in arrays.items() if name != "target"}
    labels = torch.from_numpy(arrays["target"]).long()
    for name in ("ext_tokens", "ext_subs"):
        inputs[name] = inputs[name].expand(len(labels), -1)
    return Batch(inputs, labels, torch.ones(labels.shape))


def assert_same_weights(model: CpmBee, tuned: CpmBee, atol: float) -> None:
    theirs = dict(tuned.named_parameters())
    for name, weight in model.named_parameters():
        torch.testing.assert_close(
            weight, theirs[name], rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )
