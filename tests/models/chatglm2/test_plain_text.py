"""Plain texts for a model of dialogues: all ids are learned after its prefix, as transformers counts the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_dialogues import make_model, make_processor
from transformers import GlmForCausalLM

from hanlin.core.errors import DataError
from hanlin.data.forms.content import PlainText
from hanlin.formats.convert import convert
from hanlin.formats.load import base_parameters, save_base
from hanlin.models.chatglm2 import family

TEXTS = ["你好，世界！黑色九分裤，简单百搭。", "Hello world\n\n你好", "类型"]


@pytest.mark.parametrize("generation", ["chatglm2", "chatglm3", "codegeex2"])
def test_the_loss_is_that_of_transformers_on_the_same_ids(generation: str, tmp_path: Path) -> None:
    processor = make_processor(generation)
    model, tokenizer = make_model(processor.config), processor.tokenizer
    save_base(tmp_path / "base", family, model.config, base_parameters(model.float()), tokenizer)
    convert(tmp_path / "base", family, None, "huggingface", tmp_path / "out")
    theirs = GlmForCausalLM.from_pretrained(tmp_path / "out").eval()
    samples = processor.process_many([processor.record_of(PlainText(text)) for text in TEXTS])
    for text, sample in zip(TEXTS, samples, strict=True):
        assert not isinstance(sample, DataError)
        batch = processor.collate([[sample]], 64)
        ids = torch.tensor([*tokenizer.prefix, *tokenizer.encode(text), tokenizer.end])[None]
        labels = ids.clone()
        labels[:, : len(tokenizer.prefix)] = -100
        with torch.no_grad():
            ours = model(**batch.inputs, labels=batch.labels, weights=batch.weights) / sample.loss_tokens
            torch.testing.assert_close(theirs(input_ids=ids, labels=labels).loss, ours, rtol=1e-5, atol=1e-5)
        assert sample.loss_tokens == len(tokenizer.encode(text)) + 1


def learned(processor: Any, records: list[Any]) -> list[int]:
    """The ids that are learned of records, one after the other."""
    return [id for record in records for id in processor.sample(record).labels.tolist() if id >= 0]


def test_a_long_text_is_cut_or_split_and_nothing_of_it_is_learned_twice() -> None:
    processor = make_processor("glm4")
    record = processor.record_of(PlainText("".join(TEXTS)))
    whole = learned(processor, [record])
    parts = processor.fit(record, 8, "split")
    assert learned(processor, parts) == whole
    assert max(processor.sample(part).length for part in parts) <= 8
    assert learned(processor, processor.fit(record, 8, "truncate")) == whole[:6]
    assert learned(processor, processor.fit(record, 500, "split")) == whole
    with pytest.raises(DataError, match="no room for a text"):
        processor.fit(record, 2, "truncate")


def test_a_text_is_gone_on_with_and_odd_ones_are_refused() -> None:
    processor = make_processor()
    record = processor.record_of(PlainText("你好"))
    ids = [*processor.tokenizer.prefix, *processor.tokenizer.encode("你好")]
    prompt = processor.prompt(record)
    assert [*prompt.inputs["tokens"].tolist(), prompt.cursor.token] == ids
    assert processor.answer(prompt, processor.tokenizer.encode("世界")) == {**record, "response": "世界"}
    for odd in ("", 3, None, [], [1, "a"], [10**9]):
        with pytest.raises(DataError, match="text"):
            processor.sample({"text": odd})
    with pytest.raises(DataError, match="compatible"):
        make_processor(compatible=True).record_of(PlainText("你好"))
