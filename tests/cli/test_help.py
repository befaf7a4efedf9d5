"""`hanlin help`: commands and settings, by whatever name a user has for them."""

from __future__ import annotations

import json
import re

import pytest
from message_sources import is_sentence

from hanlin.cli._parser import is_example
from hanlin.cli.main import command_help, command_names, main


def _help(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["help", *words]) == 0
    return capsys.readouterr().out


def test_a_setting_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    shown = _help(capsys, "train.optimizer.betas").splitlines()
    assert shown[0] == "train.optimizer.betas"
    assert "  Only with train.optimizer.name: adamw, adamw_8bit, muon." in shown
    assert "  default: [0.9, 0.999]" in shown
    assert "  in a recipe: train: {optimizer: {betas: [0.9, 0.999]}}" in shown
    assert "  on a command line: 'train.optimizer.betas=[0.9, 0.999]'" in shown


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("lr", "train.lr"),
        ("learning_rate", "train.lr"),
        ("max_depth", "data.options.max_depth"),
        ("full", "tuning.method"),
    ],
)
def test_a_setting_is_found_by_other_names(name: str, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _help(capsys, name).split()[0] == key  # alone, or the first of a list


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("train.optimizer", {"train.optimizer.name", "train.optimizer.betas"}),
        ("lora", {"tuning.method", "tuning.rank"}),
        ("cpm_bee", {"data.options.max_depth", "model.config.hidden_size"}),
        ("data.options", {"data.options", "data.options.ends"}),
        ("parallel", {"parallel.tensor", "parallel.shard"}),
    ],
)
def test_a_section_or_a_value_is_a_list(name: str, keys: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert keys <= {line.split()[0] for line in _help(capsys, name).splitlines()}


def test_a_command_is_explained_with_the_section_of_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    shown = _help(capsys, "train")
    assert shown.startswith("usage: hanlin train")
    assert "\ntrain.batch_size" in shown
    assert _help(capsys, "convert").startswith("usage: hanlin convert")
    assert _help(capsys) == _overview(capsys)


def _overview(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        main(["--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "near"), [("train.lrr", "'train.lr'"), ("traim", "'train'"), ("warmup_step", "'train.warmup_steps'")]
)
def test_the_nearest_names_are_said(name: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", name]) == 2
    error = capsys.readouterr().err
    assert f"no setting {name!r}; did you mean {near}" in error


def test_settings_are_explained_in_chinese(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANLIN_LANG", "zh")
    shown = _help(capsys, "train.clip")
    assert "所有梯度合起来的范数上限" in shown
    assert "默认值：1" in shown
    assert "default" not in shown


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(_help(capsys, "--schema"))["properties"]["train"]["properties"]["lr"]["exclusiveMinimum"] == 0
    assert main(["help", "train.lr", "--schema"]) == 2


@pytest.mark.parametrize("name", [None, *command_names()])
def test_the_help_of_every_command_is_there_in_chinese(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANLIN_LANG", "zh")
    _, _, told = command_help(name).partition("\n\n")  # behind the usage
    assert "示例：" in told
    assert not re.findall(r"(?m)^[A-Za-z ]+:$", told)
    helps = [text for line in told.splitlines() if not is_example(text := re.split(" {2,}", line.strip())[-1])]
    assert not [text for text in helps if is_sentence(text) and text.isascii() and text[0] not in "-{"]
