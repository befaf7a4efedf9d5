"""What the tests of the Python interface train on and ask."""

from __future__ import annotations

from pathlib import Path

import torch
from family_cases import case_of

import hanlin

BEE = Path(__file__).parents[1] / "golden" / "cases" / "bee_generate"
ROWS = [{"input": "今天天气", "prompt": "x", "<ans>": "好"}, {"input": "北京", "<ans>": "ab"}]


def make_talker(folder: Path, max_length: int) -> hanlin.Model:
    """A ChatGLM2 that has learnt nothing."""
    case = case_of("chatglm2", folder)
    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "ffn_size": 24}
    model = {"family": "chatglm2", "config": {**sizes, "max_length": max_length}, "vocab": case.vocab}
    loaded = hanlin.load(
        {"model": model, "run": {"folder": "nowhere"}}, {"generate.max_new_tokens": 12}, weights="base"
    )
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():  # fresh weights hardly look at what was said before
        for weight in loaded.network.parameters():
            weight.add_(torch.randn(weight.shape, generator=draw), alpha=0.3)
    return loaded
