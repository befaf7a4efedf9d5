"""A small CPM-Bee with a trained LoRA, and a ChatGLM2 that has learnt nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from api_cases import BEE, ROWS, make_talker

import hanlin


@pytest.fixture(scope="session")
def bee(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe whose run is done: its answers are those of ROWS."""
    home = tmp_path_factory.mktemp("bee")
    (home / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS * 4), "utf-8")
    recipe = {
        "model": {"family": "cpm_bee", "base": BEE, "vocab": BEE / "vocab.txt"},
        "data": {"train": home / "rows.jsonl", "eval": str(home / "rows.jsonl"), "cache": home / "cache"},
        "tuning": "lora",
        "train": {"steps": 12, "batch_size": 2, "lr": 0.02, "eval_every": 6},
        "generate": {"method": "greedy", "max_new_tokens": 6},
        "run": {"folder": home / "run"},
    }
    hanlin.train(recipe, {"data.max_length": 64}, quiet=True)
    return {**recipe, "data": {**recipe["data"], "max_length": 64}}


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> hanlin.Model:
    return make_talker(tmp_path_factory.mktemp("talker"), max_length=256)
