"""A model by its name on a hub, from the recipe and from the command line: found in a cache, or the command said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_folder import write_original

from hanlin.cli.main import main
from hanlin.recipe.reading import load_recipe

NAME = "THUDM/chatglm2-6b"
RECIPE = """\
model: {family: chatglm2, base: THUDM/chatglm2-6b}
data: {train: rows.jsonl, cache: cache, max_length: 64}
tuning: {method: lora, rank: 2, targets: [query]}
train: {steps: 1, batch_size: 1, lr: 0.01}
run: {folder: run, threads: 1}
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a model's revisions lie in a cache; the current folder has a recipe that names the model."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("recipe.yaml").write_text(RECIPE, "utf-8")
    Path("rows.jsonl").write_text('{"prompt": "你好", "response": "世界"}\n', "utf-8")
    model = tmp_path / "hub/models--THUDM--chatglm2-6b"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text("a1")
    (model / "snapshots").mkdir()
    write_original(model / "snapshots/a1")
    (model / "blobs").mkdir()
    for file in (model / "snapshots/a1").iterdir():
        blob = file.rename(model / "blobs" / f"hash-of-{file.stem}")
        file.symlink_to(f"../../blobs/{blob.name}")
    return model


def test_a_recipe_names_a_model_and_its_run_keeps_the_folder(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = cache / "snapshots/a1"
    assert main(["check", "recipe.yaml"]) == 0
    assert f"{NAME}: it lies in {folder}" in capsys.readouterr().err
    assert main(["train", "recipe.yaml"]) == 0
    assert str(folder) in capsys.readouterr().err
    assert load_recipe(Path("run")).model.base == folder
    # A newer revision in the cache is not that of this run.
    shutil.copytree(folder, cache / "snapshots/b2")
    (cache / "refs/main").write_text("b2")
    assert main(["train", "run", "train.steps=2"]) == 0
    assert load_recipe(Path("run")).model.base == folder
    assert load_recipe(Path("recipe.yaml")).model.base == cache / "snapshots/b2"
    # A folder of that name wins.
    Path(NAME).mkdir(parents=True)
    assert load_recipe(Path("recipe.yaml")).model.base == Path(NAME)


def test_a_command_takes_the_name_of_a_model(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = ["--record", '{"prompt": "你"}', "generate.max_new_tokens=2"]
    assert main(["generate", "--base", NAME, *record]) == 0
    assert f"it lies in {cache / 'snapshots/a1'}" in capsys.readouterr().err
    assert main(["inspect", NAME]) == 0
    assert str(cache / "snapshots/a1") in capsys.readouterr().out
    assert main(["convert", NAME, "base", "--vocab", NAME]) == 0
    assert main(["generate", "--base", "base", "--vocab", NAME, *record]) == 0
    assert main(["train", "recipe.yaml"]) == 0
    assert main(["convert", "run", "peft", "--base", NAME, "--to", "peft", "--layout", "original"]) == 0
    assert json.loads(Path("peft/adapter_config.json").read_text())["base_model_name_or_path"] == NAME
    capsys.readouterr()
    assert main(["convert", "run", "parts", "--base", NAME, "--to", "peft"]) == 0
    stated = json.loads(Path("parts/adapter_config.json").read_text())
    Path("parts/manifest.json").unlink()
    Path("parts/adapter_config.json").write_text(json.dumps({**stated, "base_model_name_or_path": NAME}))
    assert main(["inspect", "parts"]) == 0
    assert f"{NAME}, as its files say" in capsys.readouterr().out
    assert main(["generate", "--base", "base", "--vocab", NAME, "--adapter", "peft", *record]) == 0
    assert f"peft: says that it was trained on {NAME}, the base is base" in capsys.readouterr().err
    assert main(["generate", "--base", NAME, "--adapter", "peft", *record]) == 0
    assert "says that it was trained" not in capsys.readouterr().err
    # An adapter has a name as well.
    there = cache.parent / "models--some--lora"
    (there / "refs").mkdir(parents=True)
    (there / "refs/main").write_text("c3")
    shutil.copytree("peft", there / "snapshots/c3")
    assert main(["generate", "--base", NAME, "--adapter", "some/lora", *record]) == 0
    assert main(["convert", NAME, "merged", "--merge", "some/lora"]) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["check", "recipe.yaml"],
        ["train", "recipe.yaml"],
        ["generate", "--base", NAME, "--record", "{}"],
        ["convert", NAME, "base"],
        ["inspect", NAME],
    ],
)
def test_a_model_that_is_not_here_is_not_fetched_but_the_command_is_said(
    words: list[str], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(cache)
    assert main(words) == 2
    message = capsys.readouterr().err
    assert f"there is no {NAME}" in message
    assert (
        "`hf download THUDM/chatglm2-6b` (from ModelScope: `modelscope download --model ZhipuAI/chatglm2-6b`)"
        in message
    )
    assert str(cache.parent) in message


@pytest.mark.parametrize("words", [["check", "recipe.yaml"], ["generate", "--base", NAME, "--record", "{}"]])
def test_a_model_of_which_a_part_is_missing_is_named(
    words: list[str], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cache / "snapshots/a1"
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model-00001-of-00002.bin")
    assert main(words) == 2
    assert "lacks pytorch_model-00002-of-00002.bin" in capsys.readouterr().err


def test_a_published_number_is_of_a_model_by_its_name_too(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train.json", "dev.json"):
        Path(name).write_text("[]", "utf-8")
    words = ["reproduce", "chatglm2-adgen-full-gpu", "--data", ".", "--dry-run"]
    assert main([*words, "--weights", NAME]) == 0
    assert str(cache / "snapshots/a1") in capsys.readouterr().out
    assert main([*words, "--weights", "THUDM/another"]) == 2
    assert "--weights: there is no THUDM/another" in capsys.readouterr().err
