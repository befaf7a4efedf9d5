"""What the blocks of a model keep for the backward pass, by running one block of each kind on tensors without memory.

Torch's fake tensors have shapes, dtypes and autograd, but no values, so a block of any size runs in milliseconds.
Weights have the shapes of one tensor rank, which is all that a split changes inside a block (docs/design.md, rule 4).
Every storage that comes to life and dies is counted, so this says what the code really keeps, whatever its formula.

Experts are not routed (that depends on values): each gets an equal share of the tokens, as in balanced training.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hanlin.core.cards import Device
from hanlin.layers.attention_kernels import AttentionKernel
from hanlin.layers.experts import Experts
from hanlin.layers.quantised import computed_again, packed_linears
from hanlin.parallel.parallelize import kept_dtype
from hanlin.planner.fake_ops import DeviceAttention, EvenExperts
from hanlin.planner.kernels import AttentionCall
from hanlin.planner.layout import Layout
from hanlin.planner.memory_tracker import tensor_bytes
from hanlin.planner.weights import block_names, seen_shapes
from hanlin.planner.work import Work, WorkCounter, total_flops

TraceInputs = dict[str, torch.Tensor]


OUTSIDE = ""
"""Of the blocks: embedding, masks, position bias."""


@dataclass(frozen=True)
class BlockCost:
    """One block's share of a forward pass, on one tensor rank, in bytes and FLOP.

    kept: what it holds for the backward pass, its output included, without `casted`: copies of weights in the dtype of
    the arithmetic (autocast makes them); products: of matrix products alone; output: the bytes of its
    output, elements: their number; flops: of its products and its attention.
    """

    kept: int
    products: int
    casted: int
    output: int
    elements: int
    flops: int


@dataclass(frozen=True, eq=False)
class Trace:
    """One forward and backward pass of `rows` rows.

    blocks: by kind; outside: kept by what stands before the blocks (embedding, masks, position bias); transient: most
    that the backward pass holds besides what was kept and the gradients of the weights; outputs: bytes of the state
    that travels between stages; forward, backward: operations of the blocks, by kind, and under OUTSIDE those of what
    stands in none; attention: its calls, and the kernels that take them.
    """

    blocks: Mapping[str, BlockCost]
    outside: int
    transient: int
    outputs: int
    forward: Mapping[str, Work]
    backward: Mapping[str, Work]
    attention: Mapping[AttentionCall, AttentionKernel]


def kinds_of_blocks(model: Any) -> list[str]:
    """For each block, in the order of the flow, a name that equal ones share."""
    return [_kind(name, model.get_submodule(name)) for name in block_names(model)]


def _kind(name: str, block: nn.Module) -> str:
    facts = [(part, tuple(weight.shape), weight.requires_grad) for part, weight in block.named_parameters()]
    return f"{name.rpartition('.')[0]} {type(block).__name__} {hash(tuple(facts)):x}"


@dataclass(frozen=True)
class TraceModel:
    """A (meta) model with one block of each kind; kinds: their names, in the order of the blocks."""

    model: Any
    kinds: Sequence[str]


_TRACED_EXPERTS = 2


def shrink(model: Any, *, keeps_ends: bool = False) -> TraceModel:
    """Take from a (meta) model, in place, all blocks but the last of each kind, most experts, and its last parts unless
    they are kept.
    """
    for name in () if keeps_ends else set(model.plan.last) - set(model.plan.first):
        setattr(model, name, None)
    last = dict(zip(kinds_of_blocks(model), block_names(model), strict=True))
    for name in set(block_names(model)) - set(last.values()):
        group, _, key = name.rpartition(".")
        del model.get_submodule(group)[key]
    kinds = kinds_of_blocks(model)
    for module in model.modules():
        if isinstance(module, Experts):
            module.experts = nn.ModuleDict(dict(list(module.experts.items())[:_TRACED_EXPERTS]))
    return TraceModel(model, kinds)


@dataclass(frozen=True)
class TraceSettings:
    """How the traced pass is run.

    length, encoder_length: of a row, in tokens; dtype: of the arithmetic; sample_length: positions of a packed row that
    attend among themselves (0: all); device, attention: whose kernels compute attention (`run.attention`); None: the
    CPU's, which keep probabilities where there is a trained bias or dropout; experts: among which a rank's tokens are
    divided, 1 or 2; has_dropout: False where the objective is trained without it.
    """

    length: int
    encoder_length: int
    dtype: torch.dtype
    sample_length: int = 0
    device: Device | None = None
    attention: AttentionKernel = "auto"
    experts: int = 1
    has_dropout: bool = True


@dataclass(frozen=True)
class RankModel:
    """A shrunk model with weights of one tensor rank's shapes; any number of passes may be traced.

    mode: in which its tensors are; run: how its passes are run.
    """

    model: Any
    kinds: Sequence[str]
    mode: FakeTensorMode
    run: TraceSettings


def rank_model(template: TraceModel, layout: Layout, run: TraceSettings) -> RankModel:
    """That of a layout's tensor ranks."""
    model, shapes = copy.deepcopy(template.model).train(run.has_dropout), seen_shapes(template.model, layout)
    make_constants(model)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        realise(model, shapes, layout, run)
    return RankModel(model, template.kinds, mode, run)


