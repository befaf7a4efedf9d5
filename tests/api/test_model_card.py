"""The model card of converted folders: what is known of the weights, as the hub's own library reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from hanlin.api.conversion import ConvertSettings, convert_weights
from hanlin.api.model_card import card_facts, write_card
from hanlin.core.manifest import check_manifest
from hanlin.formats.load import base_parameters, save_base
from hanlin.models.cpm1 import family
from hanlin.models.cpm1.config import shape
from hanlin.models.cpm1.model import Cpm1

RECIPE = """
model: {family: cpm1, base: TsinghuaAI/CPM-Generate}
data: {train: [/home/somebody/secret.jsonl]}
tuning: {method: full}
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with the files that a card is made from, and weights of a tiny model as its best and last ones."""
    folder = tmp_path / "run"
    (folder / "checkpoints" / "000020").mkdir(parents=True)
    (folder / "config.yaml").write_text(RECIPE, encoding="utf-8")
    state = {"values": {"loader": {"data": "ab12"}}}
    (folder / "checkpoints" / "000020" / "state.json").write_text(json.dumps(state))
    lines = [{"step": 10, "eval_loss": 0.5}, {"step": 20, "loss": 1.0}, {"step": 20, "eval_loss": 0.75}]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / "evaluation" / "best-1234").mkdir(parents=True)
    (folder / "evaluation" / "best-1234" / "metrics.json").write_text('{"generate": {"bleu_4": 7.25, "records": 4}}')
    (folder / "evaluation" / "metrics.json").symlink_to("best-1234/metrics.json")
    config = shape(16, 1, 2, vocab_size=24, max_length=8)
    model = Cpm1(config)
    model.init_weights(torch.Generator().manual_seed(1))
    for name in ("best", "last"):
        save_base(folder / name, family, config, base_parameters(model))
    return folder


def test_the_card_says_what_is_known_and_where_nobody_else_is_to_look_it_does_not(run: Path, tmp_path: Path) -> None:
    convert_weights(run / "best", tmp_path / "out", ConvertSettings(to="huggingface"))
    card = ModelCard.load(tmp_path / "out" / "README.md")
    found = card.data.to_dict()
    assert (found["base_model"], found["library_name"]) == ("TsinghuaAI/CPM-Generate", "transformers")
    assert (found["pipeline_tag"], found["language"], found["license"]) == ("text-generation", ["zh", "en"], "other")
    assert found["tags"] == ["hanlin", "cpm1", "full"]
    for line in ("| Method 训练方法 | full |", "sha256 ab12", "| eval_loss | 0.5 |", "| generate: bleu_4 | 7.25 |"):
        assert line in card.text
    assert "GPT2LMHeadModel.from_pretrained" in card.text
    assert "licence of their base model" in card.text
    assert "基座模型的许可协议" in card.text
    assert not any(word in card.text for word in ("secret", "somebody", str(tmp_path)))


def test_a_run_folder_stands_for_its_best_weights(run: Path, tmp_path: Path) -> None:
    convert_weights(run, tmp_path / "out", ConvertSettings())
    assert "| eval_loss | 0.5 |" in (tmp_path / "out" / "README.md").read_text("utf-8")
    shutil.rmtree(run / "best")
    convert_weights(run, tmp_path / "last", ConvertSettings())
    assert "| eval_loss | 0.75 |" in (tmp_path / "last" / "README.md").read_text("utf-8")


def test_the_card_may_be_rewritten(run: Path, tmp_path: Path) -> None:
    convert_weights(run / "last", tmp_path / "out", ConvertSettings())
    card = tmp_path / "out" / "README.md"
    assert "| eval_loss | 0.75 |" in card.read_text("utf-8")
    assert "bleu_4" not in card.read_text("utf-8")  # those are the best weights'
    card.write_text("mine")
    check_manifest(tmp_path / "out")


def test_weights_without_a_run_have_a_card_without_guesses(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "best", tmp_path / "elsewhere" / "weights")
    (tmp_path / "elsewhere" / "config.yaml").write_text("{another: program's")
    facts = card_facts("cpm1", "CPM-1", tmp_path / "elsewhere" / "weights")
    assert (facts.base, facts.method, facts.data, dict(facts.metrics)) == (None, None, None, {})
    (tmp_path / "elsewhere" / "weights" / "config.json").write_text('{"_name_or_path": "THUDM/chatglm2-6b"}')
    assert card_facts("chatglm2", "ChatGLM2", tmp_path / "elsewhere" / "weights").base == "THUDM/chatglm2-6b"
    write_card(tmp_path / "elsewhere", "peft", card_facts("cpm1", "CPM-1", tmp_path / "base", run / "best"))
    card = ModelCard.load(tmp_path / "elsewhere" / "README.md")
    assert card.data.to_dict()["library_name"] == "peft"
    assert 'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("TsinghuaAI/CPM-Generate")' in card.text
