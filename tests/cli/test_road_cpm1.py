"""CPM-1 by commands on a tiny model: the released two shards -> trained -> scored -> written in every layout."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from data_files import write_rows
from tiny_pieces import small_tokenizer

from hanlin.cli.main import main
from hanlin.formats.convert import convert
from hanlin.formats.load import save_base
from hanlin.formats.source import open_source
from hanlin.models.cpm1 import family
from hanlin.models.cpm1.config import shape
from hanlin.models.cpm1.tasks.chid import choice_records, passage_records
from hanlin.models.cpm1.tasks.stc import dialogue_record
from hanlin.recipe.reading import load_recipe
from hanlin.tokens.wordpiece import WordPiece

RECIPES = Path(__file__).parents[2] / "recipes"
PRETRAINING = sorted(recipe.stem for recipe in RECIPES.glob("cpm1_*_pretrain.yaml"))
TEXTS = [
    {"text": "床前明月光，疑是地上霜。"},
    {"text": "举头望明月，低头思故乡。"},
    {"text": "床前明月光，低头思故乡。" * 4},
]
QUESTIONS = [
    {"prompt": "床前明月", "answer": "光", "options": ["光", "霜"]},
    {"prompt": "疑是地上", "answer": "霜", "options": ["光", "霜"]},
]
CHID = {"content": ["举头#idiom1#，低头#idiom2#。"], "candidates": ["明月", "故乡", "地上"]}
BLANKS = {"#idiom1#": 0, "#idiom2#": 1}
NO_LAYOUT = ("parallel.tensor=1", "parallel.shard=none", "train.precision=fp32", "run.threads=1")
QUICK = ("train.steps=6", "train.batch_size=4", "train.lr=1e-2", "data.max_length=32", "run.threads=1",
         "generate.max_new_tokens=6")  # fmt: skip


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as the released one lies in its folder: two shards and the vocabulary."""
    folder, tokenizer = tmp_path_factory.mktemp("cpm1"), small_tokenizer()
    config = shape(32, 2, 4, vocab_size=tokenizer.vocab_size + tokenizer.vocab_size % 2, max_length=64, init_std=0.2)
    model = family.model()(config)
    model.init_weights(torch.Generator().manual_seed(1))
    save_base(folder / "base", family, config, dict(model.named_parameters()), tokenizer)
    convert(folder / "base", family, None, "original", folder / "released", tokenizer=tokenizer, ranks=2)
    return folder / "released"


def write_recipe(folder: Path, rows: list[dict[str, Any]], base: Path, *more: str) -> list[str]:
    data = write_rows(folder / "rows.jsonl", rows)
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"model: {{family: cpm1, base: {base}}}\n"
        f"data: {{train: {data}, eval: {data}, overlong: split, cache: {folder / 'cache'}}}\n"
        f"evaluate: {{tasks: [loss]}}\n"
        f"run: {{folder: {folder / 'run'}}}\n",
        encoding="utf-8",
    )
    return [str(recipe), *QUICK, *more]


def metrics(folder: Path) -> dict[str, dict[str, float]]:
    return json.loads((folder / "run/evaluation/metrics.json").read_text())


