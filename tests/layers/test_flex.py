"""A bias pair by pair: flex attention, uncompiled, has the numbers and gradients of the written-out bias, by the rules
of the models that have one.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layouts import Cell, loader, model_of
from torch.nn.attention import flex_attention as flex

from hanlin.layers.attention import AttentionMask
from hanlin.layers.attention_kernels import AttentionUse, KernelScope, planned_kernels
from hanlin.layers.block_attention import AttentionContext, block_attention
from hanlin.layers.flex import PairScores, compiled, flex_attention_of, plain_pairs
from hanlin.models.cpm2.model import PairsOfSpans

USE = AttentionUse(torch.bfloat16, 64)
CELLS = [("cpm_bee", "single"), ("cpm_bee", "packed"), ("cpm2", "single"), ("cpm2", "packed")]


def batch_of(family: str, kind: Any) -> tuple[Any, Any]:
    cell = Cell(family, "full", kind, "data")
    return copy.deepcopy(model_of(cell)).float().train(), next(iter(loader(cell, 0, 1)))


def loss_and_gradients(model: Any, batch: Any) -> list[torch.Tensor]:
    model.zero_grad()
    loss = model(**batch.inputs, labels=batch.labels, weights=batch.weights, reduction="sum")
    loss.backward()
    return [loss.detach(), *(weight.grad.clone() for weight in model.parameters() if weight.grad is not None)]


@pytest.mark.parametrize(("family", "kind"), CELLS)
def test_a_model_computes_the_same_without_its_written_out_bias(family: str, kind: str) -> None:
    model, batch = batch_of(family, kind)
    expected = loss_and_gradients(model, batch)
    asked = []
    with planned_kernels("cuda", 90, "flex"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(PairScores, "of", noting(PairScores.of, asked))
        found = loss_and_gradients(model, batch)
    assert len(asked) == (2 if family == "cpm2" else 1)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def noting(make: Callable[..., PairScores], made: list[PairScores]) -> Callable[..., PairScores]:
    def of(*args: Any) -> PairScores:
        made.append(make(*args))
        return made[-1]

    return of


@pytest.mark.parametrize(("family", "kind"), [("cpm_bee", "packed"), ("cpm2", "packed")])
def test_flex_attention_has_the_numbers_and_gradients_of_plain_products(
    family: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the rule of a model, with query heads that share keys; its kernel has no gradients on a CPU, torch's own plain
    form of it has.
    """
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    model, batch = batch_of(family, kind)
    made: list[PairScores] = []
    monkeypatch.setattr(PairScores, "of", noting(PairScores.of, made))
    with planned_kernels("cuda", 90, "flex"), torch.no_grad():
        model(**batch.inputs)
    for scores in made:
        groups, queries, keys = scores.shape
        heads = scores.table.shape[1]
        torch.manual_seed(0)
        shapes = ((heads, queries), (heads // 2, keys), (heads // 2, keys))
        parts = [torch.randn(groups, count, length, 16).requires_grad_() for count, length in shapes]
        table = scores.table.detach().clone().requires_grad_()
        own = PairScores(scores.rule, table, scores.shape)
        with warnings.catch_warnings(action="ignore"):
            blocks = own.with_blocks(flex.create_block_mask)
            results = [flex_attention_of(flex.flex_attention, *parts, blocks, 0.3), plain_pairs(*parts, own, 0.3)]
        found = [[one, *torch.autograd.grad(one.square().sum(), [*parts, table])] for one in results]
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "version", "choice", "use", "scores", "expected"),
    [
        ("cuda", 90, "auto", USE, 32 * 4096 * 4096, True),
        ("cuda", 90, "auto", USE, 32 * 2048 * 2048, False),
        ("cuda", 90, "flex", USE, 1, True),
        ("cuda", 75, "flex", USE, 1, False),
        ("cuda", 90, "efficient", USE, 2**40, False),
        ("cuda", 90, "flex", AttentionUse(torch.bfloat16, 64, dropout=0.1), 1, False),
        ("cpu", 0, "flex", USE, 2**40, False),
        ("npu", 0, "auto", USE, 2**40, False),
    ],
)
def test_which_biases_are_not_written_down(
    kind: str, version: int, choice: Any, use: AttentionUse, scores: int, expected: bool
) -> None:
    assert KernelScope(kind, choice, None, version).takes_pairs(use, scores) is expected


class Nobody:
    def sees(self, group: Any, query: Any, key: Any) -> torch.Tensor:
        return (query + key + group) < 0

    def row(self, group: Any, query: Any, key: Any) -> torch.Tensor:
        return (query + key + group) * 0


def test_a_query_that_sees_nothing_gets_0() -> None:
    mask = AttentionMask(pairs=PairScores.of(Nobody(), torch.zeros(1, 2), (1, 3, 3)))
    parts = [torch.randn(1, 3, 2, 4) for _ in range(3)]
    assert not block_attention(AttentionContext(mask, {}, None), "0", *parts).any()


def test_no_length_and_no_batch_is_compiled_anew() -> None:
    """One code for a single group of positions and one for several, however many lengths there are (above a block)."""
    codes: Counter[str] = Counter()

    def counting(name: str) -> Callable[..., Any]:
        return lambda graph, _: codes.update([name]) or graph.forward

    mix, make = compiled(flex.flex_attention, counting("mix")), compiled(flex.create_block_mask, counting("make"))
    with torch.no_grad():
        for groups, length in ((1, 140), (3, 190), (1, 270), (4, 150)):
            spans = torch.arange(length).expand(groups, length) * 3 // length
            rule, table = PairsOfSpans(spans, 8, 32, False), torch.randn(16, 5)
            scores = PairScores(rule, table, (groups, length, length)).with_blocks(make)
            query, key, value = torch.randn(3, groups, 5, length, 16).unbind()
            mixed = flex_attention_of(mix, query, key, value, scores, 0.3)
            assert torch.allclose(mixed, plain_pairs(query, key, value, scores, 0.3), atol=1e-4)
    assert codes == {"mix": 2, "make": 2}
