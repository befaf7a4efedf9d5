"""docs/ccpm_comparison.md on a tiny model: poems -> base -> full tuning and prompt tuning -> scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cpm2_tiny import make_tokenizer, write_raw, write_rows

from hanlin.adapters.opening import is_adapter
from hanlin.cli.main import main

RECIPES = Path(__file__).parents[2] / "recipes"
SHORT = ("train.steps=2", "train.warmup_steps=1", "train.batch_size=2", "run.threads=1", "run.device=cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("poems")
    tokenizer = make_tokenizer()
    tokenizer.save(folder)
    poems = write_rows(folder / "poems.jsonl", [{"text": "山高水长，灯明灯灭。天气好，去公园。"}] * 40)
    shape = f"{{vocab_size: {tokenizer.vocab_size}, hidden_size: 16, num_layers: 1, num_heads: 2, head_dim: 8}}"
    words = [
        *(*SHORT, "train.eval_every=null", "data.max_length=32", "data.split=8,2,0", "data.eval_windows=2"),
        *(f"model.config={shape}", f"model.vocab={folder}", f"data.train={poems}"),
        *(f"data.cache={folder / 'cache'}", f"run.folder={folder / 'run'}"),
    ]
    assert main(["train", str(RECIPES / "cpm2_poems_pretrain.yaml"), *words]) == 0
    return folder / "run/last"


@pytest.mark.parametrize("method", ["full", "prompt"])
def test_a_pretrained_base_is_tuned_and_scored(method: str, base: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    assert main(["prepare", "--from", "ccpm-text", str(write_raw(tmp_path, "ccpm")), str(rows)]) == 0
    words = [
        *(str(RECIPES / f"cpm2_ccpm_small_{method}.yaml"), *SHORT, "train.epochs=null", "train.eval_every=null"),
        f"model.base={base}",
        *(
            f"data.train={rows}",
            f"data.eval={rows}",
            f"data.cache={tmp_path / 'cache'}",
            f"run.folder={tmp_path / 'run'}",
        ),
    ]
    assert main(["train", *words]) == 0
    assert is_adapter(tmp_path / "run/last") == (method == "prompt")
    assert main(["evaluate", *words]) == 0
    found = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())["likelihood"]
    assert found["records"] == 2
    assert found["chance"] == 0.25
