"""One layer of experts against the original on as many processes as experts: assignment, outputs, gradients."""

from __future__ import annotations

from pathlib import Path

import torch
from cpm2_case import gradient_close
from golden_case import Case, Reading, close

from hanlin.layers.experts import Experts, assign_balanced
from hanlin.models.cpm2.config import Cpm2Config
from hanlin.models.cpm2.model import FeedForward

NAMES = {
    "dense_relu_dense.wi_0.weight": "gate.weight",
    "dense_relu_dense.wi_1.weight": "up.weight",
    "dense_relu_dense.wo.weight": "down.weight",
    "layer_norm.weight": "norm.weight",
}


def check(case: Case, vocab: Path) -> None:
    del vocab
    arrays, dims = case.arrays(), case.facts["dims"]
    world = dims["world"]
    for own in _ranks(arrays, world):
        if "assignment" in own and "scores" in own:
            assert assign_balanced(own["scores"]).tolist() == own["assignment"].tolist()
    weights = [f"expert/{name}" for name in NAMES]
    if "centroids" not in arrays or not all(name in own for own in _ranks(arrays, world) for name in weights):
        return  # the layer is not there
    layer = _layer(dims, arrays)
    hidden = _joined(arrays, "x", world)
    if hidden is None:
        return
    _check_training(case, layer, hidden.requires_grad_(), arrays, world)
    with torch.no_grad():
        out = layer.eval()(hidden)
        chosen = layer._best(hidden.flatten(0, 1))
    _check_joined("y_argmax", out, arrays, world, case.tolerance("y_atol", default=1e-5))
    _check_joined("argmax_expert", chosen, arrays, world, 0)


def _check_training(case: Case, layer: Experts, hidden: torch.Tensor, arrays: Reading, world: int) -> None:
    atol, rtol = case.tolerance("y_atol", default=1e-5), case.tolerance("dx_rtol", default=1e-4)
    _check_joined("train_expert", layer._balanced(hidden.flatten(0, 1)), arrays, world, 0)
    out = layer.train()(hidden)
    _check_joined("y", out, arrays, world, atol)
    changes = _joined(arrays, "dy", world)
    if changes is None:
        return
    out.backward(changes)
    assert hidden.grad is not None
    assert layer.centroids.grad is None
    theirs = _joined(arrays, "dx", world)
    assert theirs is None or float((hidden.grad - theirs).norm()) <= rtol * float(theirs.norm())
    gradients = {name: weight.grad for name, weight in layer.named_parameters() if weight.grad is not None}
    for rank, own in enumerate(_ranks(arrays, world)):
        for name, ours in NAMES.items():
            gradient_close(f"grad/{name}", gradients[f"experts.{rank}.{ours}"], own, rtol)


def _layer(dims: dict[str, int], arrays: Reading) -> Experts:
    config = Cpm2Config(hidden_size=dims["d_model"], ffn_size=dims["d_ff"])
    layer = Experts(lambda: FeedForward(config), dims["world"], dims["d_model"])
    with torch.no_grad():
        layer.centroids.copy_(arrays["centroids"])
        for rank, own in enumerate(_ranks(arrays, dims["world"])):
            for theirs, ours in NAMES.items():
                layer.get_parameter(f"experts.{rank}.{ours}").copy_(own[f"expert/{theirs}"])
    return layer


def _ranks(arrays: Reading, world: int) -> list[Reading]:
    return [arrays.under(f"rank{rank}/") for rank in range(world)]


def _joined(arrays: Reading, name: str, world: int) -> torch.Tensor | None:
    """The tokens of all ranks, None where the case does not say it of each."""
    own = _ranks(arrays, world)
    return torch.cat([part[name] for part in own]) if all(name in part for part in own) else None


def _check_joined(name: str, ours: torch.Tensor, arrays: Reading, world: int, atol: float) -> None:
    """The tokens of each rank against its own array."""
    tokens = ours.flatten(0, -2) if ours.dim() > 1 else ours
    for own, part in zip(_ranks(arrays, world), tokens.chunk(world), strict=True):
        if name in own:
            close(name, part.view_as(own[name]), own, atol, 0)
