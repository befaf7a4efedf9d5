"""transformers' model (GlmForCausalLM, GPT2LMHeadModel) with the weights of a model of ours, for comparisons in one
process.

No script itself.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hanlin.formats.convert import convert
from hanlin.formats.load import save_base
from hanlin.models import chatglm2
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.family import Family

# The shape that ADGEN's figures are given for.
SMALL = ChatGlm2Config(num_layers=8, hidden_size=512, num_heads=8, head_dim=64, ffn_size=1712, max_length=2048)
TINY = replace(SMALL, num_layers=2, hidden_size=32, num_heads=4, head_dim=8, ffn_size=48)


def make_pair(config: Any, family: Family = chatglm2.family, *, is_half: bool = False) -> tuple[Any, Any]:
    """Our model with random weights and transformers' with the same ones, both fp32; is_half: numbers of fp16."""
    from transformers import AutoModelForCausalLM  # pyright: ignore[reportMissingImports]

    ours = family.model()(config)
    ours.init_weights(torch.Generator().manual_seed(0))
    if is_half:
        for weight in ours.parameters():
            weight.data.copy_(weight.data.half())
    with tempfile.TemporaryDirectory() as folder:
        base, hub = Path(folder) / "base", Path(folder) / "hub"
        save_base(base, family, config, {name: weight.detach() for name, weight in ours.named_parameters()})
        convert(base, family, None, "huggingface", hub)
        theirs = AutoModelForCausalLM.from_pretrained(hub, dtype=torch.float32, attn_implementation="sdpa")
    return ours, theirs
