"""The cells of run.py: what of the matrix there is, and the part of it that `make test` runs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, product

from layouts import VARIANTS

Words = tuple[str, str, str]
"""Profile, precision and cell: of a step `variant.tuning.rows.recomputed`, of answers `variant.tuning.way`."""
PRECISIONS = {
    "cuda-sm90": ("fp32", "bf16", "fp16"),
    "cuda-sm70": ("fp32", "fp16"),
    "npu": ("fp32", "bf16", "fp16"),
    "npu-910a": ("fp32", "fp16"),
    "mps": ("fp32", "bf16", "fp16"),
}
"""Those that a profile's device has."""
DEVICES = [(profile, precision) for profile, known in PRECISIONS.items() for precision in known]
RECOMPUTED = ("none", "selective", "full")
STEPS_BY_TURNS = [
    ("cuda-sm90", "bf16", "packed.none"),
    ("npu", "fp32", "single.full"),
    ("cuda-sm70", "fp16", "packed.selective"),
    ("npu", "bf16", "packed.none"),
    ("mps", "fp16", "single.full"),
    ("npu-910a", "fp16", "packed.none"),
    ("cuda-sm90", "bf16", "single.none"),
]
ANSWERS_BY_TURNS = [("npu", "fp32"), ("cuda-sm90", "bf16"), ("mps", "fp32"), ("cuda-sm70", "fp16")]
TUNINGS = ("base", "ia3", "prefix", "prompt")
"""With which a family answers; LoRA is asked of a packed base."""
FAMILIES = ("cpm1", "cpm1_t5", "cpm2", "cpm_bee", "chatglm2")
TUNED = [
    *product(FAMILIES, TUNINGS),
    *(("chatglm2-int8", "lora"), ("chatglm2-int4", "prefix"), ("cpm2-experts", "full")),
]
WAYS = ("greedy", "sample", "beam")
TOGETHER = "together"
"""Rows whose answers are looked for, and noted, in different ways; of bases in fp32."""


def some_steps() -> Iterator[Words]:
    """One of every variant and tuning, by turns, so that each sees several devices."""
    devices = cycle(STEPS_BY_TURNS)
    for name, variant in VARIANTS.items():
        for method in variant.methods:
            profile, precision, rows = next(devices)
            yield profile, precision, f"{name}.{method}.{rows}"


def some_answers() -> Iterator[Words]:
    """Every family with every tuning, each with one way and one device by turns: every two of these four meet. The
    quantised bases and the experts with all ways."""
    for (place, family), (turn, tuning) in product(enumerate(FAMILIES), enumerate(TUNINGS)):
        device = ANSWERS_BY_TURNS[(place + turn) % len(ANSWERS_BY_TURNS)]
        yield *device, f"{family}.{tuning}.{WAYS[(place + 2 * turn) % len(WAYS)]}"
    devices = cycle(ANSWERS_BY_TURNS)
    for (name, tuning), way in product(TUNED[len(FAMILIES) * len(TUNINGS) :], WAYS):
        yield *next(devices), f"{name}.{tuning}.{way}"
    for family, profile in zip(FAMILIES, cycle(("npu", "cuda-sm90", "mps")), strict=False):
        yield profile, "fp32", f"{family}.base.{TOGETHER}"


def every_step() -> Iterator[Words]:
    """Each with one form of recomputation by turns, so that every pair of values is there."""
    recomputed = cycle(RECOMPUTED)
    for name, variant in VARIANTS.items():
        for method, rows, device in product(variant.methods, ("packed", "single"), DEVICES):
            yield *device, f"{name}.{method}.{rows}.{next(recomputed)}"


def every_answer() -> Iterator[Words]:
    for (name, tuning), way, device in product(TUNED, WAYS, DEVICES):
        yield *device, f"{name}.{tuning}.{way}"
    for family, profile in product(FAMILIES, PRECISIONS):
        yield profile, "fp32", f"{family}.base.{TOGETHER}"


def is_answer(words: Words) -> bool:
    return words[2].split(".")[2] in (*WAYS, TOGETHER)
