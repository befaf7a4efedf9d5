"""Compiled blocks have the losses and gradients of plain ones; what cannot be compiled goes on as it was."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from compiled_cells import cell_named, compare
from functorch.compile import make_boxed_func
from layouts import VARIANTS, model_of
from torch import nn

from hanlin.core.errors import ConfigError
from hanlin.parallel.compiled import compile_block, compile_blocks
from hanlin.parallel.layout_checks import compile_problems
from hanlin.recipe.reading import make_recipe
from hanlin.recipe.settings import ParallelSettings

RECIPE = make_recipe({"model": {"family": "cpm2"}, "run": {"folder": "run"}}, ["train.compile=blocks"])


@pytest.fixture(autouse=True)
def _forget_code() -> Iterator[None]:
    yield
    torch.compiler.reset()


def test_blocks_of_a_kind_share_one_code_inside_recomputation() -> None:
    """With prefixes, which each block has of its own; the first block alone gets an input without gradient."""
    found = compare(cell_named("cpm1.prefix.single"), again="full", batches=1)
    assert found.difference < 1e-6
    assert found.graphs <= 2
    assert not found.refused


@pytest.mark.parametrize("family", [name for name, one in VARIANTS.items() if "prefix" in one.methods])
def test_a_block_called_without_its_name_finds_what_is_its_own(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names are taken away as they are for compiled code, which is not made here."""
    monkeypatch.setattr(torch, "compile", lambda forward, **_: forward)
    found = compare(cell_named(f"{family}.prefix.single"), batches=1)
    assert found.difference == 0


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return hidden * self.weight


def test_what_cannot_be_compiled_runs_as_before_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    block = Odd()
    plain = copy.deepcopy(block)
    compile_block(block, "eager")
    hidden = torch.tensor([1.0, 2, 3], requires_grad=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert block(hidden).equal(plain(hidden))
    assert [record.message.partition(": Unsupported")[0] for record in caplog.records] == [
        "train.compile: Odd runs without it"
    ]


def test_a_backward_pass_that_cannot_be_compiled_is_found_in_the_forward_pass(caplog: pytest.LogCaptureFixture) -> None:
    from torch._dynamo.backends.common import aot_autograd

    def refuse(graph: torch.fx.GraphModule, inputs: Sequence[torch.Tensor]) -> Any:
        raise RuntimeError("no compiler here")

    block = nn.Linear(3, 3)
    plain = copy.deepcopy(block)
    compile_block(
        block, aot_autograd(fw_compiler=lambda graph, inputs: make_boxed_func(graph.forward), bw_compiler=refuse)
    )
    for one in (block, plain):
        one(torch.ones(2, 3, requires_grad=True)).sum().backward()
    assert block.weight.grad is not None
    assert block.weight.grad.equal(plain.weight.grad)
    assert "Linear runs without it" in caplog.text


def test_nothing_is_compiled_where_no_gradient_is_wanted() -> None:
    asked: list[Any] = []
    block = nn.Linear(3, 3)
    compile_block(block, lambda graph, _: asked.append(graph) or graph.forward)
    with torch.no_grad():
        block(torch.zeros(2, 3))
    assert not asked


def test_what_is_refused_says_why() -> None:
    tensor = ParallelSettings(tensor=2)
    model = model_of(cell_named("cpm1.full.packed"))
    [(key, text)] = compile_problems(model, tensor)
    assert key == "train.compile"
    assert "parallel.tensor" in text
    experts = model_of(cell_named("cpm2-experts.full.packed"))
    [(key, text)] = compile_problems(experts, ParallelSettings())
    assert "mixture" in text
    [(key, text)] = compile_problems(model_of(cell_named("chatglm2-int8.lora.packed")), ParallelSettings())
    assert "packed base" in text
    with pytest.raises(ConfigError, match=r"train\.compile: blocks, of a mixture"):
        compile_blocks(experts, RECIPE)


def test_every_block_of_a_model_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr("hanlin.parallel.compiled.compile_block", compiled.append)
    model = copy.deepcopy(model_of(cell_named("cpm2.full.packed")))
    assert compile_blocks(model, RECIPE) is model
    assert compiled == [*model.encoder_blocks.values(), *model.decoder_blocks.values()]
