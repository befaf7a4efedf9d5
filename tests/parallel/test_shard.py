"""Sharded weights in half precision: what travels, what is held, and that several passes add up to one step."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from cases import CASES, make_batch, make_model
from ranks import run_ranks
from sampled import sampled
from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

from hanlin.parallel.mesh import local
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import ParallelSettings

CPU = torch.device("cpu")
PARAMETERS: dict[str, Any] = {"data": 2, "shard": "parameters"}
LAYOUTS = [(family, layout) for family in CASES for layout in (PARAMETERS, PARAMETERS | {"gather_fp32": True})]
LAYOUTS += [("cpm2", {"data": 2, "shard": "gradients"}), ("cpm2", {"data": 2, "shard": "gradients", "pipe": 2})]


def _step(family: str, layout: dict[str, Any]) -> dict[str, Any]:
    """One row a pass in bf16: loss, norm, gradients; the dtypes of weights in use, within the blocks and outside."""
    case, settings = CASES[family], ParallelSettings(**layout)
    parallel_model = parallelize(make_model(case, "full", torch.float32), CPU, "bf16", settings)
    in_blocks: set[torch.dtype] = set()
    outside: set[torch.dtype] = set()
    model = parallel_model.model
    for name, module in model.named_modules():
        if list(module.parameters(recurse=False)):
            is_block = any(name.startswith(f"{group}.") for group in model.plan.blocks)  # pyright: ignore
            seen = in_blocks if is_block else outside
            module.register_forward_pre_hook(
                lambda module, _, seen=seen: seen.update(one.dtype for one in module.parameters(recurse=False))
            )
    batch = make_batch(case)
    parts = parallel_model.split(batch.split(parallel_model.data_ranks)[parallel_model.mesh.rank("data")], 1)
    losses = parallel_model.forward_backward(parts, [batch.loss_tokens] * len(parts)).losses
    (loss,) = parallel_model.sum_over_data([sum(losses)])
    gradients = {name: weight.grad for name, weight in parallel_model.parameters.items() if weight.grad is not None}
    return {
        "loss": loss,
        "norm": parallel_model.grad_norm(),
        "gradients": {name: _whole(gradient).clone() for name, gradient in gradients.items()},
        "in_blocks": in_blocks,
        "outside": outside,
        "held": {weight.dtype for weight in parallel_model.parameters.values()},
    }


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore


OFTEN = [
    (family, layout) for family, layout in LAYOUTS if "gather_fp32" not in layout or family in ("cpm1_t5", "cpm_bee")
]
"""What travels in fp32 with a family of one stream and one of two."""


@pytest.mark.parametrize(("family", "layout"), sampled(LAYOUTS, OFTEN))
def test_many_passes_in_half_precision_add_up(family: str, layout: dict[str, Any]):
    alone = _step(family, {})
    for rank in run_ranks(4 if "pipe" in layout else 2, _step, family, layout):
        assert rank["loss"] == pytest.approx(alone["loss"], rel=1e-3)
        assert rank["norm"] == pytest.approx(alone["norm"], rel=3e-3)
        for name, gradient in rank["gradients"].items():
            assert (gradient - alone["gradients"][name]).norm() <= 0.01 * alone["norm"], name
        assert rank["held"] == {gradient.dtype for gradient in rank["gradients"].values()} == {torch.float32}
        travels = torch.float32 if "gather_fp32" in layout else torch.bfloat16
        assert (rank["in_blocks"], rank["outside"]) == ({travels}, {torch.float32})


def _held_between_passes() -> tuple[int, int]:
    """Bytes of the gradients that this rank holds after the first of two passes, and of its share of the weights."""
    case, settings = CASES["chatglm2"], ParallelSettings(**PARAMETERS)
    parallel_model = parallelize(make_model(case, "full", torch.float32), CPU, "bf16", settings)
    held: list[int] = []

    @contextmanager
    def looked_at() -> Iterator[None]:
        own = [local(weight.grad) for weight in parallel_model.parameters.values() if weight.grad is not None]
        # FSDP keeps a sum that is not yet divided among the ranks beside the weights.
        whole = [one.unsharded_accumulated_grad for one in gc.get_objects() if isinstance(one, FSDPParam)]
        held.append(sum(one.nbytes for one in (*own, *whole) if one is not None))
        yield

    rows = make_batch(case).split(2)[parallel_model.mesh.rank("data")]
    parallel_model.forward_backward(rows.split(2), [1.0, 1.0], around=[nullcontext, looked_at])
    assert len(held) == 1
    return held[0], sum(local(weight).nbytes for weight in parallel_model.parameters.values())


def test_between_passes_a_rank_holds_its_share_of_the_gradients():
    whole = sum(weight.nbytes for weight in make_model(CASES["chatglm2"], "full", torch.float32).parameters())
    ranks = run_ranks(2, _held_between_passes)
    assert [held for held, _ in ranks] == [share for _, share in ranks]
    assert sum(held for held, _ in ranks) == whole
