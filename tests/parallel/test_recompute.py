"""Computing blocks again in the backward pass changes no number, whatever the model and what is trained of it."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from cases import CASES, make_batch, make_model

from hanlin.parallel.recompute import HowRecomputed, recompute

METHODS = {"cpm_bee": "prefix", "chatglm2": "prefix", "cpm1": "prompt", "cpm1_t5": "lora", "cpm2": "prompt"}


def gradients(family: str, method: str, how: HowRecomputed | None) -> dict[str, torch.Tensor]:
    model, batch = make_model(CASES[family], method), make_batch(CASES[family])
    if how:
        for blocks in model.plan.blocks:  # pyright: ignore
            for block in model.get_submodule(blocks).children():
                recompute(block, how)
    model(**batch.inputs, labels=batch.labels, weights=batch.weights).backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("how", ["full", "offload", "selective"])
@pytest.mark.parametrize("method", ["full", "adapter"])
@pytest.mark.parametrize("family", CASES)
def test_recomputing_changes_no_gradient(family: str, method: str, how: HowRecomputed) -> None:
    method = METHODS[family] if method == "adapter" else method
    plain = gradients(family, method, None)
    assert plain
    torch.testing.assert_close(gradients(family, method, how), plain, rtol=1e-12, atol=1e-14)


def test_a_recomputed_block_keeps_less_for_the_backward_pass() -> None:
    assert _kept_bytes("full") < _kept_bytes(None)


def _kept_bytes(how: Literal["full"] | None) -> int:
    model, batch = make_model(CASES["chatglm2"], "full"), make_batch(CASES["chatglm2"])
    sizes: dict[int, int] = {}
    if how:
        for block in model.get_submodule("blocks").children():
            recompute(block, how)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            sizes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**batch.inputs, labels=batch.labels, weights=batch.weights)
    return sum(sizes.values())
