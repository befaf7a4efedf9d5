"""What one device holds while it answers, and how fast: weights, KV cache, what a call of the model needs besides.

The model's own code reads and writes slots of the cache that `serve` uses (layers/slot_cache.py), one block of each
kind on tensors without memory (trace.py): a piece of a prompt, and a step in which some answers get a token each.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hanlin.core.cards import Device
from hanlin.generate.method import find_method
from hanlin.layers.precision import DTYPES, Precision
from hanlin.layers.quantised import quantise_linears
from hanlin.layers.slot_cache import Budget, Slot, SlotCache, SlotView
from hanlin.models.family import Family, load_family
from hanlin.planner.devices import precision_on
from hanlin.planner.estimate import FRAGMENTATION, RESERVE_BYTES
from hanlin.planner.fake_ops import DeviceAttention
from hanlin.planner.job import planned_config
from hanlin.planner.kernels import AttentionCall
from hanlin.planner.layout import Layout
from hanlin.planner.trace import OUTSIDE, TraceSettings, kinds_of_blocks, make_constants, make_inputs, realise, shrink
from hanlin.planner.weights import block_names, list_weights, seen_shapes
from hanlin.planner.work import Seconds, Work, WorkCounter, seconds_on
from hanlin.run.components import find_adapter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hanlin.layers.attention_kernels import AttentionKernel
    from hanlin.recipe.settings import Recipe

_TRACED_ROWS = 64
_MOST_ROWS = 4096
"""More at once are not looked for."""
_LOGIT_COPIES = 3
"""fp32 numbers for each logit of a step, of choosing tokens."""


@dataclass(frozen=True)
class Call:
    """One call of the whole model: bytes that it needs besides weights and cache, its operations by kind of block, what
    the cache took for it by kind of block, and the kernels of its attention.
    """

    transient: int
    work: Mapping[str, Work]
    cached: Mapping[str, int]
    attention: Mapping[AttentionCall, AttentionKernel]


class AnsweringModel:
    """A recipe's model as it answers on a device, with so many tokens of prompt and answer together.

    context: of one sequence; encoder_length: that an encoder reads; step_tokens: of prompts that are read at once.
    """

    def __init__(self, recipe: Recipe, device: Device | None, size: str | None, lengths: tuple[int, int, int]) -> None:
        """lengths: context, encoder_length, step_tokens; device: None: the CPU.

        Raises: ConfigError, CheckpointError.
        """
        family = load_family(recipe.model.family)
        self.recipe, self.device, self.family = recipe, device, family
        self.context, self.encoder_length, self.step_tokens = lengths
        self.precision: Precision = precision_on(device, recipe.train.precision)
        self.dtype = DTYPES[self.precision]
        self.config, self.notes = planned_config(recipe, family, size)
        model = _frozen_meta_model(recipe, family, self.config, self.dtype)
        self.parameters = sum(weight.count(Layout()) * weight.numbers for weight in list_weights(model))
        self.weights = _weight_bytes(recipe, model)
        self.kinds = kinds_of_blocks(model)
        self.beams = find_method(recipe.generate).num_beams(recipe.generate)
        self.template = shrink(model, keeps_ends=True)
        widths = SlotCache(Budget(2**40))
        has_encoder = any(name.startswith("encoder_") for name in self._inputs(1, 1))
        self.width = widths.width_for(self.context)
        self.encoder_width = widths.width_for(self.encoder_length) if has_encoder else 0
        self.step = functools.cache(self._step)

    @functools.cached_property
    def reading(self) -> Call:
        """Of a prompt: its last piece, where it is read in pieces, else all of it."""
        known = max(0, self.context - self.step_tokens) if self.family.is_causal else 0
        return self._run(1, known, self.context - known)

    @functools.cached_property
    def slot(self) -> int:
        """Bytes that the cache takes for one sequence."""
        call = self.step(1)
        return call.cached[OUTSIDE] + sum(call.cached[kind] for kind in self.kinds)

    def step_bytes(self, rows: int) -> int:
        """That a step of so many answers needs besides; in between two numbers of rows it grows evenly."""
        one, many = self.step(1).transient, self.step(_TRACED_ROWS).transient
        return one + (many - one) * (rows - 1) // (_TRACED_ROWS - 1)

    def peak(self, rows: int) -> int:
        return self.weights + rows * self.slot + max(self.reading.transient, self.step_bytes(rows))

    def most_rows(self, device: Device) -> int:
        """Answers that can be written at once, up to 4,096; 0: not even one."""
        most = int((device.memory_bytes - RESERVE_BYTES) / FRAGMENTATION)
        low, high = 0, _MOST_ROWS
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.peak(middle) <= most else (low, middle - 1)
        return low

    def step_seconds(self, rows: int, device: Device) -> Seconds:
        """In which each of so many answers gets a token."""
        return self._seconds(self.step(rows), device)

    def reading_seconds(self, device: Device) -> Seconds:
        return self._seconds(self.reading, device)

    def _seconds(self, call: Call, device: Device) -> Seconds:
        times = {kind: seconds_on(work, device) for kind, work in call.work.items()}
        blocks = (times.get(kind, Seconds()) for kind in self.kinds)
        return sum(blocks, times.get(OUTSIDE, Seconds()))

    def _step(self, rows: int) -> Call:
        return self._run(rows, self.context - 1, 1)

    def _inputs(self, rows: int, length: int) -> dict[str, torch.Tensor]:
        run = TraceSettings(length, self.encoder_length, self.dtype)
        return make_inputs(self.template.model, rows, run, also=("positions",))

    @torch.no_grad()
    def _run(self, rows: int, known: int, new: int) -> Call:
        """Some rows of which so many positions are in the cache read so many new ones."""
        model = copy.deepcopy(self.template.model).eval()
        shapes, run = seen_shapes(self.template.model, Layout()), TraceSettings(new, self.encoder_length, self.dtype)
        make_constants(model)
        with FakeTensorMode(allow_non_fake_inputs=True):
            realise(model, shapes, Layout(), run)
            counter = WorkCounter(weights=tuple(model.parameters()))
            attention = DeviceAttention(counter, self.device, self.recipe.run.attention)
            cache = SlotCache(Budget(2**40))
            slots = cache.take(rows, self.width, self.encoder_width)
            assert slots is not None
            sections = _CacheSections(model, self.template.kinds, counter, cache)
            with counter, _arithmetic(self.dtype):
                if known:
                    self._call(model, cache, slots[:rows], self._inputs(rows, known))
                counter.work.clear()
                counter.peak, before, held = counter.live, counter.live, sections.total()
                with attention.in_place():
                    self._call(model, cache, slots[:rows], self._inputs(rows, new))
                transient = counter.peak - before - (sections.total() - held)
        transient += rows * self.config.vocab_size * 4 * _LOGIT_COPIES
        count = slots[0].arena.count  # of few slots there are more than are asked for
        cached = {kind: math.ceil(size / count) for kind, size in sections.cached().items()}
        return Call(transient, dict(counter.work), cached, attention.calls)

    def _call(self, model: Any, cache: SlotCache, slots: Sequence[Slot], inputs: dict[str, torch.Tensor]) -> None:
        view = SlotView(cache, slots)
        model(**inputs, kv_cache=view, logits_to_keep=1)
        view.commit()


class _CacheSections:
    """Names the counter's sections after the block that runs, and notes what the cache grows by in each kind."""

    def __init__(self, model: Any, kinds: Sequence[str], counter: WorkCounter, cache: SlotCache) -> None:
        self.counter, self.cache = counter, cache
        self.grown = dict.fromkeys(kinds, 0)
        self.entered = 0
        for kind, name in zip(kinds, block_names(model), strict=True):
            block = model.get_submodule(name)
            block.register_forward_pre_hook(functools.partial(self._enter, kind))
            block.register_forward_hook(functools.partial(self._leave, kind))

    def total(self) -> int:
        return self.cache.bytes

    def cached(self) -> dict[str, int]:
        return {**self.grown, OUTSIDE: self.total() - sum(self.grown.values())}

    def _enter(self, kind: str, *_: Any) -> None:
        self.counter.section, self.entered = kind, self.total()

    def _leave(self, kind: str, *_: Any) -> None:
        self.counter.section = OUTSIDE
        self.grown[kind] += self.total() - self.entered


