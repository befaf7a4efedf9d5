"""Weights that a run starts from: the same whether one process makes them or each rank its share."""

from __future__ import annotations

from pathlib import Path

import pytest
from cpm2_tiny import write_original

from hanlin.core.config import make_recipe
from hanlin.loading import _additions, _tuned_model
from hanlin.parts import describe_parts


@pytest.mark.parametrize("tuning", [{"method": "prompt", "prompt": {"length": 4}}, {"method": "lora", "rank": 2}])
def test_ranks_begin_with_the_additions_of_one_process(tuning: dict, tmp_path: Path) -> None:
    model = {"family": "cpm2", "base": str(write_original(tmp_path))}
    parts = describe_parts(make_recipe({"model": model, "tuning": tuning, "run": {"folder": str(tmp_path)}}))
    weights = dict(_tuned_model(parts).named_parameters())
    additions = dict(_additions(parts))
    assert additions
    for name, addition in additions.items():
        assert addition.equal(weights[name].detach()), name
