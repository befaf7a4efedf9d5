"""One layer of experts against the original on as many processes as experts: assignment, outputs, gradients."""

from __future__ import annotations

from pathlib import Path

import torch
from cpm2_case import Arrays, arrays_of, assert_close, assert_gradient, facts_of

from hanlin.layers.experts import Experts, assign_balanced
from hanlin.models.cpm2.config import Cpm2Config
from hanlin.models.cpm2.model import FeedForward

NAMES = {
    "dense_relu_dense.wi_0.weight": "gate.weight",
    "dense_relu_dense.wi_1.weight": "up.weight",
    "dense_relu_dense.wo.weight": "down.weight",
    "layer_norm.weight": "norm.weight",
}


def check(case: Path, vocab: Path) -> None:
    del vocab
    facts, arrays = facts_of(case), arrays_of(case / "expected.npz")
    world, atol, rtol = facts["dims"]["world"], facts["tolerance"]["y_atol"], facts["tolerance"]["dx_rtol"]
    layer = _layer(facts["dims"], arrays)
    for rank in range(world):
        assert assign_balanced(arrays[f"rank{rank}/scores"]).tolist() == arrays[f"rank{rank}/assignment"].tolist()

    hidden = _joined(arrays, "x", world).requires_grad_()
    routed = layer._balanced(hidden.flatten(0, 1))
    wanted = torch.cat([arrays[f"rank{rank}/train_expert"] for rank in range(world)])
    assert wanted.eq(routed).all()
    out = layer.train()(hidden)
    assert_close("y", out, _joined(arrays, "y", world), atol)
    out.backward(_joined(arrays, "dy", world))
    assert hidden.grad is not None
    assert_gradient("dx", hidden.grad, _joined(arrays, "dx", world), rtol)
    assert layer.centroids.grad is None
    gradients = {name: weight.grad for name, weight in layer.named_parameters() if weight.grad is not None}
    for rank in range(world):
        for theirs, ours in NAMES.items():
            assert_gradient(
                f"{rank} {theirs}", gradients[f"experts.{rank}.{ours}"], arrays[f"rank{rank}/grad/{theirs}"], rtol
            )

    with torch.no_grad():
        assert_close("y_argmax", layer.eval()(hidden), _joined(arrays, "y_argmax", world), atol)


def _layer(dims: dict[str, int], arrays: Arrays) -> Experts:
    config = Cpm2Config(hidden_size=dims["d_model"], ffn_size=dims["d_ff"])
    layer = Experts(lambda: FeedForward(config), dims["world"], dims["d_model"])
    with torch.no_grad():
        layer.centroids.copy_(arrays["centroids"])
        for rank in range(dims["world"]):
            for theirs, ours in NAMES.items():
                layer.get_parameter(f"experts.{rank}.{ours}").copy_(arrays[f"rank{rank}/expert/{theirs}"])
    return layer


def _joined(arrays: Arrays, name: str, world: int) -> torch.Tensor:
    return torch.cat([arrays[f"rank{rank}/{name}"] for rank in range(world)])
