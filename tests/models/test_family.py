"""The options of a family's samples: strict, with nearest names; and what they do to the cache."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

import hanlin.core.tokenizer
import hanlin.data.processor
import hanlin.models.family
from hanlin.core.errors import ConfigError
from hanlin.data.prepare import prepare
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.record import ChatGlm2Options
from hanlin.models.cpm_bee.processor import CpmBeeOptions
from hanlin.models.family import load_family, make_options, option_problems
from hanlin.recipe.settings import DataSettings

CHATGLM2, CPM_BEE = load_family("chatglm2"), load_family("cpm_bee")


def test_options_become_the_family_s_own() -> None:
    made = make_options(CHATGLM2, {"prompt_column": "content", "prompt_length": 64})
    assert made == ChatGlm2Options(prompt_column="content", prompt_length=64)
    assert make_options(CPM_BEE, {"strict": True}) == CpmBeeOptions(strict=True)
    assert make_options(CPM_BEE, {}) == CpmBeeOptions()


@pytest.mark.parametrize(
    ("values", "key", "says"),
    [
        ({"promt_column": "content"}, "data.options.promt_column", "did you mean 'prompt_column'"),
        ({"prompt_length": "64"}, "data.options.prompt_length", "valid integer; found '64'"),
        ({"compatible": "yes"}, "data.options.compatible", "valid boolean; found 'yes'"),
        ({"prompt_length": 1}, "data.options", "prompt_length is 1, expected at least 3"),
        ({"learn_padding": True}, "data.options", "only with compatible"),
    ],
)
def test_wrong_options_are_named(values: dict, key: str, says: str) -> None:
    [(found, text)] = option_problems(CHATGLM2, values)
    assert found == key
    assert says in text
    with pytest.raises(ConfigError):
        make_options(CHATGLM2, values)


def test_other_options_make_another_cache(tmp_path: Path, chatglm2_tokenizer) -> None:
    row = {"content": "黑色", "summary": "九分裤", "prompt": "你好", "response": "世界"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    config = ChatGlm2Config(vocab_size=chatglm2_tokenizer.vocab_size)
    settings = DataSettings(cache=tmp_path / "cache")

    def fingerprint(**values: object) -> str:
        processor = CHATGLM2.processor(chatglm2_tokenizer, config, make_options(CHATGLM2, values))
        return prepare([tmp_path / "rows.jsonl"], processor, settings, tokenizer=chatglm2_tokenizer).fingerprint

    plain = fingerprint()
    assert fingerprint() == plain
    assert fingerprint(prompt_column="content", response_column="summary") != plain
    assert fingerprint(template="plain") != plain


@pytest.mark.parametrize("module", [hanlin.core.tokenizer, hanlin.data.processor, hanlin.models.family])
def test_the_page_names_all_that_a_family_may_do(module: ModuleType) -> None:
    page = (Path(__file__).parents[2] / "docs" / "adding_a_family.md").read_text("utf-8")
    optional = [name for name, one in vars(module).items() if getattr(one, "_is_runtime_protocol", False)]
    assert optional
    assert [name for name in optional if f"`{name}`" not in page] == []
