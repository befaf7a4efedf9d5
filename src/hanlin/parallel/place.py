"""A model on its device(s), behind the one face that the step and the loop know: `Worker`.

Trained weights are fp32, frozen ones are stored in the precision of the arithmetic.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import torch
from torch import nn

from hanlin.core.batch import IGNORED, Batch
from hanlin.core.errors import ConfigError
from hanlin.core.plan import Plan
from hanlin.core.ranks import read_ranks
from hanlin.core.settings import ParallelSettings
from hanlin.parallel.mesh import Degrees, Mesh, local
from hanlin.parallel.recompute import recompute

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def place(
    model: nn.Module,
    device: torch.device,
    precision: Precision = "fp32",
    settings: ParallelSettings | None = None,
    *,
    copy: Callable[[], nn.Module] | None = None,
) -> Worker:
    """Bring the model, or this rank's share of it, to the device in the dtypes of `precision`.

    What requires a gradient is trained. A model on the meta device comes out empty: see `Worker.fill`.
    copy: makes the same model once more (on the meta device), where a rank has several stages of a pipeline.

    Raises: ConfigError when the layout does not fit the model or the number of processes.
    """
    settings = settings or ParallelSettings()
    mesh = Mesh(Degrees.of(settings, read_ranks().world), device)
    _refuse(settings)
    models = [_settle(one, device, precision, settings, mesh) for one in _cut(model, settings, mesh, copy)]
    return Worker(models, mesh, settings, DTYPES[precision])


def _refuse(settings: ParallelSettings) -> None:
    """Raises: ConfigError for settings that ask for something that this layout does not have."""
    if settings.offload and settings.shard != "parameters":
        raise ConfigError("parallel.offload: only with parallel.shard: parameters")
    if settings.offload and settings.expert > 1:
        raise ConfigError("parallel.offload: not with parallel.expert, which keeps its experts on the device")


def num_stages(settings: ParallelSettings) -> int:
    """Stages of the pipeline over all its ranks; 1: there is none."""
    return settings.pipe * (settings.stages_per_rank if settings.schedule == "interleaved" else 1)


def _cut(
    model: nn.Module, settings: ParallelSettings, mesh: Mesh, copy: Callable[[], nn.Module] | None
) -> list[nn.Module]:
    """This rank's stages."""
    if mesh.size("pipe") == 1:
        return [model]
    from hanlin.parallel.pipeline import cut

    count = num_stages(settings)
    own = range(mesh.rank("pipe"), count, mesh.size("pipe"))
    assert len(own) == 1 or copy is not None, "several stages on a rank need copies of the model"
    return [cut(model if copy is None or number == own[0] else copy(), number, count) for number in own]


def _settle(
    model: nn.Module, device: torch.device, precision: Precision, settings: ParallelSettings, mesh: Mesh
) -> nn.Module:
    plan: Plan = model.plan  # pyright: ignore[reportAssignmentType]
    for parameter in model.parameters():
        # fp64 is there for a comparison; quantised weights stay as they are packed.
        if parameter.is_floating_point() and parameter.dtype != torch.float64:
            # Changing the data and not the parameter keeps tied weights tied.
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else DTYPES[precision])
    if mesh.size("data") > 1:
        from hanlin.parallel.experts import share_experts

        share_experts(model, mesh)
    if mesh.size("tensor") > 1:
        from hanlin.parallel.tensor import divide

        divide(model, mesh.part("tensor"), sequence=settings.sequence_parallel)
    if settings.checkpoint_activations != "none":
        for blocks in plan.blocks:
            for block in getattr(model, blocks).children():
                recompute(block, settings.checkpoint_activations)
    return model


class Program(Protocol):
    """How a rank runs its share of the model on its share of the rows."""

    def forward_backward(self, parts: Sequence[Batch], factors: Sequence[float]) -> torch.Tensor:
        """Add the gradients of the sum of factor x summed loss over the parts; the losses `[parts]`, without factor."""
        ...

    def __call__(self, **inputs: Any) -> torch.Tensor:
        """The model's result for one batch, on all ranks; no gradient."""
        ...


