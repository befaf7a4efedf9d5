"""How long a step takes on a device: what it computes and moves (work.py), what it sends, what its ranks wait for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from hanlin.core.cards import Device
from hanlin.planner.layout import Layout
from hanlin.planner.trace import OUTSIDE, Trace
from hanlin.planner.work import BANDWIDTH_SHARE, PRODUCT_SHARE, Seconds, Work, seconds_on

NETWORK_BYTES = 25e9
"""Between machines, per device, second and direction: one port of 200 Gbit/s."""
HOST_LINK_BYTES = 20e9
"""Per second between a device and the CPU's memory: PCIe 4.0 x16, less what it loses on the way."""
HOST_BANDWIDTH = 40e9
"""Bytes per second that one device's optimizer moves in the CPU's memory."""
LOGIT_BYTES = 40
"""That layers/loss.py moves for each logit, forwards and backwards."""


@dataclass(frozen=True)
class StepSeconds:
    """Of the slowest rank. memory: what is bound by its bandwidth (norms, activations, casts, cross entropy); starting:
    what Python needs longer to start the operations than the device to do them; sending: what arithmetic does not hide;
    waiting: for other stages.
    """

    products: float
    attention: float
    memory: float
    starting: float
    optimizer: float
    sending: float
    waiting: float

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class PassSeconds:
    """Of a trace on a device, by kind of block and for what is OUTSIDE of them."""

    forward: Mapping[str, Seconds]
    backward: Mapping[str, Seconds]


def pass_seconds(trace: Trace, device: Device) -> PassSeconds:
    def times(works: Mapping[str, Work]) -> dict[str, Seconds]:
        return {kind: seconds_on(works.get(kind, {}), device) for kind in (*trace.blocks, OUTSIDE)}

    return PassSeconds(times(trace.forward), times(trace.backward))


@dataclass(frozen=True)
class RankWork:
    """What the seconds of a rank follow from. kinds: of its blocks; head_flops, logits: of a pass; optimizer_bytes:
    that it moves in a step; link_bytes: to and from the CPU's memory in a step; casts_per_pass: how often a forward
    pass casts weights, 1 at most; computes_again: of each part of the blocks' forward pass the share that the backward
    pass repeats; asks_first: whether there is another forward pass, without a gradient.
    """

    trace: Trace
    kinds: Sequence[str]
    head_flops: float
    logits: int
    is_fp32: bool
    optimizer_bytes: int
    is_offloaded: bool
    link_bytes: int
    casts_per_pass: float
    computes_again: Seconds
    asks_first: bool = False


def computing(work: RankWork, seconds: PassSeconds, device: Device, passes: int) -> StepSeconds:
    """Of all passes, without what is sent."""
    blocks = sum((seconds.forward[kind] for kind in work.kinds), Seconds())
    forward = blocks + seconds.forward[OUTSIDE]
    backward = sum((seconds.backward[kind] for kind in work.kinds), seconds.backward[OUTSIDE])
    one = forward + backward + blocks.times(work.computes_again)
    one = one + forward if work.asks_first else one
    peak, bandwidth = device.peak("fp32" if work.is_fp32 else "fp16"), device.bandwidth * BANDWIDTH_SHARE
    products = one.products + work.head_flops / (peak * PRODUCT_SHARE)
    casts = (forward.casts + blocks.casts * work.computes_again.casts) * (1 - work.casts_per_pass)
    memory = max(0.0, one.memory - casts) + work.logits * LOGIT_BYTES / bandwidth
    starting = max(0.0, one.starts - products - one.attention - memory)
    optimizer = work.optimizer_bytes / (HOST_BANDWIDTH if work.is_offloaded else bandwidth)
    return StepSeconds(
        products=passes * products,
        attention=passes * one.attention,
        memory=passes * memory,
        starting=passes * starting,
        optimizer=optimizer,
        sending=work.link_bytes / HOST_LINK_BYTES,
        waiting=0.0,
    )


@dataclass(frozen=True)
class Links:
    """Bytes per second and direction: inside a machine, between machines; per_node: devices of a machine."""

    inside: float
    between: float
    per_node: int

    def over(self, span: int) -> float:
        """Among so many neighbours."""
        return self.inside if span <= self.per_node else self.between


def with_waiting(own: StepSeconds, layout: Layout, hidden: float, waited: float, summed: float) -> StepSeconds:
    """The same with what is sent: hidden: seconds of what arithmetic hides so far as it lasts; waited: of what it waits
    for; summed: of the sum of gradients.
    """
    compute = own.total - own.optimizer - own.sending
    sending = own.sending + waited + max(0.0, hidden - compute) + summed
    waiting = (compute + waited) * (1 / (1 - layout.bubble()) - 1)
    return replace(own, sending=sending, waiting=waiting)
