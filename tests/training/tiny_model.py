"""A whole language model of twenty lines that keeps the contract of core/plan.py, and batches for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from hanlin.core.batch import IGNORED, Batch
from hanlin.core.plan import Plan

VOCAB, LENGTH = 11, 6


class TinyModel(nn.Module):
    plan = Plan(first=("embedding",), blocks=("blocks",), last=("head",))

    def __init__(self, dropout: float = 0.0, size: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, size)
        self.blocks = nn.ModuleDict({str(i): nn.Linear(size, size) for i in range(2)})
        self.norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(size, VOCAB, bias=False)

    def forward(self, *, tokens, labels=None, weights=None, reduction="sum", lengths=None, noise=None):
        hidden = self.embedding(tokens)
        if noise is not None:
            hidden = hidden + noise[:, None, None]
        for block in self.blocks.values():
            hidden = hidden + self.dropout(torch.tanh(block(hidden)))
        logits = self.head(self.norm(hidden))
        if labels is None:
            return logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        losses = losses * weights
        return losses.sum() if reduction == "sum" else losses.detach()


def tiny_model(dropout: float = 0.0, seed: int = 0) -> TinyModel:
    torch.manual_seed(seed)
    return TinyModel(dropout)


def make_batch(seed: int, rows: int = 4) -> Batch:
    """Random tokens; the rows have different numbers of loss tokens and unequal weights."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB, (rows, LENGTH), generator=generator)
    labels = tokens.roll(-1, 1)
    for row in range(rows):
        labels[row, : (row + seed) % (LENGTH - 1)] = IGNORED
    weights = torch.rand(rows, LENGTH, generator=generator) + 0.5
    numbers = [(seed * rows + row,) for row in range(rows)]
    return Batch({"tokens": tokens, "lengths": torch.full((rows,), LENGTH)}, labels, weights, numbers)


def break_batch(batch: Batch, row: int = 1) -> Batch:
    """The same batch, one row of which makes the model's numbers break."""
    noise = torch.zeros(batch.size)
    noise[row] = float("nan")
    return replace(batch, inputs={**batch.inputs, "noise": noise})


class TinyLoader:
    """The face of `data.loader.Loader`: five batches an epoch, the same in each."""

    def __init__(self) -> None:
        self.number = 0

    def forever(self) -> Iterator[Batch]:
        while True:
            self.number += 1
            yield make_batch((self.number - 1) % 5)

    def steps_per_epoch(self, epoch: int = 0) -> int:
        return 5

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = state["number"]
