"""The original's fine-tuning, step by step: loss, learning rate, gradient norm, and the weights at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from check_bee_encode import PACKED, best_fit, check_batch, instances_of
from golden_case import Case, Reading

from hanlin.core.batch import Batch
from hanlin.formats.load import load_into
from hanlin.formats.source import read_config
from hanlin.models.cpm_bee import family
from hanlin.models.cpm_bee.model import CpmBee
from hanlin.models.cpm_bee.processor import CpmBeeProcessor
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import TrainSettings
from hanlin.training.optimizer import build_optimizer
from hanlin.training.optimizers.adamw import AdamWSettings
from hanlin.training.step import Step

EPOCHS, ROWS, LENGTH = 4, 2, 64
"""Of the cases' packer, where they do not say otherwise."""


def check(case: Case, vocab: Path) -> None:
    del vocab
    model = load_model(case / "pytorch_model.bin", case / "config.json")
    check_packing(case, model)
    train_as_recorded(model, case)
    best = case.one("*-best.pt")
    if best is not None:
        tuned = load_model(best, case / "config.json")
        assert_same_weights(model, tuned, case.tolerance("final_param_atol", default=1e-3))


def load_model(weights: Path, config: Path) -> CpmBee:
    with torch.device("meta"):
        model = CpmBee(read_config(config.parent / "pytorch_model.bin", family))
    load_into(model, weights, family, dtype=torch.float32)
    return model


def check_packing(case: Case, model: CpmBee) -> None:
    """The batches are those that the original's packer made of the rows, epoch after epoch."""
    case.set_aside(r"batches\.npz: .*task_ids", "one data set, number 0")
    if not case.holds("rows.json", "vocab.txt"):
        return
    processor = CpmBeeProcessor(family.tokenizer(case / "vocab.txt"), model.config)
    rows, arrays = case.data("rows.json"), case.arrays("batches.npz")
    rng, number = np.random.RandomState(case.facts["np_seed"]), 0
    for _ in range(EPOCHS):
        for packed in best_fit(instances_of(processor, rows, LENGTH, rng, [1.0]), LENGTH, ROWS):
            batch = processor.collate([[sample for sample, _ in row] for row in packed], LENGTH)
            check_batch(batch, arrays.under(f"step{number}."))
            number += 1
    assert number == len(case.facts["steps"])


def train_as_recorded(model: CpmBee, case: Case) -> None:
    """Train on the case's batches; every number of every step must be the original's."""
    recorded, rel = case.facts["steps"], case.tolerance("loss_rel", default=2e-4)
    settings = settings_of(case.facts)
    parallel_model = parallelize(model, torch.device("cpu"))
    step = Step(parallel_model, build_optimizer(parallel_model.parameters, settings.optimizer), settings, len(recorded))
    for theirs, batch in zip(recorded, load_batches(case.arrays("batches.npz"), len(recorded)), strict=True):
        ours = step.run(batch)
        assert ours.lr == pytest.approx(theirs["lr"], rel=1e-9)
        assert ours.loss == pytest.approx(theirs["loss"], rel=rel), theirs
        assert ours.grad_norm == pytest.approx(theirs["grad_norm"], rel=10 * rel), theirs
        found = {"rows": batch.size, "tokens": ours.tokens, "targets": ours.loss_tokens}
        assert found == {name: theirs.get(name, value) for name, value in found.items()}


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


def load_batches(arrays: Reading, count: int) -> list[Batch]:
    return [_batch(arrays.under(f"step{number}.")) for number in range(count)]


def _batch(arrays: Reading) -> Batch:
    inputs = {ours: arrays[theirs] for theirs, ours in PACKED.items() if theirs in arrays}
    labels = arrays["target"].long()
    for name in ("ext_tokens", "ext_subs"):
        inputs[name] = inputs[name].expand(len(labels), -1)
    return Batch(inputs, labels, torch.ones(labels.shape))


def assert_same_weights(model: CpmBee, tuned: CpmBee, atol: float) -> None:
    theirs = dict(tuned.named_parameters())
    for name, weight in model.named_parameters():
        torch.testing.assert_close(
            weight, theirs[name], rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )
