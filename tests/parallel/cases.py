"""A small model of every family with a batch for it, and what one process computes with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hanlin.core.batch import IGNORED, Batch
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.model import ChatGlm2
from hanlin.models.cpm1.config import Cpm1Config
from hanlin.models.cpm1.model import Cpm1
from hanlin.models.cpm1_t5.config import Cpm1T5Config
from hanlin.models.cpm1_t5.model import Cpm1T5
from hanlin.models.cpm2.config import Cpm2Config
from hanlin.models.cpm2.model import Cpm2
from hanlin.models.cpm_bee.config import CpmBeeConfig
from hanlin.models.cpm_bee.model import CpmBee
from hanlin.tuning.apply import apply_tuning
from hanlin.tuning.full import FullTuning
from hanlin.tuning.lora import LoraTuning
from hanlin.tuning.prefix import PrefixTuning
from hanlin.tuning.prompt import PromptTuning

ROWS, LENGTH, VOCAB = 8, 6, 50  # a vocabulary that four ranks cannot divide evenly
SHAPE: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 16, "num_layers": 4, "num_heads": 4, "head_dim": 4}


@dataclass(frozen=True)
class Case:
    """make: an empty model; inputs: draws -> the tensors of ROWS rows, besides labels and weights."""

    make: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], dict[str, torch.Tensor]]
    targets: tuple[str, ...]
    name: str = ""

    @property
    def lora_targets(self) -> tuple[str, ...]:
        return self.targets


def _tokens(draw: torch.Generator, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(0, VOCAB, (ROWS, length), generator=draw)


def _bee_inputs(draw: torch.Generator) -> dict[str, torch.Tensor]:
    columns = torch.arange(LENGTH).expand(ROWS, -1)
    ones = torch.ones(ROWS, LENGTH, dtype=torch.long)
    return {
        "tokens": _tokens(draw),
        "subs": torch.randint(0, 3, (ROWS, LENGTH), generator=draw),
        "is_context": columns < 2,
        "sample_ids": 0 * ones,
        "num_segments": 2 * ones,
        "segments": (columns >= 3).long(),
        "relation_offsets": 0 * ones,
        "relations": torch.tensor([0, 2, 3, 0]).expand(ROWS, -1),
        "ext_tokens": torch.tensor([4, 7]).expand(ROWS, -1),
        "ext_subs": torch.tensor([1, 2]).expand(ROWS, -1),
        "lengths": torch.full((ROWS,), LENGTH),
    }


def _pair_inputs(draw: torch.Generator) -> dict[str, torch.Tensor]:
    return {"tokens": _tokens(draw), "encoder_tokens": _tokens(draw, 7)}


CASES = {
    "cpm_bee": Case(
        lambda: CpmBee(CpmBeeConfig(**SHAPE, ffn_size=24, num_distance_buckets=8, num_relation_buckets=12)),
        _bee_inputs,
        ("query", "output"),
    ),
    "chatglm2": Case(
        lambda: ChatGlm2(ChatGlm2Config(**SHAPE, num_kv_heads=2, ffn_size=24, linear_bias=True)),
        lambda draw: {"tokens": _tokens(draw)},
        ("query", "key", "value", "down"),
    ),
    "cpm1": Case(
        lambda: Cpm1(Cpm1Config(**SHAPE, ffn_size=24, dropout=0, attention_dropout=0)),
        lambda draw: {"tokens": _tokens(draw)},
        ("query", "down"),
    ),
    "cpm1_t5": Case(
        lambda: Cpm1T5(Cpm1T5Config(**{**SHAPE, "num_layers": 2}, ffn_size=24, dropout=0, attention_dropout=0)),
        _pair_inputs,
        ("query", "down"),
    ),
    "cpm2": Case(
        lambda: Cpm2(Cpm2Config(**{**SHAPE, "num_layers": 2}, ffn_size=24, dropout=0, init_std=0.3)),
        _pair_inputs,
        ("query", "output"),
    ),
}
CASES = {name: Case(case.make, case.inputs, case.targets, name) for name, case in CASES.items()}

METHODS = {
    "full": FullTuning(),
    "lora": LoraTuning(rank=2),
    "prefix": PrefixTuning(length=3),
    "prompt": PromptTuning(length=3, sees_tokens=False),
}


def make_batch(case: Case, seed: int = 1) -> Batch:
    """Rows with unequal numbers of loss tokens and unequal weights."""
    draw = torch.Generator().manual_seed(seed)
    inputs = case.inputs(draw)
    labels, weights = _tokens(draw), torch.rand(ROWS, LENGTH, generator=draw) + 0.5
    for row in range(ROWS):
        labels[row, : row % 5] = IGNORED
    return Batch(inputs, labels, weights, [(row,) for row in range(ROWS)])


def make_model(case: Case, method: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The model with its tuning, all values drawn; additions that start as nothing are something here."""
    model = case.make()
    draw = torch.Generator().manual_seed(3)
    model.init_weights(draw)  # pyright: ignore[reportCallIssue]
    apply_tuning(model, METHODS[method], case, draw)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("bias", "lora_B")):
                weight.normal_(std=0.3, generator=draw)
    return model.to(dtype)
