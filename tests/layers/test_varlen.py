"""Samples one behind the other, without masks: the numbers and gradients of the masks, on any device that has no such
kernel by plain products.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hanlin.layers import attention_kernels
from hanlin.layers.attention import AttentionMask, packed_sequences
from hanlin.layers.attention_kernels import AttentionUse, KernelScope, flash_takes, planned_kernels, works_here
from hanlin.layers.block_attention import AttentionContext, CausalRows, block_attention, make_causal_context
from hanlin.layers.kv_cache import KVCache
from hanlin.layers.prefix import PrefixEncoder
from hanlin.layers.varlen import Sequences, rehearse_varlen, varlen_attention

SPANS = [[0, 0, 0, 1, 1, 2, -1, -1], [-1, 3, 3, 4, 4, 4, 4, 4]]
USE = AttentionUse(torch.bfloat16, 8)


@pytest.fixture
def on_h100() -> Iterator[None]:
    """Masks are made as for it, and computed here."""
    with planned_kernels("cuda", 90, "auto"):
        yield


def result(context: AttentionContext, parts: list[torch.Tensor], name: str = "0") -> torch.Tensor:
    return block_attention(context, name, *parts)


def parts_of(rows: int, length: int, heads: int = 4, kv_heads: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(rows, length, count, 8) for count in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("has_prefix", [False, True])
@pytest.mark.parametrize("spans", [SPANS, None, [[0] * 8, [1] * 6 + [-1] * 2]])
def test_sequences_have_the_numbers_and_gradients_of_the_masks(spans: Any, has_prefix: bool) -> None:
    tokens = torch.zeros(2, 8, dtype=torch.long)
    rows = CausalRows(tokens, None if spans is None else torch.tensor(spans))
    exists = torch.ones(2, 8, dtype=torch.bool) if spans is None else torch.tensor(spans) >= 0
    prefix = PrefixEncoder(3, ("0",), 2, 8).double() if has_prefix else None
    found = []
    for kind in ("cpu", "cuda"):
        parts = parts_of(2, 8)
        with planned_kernels(kind, 90, "auto"):
            context = make_causal_context(rows, prefix, None, USE)
        if kind == "cuda":
            assert context.mask.mask is None
            assert context.mask.windows is None
        # The additive mask is that of the scores; they are fp64 here.
        mask = context.mask.mask
        if mask is not None and mask.dtype == torch.bfloat16:
            context = AttentionContext(AttentionMask(mask.double(), None, context.mask.windows), context.prefixes, None)
        mixed = result(context, parts)[exists]
        wanted = [*parts, *([] if prefix is None else prefix.parameters())]
        found.append([mixed, *torch.autograd.grad(mixed.square().sum(), wanted)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, check_dtype=False, rtol=1e-5, atol=1e-6)


def test_pieces_of_a_prompt_need_no_mask(on_h100: None) -> None:
    """Read in pieces behind a prefix and what the cache holds, as in one go."""
    prefix = PrefixEncoder(3, ("0",), 2, 8).double()
    parts, tokens = parts_of(1, 8), torch.zeros(1, 8, dtype=torch.long)
    with torch.no_grad():
        whole = result(make_causal_context(CausalRows(tokens), prefix, None, USE), parts)
        cache, pieces = KVCache(), []
        for begin, end in ((0, 5), (5, 8)):
            context = make_causal_context(CausalRows(tokens[:, begin:end]), prefix, cache, USE)
            assert context.mask == AttentionMask()
            pieces.append(result(context, [part[:, begin:end] for part in parts]))
    torch.testing.assert_close(torch.cat(pieces, 1), whole)


def test_a_lone_position_and_several_samples_in_a_cache_keep_their_masks(on_h100: None) -> None:
    """Rows of a step have keys of several lengths."""
    for length, spans in ((1, None), (2, torch.zeros(1, 2, dtype=torch.long))):
        tokens = torch.zeros(1, length, dtype=torch.long)
        assert make_causal_context(CausalRows(tokens, spans), None, KVCache(), USE).mask.mask is not None


def test_whole_rows_need_no_sequences() -> None:
    assert packed_sequences(torch.tensor([[0, 0, 0], [0, 0, -1]])) == AttentionMask()
    sequences = packed_sequences(torch.tensor(SPANS), prefix=2).sequences
    assert sequences is not None
    assert sequences.query_bounds.tolist() == [0, 3, 5, 6, 8, 9, 11, 16]
    assert sequences.key_bounds.tolist() == [0, 5, 9, 12, 16, 19, 23, 30]
    assert (sequences.most_queries, sequences.most_keys) == (5, 7)
    assert sequences.query_bounds.dtype == sequences.key_bounds.dtype == torch.int32  # flash attention takes no other


@pytest.mark.parametrize(
    ("kind", "version", "choice", "use", "expected"),
    [
        ("cuda", 80, "auto", USE, True),
        ("cuda", 90, "varlen", AttentionUse(torch.float16, 256), True),
        ("cuda", 75, "auto", AttentionUse(torch.float16, 64), False),
        ("cuda", 90, "auto", AttentionUse(torch.float32, 64), False),
        ("cuda", 90, "auto", AttentionUse(torch.bfloat16, 100), False),
        ("cuda", 90, "auto", AttentionUse(torch.bfloat16, 264), False),
        ("cuda", 90, "auto", AttentionUse(torch.bfloat16, 64, dropout=0.1), False),
        ("cuda", 89, "auto", AttentionUse(torch.bfloat16, 224, is_trained=True), False),
        ("cuda", 89, "auto", AttentionUse(torch.bfloat16, 224), True),
        ("cuda", 90, "flash", USE, False),
        ("cuda", 90, "math", USE, False),
        ("cpu", 0, "auto", USE, False),
        ("npu", 0, "auto", USE, False),
    ],
)
def test_which_calls_go_as_sequences(kind: str, version: int, choice: Any, use: AttentionUse, expected: bool) -> None:
    assert KernelScope(kind, choice, None, version).takes_sequences(use) is expected


def test_flash_takes_what_torch_s_filters_let_through() -> None:
    assert flash_takes(AttentionUse(torch.bfloat16, 128, 0.1, is_trained=True), 80)
    assert not flash_takes(AttentionUse(torch.bfloat16, 256, 0.1, is_trained=True), 120)


def test_a_kernel_that_fails_at_its_first_use_is_left_with_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def rehearse_broken(*_: Any) -> float:
        calls.append(1)
        raise NotImplementedError("no such kernel\nand much more")

    def rehearse_wrong(*_: Any) -> float:
        return 0.5

    cpu = torch.device("cpu")
    monkeypatch.setattr(attention_kernels, "works_here", functools.cache(works_here.__wrapped__))
    with caplog.at_level(logging.WARNING):
        for rehearse in (rehearse_broken, rehearse_wrong) * 2:
            assert not attention_kernels.works_here(rehearse, cpu, torch.bfloat16, 8)
        assert attention_kernels.works_here(rehearse_varlen, cpu, torch.bfloat16, 8)
    assert len(calls) == 1
    assert [record.message for record in caplog.records] == [
        "attention goes on without the kernel broken, which does not work here: NotImplementedError: no such kernel",
        "attention goes on without the kernel wrong, which does not work here: its results are off by 5.0e-01",
    ]


class Called(TorchDispatchMode):
    """Notes the operations of attention and what they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, dict[str, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "varlen" in func.name():
            names = [argument.name for argument in func._schema.arguments]
            self.calls[func.name()] = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        return func(*args, **(kwargs or {}))


def test_torch_s_kernel_takes_the_call() -> None:
    """As far as torch sees a call of CUDA without CUDA: its signature, and fewer heads of keys than of queries."""
    with FakeTensorMode(), Called() as called:
        shapes = ((10, 4, 64), (16, 2, 64), (16, 2, 64))
        query, key, value = (torch.empty(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes)
        sequences = Sequences.of_rows(2, 5, 8, torch.device("cuda"))
        assert varlen_attention(query, key, value, sequences).shape == query.shape
    forward = called.calls["torch_attn::_varlen_attn"]
    assert (forward["max_q"], forward["max_k"], forward["is_causal"], forward["window_size"]) == (5, 8, True, [-1, 0])
    assert forward.get("enable_gqa", True)
