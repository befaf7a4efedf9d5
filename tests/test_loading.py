"""Weights that a run starts from: the same whether one process makes them or each rank its share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cpm2_tiny import make_tokenizer, write_original

from hanlin.core.config import make_recipe
from hanlin.core.errors import ConfigError
from hanlin.core.settings import GenerateSettings
from hanlin.formats.convert import save_base
from hanlin.loading import _additions, _tuned_model, load_engine
from hanlin.models.cpm2 import family
from hanlin.models.cpm2.config import Cpm2Config
from hanlin.parts import describe_parts

GREEDY = GenerateSettings(method="greedy", max_new_tokens=6)


@pytest.mark.parametrize("tuning", [{"method": "prompt", "prompt": {"length": 4}}, {"method": "lora", "rank": 2}])
def test_ranks_begin_with_the_additions_of_one_process(tuning: dict, tmp_path: Path) -> None:
    model = {"family": "cpm2", "base": str(write_original(tmp_path))}
    parts = describe_parts(make_recipe({"model": model, "tuning": tuning, "run": {"folder": str(tmp_path)}}))
    weights = dict(_tuned_model(parts).named_parameters())
    additions = dict(_additions(parts))
    assert additions
    for name, addition in additions.items():
        assert addition.equal(weights[name].detach()), name


def test_experts_are_read_when_an_engine_needs_them(tmp_path: Path) -> None:
    tokenizer, base = make_tokenizer(), tmp_path / "base"
    config = Cpm2Config(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        head_dim=8,
        ffn_size=24,
        num_experts=4,
    )
    model = family.model()(config)
    model.init_weights(torch.Generator().manual_seed(1))
    save_base(base, family, config, dict(model.named_parameters()), tokenizer)
    values = {"model": {"family": "cpm2", "base": str(base)}, "run": {"folder": str(tmp_path), "device": "cpu"}}
    records = [{"source": "今天天气", "target": ""}]
    answers = [
        load_engine(make_recipe({**values, "generate": {"expert_memory": memory}})).generate(records, GREEDY)
        for memory in (None, 1e-5)  # room for two of sixteen
    ]
    assert answers[0] == answers[1]


def test_expert_memory_without_experts_is_refused(tmp_path: Path) -> None:
    values = {"model": {"family": "cpm2", "base": str(write_original(tmp_path))}, "run": {"folder": str(tmp_path)}}
    with pytest.raises(ConfigError, match=r"generate.expert_memory: only for a model.base with a mixture of experts"):
        load_engine(make_recipe({**values, "generate": {"expert_memory": 1.0}}))