def trace(rank: RankModel, layout: Layout) -> Trace:
    """Run it once, forwards and backwards, with the rows of a layout.

    Of what a layout computes again this is the second time, when it keeps what the backward pass needs.
    """
    model, run = rank.model, rank.run
    with rank.mode:
        inputs = make_inputs(model, layout.micro_batch_size, run)
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        counter = WorkCounter(weights=tuple(model.parameters()), others=(*gradients, *inputs.values()))
        kernels = DeviceAttention(counter, run.device, run.attention)
        sections = _Sections(counter)
        marks = [
            _Mark(model.get_submodule(name), kind, sections)
            for kind, name in zip(rank.kinds, block_names(model), strict=True)
        ]
        with counter, kernels.in_place(), computed_again(layout.checkpoint_activations != "none"):
            outputs = _forward(model, inputs, run.dtype)
            kept, counter.peak = counter.live, counter.live
            forward = sections.taken()
            blocks = {mark.kind: mark.cost(forward) for mark in marks}
            reached = [out for out in outputs if out.requires_grad]
            torch.autograd.backward(reached, [torch.ones_like(out) for out in reached])
        for mark in marks:
            mark.remove()
        outside = kept - sum(cost.kept + cost.casted for cost in blocks.values())
        return Trace(
            blocks,
            outside,
            # Of a bias that all blocks share, a further block finds the gradient of those behind it.
            counter.peak - kept + kernels.bias_bytes,
            sum(map(tensor_bytes, outputs)),
            forward,
            sections.taken(),
            kernels.calls,
        )


def make_constants(model: nn.Module) -> None:
    """Let packed linears make the tables that they remember for good, which must have values."""
    for packing in set(packed_linears(model).values()):
        tensors = [torch.zeros_like(part, device="cpu") for part in packing.empty(2, 64)]
        packing.unpack(tuple(tensors), 64, torch.float32)


def with_experts(found: Trace, more: Mapping[str, int], count: int) -> Trace:
    """A trace with `count` experts instead of one: they keep as much together, but copy more weights; more: bytes of
    those of a further expert, by kind of block.
    """
    blocks = {
        kind: dataclasses.replace(cost, casted=cost.casted + (count - 1) * more[kind])
        for kind, cost in found.blocks.items()
    }
    return dataclasses.replace(found, blocks=blocks)


def _forward(model: Any, inputs: TraceInputs, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    is_mixed = dtype != torch.float32
    with torch.autocast("cpu", dtype if is_mixed else None, enabled=is_mixed):
        outputs = model(**inputs)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def realise(model: Any, shapes: Mapping[str, Sequence[int]], layout: Layout, run: TraceSettings) -> None:
    """Give a meta model weights (and gradients) of one tensor rank's shapes."""
    made: dict[int, nn.Parameter] = {}
    for name, weight in list(model.named_parameters(remove_duplicate=False)):
        if id(weight) not in made:
            made[id(weight)] = _fake(weight, shapes[name], run.dtype)
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, made[id(weight)])
    if layout.tensor > 1 and getattr(model, "prefix", None) is not None:
        _narrow_prefix(model, layout.tensor)
    for name, module in list(model.named_modules()):
        if isinstance(module, Experts):
            model.set_submodule(name, EvenExperts(module, run.experts))
    for name, buffer in list(model.named_buffers()):
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, torch.empty_like(buffer, device="cpu"))


def _fake(weight: nn.Parameter, shape: Sequence[int], arithmetic: torch.dtype) -> nn.Parameter:
    dtype = kept_dtype(weight, arithmetic, weight.dtype)
    made = nn.Parameter(torch.empty(tuple(shape), dtype=dtype, device="cpu"), requires_grad=weight.requires_grad)
    made.grad = torch.zeros_like(made) if weight.requires_grad else None
    return made


