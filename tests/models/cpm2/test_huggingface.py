"""What `convert --to huggingface` writes of a CPM-2, in the hands of transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cpm2_tiny import make_tokenizer
from transformers import AutoModelForSeq2SeqLM, T5ForConditionalGeneration

from hanlin.core.errors import CheckpointError
from hanlin.formats.convert import convert
from hanlin.formats.load import base_parameters, open_ours, save_base
from hanlin.generate.engine import Engine
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.models.cpm2 import family
from hanlin.models.cpm2.config import Cpm2Config
from hanlin.models.cpm2.formats import FORMATS
from hanlin.models.cpm2.model import Cpm2
from hanlin.models.cpm2.processor import Cpm2Processor
from hanlin.models.cpm2.record import Cpm2Options

SMALL = Cpm2Config(hidden_size=16, num_layers=2, num_heads=2, head_dim=6, ffn_size=24, max_distance=20)


def test_transformers_gets_our_logits_and_our_answer(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    config = replace(SMALL, vocab_size=tokenizer.vocab_size)
    model = Cpm2(config).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_base(tmp_path / "base", family, config, base_parameters(model), tokenizer)
    convert(tmp_path / "base", family, None, "huggingface", tmp_path / "out")
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    assert isinstance(theirs, T5ForConditionalGeneration)

    read, said = torch.randint(0, config.vocab_size, (1, 70)), torch.randint(0, config.vocab_size, (1, 50))
    spans = {"encoder_spans": torch.zeros_like(read), "spans": torch.zeros_like(said)}
    with torch.no_grad():
        expected = model(encoder_tokens=read, tokens=said, **spans)
        found = theirs(input_ids=read, decoder_input_ids=said).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    record = {"source": "今天天气好吗", "target": ""}
    own = Cpm2Processor(tokenizer, config, Cpm2Options())
    prompt = own.prompt(record)
    source = torch.tensor(prompt.inputs["encoder_tokens"])[None]
    ids = theirs.generate(input_ids=source, max_new_tokens=12, do_sample=False)[0, 1:].tolist()
    [answer] = Engine(model, own).generate([record], GreedySettings(max_new_tokens=12), seed=0)
    assert own.answer(prompt, ids) == answer
    back = open_ours(tmp_path / "out", family)
    assert all(back[name].equal(parameter) for name, parameter in base_parameters(model).items())


def test_experts_are_refused_with_the_reason() -> None:
    with pytest.raises(CheckpointError, match="mixture of experts"):
        FORMATS["huggingface"].write_config(replace(SMALL, num_experts=2))
