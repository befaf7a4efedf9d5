"""What a real step holds, to compare a plan with: the same recipe, run with fresh weights and random labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hanlin.core.batch import Batch
from hanlin.core.config import make_recipe
from hanlin.core.settings import Recipe
from hanlin.models.family import load_family
from hanlin.parallel.place import DTYPES, Worker, place
from hanlin.planner.job import Columns, Job
from hanlin.planner.live import LiveBytes
from hanlin.planner.trace import Run, make_inputs
from hanlin.train.optim import AdamW
from hanlin.tuning.apply import apply_tuning

LENGTH = 128


@dataclass(frozen=True)
class Measured:
    """Bytes; peak: of all tensors of forward and backward passes."""

    parameters: int
    gradients: int
    optimiser: int
    peak: int


def tiny_recipe(family: str, *changes: str) -> Recipe:
    """Two rows of 128 tokens in each pass."""
    model = {"family": family, "size": "tiny", "config": {"vocab_size": 2000}}
    settings = {"train": {"batch_rows": 2, "micro_rows": 2}, "data": {"max_length": LENGTH}}
    return make_recipe({"model": model, "run": {"folder": "run"}, **settings}, changes)


def job_of(recipe: Recipe) -> Job:
    return Job(recipe, Columns(recipe.data.max_length), keeps_probabilities=True)


def place_fresh(recipe: Recipe, config: Any) -> Worker:
    """The recipe's model with fresh weights, or this rank's share of it."""
    family = load_family(recipe.model.family)
    model = family.model()(config)
    model.init_weights(torch.Generator().manual_seed(1))
    apply_tuning(model, recipe.tuning, family, torch.Generator().manual_seed(2))
    return place(model, torch.device("cpu"), recipe.train.precision, recipe.parallel)


def measure(recipe: Recipe, config: Any) -> Measured:
    """Run the passes of one step in this process."""
    worker = place_fresh(recipe, config)
    optimiser, weights = AdamW(worker.parameters, recipe.train), list(worker.model.parameters())
    parts = _batch(worker, recipe, config.vocab_size).split(recipe.train.batch_rows // (recipe.train.micro_rows or 1))
    given = [tensor for part in parts for tensor in (*part.inputs.values(), part.labels, part.weights)]
    state = list(optimiser.tensors().values())
    live = LiveBytes(others=(*weights, *state, *given))
    with live:
        worker.forward_backward(parts, [100.0] * len(parts))
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    return Measured(_bytes(weights), _bytes(gradients), _bytes(state), _bytes(weights) + _bytes(state) + live.peak)


def _batch(worker: Worker, recipe: Recipe, vocab_size: int) -> Batch:
    rows = recipe.train.batch_rows
    inputs = make_inputs(worker.model, rows, Run(LENGTH, LENGTH, DTYPES[recipe.train.precision]))
    labels = torch.randint(vocab_size, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
    return Batch(inputs, labels, torch.ones(rows, LENGTH))


def _bytes(tensors: list[Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
