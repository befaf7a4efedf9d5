"""The kernel of a call is the one that torch's dispatcher finds by its filters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from measure import tiny_recipe

from hanlin.core.cards import DEVICES
from hanlin.planner.job import PlannedModel, SequenceLengths
from hanlin.planner.kernels import AttentionCall, kernel_of, why_not_flash
from hanlin.planner.layout import Layout

CAUSAL = AttentionCall(torch.bfloat16, 128, is_causal=True)
HALF = AttentionCall(torch.float16, 128, is_causal=True)
BIAS = AttentionCall(torch.bfloat16, 128, mask=torch.bfloat16)
MASK = AttentionCall(torch.float16, 128, mask=torch.bool)


@pytest.mark.parametrize(
    ("device", "call", "kernel"),
    [
        ("A100-80", CAUSAL, "flash"),
        ("A100-80", replace(CAUSAL, is_grouped=True), "flash"),
        ("A100-80", replace(CAUSAL, dtype=torch.float32), "efficient"),
        ("A100-80", replace(CAUSAL, dtype=torch.float32, is_grouped=True), "math"),
        ("A100-80", replace(CAUSAL, is_square=False), "efficient"),
        ("A100-80", BIAS, "efficient"),
        ("A100-80", replace(BIAS, head_dim=100), "math"),
        ("A100-80", replace(CAUSAL, head_dim=320), "efficient"),
        ("RTX4090-24", replace(CAUSAL, head_dim=224), "efficient"),
        ("RTX4090-24", replace(CAUSAL, head_dim=224, is_trained=False), "flash"),
        ("H100-80", CAUSAL, "flash"),
        ("V100-32", HALF, "efficient"),
        ("V100-32", replace(HALF, is_grouped=True), "math"),
        ("T4-16", MASK, "efficient"),
        ("910B-64", CAUSAL, "flash"),
        ("910B-64", MASK, "flash"),
        ("910B-64", BIAS, "math"),
        ("910A-32", HALF, "math"),
    ],
)
def test_the_kernel_of_a_call(device: str, call: AttentionCall, kernel: str) -> None:
    assert kernel_of(call, DEVICES[device]) == kernel
    assert (why_not_flash(call, kernel_of(call, DEVICES[device]), DEVICES[device]) == "") == (kernel == "flash")


def test_what_a_recipe_asks_for_is_taken_where_it_takes_the_call() -> None:
    device = DEVICES["A100-80"]
    assert kernel_of(CAUSAL, device, "math") == "math"
    assert kernel_of(CAUSAL, device, "efficient") == "efficient"
    assert kernel_of(BIAS, device, "flash") == "math"
    assert kernel_of(BIAS, device, "cudnn") == "cudnn"
    assert kernel_of(replace(CAUSAL, head_dim=256), device, "cudnn") == "flash"


def test_plain_products_keep_the_probabilities() -> None:
    recipe = tiny_recipe("cpm_bee", "tuning.method=lora", "train.precision=auto")
    kept = {}
    for name in ("A100-80", "910B-64"):
        job = PlannedModel(recipe, SequenceLengths(256), device=DEVICES[name])
        found = job.trace(Layout())
        assert set(found.attention.values()) == {"efficient" if name == "A100-80" else "math"}
        kept[name] = max(cost.kept for cost in found.blocks.values())
    probabilities = job.config.num_heads * 256 * 256 * 4
    assert kept["910B-64"] - kept["A100-80"] >= probabilities


def test_a_model_moves_to_another_device_with_its_own_kernels() -> None:
    recipe = tiny_recipe("chatglm2", "tuning.method=lora", "train.precision=auto")
    job = PlannedModel(recipe, SequenceLengths(128), device=DEVICES["A100-80"])
    old = job.on(DEVICES["V100-32"])
    assert (job.precision, old.precision) == ("bf16", "fp16")
    assert set(job.trace(Layout()).attention.values()) == {"flash"}
    assert set(old.trace(Layout()).attention.values()) == {"efficient"}  # each query head has keys of its own there


@pytest.mark.parametrize("family", ["chatglm2", "cpm1"])
@pytest.mark.parametrize(("device", "choice"), [("H100-80", "auto"), ("V100-32", "auto"), ("H100-80", "efficient")])
def test_a_prefix_needs_no_mask_where_samples_go_one_behind_the_other(family: str, device: str, choice: str) -> None:
    """The plan runs the model's own choice."""
    changes = ["tuning.method=prefix", "train.precision=auto", f"run.attention={choice}"]
    recipe = tiny_recipe(family, *changes, *(["model.config.attention_dropout=0"] if family == "cpm1" else []))
    found = PlannedModel(recipe, SequenceLengths(128), device=DEVICES[device]).trace(Layout())
    is_varlen = (device, choice) == ("H100-80", "auto")
    assert set(found.attention.values()) == {"varlen" if is_varlen else "efficient"}
    if is_varlen:
        [(call, kernel)] = found.attention.items()
        assert why_not_flash(call, kernel, DEVICES[device]) == ""


@pytest.mark.parametrize("family", ["cpm_bee", "cpm2"])
def test_a_large_bias_is_planned_as_it_is_computed(family: str) -> None:
    recipe = tiny_recipe(family, "tuning.method=full", "train.precision=auto", "model.config.dropout=0")
    lengths = {length: SequenceLengths(length, length) for length in (256, 16384)}
    found = {
        length: PlannedModel(recipe, one, device=DEVICES["H100-80"]).trace(Layout()) for length, one in lengths.items()
    }
    assert "flex" not in found[256].attention.values()
    assert "flex" in found[16384].attention.values()
    [(call, kernel)] = [pair for pair in found[16384].attention.items() if pair[1] == "flex"]
    assert why_not_flash(call, kernel, DEVICES["H100-80"]) == "a mask or a bias"
