"""Each optimizer by itself; under layouts: tests/parallel/test_optimizers.py."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from tiny_model import make_batch, tiny_model

from hanlin.core.errors import ConfigError
from hanlin.layers.dynamic_code import dynamic_code
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import OPTIMIZERS, TrainSettings
from hanlin.training.optimizer import WeightShape, build_optimizer, find_optimizer, is_in_block
from hanlin.training.optimizers.adamw_8bit import AdamW8bit, AdamW8bitSettings
from hanlin.training.step import Step

SHAPES = {"matrix": (64, 128), "small": (5, 7), "vector": (300,), "experts": (3, 40, 256), "number": ()}
STEPS = 8


def weights() -> dict[str, torch.nn.Parameter]:
    torch.manual_seed(0)
    return {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in SHAPES.items()}


def trained(optimizer: Any, parameters: dict[str, torch.nn.Parameter], rate: float = 0.02) -> dict[str, torch.Tensor]:
    """After steps by gradients that differ a thousandfold in size."""
    draw = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        for parameter in parameters.values():
            size = 10 ** (3 * torch.rand(parameter.shape, generator=draw) - 3)
            parameter.grad = size * torch.randn(parameter.shape, generator=draw)
        optimizer.step(rate)
    return {name: parameter.detach() for name, parameter in parameters.items()}


def test_adafactor_is_that_of_torch() -> None:
    ours, theirs = weights(), weights()
    found = trained(build_optimizer(ours, OPTIMIZERS.make({"name": "adafactor", "weight_decay": 0.1})), ours)
    peer = torch.optim.Adafactor(theirs.values(), lr=0.02, weight_decay=0.1)
    peer.step = lambda rate, step=peer.step: step()  # type: ignore[method-assign]
    for name, expected in trained(peer, theirs).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 128), (128, 64), (5, 7)], ids=str)
def test_muon_is_that_of_torch(shape: tuple[int, int]) -> None:
    def make() -> dict[str, torch.nn.Parameter]:
        return {
            "blocks.0.up.weight": torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        }

    ours, theirs = make(), make()
    found = trained(build_optimizer(ours, OPTIMIZERS.make({"name": "muon", "weight_decay": 0.1})), ours)
    peer = torch.optim.Muon(theirs.values(), lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    peer.step = lambda rate, step=peer.step: step()  # type: ignore[method-assign]
    torch.testing.assert_close(found, trained(peer, theirs))


def test_muon_needs_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a V100, a T4 or an Ascend 910A."""
    monkeypatch.setattr("hanlin.training.optimizers.muon.has_bf16", lambda device: False)
    start = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    weight = torch.nn.Parameter(start.clone())
    weight.grad = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    with monkeypatch.context() as strict:
        strict.setattr(torch, "bfloat16", None)
        build_optimizer({"blocks.0.up.weight": weight}, OPTIMIZERS.make("muon")).step(0.02)
    sizes = torch.linalg.svdvals((start * (1 - 0.02 * 0.01) - weight.detach()) / (0.02 * 0.2 * 128**0.5))
    assert float(sizes.min()) > 0.6
    assert float(sizes.max()) < 1.3


def test_muon_leaves_to_adamw_what_is_no_matrix_of_a_block() -> None:
    names = {"embedding.weight": "matrix", "head.weight": "small", "blocks.0.norm.weight": "vector"}

    def make() -> dict[str, torch.nn.Parameter]:
        return {name: weights()[shape] for name, shape in names.items()}

    ours, theirs = make(), make()
    found = trained(build_optimizer(ours, OPTIMIZERS.make({"name": "muon", "betas": (0.8, 0.9)})), ours)
    expected = trained(build_optimizer(theirs, OPTIMIZERS.make({"name": "adamw", "betas": (0.8, 0.9)})), theirs)
    for name, weight in expected.items():
        assert found[name].equal(weight), name


def test_adamw_in_8_bits_goes_where_adamw_goes() -> None:
    ours, exact, start = weights(), weights(), weights()
    found = trained(build_optimizer(ours, OPTIMIZERS.make("adamw_8bit")), ours)
    expected = trained(build_optimizer(exact, OPTIMIZERS.make("adamw")), exact)
    for name, tensor in expected.items():
        way = tensor - start[name].detach()
        share = (found[name] - tensor).norm() / way.norm()
        # What is small stays in fp32.
        assert share < (0.04 if math.prod(SHAPES[name]) >= 4096 else 1e-5), (name, share)


