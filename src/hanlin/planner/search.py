"""Layouts of a job on so many devices that fit, the fastest first by estimate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from hanlin.core.cards import DEVICES, Device
from hanlin.core.errors import ConfigError
from hanlin.planner.estimate import Estimate, estimate, least_bytes
from hanlin.planner.job import PlannedModel
from hanlin.planner.kernels import AttentionCall, kernel_of
from hanlin.planner.layout import Layout


@dataclass(frozen=True)
class Proposal:
    """A layout that fits. step_seconds: see `Estimate.step_seconds`."""

    estimate: Estimate
    step_seconds: float


def propose(job: PlannedModel, device: Device, nodes: int, per_node: int, network_bytes: float) -> list[Proposal]:
    """Layouts of the recipe's batch that fit, the fastest first; of equally fast ones the simplest.

    Of layouts that differ only in the rows of a forward pass or in what is computed again, only the fastest.
    """
    found = []
    for layout in _layouts(job, nodes * per_node, per_node):
        if least_bytes(job, layout) > device.memory_bytes:
            continue  # which saves a trace, and most of a search for a large model
        result = estimate(job, layout)
        if result.fits(device):
            found.append(Proposal(result, result.step_seconds(device, per_node, network_bytes).total))
    best: dict[tuple[int, ...], Proposal] = {}
    for proposal in sorted(found, key=lambda each: (each.step_seconds, _complexity(each.estimate.layout))):
        best.setdefault(_complexity(proposal.estimate.layout), proposal)
    return list(best.values())


def fitting_devices(job: PlannedModel, layout: Layout) -> list[Device]:
    """The known devices that have the recipe's precision and hold a layout, each with its own kernels."""
    calls = job.trace(layout).attention
    state = 0 if layout.offload else least_bytes(job, layout)
    estimates: dict[object, Estimate] = {}
    if job.device is not None:
        estimates[_kinds_of_kernels(calls, job, job.device)] = estimate(job, layout)
    found = []
    for device in DEVICES.values():
        if state > device.memory_bytes:
            continue  # which saves a trace
        try:
            there = job.on(device)
        except ConfigError:
            continue  # no bf16 there
        kinds = _kinds_of_kernels(calls, there, device)
        if kinds not in estimates:
            estimates[kinds] = estimate(there, layout)
        if estimates[kinds].fits(device):
            found.append(device)
    return found


def _kinds_of_kernels(calls: Iterable[AttentionCall], job: PlannedModel, device: Device) -> object:
    """What decides how much attention keeps on a device: whatever is fused keeps the same."""
    kernels = [kernel_of(replace(call, dtype=job.dtype), device, job.recipe.run.attention) for call in calls]
    return device.kind, job.dtype.itemsize, tuple(kernel == "math" for kernel in kernels)


def _complexity(layout: Layout) -> tuple[int, ...]:
    return (layout.pipe, layout.tensor, layout.expert, ("none", "gradients", "parameters").index(layout.shard))


def _layouts(job: PlannedModel, world: int, per_node: int) -> Iterator[Layout]:
    settings = job.recipe.parallel
    for degrees in _degrees(job, world, per_node):
        own, rest = divmod(job.recipe.train.batch_size, degrees.data)
        for micro_batch_size in () if rest or not own else _halves(own):
            layout = replace(degrees, micro_batch_size=micro_batch_size, micro_batches=own // micro_batch_size)
            if layout.pipe > layout.micro_batches:
                continue  # 1F1B wants one at least for every stage
            for shard in ("none", "gradients", "parameters") if layout.data > 1 else ("none",):
                if shard == "parameters" and layout.pipe > 1:
                    continue  # every micro-batch would gather the stage's weights anew
                for kept in ("none", "full"):
                    yield replace(
                        layout,
                        shard=shard,
                        checkpoint_activations=kept,
                        sequence_parallel=settings.sequence_parallel and layout.tensor > 1,
                    )


def _degrees(job: PlannedModel, world: int, per_node: int) -> Iterator[Layout]:
    """Tensor ranks stay within a machine: they wait for each other in every block."""
    for tensor in _divisors(per_node):
        if any(heads % tensor for heads in job.heads) or (tensor > 1 and not job.heads):
            continue
        if any(job.optimizer_problems(tensor)):
            continue
        for expert in _divisors(job.num_experts) if job.num_experts else [1]:
            for pipe in _divisors(world):
                if world % (tensor * expert * pipe) == 0 and pipe <= len(job.kinds):
                    yield Layout(data=world // (tensor * pipe), tensor=tensor, pipe=pipe, expert=expert)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _halves(rows: int) -> Iterator[int]:
    """Rows of a forward pass: powers of two that divide the rank's share, up to 8."""
    return (size for size in (1, 2, 4, 8) if rows % size == 0)
