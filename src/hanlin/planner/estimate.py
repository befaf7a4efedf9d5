"""Memory, traffic and time of one step under a layout, for each pipeline rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

from hanlin.core.cards import GIB, Device
from hanlin.layers.loss import ACCELERATOR_CHUNK_ROWS
from hanlin.planner.job import PlannedModel
from hanlin.planner.layout import Layout
from hanlin.planner.timing import NETWORK_BYTES, Links, RankWork, StepSeconds, computing, with_waiting
from hanlin.planner.trace import BlockCost, Trace
from hanlin.planner.weights import Held
from hanlin.planner.work import Seconds, total_flops
from hanlin.training.rounding import step_bytes as rounded_step_bytes

FP32 = 4
RESERVE_BYTES = int(1.5 * GIB)
"""The device's own: context, libraries, buffers of collectives."""
FRAGMENTATION = 1.05
"""What the allocator takes beyond what tensors need."""
_IMITATION_COPIES = 4
"""fp32 numbers for each logit of a chunk besides, where a teacher is imitated (layers/distillation.py)."""
_WIDENED_BYTES = 100
"""That a bf16 weight and its gradient move besides while they are fp32, and the weight is rounded."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank.

    copies: weights once more, in the dtype of the arithmetic: those that autocast made or that FSDP gathered;
    activations: kept for the backward pass by all micro-batches in flight; loss: head and cross entropy, the logits of
    a chunk included; backward: most that the backward pass of a block holds besides; host: in the CPU's memory;
    teacher: the weights of a model that the objective imitates.
    """

    parameters: int
    gradients: int
    optimizer: int
    copies: int
    activations: int
    loss: int
    backward: int
    peak: int
    host: int = 0
    teacher: int = 0

    def fits(self, device: Device) -> bool:
        return self.peak * FRAGMENTATION + RESERVE_BYTES <= device.memory_bytes


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends in one step (ring algorithms).

    gather, scatter: FSDP's weights and gradients; reduce: gradients of replicas; tensor: sums over tensor ranks;
    pipe: states and their gradients; expert: tokens to their experts and back.
    """

    gather: int = 0
    scatter: int = 0
    reduce: int = 0
    tensor: int = 0
    pipe: int = 0
    expert: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class RankPlan:
    """One pipeline rank: every rank of its data and tensor groups is alike. flops: of one step."""

    rank: int
    blocks: int
    memory: RankMemory
    traffic: Traffic
    flops: float


@dataclass(frozen=True)
class Estimate:
    layout: Layout
    ranks: tuple[RankPlan, ...]
    shares: tuple[RankShare, ...] = field(repr=False, compare=False)

    @property
    def peak(self) -> int:
        return max(rank.memory.peak for rank in self.ranks)

    def fits(self, device: Device) -> bool:
        return all(rank.memory.fits(device) for rank in self.ranks)

    def step_seconds(self, device: Device, per_node: int, network_bytes: float = NETWORK_BYTES) -> StepSeconds:
        """Of the slowest rank; sharded traffic hides behind arithmetic."""
        links = Links(device.link_bytes, network_bytes, per_node)
        found = [_seconds(rank, share, device, links) for rank, share in zip(self.ranks, self.shares, strict=True)]
        return max(found, key=lambda each: each.total)


def estimate(job: PlannedModel, layout: Layout) -> Estimate:
    """Raises: ConfigError when the model cannot be cut so."""
    trace = job.trace(layout)
    undivided = job.trace(replace(layout, tensor=1)) if layout.sequence_parallel else trace
    ranks, shares = [], []
    for held in job.held(layout):
        costs = [trace.blocks[job.kinds[block]] for block in held.stage.blocks]
        if layout.sequence_parallel:
            costs = [
                _along_the_text(cost, undivided.blocks[job.kinds[block]].kept, held.stage.sums(block), layout.tensor)
                for block, cost in zip(held.stage.blocks, costs, strict=True)
            ]
        share = RankShare(job, layout, held, trace, costs)
        shares.append(share)
        ranks.append(RankPlan(held.stage.rank, len(costs), _memory(share), _traffic(share), _flops(share)))
    return Estimate(layout, tuple(ranks), tuple(shares))


def least_bytes(job: PlannedModel, layout: Layout) -> int:
    """What the fullest rank holds at least: weights, gradients and optimizer; of a layout without offload.

    Raises: ConfigError when the model cannot be cut so.
    """
    return job.teacher_bytes(layout) + max(
        held.held_bytes + held.optimiser_bytes + job.trained_bytes * held.held_trained for held in job.held(layout)
    )


@dataclass(frozen=True)
class RankShare:
    """One rank of a layout. costs: of its blocks."""

    job: PlannedModel
    layout: Layout
    held: Held
    trace: Trace
    costs: Sequence[BlockCost]

    @property
    def dtype_bytes(self) -> int:
        return self.job.dtype.itemsize

    @property
    def is_sharded(self) -> bool:
        return self.layout.is_sharded

    @property
    def recomputes(self) -> bool:
        return self.layout.checkpoint_activations != "none"

    @property
    def forward_passes(self) -> int:
        """Of whole blocks, for each micro-batch."""
        return 1 + self.layout.computes_all_again + self.job.asks_first


def _along_the_text(cost: BlockCost, undivided: int, sums: int, ranks: int) -> BlockCost:
    """What a block keeps when the stream of hidden states is divided along the text as well.

    From what one rank and several keep follows what is whole on each of them; that is divided too, except for the text
    that is gathered in front of attention, cross-attention and ffn: as often as it is summed behind them.
    """
    divided = (undivided - cost.kept) * ranks // (ranks - 1)
    whole = undivided - divided
    gathered = min(whole, sums * cost.output)
    return replace(cost, kept=(divided + whole - gathered) // ranks + gathered, output=cost.output // ranks)


# --- memory ---


def _memory(share: RankShare) -> RankMemory:
    layout, held, trace = share.layout, share.held, share.trace
    passes = layout.micro_batches
    # Each pass adds to whole gradients, and the last one divides them.
    accumulates = share.is_sharded and passes > 1 and not _reduces_each_pass(layout)
    size = share.job.trained_bytes
    gradients = FP32 * held.whole_trained if accumulates else size * held.held_trained
    optimizer = held.optimiser_bytes
    host = held.held_bytes + size * held.held_trained + optimizer + _changing(share) if layout.offload else 0
    host += _inputs_on_host(share)
    activations, (casted, casted_late), gathered = _activations(share), _casted(share), _gathered(share)
    backward = share.trace.transient + _reduced(share)
    if share.recomputes:
        # Of what the block keeps then, this is among the activations already.
        has_products = share.layout.checkpoint_activations == "selective"
        there = [cost.output + has_products * cost.products for cost in share.costs]
        backward += max((max(0, cost.kept - own) for cost, own in zip(share.costs, there, strict=True)), default=0)
    loss = _loss(share) if held.stage.has_last else 0
    teacher = share.job.teacher_bytes(layout)
    static = (0 if layout.offload else held.held_bytes + optimizer) + gathered + teacher
    # When all activations are there, so are the gradients of an earlier pass, if there was a backward pass yet.
    here = 0 if layout.offload else gradients
    full = activations + (0 if passes == 1 or layout.waits_for_all else here)
    # A first pass makes the last block's gradients in `backward`; further ones add theirs to those that are there.
    fresh = size * held.block_trained if passes == 1 and not share.is_sharded else 0
    ends = here - fresh + trace.outside + backward
    # What is in no block is whole until the pass ends, and then once more, side by side.
    whole = FP32 * held.outside_trained if share.is_sharded else 0
    summing = here + 2 * whole - (whole // layout.shard_ranks if passes == 1 and here else 0)
    stepping = 0 if layout.offload else gradients + _changing(share)
    peak = static + max(full + casted + loss, full + casted_late + backward, ends + casted_late, summing, stepping)
    return RankMemory(
        held.held_bytes,
        gradients,
        optimizer,
        gathered + max(casted, casted_late),
        activations,
        loss,
        backward,
        peak,
        host,
        teacher,
    )


def _activations(share: RankShare) -> int:
    kept = {
        "full": [cost.output for cost in share.costs],
        # On the device is what one block reads and what it writes.
        "offload": [2 * max((cost.output for cost in share.costs), default=0)],
        "selective": [cost.output + cost.products for cost in share.costs],
        "none": [cost.kept for cost in share.costs],
    }[share.layout.checkpoint_activations]
    outside = share.trace.outside * share.held.stage.runs
    return int(share.layout.in_flight(share.held.stage.rank) * (sum(kept) + outside))


def _inputs_on_host(share: RankShare) -> int:
    """Those of blocks that `checkpoint_activations: offload` keeps in the CPU's memory."""
    if share.layout.checkpoint_activations != "offload":
        return 0
    return int(share.layout.in_flight(share.held.stage.rank) * sum(cost.output for cost in share.costs))


