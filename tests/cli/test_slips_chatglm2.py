"""Bad input of every kind to a ChatGLM2 recipe: one clear message, exit code 2, no traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_folder import write_original

from hanlin.cli.main import main

RECIPE = """\
model: {family: chatglm2, base: model}
data:
  train: [train.jsonl]
  cache: cache
  max_length: 64
train: {steps: 1, batch_size: 1}
run: {folder: run, threads: 1}
"""
GOOD = {"prompt": "你好", "response": "你好，世界！", "history": []}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original(tmp_path_factory.mktemp("chatglm2") / "original")


@pytest.fixture
def project(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the recipe is right."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(original, tmp_path / "model")
    (tmp_path / "recipe.yaml").write_text(RECIPE, "utf-8")
    (tmp_path / "train.jsonl").write_text(json.dumps(GOOD) + "\n", "utf-8")
    return tmp_path


@dataclass(frozen=True)
class Slip:
    """spoil: what is done to the folder; says: parts of the message."""

    name: str
    says: tuple[str, ...]
    spoil: Callable[[Path], object] = lambda folder: None
    changes: tuple[str, ...] = ()


def with_row(**values: object) -> Callable[[Path], object]:
    return lambda folder: (folder / "train.jsonl").write_text(json.dumps({**GOOD, **values}) + "\n", "utf-8")


def with_config(**values: object) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        config = folder / "model/config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **values}), "utf-8")

    return spoil


def in_shards(folder: Path, *, written: int) -> None:
    """Cut the weights into two shards, of which only some are written."""
    weights = torch.load(folder / "model/pytorch_model.bin", weights_only=True)
    names = list(weights)
    shards = {"pytorch_model-00001-of-00002.bin": names[:5], "pytorch_model-00002-of-00002.bin": names[5:]}
    for file, own in list(shards.items())[:written]:
        torch.save({name: weights[name] for name in own}, folder / "model" / file)
    index = {"weight_map": {name: file for file, own in shards.items() for name in own}}
    (folder / "model/pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "model/pytorch_model.bin").unlink()


def truncate_last_shard(folder: Path) -> None:
    in_shards(folder, written=2)
    last = folder / "model/pytorch_model-00002-of-00002.bin"
    last.write_bytes(last.read_bytes()[:-4000])


def drop_a_tensor(folder: Path) -> None:
    path = folder / "model/pytorch_model.bin"
    weights = torch.load(path, weights_only=True)
    del weights["transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"]
    torch.save(weights, path)


def no_vocabulary(folder: Path) -> None:
    (folder / "model/tokenizer.model").unlink()


SLIPS = [
    Slip("wrong-family", ("model.family: model holds a chatglm2, not a cpm_bee",), changes=("model.family=cpm_bee",)),
    Slip("chatglm-v1", ("ChatGLM-6B, the first one",), with_config(inner_hidden_size=64, position_encoding_2d=True)),
    Slip("another-model", ("model_type is 'llama'",), with_config(model_type="llama")),
    Slip("missing-shard", ("00002-of-00002.bin",), lambda folder: in_shards(folder, written=1)),
    Slip("truncated-shard", ("00002-of-00002.bin",), truncate_last_shard),
    Slip("missing-tensor", ("missing, 1", "layers.1.mlp.dense_4h_to_h.weight"), drop_a_tensor),
    Slip("missing-vocabulary", ("no tokenizer.model",), no_vocabulary),
    Slip("wrong-vocabulary", ("train.jsonl",), changes=("model.vocab=train.jsonl",)),
    Slip("small-embedding", ("vocab_size",), with_config(padded_vocab_size=100)),
    Slip("wrong-column", ("train.jsonl:1", '"content"', "prompt, response"),
         changes=("data.options.prompt_column=content",)),
    Slip("misspelt-option", ("data.options.prompt_colum", "did you mean 'prompt_column'"),
         changes=("data.options.prompt_colum=content",)),
    Slip("empty-answer", ("train.jsonl:1", '"response" is empty'), with_row(response="")),
    Slip("answer-of-another-kind", ("train.jsonl:1", '"response": expected a string'), with_row(response=3)),
    Slip("history-no-list", ("train.jsonl:1", '"history"', "found a string"), with_row(history="你好")),
    Slip("history-of-three", ("train.jsonl:1", "item 1", "found 3 items"), with_row(history=[["a", "b", "c"]])),
    Slip("history-of-roles", ("train.jsonl:1", "item 1", "role is 'bot'"), with_row(history=[{"role": "bot"}])),
    Slip("wrong-label", ("train.jsonl:1", "unknown label '你好，世界！'", "known: 好, 坏"),
         changes=("model.config.labels=[好, 坏]",)),
    Slip("one-label", ("model.config.labels: one label alone",), changes=("model.config.labels=[好]",)),
    Slip("unknown-kind", ("model.config.label_kind", "'two'"), changes=("model.config.label_kind=two",)),
    Slip("no-such-bits", ("model.config.bits", "0, 4 or 8", "found 3"), changes=("model.config.bits=3",)),
    Slip("no-such-bits-in-the-file", ("model.base", "quantization_bit is 3"), with_config(quantization_bit=3)),
    Slip("long-question", ("train.jsonl:1", "data.max_length is 64"), with_row(prompt="你好世界" * 80)),
]  # fmt: skip


def test_the_recipe_without_a_slip_is_right(project: Path) -> None:
    assert main(["check", "recipe.yaml"]) == 0
    assert main(["train", "recipe.yaml"]) == 0


@pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: slip.name)
def test_a_slip_gives_one_clear_message(slip: Slip, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slip.spoil(project)
    code = main(["train", "recipe.yaml", *slip.changes])
    message = capsys.readouterr().err
    assert code == 2, message
    assert "Traceback" not in message
    for part in slip.says:
        assert part in message, message


def test_a_prompt_longer_than_the_model_is_said(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = json.dumps({"prompt": "你好世界" * 300})
    assert main(["generate", "--base", "model", "--record", long, "run.threads=1"]) == 2
    assert "--record:1: the newest question alone makes" in capsys.readouterr().err


def test_a_prefix_of_another_model_is_said(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"transformer.prefix_encoder.embedding.weight": torch.zeros(4, 10)}, project / "prefix.bin")
    words = ["generate", "--base", "model", "--adapter", "prefix.bin", "--record", '{"prompt": "x"}', "run.threads=1"]
    assert main(words) == 2
    assert "found [4, 10], expected [4, 64]" in capsys.readouterr().err


def test_labels_without_a_head_for_them_are_said(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "recipe.yaml", "evaluate={tasks: [classify], data: [train.jsonl]}"]) == 2
    assert "evaluate.tasks: classify needs a head for labels" in capsys.readouterr().err
