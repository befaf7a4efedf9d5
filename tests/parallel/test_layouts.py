"""Every family, tuning method and layout against one process: loss, norm and all gradients, by the same names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import CASES, ROWS, SHAPE, Case, make_batch, make_model
from ranks import run_ranks
from sampled import sampled
from torch import nn

from hanlin.core.batch import Batch
from hanlin.layers.norm import LayerNorm, RmsNorm, WideRmsNorm
from hanlin.models.cpm1_t5.config import Cpm1T5Config
from hanlin.models.cpm1_t5.model import Cpm1T5
from hanlin.parallel.mesh import Degrees
from hanlin.parallel.parallel_model import ParallelModel
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import ParallelSettings

SHARDED = {"shard": "parameters"}
AGAIN, SOME_AGAIN = {"checkpoint_activations": "full"}, {"checkpoint_activations": "selective"}
LAYOUTS: dict[str, dict[str, Any]] = {
    "2x1x1": {"data": 2},
    "2x1x1 gradients": {"data": 2, "shard": "gradients"},
    "2x1x1 parameters": {"data": 2, **SHARDED},
    "1x2x1": {"tensor": 2},
    "1x1x2": {"pipe": 2},
    "2x2x1": {"data": 2, "tensor": 2, **SHARDED},
    "2x1x2": {"data": 2, "pipe": 2, **SHARDED},
    "1x2x2": {"tensor": 2, "pipe": 2},
    "2x2x2": {"data": 2, "tensor": 2, "pipe": 2, **SHARDED},
}
FURTHER: dict[str, dict[str, Any]] = {
    "shared heads": {"tensor": 4},
    "gpipe": {"pipe": 2, "schedule": "gpipe"},
    "interleaved": {"pipe": 2, "schedule": "interleaved"},
    "interleaved, sharded": {"data": 2, "pipe": 2, "schedule": "interleaved", **SHARDED},
    "hybrid": {"data": 4, "shard_ranks": 2, **SHARDED},
    "offload": {"data": 2, "offload": True, **SHARDED},
    "recomputed": {"tensor": 2, **AGAIN},
    "some recomputed": {"tensor": 2, **SOME_AGAIN},
    "recomputed in a pipe": {"data": 2, "pipe": 2, **AGAIN, **SHARDED},
}
# Along the text: the encoder of the cases reads 7 tokens and the decoder 6, so not all shares are full.
SEQUENCE: dict[str, dict[str, Any]] = {
    "1x2x1": {"tensor": 2},
    "1x4x1 some recomputed": {"tensor": 4, **SOME_AGAIN},
    "2x2x1 recomputed": {"data": 2, "tensor": 2, **SHARDED, **AGAIN},
    "1x2x2": {"tensor": 2, "pipe": 2},
    "1x2x2 some recomputed": {"tensor": 2, "pipe": 2, **SOME_AGAIN},
    "1x2x2 interleaved": {"tensor": 2, "pipe": 2, "schedule": "interleaved", **AGAIN},
    "2x2x2 recomputed": {"data": 2, "tensor": 2, "pipe": 2, **SHARDED, **AGAIN},
}
NORMS = (LayerNorm, RmsNorm, WideRmsNorm)
WHOLE = ("cpm_bee", "cpm2")
FAMILIES = ("cpm_bee", "chatglm2", "cpm1", "cpm1_t5", "cpm2")
METHODS = ("full", "lora", "prefix")
# 8 processes take long on few cores, and each family is cut, divided and sharded in the others.
MATRIX = [(family, layout) for family in FAMILIES for layout in LAYOUTS if layout != "2x2x2" or family in WHOLE]
# Two ranks with every family, four with some family each.
OFTEN = [
    *(cell for cell in MATRIX if LAYOUTS[cell[1]].keys() in ({"tensor"}, {"pipe"}, {"data", "shard"})),
    *((family, "2x1x1") for family in ("cpm1", "cpm2")),
    *(("cpm_bee", "2x2x1"), ("chatglm2", "1x2x2"), ("cpm1", "2x1x2"), ("cpm1_t5", "2x2x1"), ("cpm2", "2x2x2")),
]
SEQUENCE_MATRIX = [
    *((family, layout) for family in ("cpm1_t5", "cpm2") for layout in SEQUENCE if "2x2x2" not in layout),
    ("cpm2", "2x2x2 recomputed"),
    *((family, "1x2x1") for family in ("chatglm2", "cpm1", "cpm_bee")),
    ("chatglm2", "1x4x1 some recomputed"),
]
SEQUENCE_OFTEN = [
    *((family, "1x2x1") for family in FAMILIES),
    *(("cpm1_t5", "1x4x1 some recomputed"), ("cpm2", "2x2x1 recomputed"), ("cpm2", "1x2x2 interleaved")),
]


def tuned(cells: Sequence[tuple[str, str]], often: Sequence[tuple[str, str]], layouts: Sequence[str]) -> list[Any]:
    """Every cell with every method; often: with one of them by turns, so that each family and each layout meets all."""
    chosen = [
        (family, layout, METHODS[(FAMILIES.index(family) + layouts.index(layout)) % len(METHODS)])
        for family, layout in often
    ]
    return sampled([(*cell, method) for cell in cells for method in METHODS], chosen)


def world_of(settings: ParallelSettings) -> int:
    return (settings.data or 1) * settings.tensor * settings.pipe


def own_rows(batch: Batch, parallel_model: ParallelModel) -> Batch:
    count = parallel_model.data_ranks
    return batch.split(count)[parallel_model.mesh.rank("data")]


def compute(
    case: Case, method: str, settings: ParallelSettings, dtype: torch.dtype, rows: int | None = None
) -> dict[str, Any]:
    """What one rank gets: loss, norm and loss without gradient, over all ranks; the gradients that it holds.

    rows: of a micro-batch; None: two micro-batches, if there are rows for them.
    """
    parallel_model = parallelize(
        make_model(case, method, dtype),
        torch.device("cpu"),
        "fp32",
        settings,
        copy=lambda: make_model(case, method, dtype),
    )
    batch = make_batch(case)
    batch = Batch(batch.inputs, batch.labels, batch.weights.to(dtype), batch.rows)
    mine = own_rows(batch, parallel_model)
    parts = parallel_model.split(mine, rows or max(2, mine.size // 2))
    losses = parallel_model.forward_backward(parts, [batch.loss_tokens] * len(parts)).losses
    (loss,) = parallel_model.sum_over_data([sum(losses)])
    gradients = {name: weight.grad for name, weight in parallel_model.parameters.items() if weight.grad is not None}
    (silent,) = parallel_model.sum_over_data([parallel_model.losses(mine).sum().item()])
    return {
        "loss": loss,
        "silent": silent / batch.loss_tokens,
        "norm": parallel_model.grad_norm(),
        "gradients": {name: whole(gradient).clone() for name, gradient in gradients.items()},
    }


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore


def compare(family: str, methods: Sequence[str], layout: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    case, settings, alone = CASES[family], ParallelSettings(**layout), ParallelSettings()
    sharded = run_ranks(world_of(settings), compute_all, case, methods, settings, dtype)
    for method in methods:
        expected = compute(case, method, alone, dtype)
        _compare(expected, [results[method] for results in sharded], tolerance)


def compute_all(
    case: Case, methods: Sequence[str], settings: ParallelSettings, dtype: torch.dtype
) -> dict[str, dict[str, Any]]:
    return {method: compute(case, method, settings, dtype) for method in methods}


def _compare(expected: dict[str, Any], results: Sequence[dict[str, Any]], tolerance: float) -> None:
    for result in results:
        for number in ("loss", "silent", "norm"):
            assert result[number] == pytest.approx(expected[number], rel=tolerance), number
        for name, gradient in result["gradients"].items():
            difference = (gradient - expected["gradients"][name]).abs().max()
            assert difference <= tolerance * expected["norm"], (name, difference)
    assert {name for result in results for name in result["gradients"]} == set(expected["gradients"])


@pytest.mark.parametrize(("family", "layout", "method"), tuned(MATRIX, OFTEN, list(LAYOUTS)))
def test_a_layout_changes_no_number(family: str, layout: str, method: str) -> None:
    compare(family, [method], LAYOUTS[layout], torch.float64, 1e-12)


@pytest.mark.parametrize(("family", "layout", "method"), tuned(SEQUENCE_MATRIX, SEQUENCE_OFTEN, list(SEQUENCE)))
def test_nor_does_dividing_the_text(family: str, layout: str, method: str) -> None:
    settings = {**SEQUENCE[layout], "sequence_parallel": True}
    compare(family, [method], settings, torch.float64, 1e-12)


@pytest.mark.parametrize("family", ["chatglm2", "cpm1"])
def test_nor_does_dividing_the_text_of_packed_rows(family: str) -> None:
    """Two samples of three tokens in each row, whose attention runs window by window."""

    def packed(draw: torch.Generator) -> dict[str, torch.Tensor]:
        return {**CASES[family].inputs(draw), "spans": torch.tensor([0, 0, 0, 1, 1, 1]).expand(ROWS, -1)}

    case, settings = replace(CASES[family], inputs=packed), ParallelSettings(tensor=2, sequence_parallel=True)
    sharded = run_ranks(2, compute_all, case, METHODS, settings, torch.float64)
    for method in METHODS:
        expected = compute(case, method, ParallelSettings(), torch.float64)
        _compare(expected, [results[method] for results in sharded], 1e-12)


@pytest.mark.parametrize(
    ("family", "lengths"),
    [
        ("chatglm2", {"blocks": 3}),
        ("cpm1_t5", {"blocks.0": 4, "blocks.1": 4, "blocks.2": 3, "blocks.3": 3}),
        ("cpm2", {"encoder_blocks": 4, "decoder_blocks": 3}),
    ],
)
def test_blocks_hold_a_share_of_the_text(family: str, lengths: dict[str, int]) -> None:
    """Of 6 tokens (encoder: 7) and two ranks, in front of every norm inside a block."""
    found = run_ranks(2, norm_lengths, CASES[family], ParallelSettings(tensor=2, sequence_parallel=True))
    for seen in found:
        for block, length in lengths.items():
            assert {seen[name] for name in seen if name.startswith(f"{block}.")} == {length}, block


def norm_lengths(case: Case, settings: ParallelSettings) -> dict[str, int]:
    """Columns that each norm inside a block is given, by its name."""
    parallel_model = parallelize(make_model(case, "full"), torch.device("cpu"), "fp32", settings)
    norms = {module: name for name, module in parallel_model.model.named_modules() if isinstance(module, NORMS)}
    seen: dict[str, int] = {}

    def note(norm: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        seen[norms[norm]] = given[0].shape[1]

    for norm, name in norms.items():
        if "blocks." in name:
            norm.register_forward_pre_hook(note)
    parallel_model(**make_batch(case).inputs)
    return seen


def test_what_is_dropped_is_alike_on_all_ranks_of_a_divided_text() -> None:
    """Also behind shares of 7 tokens for two ranks, which are drawn for as if both were full."""
    config = Cpm1T5Config(**{**SHAPE, "num_layers": 2}, ffn_size=24, dropout=0.3, attention_dropout=0.3)
    case = replace(CASES["cpm1_t5"], make=lambda: Cpm1T5(config))
    settings = ParallelSettings(tensor=2, sequence_parallel=True)
    first, second = run_ranks(2, compute, case, "full", settings, torch.float64)
    assert first["loss"] == second["loss"]
    torch.testing.assert_close(first["gradients"], second["gradients"], rtol=1e-12, atol=1e-14)


def test_a_single_token_is_not_divided() -> None:
    def logits(settings: ParallelSettings) -> torch.Tensor:
        parallel_model = parallelize(make_model(case, "full"), torch.device("cpu"), "fp32", settings)
        return parallel_model(**{name: tensor[:, :1] for name, tensor in make_batch(case).inputs.items()})

    case = CASES["cpm2"]
    for found in run_ranks(2, logits, ParallelSettings(tensor=2, sequence_parallel=True)):
        torch.testing.assert_close(found, logits(ParallelSettings()), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("layout", FURTHER)
def test_nor_does_what_else_can_be_set(layout: str) -> None:
    compare("chatglm2", ["full"], FURTHER[layout], torch.float64, 1e-12)


@pytest.mark.parametrize("layout", ["2x1x1", "1x2x1", "1x1x2"])
def test_in_single_precision_numbers_differ_by_rounding_only(layout: str) -> None:
    compare("cpm_bee", ["full"], LAYOUTS[layout], torch.float32, 1e-6)


@pytest.mark.parametrize(
    ("settings", "world", "degrees"),
    [
        ({}, 4, Degrees(replicate=4)),
        ({"tensor": 2}, 4, Degrees(replicate=2, tensor=2)),
        ({"shard": "parameters"}, 4, Degrees(shard=4)),
        ({"shard": "gradients", "shard_ranks": 2, "pipe": 2}, 8, Degrees(2, 2, 2, 1)),
    ],
)
def test_data_ranks_are_those_that_are_left(settings: dict[str, Any], world: int, degrees: Degrees) -> None:
    assert Degrees.of(ParallelSettings(**settings), world) == degrees