def _narrow_prefix(model: Any, ranks: int) -> None:
    """A prefix has all heads on every rank, which uses its own ones of them: make it as wide as those."""
    prefix, config = model.prefix, model.config
    heads = getattr(config, "num_kv_heads", config.num_heads)
    table = prefix.embedding if prefix.trans is None else prefix.trans[-1]
    for leaf, dim in (("weight", 1 if prefix.trans is None else 0), ("bias", 0)):
        weight = getattr(table, leaf, None)
        if weight is not None:
            kept = weight.shape[dim] // heads * math.ceil(heads / ranks)
            narrow = nn.Parameter(weight.detach().narrow(dim, 0, kept).clone())
            narrow.grad = torch.zeros_like(narrow)
            setattr(table, leaf, narrow)


def make_inputs(model: Any, rows: int, run: TraceSettings, also: Sequence[str] = ()) -> TraceInputs:
    """What the model's `forward` wants: the fields without default of the `Inputs` beside it, else its own arguments.

    A field is `[batch, length]`, of truth values if it is called so; `encoder_...` has the length of the encoder; also:
    further ones, where there are such.
    """
    kind = type(model).forward.__globals__.get("Inputs")
    fields = [] if kind is None else dataclasses.fields(kind)
    is_wanted = {field.name: field.default is dataclasses.MISSING or field.name in also for field in fields}
    wanted = [name for name, wanted in is_wanted.items() if wanted] or _named(type(model).forward)
    lengths = {name: run.encoder_length if name.startswith("encoder_") else run.length for name in wanted}
    inputs = {
        name: torch.zeros(rows, lengths[name], dtype=torch.bool if name.startswith(("is_", "has_")) else torch.int64)
        for name in wanted
    }
    if run.sample_length and any(field.name == "windows" for field in fields):
        count = math.ceil(run.length / run.sample_length)
        inputs["windows"] = torch.zeros(rows, count, run.sample_length, dtype=torch.int64)
    return inputs


def _named(forward: Callable[..., Any]) -> list[str]:
    """The arguments that must be given, by their names."""
    given = inspect.signature(forward).parameters.values()
    return [one.name for one in given if one.kind is one.KEYWORD_ONLY and one.default is one.empty]


class _Sections:
    """Names the sections of a counter: the kind of the block that runs, forwards or backwards, else OUTSIDE."""

    def __init__(self, counter: WorkCounter) -> None:
        self.counter = counter
        self.outputs: set[int] = set()

    def taken(self) -> dict[str, Work]:
        """What was counted since the last time."""
        found, self.counter.work = self.counter.work, defaultdict(Counter)
        self.counter.section = OUTSIDE
        return dict(found)

    def enter(self, kind: str, entered: torch.Tensor) -> None:
        self.counter.section = kind
        if entered.requires_grad and id(entered) not in self.outputs:
            entered.register_hook(lambda _: self._go_on(OUTSIDE))  # of its gradient: backwards the block has ended

    def leave(self, kind: str, left: torch.Tensor) -> None:
        self.counter.section = OUTSIDE
        self.outputs.add(id(left))
        if left.requires_grad:
            left.register_hook(lambda _: self._go_on(kind))

    def _go_on(self, section: str) -> None:
        self.counter.section = section


class _Mark:
    """What is alive before and after a block."""

    def __init__(self, block: nn.Module, kind: str, sections: _Sections) -> None:
        self.kind, self.sections, self.counter = kind, sections, sections.counter
        self.before = self.after = (0, 0, 0)
        self.entered = self.output = self.elements = 0
        self.input: weakref.ref[Any] = weakref.ref(self)
        self.is_empty = False
        self.hooks = block.register_forward_pre_hook(self._enter), block.register_forward_hook(self._leave)

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def cost(self, forward: Mapping[str, Work]) -> BlockCost:
        """To be asked when the forward pass is over: an input that nobody kept is gone then."""
        live, casted, products = (after - before for after, before in zip(self.after, self.before, strict=True))
        freed = 0 if self.input() is not None or self.is_empty else self.entered
        flops = total_flops(forward.get(self.kind, {}))
        return BlockCost(live - casted - freed, products, casted, self.output, self.elements, flops)

    def _enter(self, block: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.input, self.entered = weakref.ref(inputs[0].untyped_storage()), tensor_bytes(inputs[0])
        self.before = self._now()
        # All blocks but the first have trained ones before them, for which they keep what the gradient of their input
        # needs.
        inputs[0].requires_grad_(torch.is_grad_enabled())
        self.sections.enter(self.kind, inputs[0])

    def _leave(self, block: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self.output, self.elements = tensor_bytes(output), output.numel()
        self.is_empty = output is inputs[0]  # a pruned block
        self.after = self._now()
        self.sections.leave(self.kind, output)

    def _now(self) -> tuple[int, int, int]:
        return self.counter.live, self.counter.casted, self.counter.products