@contextmanager
def _arithmetic(dtype: torch.dtype) -> Iterator[None]:
    is_mixed = dtype != torch.float32
    with torch.autocast("cpu", dtype if is_mixed else None, enabled=is_mixed):
        yield


def _frozen_meta_model(recipe: Recipe, family: Family, config: Any, dtype: torch.dtype) -> Any:
    """The base in the dtype of the arithmetic, what was trained beside it in fp32 (run/weights.py)."""
    adapter = find_adapter(recipe, family)
    method = recipe.tuning if adapter is None else adapter.settings.completed(recipe.tuning)
    with torch.device("meta"):
        model = family.model()(config)
        if recipe.model.quantise is not None:
            quantise_linears(model, recipe.model.quantise)
        for weight in model.parameters():
            weight.data = weight.data.to(dtype) if weight.is_floating_point() else weight.data
        method.add_to(model, family)
    return model.requires_grad_(False)


def _weight_bytes(recipe: Recipe, model: Any) -> int:
    """Of a mixture whose experts are read when they are needed: those that have room (`generate.expert_memory`)."""
    sizes = [
        (weight.num_experts, weight.count(Layout()) * math.prod(weight.shape) * weight.element_bytes)
        for weight in list_weights(model)
    ]
    experts = sum(size for count, size in sizes if count)
    limit = recipe.generate.expert_memory
    kept = experts if limit is None else min(experts, int(limit * 2**30))
    return sum(size for count, size in sizes if not count) + kept