class Whole:
    """All blocks on this rank."""

    def __init__(self, model: nn.Module, *, is_sharded: bool) -> None:
        self.model, self.is_sharded = model, is_sharded

    def forward_backward(self, parts: Sequence[Batch], factors: Sequence[float]) -> torch.Tensor:
        losses = []
        for number, (part, factor) in enumerate(zip(parts, factors, strict=True)):
            if self.is_sharded:
                from hanlin.parallel.shard import reduce_gradients

                reduce_gradients(self.model, now=number == len(parts) - 1)
            loss = self.model(**part.inputs, labels=part.labels, weights=part.weights, reduction="sum")
            (loss * factor).backward()
            losses.append(loss.detach())
        return torch.stack(losses)

    @torch.no_grad()
    def __call__(self, **inputs: Any) -> torch.Tensor:
        return self.model(**inputs)


class Worker:
    """This process's share of the model. All ranks call the same methods in the same order."""

    def __init__(
        self, models: Sequence[nn.Module], mesh: Mesh, settings: ParallelSettings, dtype: torch.dtype = torch.float32
    ) -> None:
        self.mesh, self.device, self.dtype, self.settings = mesh, mesh.device, dtype, settings
        self.models = list(models)
        # Of experts that other data ranks do not have.
        self._own_names = set[str]() if mesh.size("expert") == 1 else _names_of_experts(models)
        self._program = self._make_program()
        self._bring()
        # Looked up once: while a sharded model runs, it has gathered weights under these names.
        self._places = self._find_places()
        self._held = [_trained(model) for model in self.models]
        self._holders = self._find_holders()
        self._groups = self._join_holders()

    @property
    def model(self) -> nn.Module:
        """The model where it is whole, else this rank's (first) stage."""
        return self.models[0]

    @property
    def data_ranks(self) -> int:
        """Among how many ranks the rows of a batch are divided."""
        return self.mesh.size("data")

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained ones that this rank holds, by name."""
        return {name: weight for held in reversed(self._held) for name, weight in held.items()}

    def split(self, batch: Batch, rows: int | None) -> list[Batch]:
        """The parts of this rank's rows that go through the model one after the other, `rows` each.

        All data ranks get equally many parts, in a pipeline all of one size: rows without loss fill them up.
        """
        if self.mesh.size("all") == 1:
            return batch.split(self.settings.micro_batches or -(-batch.size // (rows or batch.size)))
        most = int(self.mesh.maximum("data", batch.size))
        parts = self.settings.micro_batches or -(-most // (rows or most))
        return fill_rows(batch, -(-most // parts) * parts if self.mesh.size("pipe") > 1 else parts).split(parts)

    def forward_backward(
        self, parts: Sequence[Batch], denominators: Sequence[float], scale: float = 1.0
    ) -> list[float]:
        """Add the gradient of scale x the sum of (summed loss / denominator) over the parts of this rank's rows.

        Returns: each part's summed loss / denominator.
        """
        self._set_mode(training=True)
        self._refresh_copies()
        # Sharded gradients are averaged over the ranks that share, and they are to be added.
        repeats = self.data_ranks if self._is_sharded else 1
        factors = [scale / denominator * repeats for denominator in denominators]
        with self._arithmetic():
            losses = self._program.forward_backward([part.to(self.device) for part in parts], factors)
        self._add_gradients()
        return [loss / denominator for loss, denominator in zip(losses.tolist(), denominators, strict=True)]

    def __call__(self, **inputs: Any) -> torch.Tensor:
        """The model's result for rows of this data rank, on all its ranks; no gradient."""
        with self._arithmetic():
            return self._program(**inputs)

    def losses(self, batch: Batch) -> torch.Tensor:
        """The weighted loss of each position `[batch, length]`; no gradient, no dropout."""
        self._set_mode(training=False)
        self._refresh_copies()
        batch = batch.to(self.device)
        return self(**batch.inputs, labels=batch.labels, weights=batch.weights, reduction="none")

    @torch.no_grad()
    def grad_norm(self) -> float:
        """The length of all gradients as one vector, over all ranks; not finite if any of them is not."""
        grads = {name: weight.grad for name, weight in self.parameters.items() if self._owns(name, weight)}
        owned = [local(grad) for grad in grads.values() if grad is not None]
        square = nn.utils.get_total_norm(owned).item() ** 2 if owned else 0.0
        return self.mesh.sum("all", [square])[0] ** 0.5

    @torch.no_grad()
    def scale_grads(self, factor: float) -> None:
        for weight in self.parameters.values():
            if weight.grad is not None:
                local(weight.grad).mul_(factor)

    def drop_grads(self) -> None:
        for held in self._held:
            for weight in held.values():
                weight.grad = None

    def sum_over_data(self, values: Sequence[float]) -> list[float]:
        """The sums over the data ranks; every rank must call it."""
        return self.mesh.sum("data", values)

    def any(self, is_so: bool) -> bool:
        """Whether it is so on any rank; every rank must call it."""
        return self.mesh.sum("all", [float(is_so)])[0] > 0

    # --- making ---

    @property
    def _is_mixed(self) -> bool:
        return self.dtype in (torch.bfloat16, torch.float16)

    @property
    def _is_sharded(self) -> bool:
        return self.settings.shard != "none" and self.mesh.size("all") > 1

    def _make_program(self) -> Program:
        if self.mesh.size("pipe") == 1:
            self._shard(self.models)
            return Whole(self.model, is_sharded=self._is_sharded)
        from hanlin.parallel.pipeline import Pipeline, Stage

        count = num_stages(self.settings)
        numbers = range(self.mesh.rank("pipe"), count, self.mesh.size("pipe"))
        stages = [Stage(model, number, count, self.mesh) for model, number in zip(self.models, numbers, strict=True)]
        self._shard(stages)
        return Pipeline(stages, count, self.mesh, self.settings.schedule)

    def _shard(self, stages: Sequence[nn.Module]) -> None:
        if not self._is_sharded:
            return
        from hanlin.parallel.shard import shard

        frees, offload = self.settings.shard == "parameters", self.settings.offload
        gathered = self.dtype if self._is_mixed and not self.settings.gather_fp32 else None
        for stage, model in zip(stages, self.models, strict=True):
            own = {weight for name, weight in model.named_parameters() if name in self._own_names}
            shard(stage, model, self.mesh, frees_weights=frees, offload=offload, gathered=gathered, whole=own)

    def _bring(self) -> None:
        """Memory on the device for what is on the meta device; all else is moved there."""
        target = torch.device("cpu") if self.settings.offload else self.device
        for model in self.models:
            if any(parameter.is_meta for parameter in model.parameters()):
                model.to_empty(device=target)
            else:
                model.to(target)

    def _find_holders(self) -> dict[str, list[int]]:
        """The pipe ranks that hold a trained weight, where they are several, by its name."""
        if self.mesh.size("pipe") == 1:
            return {}
        names = self.mesh.gather("pipe", sorted(self.parameters))
        every = {name for held in names for name in held}
        found = {name: [rank for rank, held in enumerate(names) if name in held] for name in sorted(every)}
        return {name: ranks for name, ranks in found.items() if len(ranks) > 1}

    # --- gradients ---

    @torch.no_grad()
    def _add_gradients(self) -> None:
        """Bring the gradients together that several stages or data ranks have of one weight."""
        parameters = self.parameters
        for weight in (weight for held in self._held for weight in held.values()):
            _settle_gradient(weight)
        for name, first in parameters.items():
            for held in self._held:
                other = held.get(name, first)
                if other is not first and other.grad is not None:
                    first.grad = other.grad if first.grad is None else first.grad.add_(other.grad)
        if self.mesh.size("data") > 1:
            self._add_over_data(parameters)
        if self._holders:
            self._add_over_pipe(parameters)

    def _add_over_data(self, parameters: Mapping[str, nn.Parameter]) -> None:
        if not self._is_sharded:
            shared = [weight for name, weight in parameters.items() if name not in self._own_names]
            self.mesh.add("data", self._known_to_any("data", shared))
        if own := [weight for name, weight in parameters.items() if name in self._own_names]:
            gradients = self._known_to_any("copy", own)
            if self._is_sharded:  # these were not averaged
                for gradient in gradients:
                    gradient.div_(self.data_ranks)
            self.mesh.add("copy", gradients)

    def _add_over_pipe(self, parameters: Mapping[str, nn.Parameter]) -> None:
        from torch import distributed

        for name, ranks in self._holders.items():
            if (weight := parameters.get(name)) is None:
                continue
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            distributed.all_reduce(local(weight.grad), group=self._groups[tuple(ranks)])

    def _join_holders(self) -> dict[tuple[int, ...], Any]:
        """For each set of pipe ranks that hold one weight and that this one is of: what they talk through."""
        from torch import distributed

        own, found = self.mesh.rank("pipe"), {}
        for ranks in sorted({tuple(ranks) for ranks in self._holders.values() if own in ranks}):
            everyone = distributed.get_process_group_ranks(self.mesh.group("pipe"))
            members = [everyone[rank] for rank in ranks]
            is_all = len(ranks) == len(everyone)
            found[ranks] = (
                self.mesh.group("pipe") if is_all else distributed.new_group(members, use_local_synchronization=True)
            )
        return found

    def _known_to_any(self, axis: Literal["data", "copy"], weights: Sequence[nn.Parameter]) -> list[torch.Tensor]:
        """The gradients that any rank has; zeros where this one has none."""
        from torch import distributed

        has = torch.tensor([float(weight.grad is not None) for weight in weights], device=self.device)
        distributed.all_reduce(has, group=self.mesh.group(axis))
        for weight, count in zip(weights, has.tolist(), strict=True):
            if count and weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        return [local(weight.grad) for weight in weights if weight.grad is not None]

    def _owns(self, name: str, weight: nn.Parameter) -> bool:
        """Whether this rank is to count a gradient: one of the ranks that hold the same."""
        if self.mesh.rank("pipe") != self._holders.get(name, [self.mesh.rank("pipe")])[0]:
            return False
        is_divided = _is_divided(weight)
        if not is_divided and self.mesh.rank("tensor") > 0:
            return False
        if name in self._own_names:
            return self.mesh.rank("copy") == 0
        return self.mesh.rank("replicate") == 0 if self._is_sharded else self.mesh.rank("data") == 0

    @torch.no_grad()
    def _refresh_copies(self) -> None:
        """Give the further copies of a weight on this rank the values of the trained one."""
        if len(self._held) == 1:
            return
        parameters = self.parameters
        for held in self._held:
            for name, weight in held.items():
                if weight is not parameters[name]:
                    local(weight).copy_(local(parameters[name]))

    # --- arithmetic ---

    def _arithmetic(self) -> AbstractContextManager[Any]:
        # With the cast weights of an earlier pass remembered, gradients would come after FSDP has collected them.
        options: Any = {"enabled": self._is_mixed, "cache_enabled": not self._is_sharded}
        return torch.autocast(self.device.type, self.dtype if self._is_mixed else None, **options)

    def _set_mode(self, *, training: bool) -> None:
        for model in self.models:
            if model.training != training:
                model.train(training)

    # --- filling ---

    @torch.no_grad()
    def fill(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Give the weights of these names their values; each rank keeps its part of what it holds."""
        places = self._places
        for name, whole in weights:
            for place in places.get(name, ()):
                local(place).copy_(part_of(whole, place))

    def count_parameters(self) -> tuple[int, int]:
        """Of the whole model: trained ones, and all."""
        mine = {name: (weight.numel(), weight.requires_grad) for name, (weight, *_) in self._places.items()}
        every = {name: facts for held in self._of_all_parts(mine).values() for name, facts in held.items()}
        return sum(count for count, is_trained in every.values() if is_trained), sum(n for n, _ in every.values())

    @property
    def names(self) -> list[str]:
        """Of all weights that this rank holds a part of."""
        return list(self._places)

    def _find_places(self) -> dict[str, list[nn.Parameter]]:
        found: dict[str, list[nn.Parameter]] = {}
        for model in self.models:
            for name, weight in model.named_parameters():
                found.setdefault(name, []).append(weight)
        return found

    @torch.no_grad()
    def gather(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """The whole weights (None: all), in memory of the main rank's CPU and empty on the others; every rank must
        go through them."""
        places = self._places
        owners: dict[str, int] = {}
        for rank, held in self._of_all_parts(list(places)).items():
            for name in held:
                owners.setdefault(name, rank)
        for name in owners if names is None else names:
            whole = whole_of(places[name][0]) if name in places else None
            yield name, self._to_main(whole, owners[name])

    def _of_all_parts(self, value: Any) -> dict[int, Any]:
        """The values of the ranks that together hold the whole model, by their numbers."""
        found = enumerate(self.mesh.gather("pipe", self.mesh.gather("expert", value)))
        first_rank = self.mesh.degrees.first_rank
        return {first_rank(pipe, expert): part for pipe, parts in found for expert, part in enumerate(parts)}

    def _to_main(self, whole: torch.Tensor | None, owner: int) -> torch.Tensor:
        """Bring a tensor of the rank `owner` to the main one."""
        empty, rank = torch.empty(0), self.mesh.rank("all")
        if owner == 0 or rank not in (0, owner):
            return empty if whole is None or rank > 0 else whole.cpu()
        from torch import distributed

        if rank == owner:
            assert whole is not None
            distributed.send_object_list([(whole.shape, whole.dtype)], dst=0)
            distributed.send(whole.contiguous(), dst=0)
            return empty
        told: list[Any] = [None]
        distributed.recv_object_list(told, src=owner)
        received = torch.empty(told[0][0], dtype=told[0][1], device=self.device)
        distributed.recv(received, src=owner)
        return received.cpu()


def whole_of(part: torch.Tensor) -> torch.Tensor:
    """The whole tensor, on every rank that has a part of it; all of them must call it."""
    full_tensor = getattr(part, "full_tensor", None)
    if full_tensor is None:
        return part
    # It warns that gathering over two axes takes two steps.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    return full_tensor()


def part_of(whole: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """What a rank's part of a tensor holds of the whole."""
    if not hasattr(place, "placements"):
        return whole
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(whole.shape, place.device_mesh, place.placements)  # pyright: ignore
    for dimension, (start, size) in enumerate(zip(offset, shape, strict=True)):
        whole = whole.narrow(dimension, start if size else 0, size)
    return whole


def _names_of_experts(models: Sequence[nn.Module]) -> set[str]:
    from hanlin.parallel.experts import expert_names

    return {name for model in models for name in expert_names(model)}


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _is_divided(weight: torch.Tensor) -> bool:
    """Whether the tensor ranks hold different parts of it."""
    mesh: Any = getattr(weight, "device_mesh", None)
    if mesh is None or "tensor" not in mesh.mesh_dim_names:
        return False
    placements: Any = getattr(weight, "placements", ())
    return not placements[mesh.mesh_dim_names.index("tensor")].is_replicate()


def _settle_gradient(weight: nn.Parameter) -> None:
    """Add the parts of a gradient that the tensor ranks have of a weight which each holds whole."""
    placements = getattr(weight.grad, "placements", None)
    if placements is not None and placements != weight.placements:  # pyright: ignore[reportAttributeAccessIssue]
        weight.grad = weight.grad.redistribute(placements=weight.placements)  # pyright: ignore


def fill_rows(batch: Batch, rows: int) -> Batch:
    """The batch with copies of its first row that carry no loss behind it."""
    missing = rows - batch.size
    if missing <= 0:
        return batch

    def more(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor[:1].expand(missing, *tensor.shape[1:])])

    labels = torch.cat([batch.labels, torch.full_like(batch.labels[:1], IGNORED).expand(missing, -1)])
    weights = torch.cat([batch.weights, torch.zeros_like(batch.weights[:1]).expand(missing, -1)])
    inputs = {name: more(tensor) for name, tensor in batch.inputs.items()}
    rows_of = [*batch.rows, *[() for _ in range(missing)]] if batch.rows else ()
    return Batch(inputs, labels, weights, rows_of)
