"""What a step needs, against what torch counts of a pass forwards and backwards in which nothing is computed twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from family_cases import METHODS, Case, summed_loss
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hanlin.core.batch import Batch, Extent, Sample
from hanlin.layers.quantised import quantise_linears
from hanlin.training.needed_flops import needed_flops
from hanlin.tuning.apply import apply_tuning
from hanlin.tuning.full import FullTuning
from hanlin.tuning.lora import LoraTuning

IN_PLACE = {torch.ops.aten.addmm_: lambda target, left, right, **_: 2 * left[0] * left[1] * right[1]}
"""The gradient of a table is added to, which torch does not count by itself."""


def one_row(case: Case, method: str | None = None) -> tuple[Batch, Extent]:
    """A batch of one row without padding."""
    processor = case.processor_for(method)
    sample: Sample = max((processor.sample(record) for record in case.records), key=lambda made: made.length)
    return processor.collate([[sample]], sample.length), sample.extent


def counted(model: Any, batch: Batch) -> int:
    """By torch; attention as the products that it is."""
    model.train()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        summed_loss(model, batch).backward()
    return counter.get_total_flops()


def left_out(model: Any, batch: Batch, extent: Extent) -> int:
    """CPM-Bee's entries of the head that are a batch's own."""
    entries = batch.inputs["ext_tokens"].shape[1] if "ext_tokens" in batch.inputs else 0
    size = entries * getattr(model.config, "hidden_size", 0)
    return size * extent.labels * (6 if model.embedding.weight.requires_grad else 4)


@pytest.mark.parametrize("method", [None, *METHODS])
def test_a_step_needs_what_torch_counts(case: Case, method: str | None) -> None:
    if method is not None and method not in case.tuning:
        pytest.skip(f"{case.name} does not take {method}")
    model, (batch, extent) = case.model(method), one_row(case, method)
    more = needed_flops(model).of(extent) - counted(model, batch) + left_out(model, batch, extent)
    # In the first attention the gradient of a query or a key that is frozen is not needed, but counted.
    query = next(part for name, part in model.named_modules() if name.endswith("query"))
    prefix = getattr(getattr(model, "prefix", None), "length", 0)
    pairs = extent.pairs + extent.read_pairs + prefix * (extent.tokens + extent.read_tokens)
    assert more in ((0,) if method in (None, "prompt") else (0, 2 * query.out_features * pairs))


LIKE_TORCH: dict[str, tuple[str, dict[str, Any], Any]] = {
    "experts": ("cpm2", {"num_experts": 2}, FullTuning()),
    "experts with LoRA": ("cpm2", {"num_experts": 2}, LoraTuning(rank=2, targets=("query", "key", "value", "up"))),
    "frozen beginning": ("cpm1", {}, FullTuning(frozen=("embedding", "positions", "blocks.0"))),
    "frozen middle": ("cpm1_t5", {}, FullTuning(frozen=("blocks.1", "blocks.3"))),
    "LoRA behind the first attention": ("chatglm2", {}, LoraTuning(rank=2, targets=("down",))),
    "all linears": ("cpm_bee", {}, LoraTuning(rank=2, targets=("all-linear",))),
    "PiSSA": ("cpm1", {}, LoraTuning(rank=2, targets=("query", "key", "value"), init="pissa")),
    "head for labels": ("chatglm2", {"labels": ("yes", "no")}, LoraTuning(rank=2, targets=("query", "key", "value"))),
}


@pytest.mark.parametrize("what", LIKE_TORCH)
def test_what_is_frozen_or_read_by_some_needs_what_torch_counts(what: str, make_case: Callable[[str], Case]) -> None:
    name, config, method = LIKE_TORCH[what]
    case = make_case(name)
    model, (batch, extent) = case.model(**config), one_row(case)
    if "labels" in config:
        batch.labels[batch.labels >= 0] = 1
    apply_tuning(model, method, case.family, torch.Generator().manual_seed(0))
    assert needed_flops(model.double()).of(extent) == counted(model, batch) - left_out(model, batch, extent)


@pytest.mark.parametrize("form", ["nf4", "int8", "int4"])
def test_packed_weights_count_as_what_they_stand_for(form: Any, make_case: Callable[[str], Case]) -> None:
    case, (_, extent) = make_case("chatglm2"), one_row(make_case("chatglm2"))
    found = []
    for is_packed in (False, True):
        model = case.empty()
        if is_packed:
            quantise_linears(model, form)
        found.append(needed_flops(apply_tuning(model, METHODS["lora"], case.family)).of(extent))
    assert found[0] == found[1]


def test_numbers_by_hand(make_case: Callable[[str], Case]) -> None:
    """Two blocks of width 16, two heads of 8: of CPM-1 with an ffn of 64, of CPM-2 with a gated one of 24."""
    extent = Extent(tokens=10, read_tokens=30, labels=4, pairs=58, read_pairs=500, cross_pairs=150)
    case = make_case("cpm1")
    block = 4 * 16 * 16 + 2 * 16 * 64
    rest = 6 * 4 * 16 * case.config.vocab_size + 2 * 12 * 16 * 58
    assert needed_flops(case.empty()).of(extent) == 6 * 10 * 2 * block + rest
    case = make_case("cpm2")
    encoder, decoder = 4 * 16 * 16 + 3 * 16 * 24, 6 * 16 * 16 + 3 * 16 * 24
    weights = 30 * 2 * (encoder + 2 * 16 * 16) + 10 * 2 * decoder + 4 * 16 * case.config.vocab_size
    attention = 2 * 12 * 16 * (500 + 58 + 150)
    assert needed_flops(case.empty()).of(extent) == 6 * weights + attention
    prompted = apply_tuning(case.empty(), METHODS["prompt"], case.family)
    assert needed_flops(prompted).of(extent) == 4 * weights + attention
