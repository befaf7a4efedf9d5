"""The typical slips in a recipe: each gives one clear message, exit code 2, no traceback, at once."""

from __future__ import annotations

import importlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from small_bee import LETTERS, write_vocab

from hanlin.cli.main import main

RECIPE = """\
model:
  family: cpm_bee
  size: tiny
  vocab: vocab.txt
data:
  train: [train.jsonl]
  eval: [eval.jsonl]
  cache: cache
train:
  steps: 10
  batch_size: 8
run:
  folder: run
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the recipe is right."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    write_vocab(tmp_path / "vocab.txt", "<" + LETTERS)
    for name in ("train", "eval"):
        (tmp_path / f"{name}.jsonl").write_text('{"input": "床前", "<ans>": "明月光"}\n' * 3, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module", autouse=True)
def _torch() -> None:
    """One slip asks torch about a device; how long its import takes is not the question here."""
    importlib.import_module("torch")


@dataclass(frozen=True)
class Slip:
    """old, new: what the user writes instead; changes: on the command line; says: parts of the one message."""

    name: str
    says: tuple[str, ...]
    old: str = ""
    new: str = ""
    changes: tuple[str, ...] = ()
    append: str = ""


SLIPS = [
    Slip("misspelt setting", ("recipe.yaml:10: train.stepz", "did you mean 'steps'"), "steps: 10", "stepz: 10"),
    Slip("misspelt section", ("recipe.yaml:9: trian", "did you mean 'train'"), "train:\n", "trian:\n"),
    Slip("setting in the wrong section", ("run.lr", "did you mean 'train.lr'"), changes=("run.lr=1e-4",)),
    Slip("another trainer's name", ("train.learning_rate", "'train.lr'"), changes=("train.learning_rate=1e-4",)),
    Slip("word for a number", ("recipe.yaml:10: train.steps", "found 'ten'"), "steps: 10", "steps: ten"),
    Slip("truth value for a number", ("train.steps: a number is expected",), "steps: 10", "steps: true"),
    Slip("fraction for a count", ("train.batch_size", "found 2.5"), "batch_size: 8", "batch_size: 2.5"),
    Slip("list for a number", ("train.lr", "found [0.001]"), changes=("train.lr=[1e-3]",)),
    Slip("text for a section", ("parallel", "a section is expected"), append="parallel: two\n"),
    Slip("negative rank", ("tuning.rank", "greater than 0"), changes=("tuning.method=lora", "tuning.rank=-4")),
    Slip("zero rate", ("train.lr", "greater than 0; found 0"), changes=("train.lr=0",)),
    Slip("dropout of one", ("tuning.dropout", "less than 1"), changes=("tuning.method=lora", "tuning.dropout=1")),
    Slip("unknown choice", ("train.schedule", "did you mean 'cosine'"), changes=("train.schedule=cosin",)),
    Slip("unknown family", ("recipe.yaml:2: model.family", "did you mean 'cpm_bee'"), "cpm_bee", "cpmbee"),
    Slip("unknown size", ("recipe.yaml:3: model.size", "did you mean 'tiny'"), "size: tiny", "size: tinny"),
    Slip("unknown shape", ("model.config.num_layer", "'num_layers'"), changes=("model.config.num_layer=2",)),
    Slip("impossible shape", ("model.config.num_layers", "greater than 0"), changes=("model.config.num_layers=0",)),
    Slip("missing family", ("recipe.yaml:1: model.family: is missing",), "  family: cpm_bee\n", ""),
    Slip("missing data file", ("data.train", "did you mean 'train.jsonl'"), "[train.jsonl]", "[trian.jsonl]"),
    Slip("missing vocabulary file", ("model.vocab", "there is no vocal.txt"), "vocab.txt", "vocal.txt"),
    Slip("no vocabulary", ("model.vocab: name the vocabulary",), "  vocab: vocab.txt\n", ""),
    Slip("missing base", ("model.base", "there is no nowhere"), "size: tiny", "base: nowhere"),
    Slip("no training data", ("data.train", "name the training files"), "  train: [train.jsonl]\n", ""),
    Slip("wrong vocabulary", ("model.vocab", "no CPM-Bee vocabulary"), "vocab.txt", "train.jsonl"),
    Slip("too small an embedding", ("model.vocab", "17 tokens", "10 rows"), changes=("model.config.vocab_size=10",)),
    Slip("steps and epochs", ("train.epochs", "both steps (10) and epochs (2)"), changes=("train.epochs=2",)),
    Slip("no length", ("train.steps", "say how long to train"), "  steps: 10\n", ""),
    Slip("batch arithmetic", ("train.batch_size", "use 6 or 9"), changes=("train.micro_batch_size=3",)),
    Slip("warm-up without end", ("train.warmup_steps", "step 10"), changes=("train.warmup_steps=10",)),
    Slip("rank of nothing", ("tuning.rank: is a setting of method lora",), changes=("tuning.rank=8",)),
    Slip(
        "loss scale in fp32",
        ("train.loss_scale: has no effect",),
        changes=("train.loss_scale=1024", "train.precision=fp32"),
    ),
    Slip("patience without interval", ("train.patience", "without train.eval_every"), changes=("train.patience=3",)),
    Slip("evaluation of nothing", ("train.eval_every", "without data.eval"), "  eval: [eval.jsonl]\n", "",
         changes=("train.eval_every=5",)),
    Slip("sampling in beam search", ("generate.top_p", "is a setting of method sample, not of beam"),
         changes=("generate.top_p=0.5",)),
    Slip("unknown method", ("generate.method", "did you mean 'greedy'"), changes=("generate.method=greedi",)),
    Slip("unknown optimizer", ("recipe.yaml:12: train.optimizer", "found 'adam'", "'adamw'"),
         "batch_size: 8", "batch_size: 8\n  optimizer: adam"),
    Slip("optimizer's misspelt setting", ("recipe.yaml:12: train.optimizer.beta", "did you mean 'betas'"),
         "batch_size: 8", "batch_size: 8\n  optimizer: {beta: 1}"),
    Slip("optimizer's setting beside it", ("train.weight_decay", "'train.optimizer.weight_decay'"),
         changes=("train.weight_decay=0",)),
    Slip("decay of nothing", ("train.optimizer: decay_all has no effect with weight_decay 0",),
         changes=("train.optimizer={decay_all: true, weight_decay: 0}",)),
    Slip("unwritable output", ("run.folder", "is a file; choose another"), "folder: run", "folder: vocab.txt/run"),
    Slip("unknown device", ("run.device", "device"), changes=("run.device=gpu",)),
    Slip("setting given twice", ("train.steps: stands twice, first in line 10",), "steps: 10", "steps: 9\n  steps: 9"),
    Slip("bad indentation", ("recipe.yaml:11: not YAML",), "  batch_size: 8", "   batch_size: 8"),
    Slip("tab", ("recipe.yaml:10: not YAML", "tab"), "  steps: 10", "\tsteps: 10"),
    Slip("change without value", ("'train.lr' is not a change", "train.lr=1e-4"), changes=("train.lr",)),
    Slip("bad row", ("data.train", "bad.jsonl:2", "<ans>"), changes=("data.eval=[]", "data.train=bad.jsonl")),
]  # fmt: skip


@pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: slip.name.replace(" ", "-"))
@pytest.mark.parametrize("command", ["check", "train"])
def test_a_slip_gives_one_clear_message(
    command: str, slip: Slip, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert slip.old in RECIPE
    recipe = project / "recipe.yaml"
    recipe.write_text(RECIPE.replace(slip.old, slip.new, 1) + slip.append, encoding="utf-8")
    (project / "bad.jsonl").write_text('{"input": "床", "<ans>": "月"}\n{"input": "床"}\n', encoding="utf-8")
    started = time.process_time()
    code = main([command, "recipe.yaml", *slip.changes])
    seconds = time.process_time() - started
    message = capsys.readouterr().err
    assert code == 2
    assert message.count("\n") == 1, f"one message is expected:\n{message}"
    for part in slip.says:
        assert part in message
    assert "Traceback" not in message
    assert seconds < 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["check", "train.lr=abc"], "train.lr=abc: a setting where a recipe is expected"),
        (["recipes", "copy", "cpm-be"], "did you mean 'cpm_bee_ccpm_full' or"),
        (["recipes", "show", "cpm2_ccpm_ful.yaml"], "did you mean 'cpm2_ccpm_full' or"),
        (["recipes", "copy", "nosuch"], "there is no recipe or example 'nosuch'; see `hanlin recipes`"),
    ],
)
def test_a_name_that_is_none_is_told_shortly(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    message = capsys.readouterr().err
    assert told in message
    assert message.count("\n") == 1
    assert len(message) < 250


def test_plain_text_in_the_place_of_rows_is_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "rows.txt").write_text("床前明月光\n", encoding="utf-8")
    assert main(["data", "show", "rows.txt"]) == 0
    assert main(["check", "recipe.yaml", "data.train=rows.txt"]) == 2
    told = capsys.readouterr()
    for text in told:
        assert 'plain text has no rows: write each text as a line {"text": "..."}' in text


def test_the_recipe_without_a_slip_is_right(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "recipe.yaml"]) == 0
    assert capsys.readouterr().out.startswith("recipe.yaml: no problems (")


@pytest.mark.parametrize("changes", [[], ["data.pack=false"], ["train.epochs=1.5"]])
def test_a_rate_that_only_rises_is_told_before_training_as_in_it(
    changes: list[str], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["recipe.yaml", "train.steps=null", "train.epochs=2", "train.batch_size=1", *changes]
    assert main(["check", *words, "train.warmup_steps=50"]) == 0
    told = re.search("train.warmup_steps=50, but the run has [0-9]+ steps", capsys.readouterr().err)
    assert told is not None
    assert not Path("cache").exists()
    assert main(["train", *words, "train.warmup_steps=50"]) == 0
    assert told[0] in Path("run/log.txt").read_text(encoding="utf-8")
    steps = int(told[0].split()[-2])
    assert main(["check", *words, f"train.warmup_steps={steps}", "run.folder=other"]) == 0
    assert f"has {steps} steps" in capsys.readouterr().err
    assert main(["check", *words, f"train.warmup_steps={steps - 1}", "run.folder=other"]) == 0
    assert "only rises" not in capsys.readouterr().err


def test_answers_to_compare_are_counted_too(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = '{"prompt": "床前", "chosen": "明月", "rejected": "光"}\n' * 3
    (project / "pairs.jsonl").write_text(rows, encoding="utf-8")
    words = ["recipe.yaml", "train.steps=null", "train.epochs=2", "train.batch_size=1", "data.train=pairs.jsonl",
             "data.eval=[]", "train.objective=dpo", "train.warmup_steps=50"]  # fmt: skip
    assert main(["check", *words]) == 0
    told = re.search("train.warmup_steps=50, but the run has [0-9]+ steps", capsys.readouterr().err)
    assert told is not None
    assert main(["train", *words]) == 0
    assert told[0] in Path("run/log.txt").read_text(encoding="utf-8")


def test_steps_of_files_that_are_not_read_whole_are_left_to_training(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "train.jsonl").write_text('{"input": "床前", "<ans>": "明月光"}\n' * 101, encoding="utf-8")
    words = ["recipe.yaml", "train.steps=null", "train.epochs=2", "train.warmup_steps=500"]
    assert main(["check", *words]) == 0
    assert "only rises" not in capsys.readouterr().err


def test_all_slips_of_a_recipe_are_listed_at_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["train.stepz=1", "train.lr=fast", "model.size=huge", "train.micro_batch_size=3", "data.train=none.jsonl"]
    assert main(["check", "recipe.yaml", *changes]) == 2
    message = capsys.readouterr().err
    assert "recipe.yaml: 5 problems" in message
    for key in ("train.stepz", "train.lr", "model.size", "train.batch_size", "data.train"):
        assert f": {key}: " in message
