"""What a step on the stand-in (stand_in.py) may differ by and cost, and what of a cell's result (run.py) is not so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cells import TOGETHER, Words, is_answer
from layouts import VARIANTS

WITH_BIAS = ("cpm2", "cpm_bee")
"""Their attention adds numbers to the scores, for which torch_npu has no kernel."""
CAUSAL = ("chatglm2.", "cpm1.")
"""Their packed rows need no masks where flash attention takes samples one behind the other."""
LAUNCHES = {
    "cpm_bee": 2080, "cpm_bee-nf4": 3200, "chatglm2": 3850, "chatglm2-int8": 2270, "chatglm2-int4": 2900,
    "chatglm2-nf4": 3220, "chatglm2-turns": 2300, "chatglm2-turns-int4": 2930, "cpm1": 1440, "cpm1-nf4": 2250,
    "cpm1_t5": 3430, "cpm1_t5-int8": 3650, "cpm2": 3800, "cpm2-nf4": 3080,
}  # fmt: skip
"""The most kernels for a step of the small models where nothing is computed again. It only goes down.

Packed rows in fp16, whose gradients are scaled, on an NPU take the most.
"""
BF16_WEIGHTS = {"cpm1": 3040, "cpm_bee": 3000}
"""The same of a step that rounds each weight at random (run.py: ROUNDED), in every cell in bf16 with full tuning."""
AGAIN = 1.4
"""What is computed again is at most the forward pass, which is less than half of a step (most of LoRA in bf16)."""
TOKEN_LAUNCHES = {
    "cpm1": 114, "cpm1_t5": 170, "cpm2": 231, "cpm_bee": 272, "chatglm2": 151,
    "chatglm2-int8": 421, "chatglm2-int4": 530, "cpm2-experts": 287,
}  # fmt: skip
"""The most kernels for a token of an answer, with whatever tuning and way to answer. It only goes down."""
MOST_COPIES = 2
"""From pinned memory for each micro-batch: a buffer for it, and one for its windows."""
SENT, TABLE = "copy to core/transfer.py", "copy to layers/nf4.py"
"""Any other copy waits, too: only tables are copied so, when they are used first."""
WAITS = {"step": 1, "evaluation": 1, "offloaded": 1, "preferred": 2}
"""For losses and norm; the losses of up to 64 forward passes; again; and what pairs of answers measure."""
_UNLISTED = "not in hanlin/diagnosis/npu_operations.py:"


def faults(words: Words, result: Mapping[str, Any]) -> Iterator[str]:
    if "error" in result:
        yield f"{result['error']} at {' '.join(result['frames'])}"
    else:
        yield from (_answer_faults if is_answer(words) else _step_faults)(words, result)


def launches_of(words: Words, result: Mapping[str, Any]) -> int:
    """Of a step, or for a token of an answer."""
    if is_answer(words):
        return -(-result["costs"]["launches"] // result["steps"])
    return result["step"]["launches"]


def _step_faults(words: Words, result: Mapping[str, Any]) -> Iterator[str]:
    """Of a step and an evaluation."""
    _, precision, cell = words
    variant = cell.partition(".")[0]
    has_experts = VARIANTS[variant].has_experts  # a last digit may send a token to another one
    near = 1e-5 if precision == "fp32" and not has_experts else 5e-3
    parts = {name: result[name] for name in WAITS if name in result}
    for name, told in {"": result, **parts}.items():
        loss = told.get("loss", result["loss"])
        if "difference" in told and not told["difference"] < near * abs(loss):
            yield f"{name or 'numbers'}: differ from the CPU's by {told['difference']:.3g}, the loss is {loss:.6g}"
        if told["unlisted"]:
            yield f"{name or 'all'}: {_UNLISTED} {told['unlisted']}"
    for name in ("step", "evaluation"):
        if kernels := _other_kernels(words, parts[name]["attention"]):
            yield f"{name}: attention by {kernels}"
    # torch's own attention, which has no kernel here, takes more than the precision it is given.
    wide = {one for one in parts["step"]["products"] if one.startswith("float32") and "layers/attention.py" not in one}
    if precision != "fp32" and wide:
        yield f"step: products in fp32: {sorted(wide)}"
    if not has_experts:  # which expert takes which token decides the shapes
        yield from _over_budget(words, parts, result["micro_batches"])


def _other_kernels(words: Words, attention: Mapping[str, int]) -> str:
    """Those of attention that are not what the device has for it; "" where all are."""
    (profile, precision, cell), wanted = words, None
    if profile.startswith("npu"):
        wanted = "fused" if profile == "npu" and not cell.startswith(WITH_BIAS) else "plain"
    elif profile == "cuda-sm90" and precision != "fp32" and cell.startswith(CAUSAL) and ".packed" in cell:
        wanted = "varlen"
    return "" if wanted is None or attention.keys() == {wanted} else f"{dict(attention)}, not {wanted}"


def _over_budget(words: Words, parts: Mapping[str, Any], micro_batches: int) -> Iterator[str]:
    _, precision, cell = words
    variant, tuning, *_ = cell.split(".")
    for name, costs in parts.items():
        if costs.get("wait", 0) != WAITS[name]:
            yield f"{name}: {costs.get('wait', 0)} waits: {costs['places']}"
    most = BF16_WEIGHTS.get(variant, 0) if precision == "bf16" and tuning == "full" else 0
    most = (most or LAUNCHES[variant]) * (1 if cell.endswith(".none") else AGAIN)
    if parts["step"]["launches"] > most:
        yield f"step: {parts['step']['launches']} launches, at most {most:g}"
    for name in ("step", "evaluation"):
        copies = {place: count for place, count in parts[name]["places"].items() if place.startswith("copy")}
        sent = sum(count for place, count in copies.items() if place.startswith(SENT))
        if sent > MOST_COPIES * micro_batches or not all(place.startswith((SENT, TABLE)) for place in copies):
            yield f"{name}: copies: {copies}"
    if "offloaded" in parts and parts["offloaded"]["copy"] <= parts["step"]["copy"]:
        yield "offloaded: the inputs of blocks do not come back"


def _answer_faults(words: Words, result: Mapping[str, Any]) -> Iterator[str]:
    """Of the answers to a few questions."""
    variant = words[2].partition(".")[0]
    if not result["same"]:
        yield "other tokens than the CPU's"
    parts = {name: result[name] for name in ("prompt", "costs", "ahead") if name in result}
    for name, told in parts.items():
        if told["unlisted"]:
            yield f"{name}: {_UNLISTED} {told['unlisted']}"
        if kernels := _other_kernels(words, told["attention"]):
            yield f"{name}: attention by {kernels}"
    if VARIANTS[variant].has_experts:
        return
    for name, steps in (("costs", "steps"), ("ahead", "ahead_steps")):
        if name in parts and parts[name].get("wait", 0) != result[steps]:
            yield f"{name}: {parts[name].get('wait', 0)} waits in {result[steps]} steps: {parts[name]['places']}"
    is_together = words[2].endswith(f".{TOGETHER}")  # the launches of some ways at once
    if not is_together and (launches := launches_of(words, result)) > TOKEN_LAUNCHES[variant]:
        yield f"{launches} launches for a token, at most {TOKEN_LAUNCHES[variant]}"
    places = [place for name, told in parts.items() if name != "prompt" for place in told["places"]]
    if copies := [place for place in places if place.startswith("copy") and not place.startswith(SENT)]:
        yield f"copies: {copies}"
