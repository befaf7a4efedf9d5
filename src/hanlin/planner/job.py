"""What all layouts of a recipe have in common: its model without values, and what a pass of its blocks keeps."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hanlin.core.batch import Extent
from hanlin.core.cards import Device
from hanlin.core.errors import ConfigError
from hanlin.layers.precision import DTYPES, Precision
from hanlin.layers.quantised import quantise_linears
from hanlin.models.family import Family, load_family
from hanlin.parallel.layout_checks import compile_problems, model_problems, settings_problems
from hanlin.parallel.parallelize import kept_dtype
from hanlin.planner.devices import precision_on
from hanlin.planner.layout import Layout
from hanlin.planner.timing import PassSeconds, pass_seconds
from hanlin.planner.trace import (
    RankModel,
    Trace,
    TraceSettings,
    kinds_of_blocks,
    rank_model,
    shrink,
    trace,
    with_experts,
)
from hanlin.planner.weights import (
    Held,
    HeldSizes,
    OptimizerBytes,
    StageWeights,
    Weight,
    cut_stages,
    hold,
    list_weights,
    query_heads,
)
from hanlin.recipe.reading import Found, nearest
from hanlin.recipe.settings import Recipe
from hanlin.run.components import answers_in_row, find_adapter, model_config, reach_problems
from hanlin.run.precision import weight_dtype_problem
from hanlin.run.teacher import TEACHER, teacher_recipe, teacher_setting_problems
from hanlin.training.needed_flops import needed_flops
from hanlin.training.objective import build_objective, teacher_settings
from hanlin.training.optimizer import find_optimizer, layout_problems
from hanlin.tuning.apply import apply_tuning


@dataclass(frozen=True)
class SequenceLengths:
    """Tokens of a row: of the decoder, of the encoder (None: as many), and of one sample in a packed row (0: all)."""

    length: int
    encoder_length: int | None = None
    sample_length: int = 0

    @property
    def extent(self) -> Extent:
        """Of a row; samples are cut off at its end."""
        read = self.encoder_length or self.length
        own_pairs, read_pairs, cross_pairs = (
            sum(one * other for one, other in zip(self._samples(first), self._samples(second), strict=False))
            for first, second in ((self.length, self.length), (read, read), (self.length, read))
        )
        return Extent(self.length, read, self.length, own_pairs, read_pairs, cross_pairs)

    def _samples(self, length: int) -> list[int]:
        whole, rest = divmod(length, self.sample_length or length)
        return [self.sample_length or length] * whole + [rest] * bool(rest)


class PlannedModel:
    """A recipe's model on the meta device. Traces are remembered: layouts share them.

    asks_first: whether the objective asks the model for likelihoods, without a gradient, before each pass.
    """

    def __init__(
        self, recipe: Recipe, lengths: SequenceLengths, size: str | None = None, *, device: Device | None = None
    ) -> None:
        """size: a named size of the family in place of the recipe's base; device: None: the CPU.

        Raises: ConfigError, CheckpointError.
        """
        family = load_family(recipe.model.family)
        self.recipe, self.lengths, self.device = recipe, lengths, device
        self.precision: Precision = precision_on(device, recipe.train.precision)
        self.config, self.notes = planned_config(recipe, family, size)
        self.dtype = DTYPES[self.precision]
        trained = DTYPES[recipe.train.weight_dtype if recipe.tuning.trains_base else "fp32"]
        self.trained_bytes = trained.itemsize
        self.asks_first = not build_objective(recipe.train.objective).uses_dropout
        model = _meta_model(recipe, family, self.config, (self.dtype, trained))
        self._problems = [
            *reach_problems(lengths.length, self.config, answers_in_row(recipe)),
            *settings_problems(recipe),
            # A teacher need not be here.
            *(one for one in teacher_setting_problems(recipe) if not one[0].startswith(TEACHER)),
        ]
        self._problems += model_problems(model, recipe.parallel)
        self._problems += compile_problems(model, recipe.parallel) if recipe.train.compile == "blocks" else []
        self.weights: list[Weight] = list_weights(model)
        self._needed = needed_flops(model)
        self.kinds = kinds_of_blocks(model)
        self.heads = query_heads(model)
        self.num_experts = max(weight.num_experts for weight in self.weights)
        self._template = shrink(model)
        self._teacher = self._teacher_weights(family)
        self._remember()

    def _teacher_weights(self, family: Family) -> list[Weight]:
        """Of the model that the objective imitates; none where there is no such, or where it is not here."""
        asked = teacher_settings(self.recipe.train.objective)
        if asked is None:
            return []
        if not asked.path.exists():
            self.notes.append(f"{asked.path} is not here: no memory is planned for the teacher")
            return []
        recipe = teacher_recipe(asked, self.recipe, family)
        self.notes.append("the step time is without the teacher's pass")
        config, _ = planned_config(recipe, family, None)
        dtype = DTYPES[precision_on(self.device, recipe.train.precision)]
        model = _meta_model(recipe, family, config, (dtype, dtype))
        return list_weights(model)

    def needed_flops(self, rows: int) -> int:
        """What the model needs for a step of so many full rows, as a run's MFU counts it; every position is labelled.
        See `training.needed_flops`."""
        return rows * self._needed.of(self.lengths.extent)

    def teacher_bytes(self, layout: Layout) -> int:
        """The teacher's weights on one rank: only tensor ranks divide it."""
        divided = Layout(tensor=layout.tensor)
        return sum(weight.whole_elements(divided) * weight.element_bytes for weight in self._teacher)

    def _remember(self) -> None:
        self._cut = functools.cache(self._stages)
        self._held = functools.cache(self._hold)
        self._trace = functools.cache(self._run)
        self._rank_model = functools.cache(self._make_rank_model)
        self._with_experts = functools.cache(self._more_experts)
        self.seconds = functools.cache(self._seconds)

    def refuse_layout(self) -> None:
        """Raises: ConfigError for what keeps the recipe's rows and its layout from being trained, as `check` has it."""
        found = [*self._problems, *self.optimizer_problems(self.recipe.parallel.tensor)]
        if problem := weight_dtype_problem(self.recipe, self.precision):
            found.append(("train.weight_dtype", problem))
        if found:
            raise ConfigError("; ".join(f"{key}: {text}" for key, text in found))

    def optimizer_problems(self, tensor: int) -> Found:
        """What keeps the recipe's optimizer from so many tensor ranks."""
        layout = Layout(tensor=tensor)
        parts = ((one.name, one.shape, one.local_shape(layout)) for one in self.weights if one.is_trained)
        yield from layout_problems(self.recipe.train.optimizer, parts)

    def on(self, device: Device) -> PlannedModel:
        """The same on another device.

        Raises: ConfigError where it has not the recipe's precision, or not what the dtype of its weights goes with.
        """
        other = copy.copy(self)
        other.device, other.precision = device, precision_on(device, self.recipe.train.precision)
        if problem := weight_dtype_problem(self.recipe, other.precision):
            raise ConfigError(f"train.weight_dtype: {problem}")
        other.dtype = DTYPES[other.precision]
        other._remember()
        return other

    def trace(self, layout: Layout) -> Trace:
        """One pass of `layout.micro_batch_size` rows on one tensor rank."""
        plain = Layout(tensor=layout.tensor, micro_batch_size=layout.micro_batch_size)
        if self.recipe.model.quantise and layout.checkpoint_activations != "none":
            plain = replace(plain, checkpoint_activations="full")  # what of packed weights is kept depends on it
        if not self.num_experts:
            return self._trace(plain, 1)
        return self._with_experts(plain, -(-self.num_experts // layout.expert))

    def _more_experts(self, layout: Layout, count: int) -> Trace:
        # What experts add does not depend on the rows, and tensor ranks divide it as they do the weights.
        one, two = (self._trace(Layout(), experts) for experts in (1, 2))
        share = self._expert_elements(layout) / self._expert_elements(Layout())
        added = {kind: round(share * (two.blocks[kind].casted - cost.casted)) for kind, cost in one.blocks.items()}
        return with_experts(self._trace(layout, 1), added, count)

    def _expert_elements(self, layout: Layout) -> int:
        """That a tensor rank computes with, of one expert of each block."""
        return sum(math.prod(weight.seen_shape(layout)) for weight in self.weights if weight.num_experts)

    def _seconds(self, trace: Trace, device: Device) -> PassSeconds:
        return pass_seconds(trace, device)

    def held(self, layout: Layout) -> list[Held]:
        """What each pipeline rank holds.

        Raises: ConfigError when there are more stages than blocks.
        """
        # What else a layout says is not asked for.
        return self._held(
            replace(layout, micro_batch_size=1, micro_batches=1, checkpoint_activations="none", offload=layout.offload)
        )

    def gathers_half(self, layout: Layout) -> bool:
        """Whether data ranks gather the weights of blocks in the dtype of the arithmetic (parallel/shard.py)."""
        return layout.is_sharded and self.dtype.itemsize < 4 and not self.recipe.parallel.gather_fp32

    def _hold(self, layout: Layout) -> list[Held]:
        cut = Layout(pipe=layout.pipe, schedule=layout.schedule, stages_per_rank=layout.stages_per_rank)
        most = self.dtype.itemsize if self.gathers_half(layout) else None
        settings = self.recipe.train.optimizer
        spec = find_optimizer(settings)
        changing = spec.step_bytes or (lambda settings, weight: 0)
        partial = functools.partial
        sizes = HeldSizes(layout, OptimizerBytes(partial(spec.state_bytes, settings), partial(changing, settings)))
        return [hold(stage, layout, sizes, most) for stage in self._cut(cut)]

    def _stages(self, layout: Layout) -> list[StageWeights]:
        return cut_stages(self.weights, layout)

    def _run(self, layout: Layout, experts: int) -> Trace:
        return trace(self._rank_model(layout.tensor, experts), layout)

    def _make_rank_model(self, tensor: int, experts: int) -> RankModel:
        lengths = self.lengths
        run = TraceSettings(
            lengths.length,
            lengths.encoder_length or lengths.length,
            self.dtype,
            lengths.sample_length,
            self.device,
            self.recipe.run.attention,
            experts,
            has_dropout=not self.asks_first,
        )
        return rank_model(self._template, Layout(tensor=tensor), run)


def _meta_model(recipe: Recipe, family: Family, config: Any, dtypes: tuple[torch.dtype, torch.dtype]) -> Any:
    with torch.device("meta"), _drawing_nothing():
        model = family.model()(config)
        if recipe.model.quantise is not None:
            quantise_linears(model, recipe.model.quantise)
        apply_tuning(model, recipe.tuning, family)
    for weight in model.parameters():
        weight.data = weight.data.to(kept_dtype(weight, *dtypes))
    return model


@contextmanager
def _drawing_nothing() -> Iterator[None]:
    """Let torch's modules leave out their first values, which take seconds for a mixture, also without memory."""
    drawing = [nn.Linear, nn.Embedding]
    kept = [module.reset_parameters for module in drawing]
    for module in drawing:
        module.reset_parameters = lambda self: None
    try:
        yield
    finally:
        for module, reset in zip(drawing, kept, strict=True):
            module.reset_parameters = reset


def planned_config(recipe: Recipe, family: Family, size: str | None) -> tuple[Any, list[str]]:
    """The model's shape, and what was assumed of it because files are missing."""
    notes, model = [], recipe.model
    if size is not None:
        if size not in family.sizes:
            raise ConfigError(f"--size: {family.title} has no size {size!r}{nearest(size, family.sizes)}")
        model = model.model_copy(update={"base": None, "size": size})
    elif model.base is not None and not model.base.exists():
        notes.append(f"{model.base} is not here: planned for {family.title}'s default size (--size names another)")
        model = model.model_copy(update={"base": None})
    vocab = model.vocab or model.base
    if vocab is not None and vocab.exists() and model.base is None:
        tokens = family.tokenizer(vocab).vocab_size
    else:
        start = family.config() if model.size is None else family.sizes[model.size]
        tokens = start.vocab_size
        if model.base is None and "vocab_size" not in model.config:
            notes.append(f"there is no vocabulary here: planned for {tokens:,} tokens")
    planned = recipe.model_copy(update={"model": model})
    return model_config(planned, family, tokens, adapter=find_adapter(planned, family)), notes