def _casted(share: RankShare) -> tuple[int, int]:
    """Copies of weights that autocast makes: at the end of the forward pass, and in the backward pass.

    Where blocks are computed again, each has its own for as long. Else it remembers those of whole weights for the
    length of a step, and of a tensor rank's parts and of shared weights every pass makes its own, and keeps them for
    its backward pass. Of what was gathered in half precision it makes none.
    """
    sizes = [0 if share.job.gathers_half(share.layout) else cost.casted for cost in share.costs]
    if share.recomputes:
        return 0, max(sizes, default=0)
    if share.layout.tensor == 1 and not share.is_sharded:
        return sum(sizes), sum(sizes)
    flying = int(share.layout.in_flight(share.held.stage.rank) * sum(sizes))
    return flying, flying


def _gathered(share: RankShare) -> int:
    """Whole weights beside the shares of them."""
    held = share.held
    if not share.is_sharded:
        return 0
    if share.layout.shard == "gradients":
        return held.whole_bytes
    return min(held.whole_bytes, held.outside_bytes + 2 * held.block_bytes)  # one in use, the next under way


def _reduced(share: RankShare) -> int:
    """A block's gradients before they are divided: as they come, and side by side for the sum."""
    size = share.dtype_bytes if share.job.gathers_half(share.layout) else FP32
    return (size + FP32) * share.held.block_trained if share.is_sharded else 0


