"""The original's prompt files, as they are; what they cannot mean is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from hanlin.checking.settings import idle_problems
from hanlin.core.errors import ConfigError
from hanlin.recipe.cpm2_prompts import read_prompt_file
from hanlin.recipe.reading import make_recipe
from hanlin.recipe.tuning import TUNING_METHODS
from hanlin.tuning.prompt import PromptTuning


def write(path: Path, **changes: Any) -> Path:
    encoder = {"prompt_len": 23, "init_tokens": "", "default_init_token": "<mask>", "ratio_list": [0.33, 0.34, 0.33]}
    values = {"init_scratch": True, "fix_model": True, "init_from_vocab": False, "enc": encoder, **changes}
    path.write_text(json.dumps(values))
    return path


def test_shares_are_cut_off_and_not_rounded(tmp_path: Path) -> None:
    settings = PromptTuning.model_validate({"file": write(tmp_path / "a.json")})
    assert settings.borders(()) == [7, 15, 23]
    assert PromptTuning(length=10).borders((0.5, 0.5, 0.0)) == [5, 10, 10]


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
    found = PromptTuning.model_validate({"file": write(tmp_path / "a.json", **changes)})
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
        read_prompt_file(write(tmp_path / "a.json", **changes))


@pytest.mark.parametrize(
    ("name", "shares"),
    [("33_34_33", (0.33, 0.34, 0.33)), ("5_5_0", (0.5, 0.5, 0.0)), ("98_2_0", (0.98, 0.02, 0.0))],
)
def test_places_may_be_written_as_in_the_originals_names(name: str, shares: tuple[float, ...]) -> None:
    assert PromptTuning.model_validate({"ratios": name}).ratios == shares


def test_a_recipe_may_name_the_file_and_change_single_values(tmp_path: Path) -> None:
    found = TUNING_METHODS.make({"method": "prompt", "file": str(write(tmp_path / "a.json")), "length": 4})
    assert (found.length, found.ratios) == (4, (0.33, 0.34, 0.33))
    assert TUNING_METHODS.make(found.model_dump()) == found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ratios": "33_34"}, "three or four numbers"),
        ({"ratios": [50, 0, 50]}, "shares add up to 1, these to 100"),
        ({"trains_prompts": False}, "neither prompts nor model"),
        ({"file": "nowhere.json"}, "cannot be read"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(values: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PromptTuning.model_validate(values)


IDLE = [
    ({"init_text": "明月"}, "tuning.init_text"),
    ({"init": "checkpoint", "init_token": "<mask>"}, "tuning.init_token"),
    ({"init": "text", "init_text": "明月", "init_spread": True}, "tuning.init_spread"),
    ({"init": "vocabulary", "init_spread": True, "init_token": "<mask>"}, "tuning.init_token"),
    ({"is_seen": False, "sees_tokens": False}, "tuning.sees_tokens"),
]


@pytest.mark.parametrize(("changes", "key"), IDLE)
def test_settings_of_prompts_that_do_nothing_are_refused(changes: dict[str, Any], key: str) -> None:
    assert idle_keys({"length": 4, **changes}) == [key]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"init": "text", "init_text": "明月"},
        {"init": "vocabulary", "init_text": "明月", "init_token": "<pad>"},
        {"init": "vocabulary", "init_text": "明月", "init_spread": True},
        {"sees_tokens": False},
    ],
)
def test_settings_of_prompts_that_do_something_are_not(changes: dict[str, Any]) -> None:
    assert idle_keys({"length": 4, **changes}) == []


def test_what_an_original_states_may_be_idle_but_not_what_stands_beside_it(tmp_path: Path) -> None:
    both = {"mask_prompt2token": True, "mask_token2prompt": True}
    for flags in ({}, both, {"init_from_vocab": True, "enc": {"prompt_len": 5, "sample_from_vocab": True}}):
        assert idle_keys({"file": str(write(tmp_path / "a.json", **flags))}) == []
    assert idle_keys({"file": str(write(tmp_path / "a.json")), "init_text": "明月"}) == ["tuning.init_text"]


def idle_keys(tuning: dict[str, Any]) -> list[str]:
    values = {"model": {"family": "cpm2"}, "run": {"folder": "run"}, "tuning": {"method": "prompt", **tuning}}
    return [key for key, _ in idle_problems(make_recipe(values), {})]
