"""Tensor parallelism: every rank computes with its own rows or columns of the matrices that a `Plan` divides.

The parameters are DTensors, so that checkpoints, sharding and optimizer know where each part belongs. The model's code
sees plain tensors, its own part, for as long as one of its blocks runs; DTensor moves the activations between the
ranks: before a linear divided by rows of its output the gradients of all ranks are added, behind one divided by its
input the results. Names and code of the model stay as they are.

With `sequence` the stream of hidden states between the matrices is divided along the text too; that of an encoder and
that of its decoder each by itself. All ranks have shares of one length, for which the last ones are filled with zeros.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn import functional

from hanlin.core.errors import ConfigError
from hanlin.core.plan import Plan, TensorSplit, compile_pattern, divided_dimensions
from hanlin.layers.experts import Experts

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@runtime_checkable
class HasOwnPart(Protocol):
    """A module outside the blocks whose parameters are whole on every rank, which uses a part of what it makes."""

    def own_part(self, made: Any, rank: int, size: int, enter: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        """The part of one rank of `size`; enter: through it a tensor goes that all ranks have, so that the gradients of
        all are added."""
        ...


@runtime_checkable
class JoinsColumns(Protocol):
    """A linear that needs numbers of all columns of its weight, of which tensor ranks may have their own."""

    join_ranks: Callable[[torch.Tensor], torch.Tensor] | None


def divide(model: nn.Module, mesh: DeviceMesh, *, sequence: bool = False) -> None:
    """Divide a model (also one on the meta device, or a part of one) among the ranks of a mesh of one dimension.

    Raises: ConfigError when a degree does not fit the model.
    """
    plan: Plan = model.plan  # pyright: ignore[reportAssignmentType]
    for key, text in division_problems(model, mesh.size()):
        raise ConfigError(f"{key}: {text}")
    streams = [(run, TensorParallelHooks(mesh)) for run in _runs_of_blocks(model, plan)]
    units = [_Unit(block, _named(model, block), hooks, in_stream=True) for run, hooks in streams for block in run]
    inside = {id(module) for unit in units for _, module in unit.modules}
    rest = [(name, module) for name, module in model.named_modules() if id(module) not in inside]
    splits, known = dict(_splits(model, plan)), {}
    for unit in (*units, _Unit(model, rest, TensorParallelHooks(mesh), in_stream=False)):
        _divide_unit(unit, plan, splits, known)
    if sequence:
        for run, hooks in streams:
            _divide_stream(run[0], run[-1], hooks)


@dataclass(frozen=True)
class _Unit:
    """A block, or what is in none (of the model): what is called, and its modules by their names."""

    owner: nn.Module
    modules: list[tuple[str, nn.Module]]
    hooks: TensorParallelHooks
    in_stream: bool


def _divide_unit(unit: _Unit, plan: Plan, splits: dict[str, TensorSplit], known: dict[int, nn.Parameter]) -> None:
    hooks = unit.hooks
    mixtures = [module for _, module in unit.modules if isinstance(module, Experts)]
    of_whole = {id(module) for mixture in mixtures for module in mixture.modules()}
    parts = [
        part
        for name, module in unit.modules
        for part in _divide_parameters(
            module, splits.get(name), plan, hooks, known, unit.in_stream and id(module) not in of_whole
        )
    ]
    _wrap(unit.owner, parts, hooks)
    for mixture in mixtures:
        _give_whole_text(mixture, hooks)
    for name, module in unit.modules:
        if split := splits.get(name):
            _register_hooks(module, split, hooks, is_whole=_matches(name, plan.whole))
        elif isinstance(module, HasOwnPart):
            module.register_forward_hook(partial(_take_own_part, hooks))


class TensorParallelHooks:
    """The movements of activations between the tensor ranks, of one stream of hidden states.

    length: of the text of the stream that now is divided along it; None: it is whole.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh
        self.rank, self.size = mesh.get_local_rank(), mesh.size()
        self.length: int | None = None
        self._entered: tuple[weakref.ref[torch.Tensor], torch.Tensor] | None = None

    def enter(self, hidden: torch.Tensor) -> torch.Tensor:
        """The same on all ranks -> the same; the gradients of the ranks are added. Asked again for the same tensor, it
        gives the same result, so that linears with one input add their gradients once."""
        return self._once(hidden, lambda: self._move(hidden, Replicate(), Replicate(), Partial()))

    def enter_stream(self, hidden: torch.Tensor) -> torch.Tensor:
        """The same for the stream, which may be divided: then the whole text is gathered."""
        if self.length is None:
            return self.enter(hidden)
        return self._once(hidden, lambda: self._join(hidden, Partial()))

    def add(self, numbers: torch.Tensor) -> torch.Tensor:
        """The sum of the ranks' numbers, through which no gradient goes."""
        distributed.all_reduce(numbers, group=self.mesh.get_group())
        return numbers

    def leave(self, partial_sum: torch.Tensor) -> torch.Tensor:
        """The sum of the ranks' results."""
        return self._move(partial_sum, Partial(), Replicate(), Replicate())

    def leave_stream(self, partial_sum: torch.Tensor) -> torch.Tensor:
        """The same for the stream: where it is divided, this rank's share of the text."""
        return self.leave(partial_sum) if self.length is None else self._share(partial_sum, Partial())

    def share_text(self, hidden: torch.Tensor) -> torch.Tensor:
        """The same on all ranks -> this rank's share of the text."""
        return self._share(hidden, Replicate())

    def join_text(self, hidden: torch.Tensor) -> torch.Tensor:
        """This rank's share of the text -> the whole, on all ranks."""
        return self._join(hidden, Replicate())

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Where the stream is not divided though it is before and after."""
        length, self.length = self.length, None
        try:
            yield
        finally:  # also when a block that is computed again stops early
            self.length = length

    def forget(self) -> None:
        self._entered = None

    def _once(self, hidden: torch.Tensor, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        if self._entered is not None and self._entered[0]() is hidden:
            return self._entered[1]
        entered = make()
        self._entered = (weakref.ref(hidden), entered)
        return entered

    def _share(self, hidden: torch.Tensor, here: Any) -> torch.Tensor:
        """`[rows, length, size]` -> `[rows, length / ranks, size]`, rounded up."""
        missing = -hidden.shape[1] % self.size
        filled = functional.pad(hidden, (0, 0, 0, missing)) if missing else hidden
        return self._move(filled, here, Shard(1), Shard(1))

    def _join(self, hidden: torch.Tensor, gradient: Any) -> torch.Tensor:
        text = self._move(hidden, Shard(1), Replicate(), gradient)
        # Copied once, and not by each linear that reads it; FSDP wants no views from a block either.
        return text if text.shape[1] == self.length else text[:, : self.length].clone()

    def _move(self, tensor: torch.Tensor, here: Any, there: Any, gradient: Any) -> torch.Tensor:
        moved = DTensor.from_local(tensor, self.mesh, [here], run_check=False)
        return moved.redistribute(placements=[there]).to_local(grad_placements=[gradient])


@dataclass(frozen=True)
class VocabularyRows:
    """This rank's rows of a vocabulary (`layers.loss.VocabularyPartition`)."""

    start: int
    total: int
    hooks: TensorParallelHooks

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return self.hooks.add(values)

    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        distributed.all_reduce(values, distributed.ReduceOp.MAX, group=self.hooks.mesh.get_group())
        return values

    def join(self, logits: torch.Tensor) -> torch.Tensor:
        shape = torch.Size((*logits.shape[:-1], self.total))
        stride = torch.empty(shape, device="meta").stride()
        last = logits.ndim - 1
        whole = DTensor.from_local(logits, self.hooks.mesh, [Shard(last)], run_check=False, shape=shape, stride=stride)
        return whole.redistribute(placements=[Replicate()]).to_local(grad_placements=[Replicate()])

    def enter(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.hooks.enter(hidden)


# --- parameters ---


@dataclass(frozen=True)
class _DividedParameter:
    """One parameter of a module, and what the module's code is to see of it.

    adds: each rank's gradient is a part of the whole; divisor: of the values; rows: only these; share: see
    `layers.loss`; of_stream: its gradient is a part of the whole where the stream is divided.
    """

    module: nn.Module
    name: str
    adds: bool = False
    divisor: int = 1
    rows: tuple[slice, ...] | None = None
    share: VocabularyRows | None = None
    of_stream: bool = False

    def seen(self, hooks: TensorParallelHooks) -> torch.Tensor:
        parameter = self.module._parameters[self.name]
        assert isinstance(parameter, DTensor), self.name
        placement = parameter.placements[0]
        is_sum = self.adds or (self.of_stream and hooks.length is not None)
        local = parameter.to_local(grad_placements=[Partial() if is_sum else placement])
        if self.divisor != 1:
            local = local / self.divisor
        if self.rows is not None:
            local = local[self.rows]
        if self.share is not None:
            local.share = self.share  # pyright: ignore[reportAttributeAccessIssue]
        return local


def _divide_parameters(
    module: nn.Module,
    split: TensorSplit | None,
    plan: Plan,
    hooks: TensorParallelHooks,
    known: dict[int, nn.Parameter],
    of_stream: bool,
) -> list[_DividedParameter]:
    """Make the module's own parameters DTensors; say what its code is to see of them."""
    parts, dims = [], divided_dimensions(plan, split) if split else {}
    shared = _shared_heads(module, plan.head_dim, hooks) if split == "kv" else None
    for name, parameter in list(module.named_parameters(recurse=False)):
        part = _DividedParameter(module, name, of_stream=of_stream)
        if shared is not None:
            part = replace(part, rows=_along(dims.get(name), shared), adds=True, of_stream=False)
        elif name in dims:
            is_bias = split == "row" and name == "bias"
            part = replace(part, adds=dims[name] is None, divisor=hooks.size if is_bias else 1, of_stream=False)
        if id(parameter) not in known:
            dim = _divided_dimension(module, split, plan, name, hooks.size)
            place = Replicate() if dim is None else Shard(dim)
            placed = distribute_tensor(parameter.detach(), hooks.mesh, [place], src_data_rank=None)
            known[id(parameter)] = nn.Parameter(placed, requires_grad=parameter.requires_grad)
        module._parameters[name] = known[id(parameter)]
        if split in ("vocab", "logits") and name == "weight":
            part = replace(part, share=VocabularyRows(_first_row(len(parameter), hooks), len(parameter), hooks))
        parts.append(part)
    return parts


def _along(dim: int | None, rows: slice) -> tuple[slice, ...] | None:
    """The index of rows in a dimension; None: of all."""
    return None if dim is None else (*(slice(None),) * dim, rows)


def _first_row(rows: int, hooks: TensorParallelHooks) -> int:
    return min(-(-rows // hooks.size) * hooks.rank, rows)


def _shared_heads(module: nn.Module, head_dim: int, hooks: TensorParallelHooks) -> slice | None:
    """The rows of the one head that this rank needs, where there are fewer heads than ranks; else None."""
    heads = _num_heads(module, head_dim)
    if heads % hooks.size == 0:
        return None
    head = hooks.rank * heads // hooks.size
    return slice(head * head_dim, (head + 1) * head_dim)


def _num_heads(module: nn.Module, head_dim: int) -> int:
    weight = module.get_parameter("weight")
    return weight.shape[0] // head_dim


def _wrap(module: nn.Module, parts: list[_DividedParameter], hooks: TensorParallelHooks) -> None:
    """Let the code of a block, or of the whole model, see its parts for as long as it runs."""
    forward = module.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        with _seen(parts, hooks):
            return forward(*args, **kwargs)

    module.forward = run


@contextmanager
def _seen(parts: list[_DividedParameter], hooks: TensorParallelHooks) -> Iterator[None]:
    held = [part.module._parameters[part.name] for part in parts]
    seen = [part.seen(hooks) for part in parts]
    for part, tensor in zip(parts, seen, strict=True):
        part.module._parameters[part.name] = tensor  # pyright: ignore[reportArgumentType]  # for a while
    try:
        yield
    finally:
        for part, parameter in zip(parts, held, strict=True):
            part.module._parameters[part.name] = parameter
        hooks.forget()


# --- activations ---


def _register_hooks(module: nn.Module, split: TensorSplit, hooks: TensorParallelHooks, *, is_whole: bool) -> None:
    if split in ("column", "query", "kv"):
        enter = hooks.enter if is_whole else hooks.enter_stream
        # Before what a tuning method does to the input, whose gradient is then a part of the whole as the weight's.
        module.register_forward_pre_hook(lambda _, args: (enter(args[0]), *args[1:]), prepend=True)
    elif split == "row":
        module.register_forward_hook(partial(_leave, hooks))
        if isinstance(module, JoinsColumns):
            module.join_ranks = hooks.add
    elif split == "logits":
        module.register_forward_pre_hook(lambda _, args: (hooks.enter(args[0]), *args[1:]), prepend=True)
        module.register_forward_hook(_join_rows)
    elif split == "vocab":
        module.register_forward_pre_hook(_own_rows)
        module.register_forward_hook(_sum_rows)


def _leave(hooks: TensorParallelHooks, _: nn.Module, __: Any, out: torch.Tensor) -> torch.Tensor:
    return hooks.leave_stream(out)


def _join_rows(module: Any, _: Any, logits: torch.Tensor) -> torch.Tensor:
    return module.weight.share.join(logits)


def _own_rows(module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    tokens, share, rows = args[0], module.weight.share, len(module.weight)
    is_here = (tokens >= share.start) & (tokens < share.start + rows)
    module.is_here = is_here
    return torch.where(is_here, tokens - share.start, 0), *args[1:]


def _sum_rows(module: Any, _: Any, vectors: torch.Tensor) -> torch.Tensor:
    is_here = module.__dict__.pop("is_here")
    return module.weight.share.hooks.leave(torch.where(is_here[..., None], vectors, 0))


def _take_own_part(hooks: TensorParallelHooks, module: Any, _: Any, made: Any) -> Any:
    return module.own_part(made, hooks.rank, hooks.size, hooks.enter)


def _give_whole_text(mixture: nn.Module, hooks: TensorParallelHooks) -> None:
    """Let a mixture assign the tokens of the whole text."""
    forward = mixture.forward

    def run(hidden: torch.Tensor) -> torch.Tensor:
        if hooks.length is None:
            return forward(hidden)
        text = hooks.join_text(hidden)
        with hooks.whole():
            out = forward(text)
        return hooks.share_text(out)

    mixture.forward = run


def _divide_stream(first: nn.Module, last: nn.Module, hooks: TensorParallelHooks) -> None:
    """Divide the stream before the first block and join it behind the last one."""
    begin = first.forward

    def divided(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        length = hidden.shape[1]
        hooks.length = length if length >= hooks.size else None  # one new token has nothing to divide
        return begin(hidden if hooks.length is None else hooks.share_text(hidden), *args, **kwargs)

    first.forward = divided
    end = last.forward

    def joined(*args: Any, **kwargs: Any) -> Any:
        hidden = end(*args, **kwargs)
        return hidden if hooks.length is None else hooks.join_text(hidden)

    last.forward = joined


# --- the plan ---


def _splits(model: nn.Module, plan: Plan) -> Iterator[tuple[str, TensorSplit]]:
    """The modules that the plan divides; "experts" is not of this axis."""
    for name, _ in model.named_modules():
        for pattern, split in plan.tensor.items():
            if split != "experts" and _matches(name, (pattern,)):
                yield name, split


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(compile_pattern(pattern).fullmatch(name) for pattern in patterns)


def _runs_of_blocks(model: nn.Module, plan: Plan) -> list[list[nn.Module]]:
    """The blocks that one stream goes through: first those of an encoder, then those that read beside their stream."""

    def reads_beside(block: nn.Module) -> bool:
        return any(_matches(name, plan.whole) for name, _ in _named(model, block))

    blocks = [block for name in plan.blocks for block in getattr(model, name).children()]
    return [list(run) for _, run in groupby(blocks, reads_beside)]


def _named(model: nn.Module, block: nn.Module) -> list[tuple[str, nn.Module]]:
    prefix = next(name for name, module in model.named_modules() if module is block)
    return [(f"{prefix}.{name}" if name else prefix, module) for name, module in block.named_modules()]


def division_problems(model: nn.Module, size: int) -> Iterator[tuple[str, str]]:
    """Key and text of what keeps a model, also one on the meta device, from being divided among so many ranks."""
    plan: Plan = model.plan  # pyright: ignore[reportAssignmentType]
    if not plan.tensor:
        yield "parallel.tensor", "the plan of this model does not say how it may be divided; use 1"
    for name, split in _splits(model, plan):
        if text := _heads_problem(model.get_submodule(name), split, plan.head_dim, size):
            yield "parallel.tensor", f"{text} ({name})"
            return  # that of one block is enough


def part_shapes(model: nn.Module, size: int) -> Iterator[tuple[str, torch.Size, torch.Size]]:
    """Name, shape and part of every trained weight of a model that is not divided yet, also one on the meta device:
    what the first of so many ranks will hold of it.
    """
    plan: Plan = model.plan  # pyright: ignore[reportAssignmentType]
    splits = dict(_splits(model, plan))
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            module, _, leaf = name.rpartition(".")
            dim = _divided_dimension(model.get_submodule(module), splits.get(module), plan, leaf, size)
            part = [-(-length // size) if number == dim else length for number, length in enumerate(weight.shape)]
            yield name, weight.shape, torch.Size(part)


def _divided_dimension(module: nn.Module, split: TensorSplit | None, plan: Plan, leaf: str, size: int) -> int | None:
    """Of a module's parameter; None: every rank holds the whole."""
    if split is None or (split == "kv" and _num_heads(module, plan.head_dim) % size):
        return None
    return divided_dimensions(plan, split).get(leaf)


def _heads_problem(module: nn.Module, split: TensorSplit, head_dim: int, size: int) -> str:
    if not module.get_parameter("weight").is_floating_point():
        return (
            "packed weights cannot be divided; use 1, or take the base as plain numbers: without model.quantise, or "
            "with model.config.bits=0 where it is packed on disk"
        )
    count = module.get_parameter("weight").shape[-1] if split == "heads" else _num_heads(module, head_dim)
    if split in ("query", "heads") and count % size:
        return f"{count} heads cannot be divided among {size} ranks; use a divisor of {count}"
    if split == "kv" and count % size and size % count:
        return f"{count} heads of keys cannot be divided among or shared by {size} ranks; use a divisor or a multiple"
    return ""