def _changing(share: RankShare) -> int:
    """What the optimizer needs besides its state, and the fp32 copies of bf16 weights, while it changes them."""
    held = share.held
    if share.job.trained_bytes == FP32:
        return held.changing_bytes
    return rounded_step_bytes(held.held_trained, held.largest_trained, held.changing_bytes)


def _loss(share: RankShare) -> int:
    """What layers/loss.py holds when its gradients are ready, if every position is labelled."""
    (vocabulary, hidden_size), size = share.held.head, share.dtype_bytes
    rows = share.layout.micro_batch_size * share.job.lengths.length
    is_mixed, is_wide = size != FP32, share.held.is_head_trained and share.job.trained_bytes == FP32
    # The norm's two and the labelled rows; a copy of the table; the gradients of rows and table.
    hidden = rows * hidden_size * 3 * FP32
    copy = vocabulary * hidden_size * size * (is_mixed and is_wide)  # another one is kept so
    gradients = FP32 * hidden_size * (rows + vocabulary * share.held.is_head_trained)
    waiting = share.layout.micro_batches if share.layout.waits_for_all else 1
    more = _IMITATION_COPIES * FP32 * bool(share.job.teacher_bytes(share.layout))
    chunk = min(ACCELERATOR_CHUNK_ROWS, rows) * vocabulary * (FP32 + size * is_mixed + more)
    return hidden + copy + waiting * gradients + chunk


# --- traffic ---


