"""The original's prompt files, as they are; what they cannot mean is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hanlin.core.errors import ConfigError
from hanlin.models.cpm2.datasets.lcqmc import make_items
from hanlin.models.cpm2.pieces import Mark, Prompts
from hanlin.models.cpm2.prompts import PromptSettings, read_prompt_settings


def write(path: Path, **changes: Any) -> Path:
    encoder = {"prompt_len": 23, "init_tokens": "", "default_init_token": "<mask>", "ratio_list": [0.33, 0.34, 0.33]}
    values = {"init_scratch": True, "fix_model": True, "init_from_vocab": False, "enc": encoder, **changes}
    path.write_text(json.dumps(values))
    return path


def test_shares_are_cut_off_and_not_rounded(tmp_path: Path) -> None:
    settings = read_prompt_settings(write(tmp_path / "a.json"))
    assert settings.borders(()) == [7, 15, 23]
    assert PromptSettings(length=10).borders((0.5, 0.5, 0.0)) == [5, 10, 10]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("random", False, True, True, True)),
        ({"init_from_vocab": True}, ("vocabulary", False, True, True, True)),
        ({"init_scratch": False, "fix_model": False, "fix_prompt": True}, ("checkpoint", True, False, True, True)),
        ({"mask_prompt2token": True}, ("random", False, True, False, True)),
        ({"mask_prompt2token": True, "mask_token2prompt": True}, ("random", False, True, True, False)),
    ],
)
def test_every_flag_of_the_original_is_read(tmp_path: Path, changes: dict[str, Any], expected: tuple) -> None:
    found = read_prompt_settings(write(tmp_path / "a.json", **changes))
    assert (found.init, found.trains_model, found.trains_prompts, found.sees_tokens, found.is_seen) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fix_modell": True}, "there is no key 'fix_modell'"),
        ({"dec": {"prompt_len": 5}}, "the decoder takes no prompts"),
        ({"enc": {}}, "enc.prompt_len must be the number of prompts"),
        ({"enc": 3}, "enc must be an object"),
        ({"enc": {"prompt_len": 5, "ratio_list": [1.0]}}, "enc.ratio_list must have three or four shares; found 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_prompt_settings(write(tmp_path / "a.json", **changes))


def test_prompts_stand_before_between_and_after_the_sentences() -> None:
    record = {"sentence1": "甲", "sentence2": "乙", "label": 1}
    [item] = make_items(record, PromptSettings(length=4, ratios=(0.25, 0.5, 0.25)))
    assert item.pieces == [Prompts(0, 1), "甲", Prompts(1, 3), "乙", Prompts(3, 4)]
    [apart] = make_items(record, PromptSettings(length=4, ratios=(0.5, 0.0, 0.5)))
    assert apart.pieces == [Prompts(0, 2), "甲", Mark("；"), Prompts(2, 2), "乙", Prompts(2, 4)]
    assert item.answer == [Mark("相似")]
