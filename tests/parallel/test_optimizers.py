"""Every optimizer under layouts: weights and state are those of one process, and divided as the weights are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import SHAPE, Case, make_batch, make_model
from ranks import run_ranks
from sampled import sampled
from test_layouts import own_rows, whole

from hanlin.models.cpm2.config import Cpm2Config
from hanlin.models.cpm2.model import Cpm2
from hanlin.parallel.mesh import like, local, offset_of
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import OPTIMIZERS, ParallelSettings, TrainSettings
from hanlin.training.optimizer import build_optimizer
from hanlin.training.step import Step

# Large enough for blocks of 8-bit numbers.
CONFIG = {**SHAPE, "hidden_size": 128, "head_dim": 32, "num_layers": 1, "ffn_size": 256, "dropout": 0}
STEPS = 3
LAYOUTS = {
    "2x2x1": {"data": 2, "tensor": 2, "shard": "parameters"},
    "hybrid": {"data": 4, "shard": "gradients", "shard_ranks": 2},
}


def train(case: Case, name: str, layout: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Whole weights and state after some steps."""
    settings = TrainSettings(steps=STEPS, lr=1e-2, schedule="constant", optimizer=OPTIMIZERS.make({"name": name}))
    parallel_model = parallelize(
        make_model(case, "full"),
        torch.device("cpu"),
        "fp32",
        ParallelSettings(**layout),
        copy=lambda: make_model(case, "full"),
    )
    optimizer = build_optimizer(parallel_model.parameters, settings.optimizer)
    step = Step(parallel_model, optimizer, settings, STEPS)
    for seed in range(STEPS):
        step.run(own_rows(make_batch(case, seed), parallel_model))
    tensors = {**parallel_model.parameters, **optimizer.tensors()}
    return {name: whole(tensor.detach()).clone() for name, tensor in tensors.items()}


def train_all(case: Case, layout: dict[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    return {name: train(case, name, layout) for name in OPTIMIZERS.names}


@pytest.mark.parametrize("layout", sampled(list(LAYOUTS), ["2x2x1"]))
def test_a_layout_changes_no_weight_and_no_state(layout: str) -> None:
    case = Case(lambda: Cpm2(Cpm2Config(**CONFIG)), _pair, ())
    expected = train_all(case, {})
    for result in run_ranks(4, train_all, case, LAYOUTS[layout]):
        for name, tensors in expected.items():
            assert result[name].keys() == tensors.keys()
            for key, tensor in tensors.items():
                found = result[name][key]
                assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype), (name, key)
                if tensor.dtype == torch.uint8:  # a sum in another order may be rounded to the next code
                    assert ((found.int() - tensor.int()).abs() <= 1).all(), (name, key)
                else:
                    torch.testing.assert_close(found, tensor, rtol=1e-4, atol=1e-5 if name == "adamw_8bit" else 1e-9)


def round_weights(case: Case, layout: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Whole bf16 weights after some steps by gradients that depend on their names alone."""
    settings = ParallelSettings(**layout)
    model = make_model(case, "full").float()
    parallel_model = parallelize(model, torch.device("cpu"), "bf16", settings, trained=torch.bfloat16)
    optimizer = build_optimizer(parallel_model.parameters, OPTIMIZERS.make("adamw"), seed=3)
    for number in range(STEPS):
        for name, weight in parallel_model.parameters.items():
            draw = torch.Generator().manual_seed(len(name) + number)
            part = torch.randn(weight.shape, generator=draw).bfloat16()
            for dim, (first, size) in enumerate(zip(offset_of(weight), local(weight).shape, strict=True)):
                part = part.narrow(dim, first if size else 0, size)
            weight.grad = like(weight, part.contiguous(), weight.shape)
        optimizer.step(1e-3)
    return {name: whole(weight.detach()).clone() for name, weight in parallel_model.parameters.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_changes_no_rounding(layout: str) -> None:
    case = Case(lambda: Cpm2(Cpm2Config(**CONFIG)), _pair, ())
    expected = round_weights(case, {})
    for result in run_ranks(4, round_weights, case, LAYOUTS[layout]):
        for name, weight in expected.items():
            assert weight.dtype == torch.bfloat16
            assert result[name].equal(weight), name


def _pair(draw: torch.Generator) -> dict[str, torch.Tensor]:
    tokens = {"tokens": 6, "encoder_tokens": 7}
    return {name: torch.randint(0, 50, (8, length), generator=draw) for name, length in tokens.items()}
