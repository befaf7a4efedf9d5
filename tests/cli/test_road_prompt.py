"""Soft prompts by commands on a tiny CPM-2: out to the original and in, with a trained base, from a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from cpm2_tiny import write_original, write_raw

from hanlin.cli.main import main
from hanlin.core.errors import ConfigError
from hanlin.formats.files import open_weights
from hanlin.formats.ranks import RankWeights, find_ranks
from hanlin.formats.source import open_source
from hanlin.models.cpm2 import family
from hanlin.models.cpm2.formats import PARTITIONS, PROMPTS
from hanlin.tuning.prompt import PromptTuning

NAME = "soft_prompt.weight"
ORIGINAL = {
    "init_scratch": True,
    "fix_model": True,
    "enc": {"prompt_len": 8, "init_tokens": "", "default_init_token": "<mask>", "ratio_list": [0.5, 0.25, 0.25]},
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original(tmp_path_factory.mktemp("cpm2"))


def write_recipe(folder: Path, base: Path, prompt: dict[str, object], **model: str) -> Path:
    raw = str(write_raw(folder, "lcqmc"))
    recipe = {
        "model": {"family": "cpm2", "base": str(base), **model},
        "data": {"train": raw, "options": {"dataset": "lcqmc"}, "max_length": 64, "cache": str(folder / "cache")},
        "tuning": {"method": "prompt", **prompt},
        "train": {"steps": 2, "batch_size": 2, "lr": 0.1, "warmup_steps": 1},
        "evaluate": {"data": raw, "tasks": ["generate", "loss"]},
        "generate": {"method": "greedy", "max_new_tokens": 1},
        "run": {"folder": str(folder / "run"), "threads": 1, "device": "cpu"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True), "utf-8")
    return path


def loss_of(folder: Path) -> float:
    return json.loads((folder / "run/evaluation/metrics.json").read_text())["loss"]["loss"]


def test_prompts_go_out_to_the_original_and_come_in_again(original: Path, tmp_path: Path) -> None:
    (tmp_path / "lcqmc.json").write_text(json.dumps(ORIGINAL))
    (tmp_path / "data").mkdir()
    recipe = write_recipe(tmp_path / "data", original, {"file": str(tmp_path / "lcqmc.json")})
    run = tmp_path / "data/run"
    assert main(["train", str(recipe)]) == 0
    weights = open_weights(run / "last")
    assert list(weights) == [NAME]
    assert main(["evaluate", str(recipe)]) == 0
    expected = loss_of(tmp_path / "data")

    words = ["convert", str(run / "last"), str(tmp_path / "whole"), "--base", str(original)]
    assert main([*words, "--to", "original", "--iteration", "500"]) == 0
    whole = RankWeights(find_ranks(tmp_path / "whole"), PARTITIONS)
    assert whole[PROMPTS].equal(weights[NAME])
    assert whole.iteration == 500
    assert main(["convert", str(run / "last"), str(tmp_path / "p.pt"), "--base", str(original), "--to", "delta"]) == 0
    assert list(torch.load(tmp_path / "p.pt", weights_only=True)) == [PROMPTS]
    assert main(["convert", str(tmp_path / "whole"), str(tmp_path / "adapter"), "--to", "adapter"]) == 0
    assert open_weights(tmp_path / "adapter")[NAME].equal(weights[NAME])

    for adapter in ("whole", "p.pt", "adapter"):
        assert main(["evaluate", str(recipe), "--weights", "base", f"model.adapter={tmp_path / adapter}"]) == 0
        assert loss_of(tmp_path / "data") == pytest.approx(expected, abs=1e-6)


def test_a_base_that_is_trained_along_is_written_with_its_prompts(original: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, original, {"length": 8, "init": "vocabulary", "trains_model": True})
    assert main(["train", str(recipe)]) == 0
    last = tmp_path / "run/last"
    assert list(open_weights(last / "adapter")) == [NAME]
    before, after = (open_source(path, family).weights for path in (original, last))
    assert not after["head.weight"].equal(before["lm_head.weight"].float())
    assert main(["evaluate", str(recipe)]) == 0
    found = loss_of(tmp_path)
    words = ["--weights", "base", f"model.base={last}", f"model.adapter={last / 'adapter'}"]
    assert main(["evaluate", str(recipe), *words]) == 0
    assert loss_of(tmp_path) == found


def test_prompts_that_stay_begin_as_the_checkpoint_has_them(original: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    first = write_recipe(folders[0], original, {"length": 8})
    assert main(["train", str(first)]) == 0
    last = folders[0] / "run/last"
    whole = str(tmp_path / "whole")
    assert main(["convert", str(last), whole, "--base", str(original), "--to", "original"]) == 0
    tuned = {"fix_model": False, "fix_prompt": True, "enc": {"prompt_len": 8}}
    (tmp_path / "tuned.json").write_text(json.dumps(tuned))
    second = write_recipe(folders[1], Path(whole), {"file": str(tmp_path / "tuned.json")}, vocab=str(original))
    assert main(["train", str(second)]) == 0
    assert open_weights(folders[1] / "run/last/adapter")[NAME].equal(open_weights(last)[NAME])


def test_a_processor_without_places_for_prompts_is_told_at_once() -> None:
    """As one of a user's own family may be; ours have places."""
    processor: Any = object()
    with pytest.raises(ConfigError, match="the rows of mine have no place for soft prompts"):
        PromptTuning().adapt_processor(processor, SimpleNamespace(name="mine"))


def test_a_base_without_its_prompts_is_not_asked(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its rows have places that no weights would fill."""
    recipe = str(write_recipe(tmp_path, original, {"length": 8}))
    for command in (["evaluate"], ["generate", "--record", '{"source": "x"}']):
        assert main([*command, recipe, "--weights", "base"]) == 2
        assert "tuning.method: the rows of prompt have places" in capsys.readouterr().err
    assert main(["evaluate", recipe, "--weights", "base", "tuning.method=full"]) == 0