def _traffic(share: RankShare) -> Traffic:
    layout, held, size = share.layout, share.held, share.dtype_bytes
    passes, asks = layout.micro_batches, share.job.asks_first
    shards, replicas = layout.shard_ranks, layout.data // layout.shard_ranks
    times = (2 if layout.shard == "parameters" else 1) + asks
    gather = _ring(shards) * held.whole_bytes * times * passes
    sums = passes if _reduces_each_pass(layout) else 1
    scatter = _ring(shards) * FP32 * held.whole_trained * sums
    summed_bytes = share.job.trained_bytes if shards == 1 else FP32
    reduce = 2 * _ring(replicas) * summed_bytes * held.whole_trained / shards * sums
    # Each row-divided product is summed in the forward pass, the gradient of its input in the backward pass.
    states = sum(cost.elements for cost in share.costs)
    summed = states * held.sums / max(1, len(share.costs)) * (share.forward_passes + 1)
    tensor = 2 * _ring(layout.tensor) * size * summed * passes
    stages = layout.stages // layout.pipe if layout.pipe > 1 else 0
    ends = (2 + asks) * stages - held.stage.has_first - (1 + asks) * held.stage.has_last if stages else 0
    pipe = share.trace.outputs / layout.tensor * ends * passes
    expert = _ring(layout.expert) * size * states * 2 * (share.forward_passes + 1) * passes
    return Traffic(*map(int, (gather, scatter, reduce, tensor, pipe, expert)))


def _reduces_each_pass(layout: Layout) -> bool:
    """Whether gradients are divided after every micro-batch (ZeRO-3), not once a step."""
    return layout.shard == "parameters" and layout.pipe == 1


def _ring(ranks: int) -> float:
    """What a rank sends of a tensor that goes round once."""
    return (ranks - 1) / ranks


# --- time ---


def _flops(share: RankShare) -> float:
    layout = share.layout
    kinds = [share.job.kinds[block] for block in share.held.stage.blocks]
    forward = share.forward_passes * sum(cost.flops for cost in share.costs)
    blocks = forward + sum(total_flops(share.trace.backward.get(kind, {})) for kind in kinds)
    return layout.micro_batches * (blocks + _head_flops(share))


def _head_flops(share: RankShare) -> float:
    """Of one pass."""
    held = share.held
    products = (2 + held.is_head_trained + share.job.asks_first) * held.stage.has_last
    return 2.0 * products * share.layout.micro_batch_size * share.job.lengths.length * math.prod(held.head)


def _seconds(rank: RankPlan, share: RankShare, device: Device, links: Links) -> StepSeconds:
    layout, traffic, job = share.layout, rank.traffic, share.job
    own = computing(_work(share), job.seconds(share.trace, device), device, layout.micro_batches)
    over_data = links.over(layout.tensor * layout.data)
    hidden = (traffic.gather + traffic.scatter) / over_data
    waited = traffic.tensor / links.over(layout.tensor) + traffic.expert / links.over(layout.tensor * layout.expert)
    waited += traffic.pipe / links.over(layout.world)
    return with_waiting(own, layout, hidden, waited, traffic.reduce / over_data)


def _work(share: RankShare) -> RankWork:
    layout, held, job, size = share.layout, share.held, share.job, share.job.trained_bytes
    rows = layout.micro_batch_size * job.lengths.length * held.stage.has_last
    all_again = Seconds(1, 1, 1, 1, 1)
    again = {"none": Seconds(), "full": all_again, "offload": all_again, "selective": Seconds(0, 1, 1, 1, 1)}
    is_remembered = layout.tensor == 1 and not share.is_sharded and not share.recomputes
    gathered = layout.micro_batches * ((2 if layout.shard == "parameters" else 1) + job.asks_first)
    return RankWork(
        trace=share.trace,
        kinds=[job.kinds[block] for block in held.stage.blocks],
        head_flops=_head_flops(share),
        logits=rows * held.head[0] * (1 + job.asks_first),
        is_fp32=job.dtype.itemsize == FP32,
        # Weight and gradient of each are read for the step and for its norm, and written.
        optimizer_bytes=(6 * size + (size < FP32) * _WIDENED_BYTES) * held.held_trained + 2 * held.optimiser_bytes,
        is_offloaded=layout.offload,
        link_bytes=layout.offload * (gathered * held.held_bytes + size * held.held_trained),
        casts_per_pass=0.0 if job.gathers_half(layout) else 1 / layout.micro_batches if is_remembered else 1.0,
        computes_again=again[layout.checkpoint_activations],
        asks_first=job.asks_first,
    )
