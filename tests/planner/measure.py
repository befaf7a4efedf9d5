"""What a real step holds, to compare a plan with: the same recipe, run with fresh weights and random labels."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hanlin.core.batch import Batch
from hanlin.layers.precision import DTYPES
from hanlin.layers.quantised import quantise_linears
from hanlin.models.family import load_family
from hanlin.parallel.mesh import local
from hanlin.parallel.parallel_model import ParallelModel
from hanlin.parallel.parallelize import parallelize
from hanlin.planner.job import PlannedModel, SequenceLengths
from hanlin.planner.memory_tracker import MemoryTracker
from hanlin.planner.trace import TraceSettings, make_inputs
from hanlin.recipe.reading import make_recipe
from hanlin.recipe.settings import Recipe
from hanlin.run.precision import trained_dtype
from hanlin.training.objective import build_objective, find_objective
from hanlin.training.optimizer import build_optimizer
from hanlin.tuning.apply import apply_tuning

LENGTH = 128


@dataclass(frozen=True)
class Measured:
    """Bytes; peak: of all tensors of a step."""

    parameters: int
    gradients: int
    optimizer: int
    peak: int


def tiny_recipe(family: str, *changes: str) -> Recipe:
    """Two rows of 128 tokens in each pass."""
    model = {"family": family, "size": "tiny", "config": {"vocab_size": 2000}}
    settings = {"train": {"batch_size": 2, "micro_batch_size": 2, "precision": "fp32"}, "data": {"max_length": LENGTH}}
    return make_recipe({"model": model, "run": {"folder": "run"}, **settings}, changes)


def job_of(recipe: Recipe) -> PlannedModel:
    return PlannedModel(recipe, SequenceLengths(recipe.data.max_length))


def parallelize_fresh(recipe: Recipe, config: Any) -> ParallelModel:
    """The recipe's model with fresh weights, or this rank's share of it."""

    def copy() -> Any:
        return _fresh_model(recipe, config)

    layout, trained = recipe.parallel, trained_dtype(recipe)
    return parallelize(copy(), torch.device("cpu"), recipe.train.precision, layout, copy=copy, trained=trained)


def _fresh_model(recipe: Recipe, config: Any) -> Any:
    family = load_family(recipe.model.family)
    with torch.device("meta"):
        model = family.model()(config)
        if recipe.model.quantise is not None:
            quantise_linears(model, recipe.model.quantise)
    model.to_empty(device="cpu")
    if all(weight.is_floating_point() for weight in model.parameters()):
        model.init_weights(torch.Generator().manual_seed(1))
    else:  # a packed base is never fresh
        for weight in model.parameters():
            weight.data.fill_(0.01 if weight.is_floating_point() else 1)
    return apply_tuning(model, recipe.tuning, family, torch.Generator().manual_seed(2))


def measure(recipe: Recipe, config: Any) -> Measured:
    """Run one step in this process, of passes and changes."""
    parallel_model = parallelize_fresh(recipe, config)
    weights = list(parallel_model.model.parameters())
    optimizer = build_optimizer(parallel_model.parameters, recipe.train.optimizer)
    objective = build_objective(recipe.train.objective)
    parts = _batch(parallel_model, recipe, config.vocab_size).split(
        recipe.train.batch_size // (recipe.train.micro_batch_size or 1)
    )
    given = [tensor for part in parts for tensor in (*part.inputs.values(), part.labels, part.weights)]
    state = list(optimizer.tensors().values())
    live = MemoryTracker(others=(*weights, *state, *given))
    with live:
        weighed = objective.weigh(parallel_model, parts)
        parts = [one.batch for one in weighed]
        parallel_model.forward_backward(parts, [100.0] * len(parts), dropout=objective.uses_dropout)
        parallel_model.grad_norm()
        parallel_model.scale_grads(0.5)
        optimizer.step(1e-3)
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    return Measured(_bytes(weights), _bytes(gradients), _bytes(state), _bytes(weights) + _bytes(state) + live.peak)


class RankBytes(TorchDispatchMode):
    """The most bytes of storages that are alive at once, besides given ones; FSDP resizes its own in place."""

    def __init__(self, others: list[torch.Tensor]) -> None:
        super().__init__()
        self.others = others  # alive, so that nobody else gets their places
        self.known = {tensor.untyped_storage()._cdata for tensor in others}
        self.storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = local(tensor).untyped_storage()
                if storage._cdata not in self.known:
                    self.storages[storage._cdata] = weakref.ref(storage)
        alive = {place: storage for place, reference in self.storages.items() if (storage := reference())}
        self.storages = {place: self.storages[place] for place in alive}
        self.peak = max(self.peak, sum(storage.nbytes() for storage in alive.values()))
        return result


def measure_rank(recipe: Recipe, config: Any, micro_batch_size: int, micro_batches: int) -> int:
    """The peak of this rank's tensors in a step after the first one, in bytes."""
    parallel_model = parallelize_fresh(recipe, config)
    optimizer = build_optimizer(parallel_model.parameters, recipe.train.optimizer)
    state = [local(tensor) for tensor in optimizer.tensors().values()]
    weights = [local(weight) for model in parallel_model.models for weight in model.parameters()]
    whole = load_family(recipe.model.family).model()(config)  # a stage cannot say what the first one reads
    rows = micro_batch_size * micro_batches
    inputs = make_inputs(whole, rows, TraceSettings(LENGTH, LENGTH, torch.float32))
    labels = torch.randint(config.vocab_size, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
    parts = Batch(inputs, labels, torch.ones(rows, LENGTH)).split(micro_batches)
    parallel_model.forward_backward(parts, [100.0] * len(parts))
    parallel_model.drop_grads()
    given = [tensor for part in parts for tensor in (*part.inputs.values(), part.labels, part.weights)]
    with RankBytes([*weights, *state, *given]) as live:
        parallel_model.forward_backward(parts, [100.0] * len(parts))
    return _bytes(weights) + _bytes(state) + live.peak


def _batch(parallel_model: ParallelModel, recipe: Recipe, vocab_size: int) -> Batch:
    rows = recipe.train.batch_size
    inputs = make_inputs(parallel_model.model, rows, TraceSettings(LENGTH, LENGTH, DTYPES[recipe.train.precision]))
    labels = torch.randint(vocab_size, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
    answers = len(find_objective(recipe.train.objective).answers)
    if not answers:
        return Batch(inputs, labels, torch.ones(rows, LENGTH))
    # A pair in each row, of equally long answers.
    sides = torch.arange(LENGTH).mul(answers).div(LENGTH, rounding_mode="floor").add(1).expand(rows, -1)
    return Batch(inputs, labels, torch.ones(rows, LENGTH), [[row] for row in range(rows)], sides)


def _bytes(tensors: list[Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
