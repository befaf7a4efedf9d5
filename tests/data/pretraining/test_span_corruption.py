"""Spans taken out of a document: nothing is lost, and the end is always wanted."""

from __future__ import annotations

import pytest
import torch

from hanlin.data.pretraining.span_corruption import corrupt_spans


@pytest.mark.parametrize("length", [2, 11, 60])
def test_context_and_target_make_up_the_document(length: int) -> None:
    ids = list(range(length))
    made = corrupt_spans(ids, 100, torch.Generator().manual_seed(3))
    spans = [made.target[start : start + size] for start, size in zip(*[iter(made.offsets)] * 2, strict=True)]
    restored = [id for id in made.context for id in (spans[id - 100][1:] if id >= 100 else [id])]
    assert restored == ids
    assert [span[0] for span in spans] == [id for id in made.context if id >= 100]
    assert made.target[-1] == ids[-1]
    assert len(made.target) - len(spans) == max(round(0.15 * length), 1)
