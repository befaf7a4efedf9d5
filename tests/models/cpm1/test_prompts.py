"""Soft prompts before the texts of a decoder: packed as alone, with a KV cache as without, learned and shown as
text.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_pieces import small_tokenizer

from hanlin.core.batch import IGNORED
from hanlin.core.errors import ConfigError, DataError
from hanlin.layers.kv_cache import KVCache
from hanlin.models.common.text_processor import TextProcessor
from hanlin.models.cpm1 import family
from hanlin.models.cpm1.config import shape
from hanlin.tuning.apply import apply_tuning, trained_parameters
from hanlin.tuning.prompt import PromptTuning

LENGTH = 3
RECORDS = [{"prompt": "床前", "answer": "明月"}, {"text": "举头 望 明月 低头 思 故乡"}]


@pytest.fixture(scope="module")
def processor() -> TextProcessor:
    tokenizer = small_tokenizer()
    config = shape(16, 2, 2, vocab_size=tokenizer.vocab_size, max_length=64)
    return TextProcessor(tokenizer, config).with_prompts(PromptTuning(length=LENGTH))


@pytest.fixture(scope="module")
def model(processor: TextProcessor) -> Any:
    fresh = family.model()(processor.config)
    fresh.init_weights(torch.Generator().manual_seed(0))
    wanted = PromptTuning(length=LENGTH)
    return apply_tuning(fresh, wanted, family, torch.Generator().manual_seed(1)).eval()


def test_prompts_stand_first_and_carry_no_loss(processor: TextProcessor) -> None:
    answered, text = (processor.sample(record) for record in RECORDS)
    for sample in (answered, text):
        assert sample.inputs["tokens"][:LENGTH].tolist() == [-1, -2, -3]
        assert (sample.labels[: LENGTH - 1] == IGNORED).all()
        assert not sample.weights[: LENGTH - 1].any()
    assert text.labels[LENGTH - 1] == text.inputs["tokens"][LENGTH]  # what follows the last prompt is learned
    shown = processor.show(answered)
    assert [is_learned for _, is_learned in shown] == [False, True]
    assert "明月" in shown[1][0]


def test_packed_texts_have_the_loss_that_they_have_alone(processor: TextProcessor, model: Any) -> None:
    each = [processor.sample(record) for record in RECORDS]
    total = sum(sample.length for sample in each)
    packed = processor.collate([each], total)
    alone = [processor.collate([[sample]], sample.length) for sample in each]

    def loss(batch: Any) -> torch.Tensor:
        return model(**batch.inputs, labels=batch.labels, weights=batch.weights)

    torch.testing.assert_close(loss(packed), sum(map(loss, alone)))
    loss(packed).backward()
    assert list(trained_parameters(model)) == ["soft_prompt.weight"]
    assert model.soft_prompt.weight.grad.abs().sum() > 0


def test_a_padded_prompt_with_a_cache_is_answered_as_the_whole_text(processor: TextProcessor, model: Any) -> None:
    prompts = [processor.prompt(record) for record in ({"prompt": "举头 望 明月"}, {"prompt": "床前"})]
    batch, kv_cache = processor.collate_prompts(prompts), KVCache()
    with torch.no_grad():
        model(**batch.inputs, kv_cache=kv_cache)
        fed = {name: torch.tensor([[c.inputs()[name]] for c in batch.cursors]) for name in batch.cursors[0].inputs()}
        found = model(**fed, kv_cache=kv_cache)[:, -1]
        for row, prompt in enumerate(prompts):
            ids = [*prompt.inputs["tokens"].tolist(), prompt.cursor.inputs()["tokens"]]
            torch.testing.assert_close(found[row], model(tokens=torch.tensor([ids]))[0, -1])


def test_prompts_count_in_the_length_and_what_cannot_be_is_refused(processor: TextProcessor) -> None:
    parts = processor.fit(RECORDS[1], LENGTH + 4, "split")
    assert all(processor.sample(part).length <= LENGTH + 4 for part in parts)
    with pytest.raises(DataError, match="3 soft prompts leave no room"):
        processor.fit(RECORDS[1], LENGTH, "split")
    with pytest.raises(DataError, match="leaves room for 1; raise it"):
        processor.fit({"prompt": "举头", "answer": "明月 床前"}, LENGTH + 1, "truncate")
    with pytest.raises(ConfigError, match="have no place for soft prompts"):
        processor.window_tokens(8)
    with pytest.raises(ConfigError, match=r"prompts in front and .* what is given"):
        processor.with_prompts(PromptTuning(ratios=(0.5, 0.5, 0.0)))