def test_texts_are_learned_scored_and_gone_on_with(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = write_recipe(tmp_path, TEXTS, released)
    assert main(["check", *words]) == 0
    short = write_rows(tmp_path / "short.jsonl", TEXTS[:2])
    scored = [*words, f"evaluate.data={short}"]
    assert main(["evaluate", *scored, "--weights", "base"]) == 0
    before = metrics(tmp_path)["loss"]
    assert main(["train", *words]) == 0
    assert main(["evaluate", *scored]) == 0
    after = metrics(tmp_path)["loss"]
    assert after["perplexity"] < before["perplexity"] / 1.2

    capsys.readouterr()
    ways: list[list[str]] = [
        ["generate.method=greedy"],
        ["generate.method=beam", "generate.beams=2"],
        ["generate.method=sample", "generate.temperature=0.9", "generate.top_k=5", "generate.top_p=0.8"],
    ]
    for way in ways:
        records = ["--record", '{"prompt": "床前"}', "--record", '{"prompt": ""}']
        assert main(["generate", *words, *way, *records]) == 0
        answered = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [list(record) for record in answered] == [["prompt", "answer"]] * 2


def test_trained_weights_go_into_every_layout_and_back(released: Path, tmp_path: Path) -> None:
    words = write_recipe(tmp_path, TEXTS, released, "train.steps=2")
    assert main(["train", *words]) == 0
    trained = tmp_path / "run/last"
    whole = open_source(trained, family).weights
    for layout in ("original", "huggingface", "megatron"):
        assert main(["convert", str(trained), str(tmp_path / layout), "--to", layout]) == 0
        assert main(["convert", str(tmp_path / layout), str(tmp_path / f"{layout}.back")]) == 0
        back = open_source(tmp_path / f"{layout}.back", family).weights
        assert sorted(back) == sorted(whole)
        # The program's form fills up the embedding's rows.
        assert all(back[name][: len(whole[name])].equal(whole[name]) for name in whole)


@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_a_frozen_base_is_tuned_to_choose(method: str, released: Path, tmp_path: Path) -> None:
    more = ["tuning.length=4", "train.lr=0.1"] if method == "prefix" else ["train.steps=60"]
    words = write_recipe(tmp_path, QUESTIONS, released, f"tuning.method={method}", "train.steps=40", *more,
                         "evaluate.tasks=[likelihood, generate]", "data.overlong=error",
                         "generate.method=greedy")  # fmt: skip
    assert main(["evaluate", *words, "--weights", "base"]) == 0
    before = metrics(tmp_path)["likelihood"]["gold_score"]
    assert main(["train", *words]) == 0
    assert main(["evaluate", *words]) == 0
    found = metrics(tmp_path)
    assert found["likelihood"]["gold_score"] > before + 1
    assert method == "prefix" or found["likelihood"]["accuracy"] == found["generate"]["exact_match"] == 1


def test_labelled_options_are_compared(released: Path, tmp_path: Path) -> None:
    options = {
        name: {"prompt": f"明月？{word}，", "answer": "床前", "ends": False}
        for name, word in zip("甲乙", "光霜", strict=True)
    }
    rows = [{"options": options, "label": label} for label in "甲乙"]
    words = write_recipe(tmp_path, rows, released, "evaluate.tasks=likelihood", "data.train=[]")
    assert main(["evaluate", *words, "--weights", "base"]) == 0
    assert metrics(tmp_path)["likelihood"] == {**metrics(tmp_path)["likelihood"], "accuracy": 0.5, "chance": 0.5}


def test_what_the_model_cannot_read_is_refused(released: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = write_recipe(tmp_path, TEXTS, released)
    assert main(["check", *words, "data.max_length=65"]) == 2
    assert "65 tokens, but the model reads at most 64" in capsys.readouterr().err
    long = write_rows(tmp_path / "long.jsonl", [{"text": TEXTS[0]["text"] * 9}])
    assert main(["evaluate", *words, f"evaluate.data={long}", "--weights", "base"]) == 2
    assert "the model reads at most 64; shorten it" in capsys.readouterr().err


@pytest.mark.parametrize("stem", PRETRAINING)
def test_a_small_twin_of_each_recipe_is_pretrained(stem: str, tmp_path: Path) -> None:
    words = [str(RECIPES / f"{stem}.yaml"), *NO_LAYOUT, "model.size=tiny", "data.max_length=24", "data.eval_windows=4",
             "train.steps=4", "train.batch_size=4", "train.micro_batch_size=2", "train.eval_every=4",
             "train.save_every=4",
             f"data.train={write_rows(tmp_path / 'texts.jsonl', TEXTS * 20)}", f"model.vocab={vocabulary(tmp_path)}",
             f"run.folder={tmp_path / 'run'}", f"data.cache={tmp_path / 'cache'}"]  # fmt: skip
    assert main(["check", *words]) == 0
    assert main(["train", *words]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {"eval_loss", "loss"} <= {name for line in lines for name in line}
    record = {"source": "床前明月光"} if "t5" in stem else {"prompt": "床前"}
    greedy = ["generate.max_new_tokens=4", "--record", json.dumps(record), "--output", str(tmp_path / "out.jsonl")]
    assert main(["generate", str(tmp_path / "run"), *greedy]) == 0
    assert {"target", "answer"} & json.loads((tmp_path / "out.jsonl").read_text()).keys()
    assert main(["convert", str(tmp_path / "run/last"), str(tmp_path / "megatron"), "--to", "megatron"]) == 0
    assert main(["convert", str(tmp_path / "megatron"), str(tmp_path / "back")]) == 0
    assert load_recipe(RECIPES / f"{stem}.yaml").model.family in (tmp_path / "back/config.json").read_text()


def vocabulary(folder: Path) -> Path:
    """A vocabulary for both networks: words, and tokens that mark spans."""
    letters = sorted({letter for row in TEXTS for letter in row["text"]})
    marks = [f"<s_{number}>" for number in range(8)]
    WordPiece(["<unk>", "<pad>", "<eod>", *letters, *marks]).save(folder)
    return folder / "vocab.txt"


@pytest.mark.parametrize(
    ("stem", "rows", "score"),
    [
        ("cpm1_chid_full", choice_records(CHID, BLANKS), "likelihood"),
        ("cpm1_stc_full", [dialogue_record("明月 光", "地上 霜")] * 4, "loss"),
    ],
)
def test_a_small_twin_of_each_recipe_is_tuned(
    stem: str, rows: list[dict[str, Any]], score: str, released: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows)
    words = [str(RECIPES / f"{stem}.yaml"), *NO_LAYOUT, "data.max_length=64", "train.epochs=null", "train.steps=2",
             "train.batch_size=2", "train.micro_batch_size=2", "data.train_share=1", f"model.base={released}",
             *(f"{key}={data}" for key in ("data.train", "data.eval", "evaluate.data")),
             f"run.folder={tmp_path / 'run'}", f"data.cache={tmp_path / 'cache'}"]  # fmt: skip
    assert main(["train", *words]) == 0
    assert main(["evaluate", *words]) == 0
    assert metrics(tmp_path)[score]["records"] == len(rows)


@pytest.mark.parametrize("stem", ["cpm1_chid_zero_shot", "cpm1_classes_zero_shot"])
def test_a_small_twin_of_each_recipe_compares(stem: str, released: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", passage_records(CHID, BLANKS))
    words = [str(RECIPES / f"{stem}.yaml"), "run.threads=1", f"model.base={released}", f"evaluate.data={data}",
             f"run.folder={tmp_path / 'run'}"]  # fmt: skip
    assert main(["evaluate", *words]) == 0
    assert metrics(tmp_path)["likelihood"]["chance"] == pytest.approx(1 / 3)


def test_lines_are_gone_on_with_one_by_one(
    released: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("床前\n举头\nstop\n低头\n"))
    words = ["generate.method=greedy", "generate.max_new_tokens=5", "run.threads=1"]
    assert main(["chat", "--base", str(released), *words]) == 0
    assert capsys.readouterr().out.count("\n") >= 2