@pytest.mark.parametrize("is_there", [True, False], ids=["bf16", "no bf16"])
def test_a_running_mean_in_8_bits_is_near_and_no_square_becomes_nothing(
    monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    monkeypatch.setattr("hanlin.training.optimizers.adamw_8bit.has_bf16", lambda device: is_there)
    if not is_there:
        monkeypatch.setattr(torch, "bfloat16", None)
    parameters = {"matrix": torch.nn.Parameter(torch.zeros(64, 1024))}
    optimizer = AdamW8bit(parameters, AdamW8bitSettings(betas=(0.0, 0.0)))
    gradient = torch.randn(64, 1024) * 10 ** (6 * torch.rand(64, 1024) - 6)
    parameters["matrix"].grad = gradient
    optimizer.step(0.0)
    state = optimizer.tensors()
    for kind, exact in (("mean", gradient), ("square", gradient.square())):
        sizes = state[f"{kind}_size.matrix"]
        torch.testing.assert_close(sizes, exact.abs().unflatten(-1, (8, 128)).amax(-1))
        code = dynamic_code(is_signed=kind == "mean")
        read = (code[state[f"{kind}.matrix"].long()].unflatten(-1, (8, 128)) * sizes[..., None]).flatten(-2)
        shares = exact.unflatten(-1, (8, 128)) / sizes[..., None]
        gaps = torch.diff(code)
        widest = gaps[torch.bucketize(shares, code).clamp(1, 255) - 1].flatten(-2) * sizes.repeat_interleave(128, -1)
        # Half of the gap between two codes, and what a bf16 number lacks; not below the least code.
        is_coded = shares.flatten(-2).abs() > 1e-6
        assert ((read - exact).abs() <= 0.51 * widest + exact.abs() / 256)[is_coded].all()
    assert (state["square.matrix"] > 0).all()


@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_the_state_takes_the_bytes_that_are_told(name: str) -> None:
    spec = find_optimizer(OPTIMIZERS.make({"name": name}))
    for shape, weight in itertools.product(
        [*SHAPES.values(), (64, 1712), (48, 100)], ["head.weight", "blocks.0.weight"]
    ):
        optimizer = spec.build({weight: torch.nn.Parameter(torch.zeros(shape))}, spec.settings())
        held = sum(tensor.nbytes for tensor in optimizer.tensors().values())
        assert spec.state_bytes(spec.settings(), WeightShape(shape, shape, is_in_block(weight))) == held, (
            shape,
            weight,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_a_state_that_was_saved_goes_on_bitwise(name: str, dtype: torch.dtype) -> None:
    def make() -> Step:
        settings = TrainSettings(lr=0.01, steps=9, optimizer=OPTIMIZERS.make({"name": name}))
        precision = "fp32" if dtype == torch.float32 else "bf16"
        parallel_model = parallelize(tiny_model(), torch.device("cpu"), precision, trained=dtype)
        return Step(parallel_model, build_optimizer(parallel_model.parameters, settings.optimizer), settings, 9)

    whole, first, second = make(), make(), make()
    for number in range(4):
        whole.run(make_batch(number))
        (first if number < 2 else second).run(make_batch(number))
        if number == 1:
            for target, source in (
                (second.optimizer.tensors(), first.optimizer.tensors()),
                (second.parallel_model.parameters, first.parallel_model.parameters),
            ):
                for key, tensor in target.items():
                    tensor.data.copy_(source[key].data)
            second.restore(first.values())
    for key, weight in whole.parallel_model.parameters.items():
        assert weight.equal(second.parallel_model.parameters[key]), key


def test_a_layout_that_cuts_a_block_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanlin.parallel.mesh.local", lambda tensor: tensor[:, :120])
    told = r"train.optimizer: adamw_8bit keeps blocks of 16, and a rank has 120 of each row of 128 \(matrix\)"
    with pytest.raises(ConfigError, match=told):
        build_optimizer({"matrix": torch.nn.Parameter(torch.zeros(64, 128))}, AdamW8bitSettings())
