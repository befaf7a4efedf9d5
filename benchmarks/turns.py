"""What the benchmarks of steps and decoding share: ways that take turns, and agreement before the clock.

No script itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from hanlin.core.device import keep_freed_memory, malloc_option
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import TrainSettings
from hanlin.training.optimizer import build_optimizer
from hanlin.training.optimizers.adamw import AdamWSettings
from hanlin.training.step import Step

LR = 1e-4
LARGEST_KEPT = 1 << 25
"""Bytes from which on glibc gives blocks back at once, after larger ones were freed once (its M_MMAP_THRESHOLD)."""
MATRIX = 1024
"""Side of the matrices whose product tells the machine's rate."""


@dataclass(frozen=True)
class Turns:
    """Seconds of each way, round by round: of this process' CPU time.

    For work on one thread without waiting these are the seconds of a quiet machine, whatever else runs on it.
    """

    seconds: Mapping[str, Sequence[float]]

    def per_second(self, way: str, amount: float) -> float:
        """The median over the rounds of an amount that each round works off."""
        return round(amount / median(self.seconds[way]), 1)

    def ratio(self, slow: str, fast: str) -> dict[str, float]:
        """How many times faster one way is: the median of the rounds' ratios, and their spread."""
        return spread([a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)])


def spread(ratios: Sequence[float]) -> dict[str, float]:
    return {name: round(of(ratios), 2) for name, of in (("median", median), ("least", min), ("most", max))}


def take_turns(ways: Mapping[str, Callable[[], object]], rounds: int) -> Turns:
    """Run the ways one after the other, `rounds` times and once before that to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, run in ways.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return Turns({name: values[1:] for name, values in seconds.items()})


class Matrices:
    """A way that only multiplies fp32 matrices: its speed is what the machine has at that moment."""

    flops = 2 * MATRIX**3 * 20

    def __init__(self) -> None:
        self.left, self.right, self.out = (torch.randn(MATRIX, MATRIX) for _ in range(3))

    def __call__(self) -> None:
        for _ in range(20):
            torch.mm(self.left, self.right, out=self.out)


def as_trained(run: Callable[[], object]) -> Callable[[], object]:
    """With memory kept as `hanlin train` keeps it; ways that come after it have what glibc settles on by itself where
    tensors are large, and what smaller ones free is kept for them too.
    """

    def kept() -> None:
        keep_freed_memory()
        try:
            run()
        finally:
            malloc_option("MALLOC_MMAP_THRESHOLD_", LARGEST_KEPT)

    return kept


def make_step(model: nn.Module, weight_decay: float = 0.0) -> Step:
    """Our training step, gradients clipped to length 1."""
    optimizer = AdamWSettings(weight_decay=weight_decay)
    settings = TrainSettings(steps=1000, batch_size=1, lr=LR, schedule="constant", optimizer=optimizer)
    parallel_model = parallelize(model, torch.device("cpu"))
    return Step(parallel_model, build_optimizer(parallel_model.parameters, settings.optimizer), settings, 1000)


def gradient_length(weights: Iterable[nn.Parameter]) -> float:
    return float(nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None]))


def check_agreement(pairs: Iterable[tuple[float, float]]) -> None:
    """Whether two ways have the same loss and length of gradient, but for rounding."""
    for ours, theirs in pairs:
        assert abs(ours / theirs - 1) < 1e-3, (ours, theirs)
