"""From a text file to a pretrained model and its perplexity, by commands alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from worlds import pretraining_recipe, write_poems, write_recipe

from hanlin.cli.main import main
from hanlin.data.pretraining.indexed_data import IndexedData


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_poems(tmp_path, 12)
    return write_recipe(tmp_path / "recipe.yaml", pretraining_recipe(tmp_path, "poems.txt", "run"))


def test_a_text_is_pretrained_on_and_its_test_part_scored(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(recipe)]) == 0
    assert main(["train", str(recipe)]) == 0
    assert main(["evaluate", str(recipe)]) == 0
    folder = recipe.parent / "run"
    found = json.loads((folder / "evaluation" / "metrics.json").read_text())["windows"]
    assert found["tokens"] == found["characters"] == found["windows"] * 16  # each character is a token here
    assert found["character_perplexity"] == found["perplexity"]
    assert 1 < found["perplexity"] < 40
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum("eval_loss" in step for step in steps) == 2
    assert [path.name.split("-")[0] for path in (recipe.parent / "cache").iterdir()].count("corpus") == 1


def test_a_column_of_tables_is_pretrained_on_as_the_text_is(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (recipe.parent / "poems.txt").read_text("utf-8").splitlines()
    for number in range(2):
        part = pa.table({"poem": lines[number * 30 : number * 30 + 30], "n": list(range(30))})
        pq.write_table(part, recipe.parent / f"part-{number}.parquet", row_group_size=7)
    tables = [f"data.train=['{recipe.parent}/part-*.parquet']", "data.text_key=poem", "train.steps=2"]
    losses = []
    for words in ([*tables, f"run.folder={recipe.parent}/tables"], ["train.steps=2"]):
        assert main(["check", str(recipe), *words]) == 0
        assert main(["train", str(recipe), *words]) == 0
        folder = recipe.parent / ("tables" if words[0] == tables[0] else "run")
        steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([value for step in steps for name, value in step.items() if "loss" in name])
    assert losses[0] == losses[1]
    capsys.readouterr()
    assert main(["check", str(recipe), tables[0]]) == 2
    assert "part-0.parquet: there is no column 'text' (it has: poem, n)" in capsys.readouterr().err
    command = ["prepare", "--to", "indexed", "--family", "cpm1", "--vocab", str(recipe.parent / "vocab.txt")]
    (recipe.parent / "rows.csv").write_text("text,n\n床前明月\n思故乡,1\n", "utf-8")
    assert main([*command, str(recipe.parent / "rows.csv"), str(recipe.parent / "corpus")]) == 2
    assert "rows.csv:2: 1 value, the first line names 2 columns" in capsys.readouterr().err
    assert main([*command, "--bad-rows", "drop", str(recipe.parent / "rows.csv"), str(recipe.parent / "corpus")]) == 0
    assert len(IndexedData(recipe.parent / "corpus")) == 1


def test_texts_are_written_along_the_way_and_change_nothing(recipe: Path) -> None:
    assert main(["train", str(recipe)]) == 0
    writes = ['train.samples=[{"prompt": "床前"}, {"prompt": ""}]', "generate.max_new_tokens=5"]
    watched = recipe.parent / "watched"
    assert main(["train", str(recipe), f"run.folder={watched}", *writes]) == 0
    rows = [json.loads(line) for line in (watched / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["step"], row["prompt"]) for row in rows] == [(2, "床前"), (2, ""), (4, "床前"), (4, "")]
    assert all(isinstance(row["answer"], str) for row in rows)
    assert _losses(watched) == _losses(recipe.parent / "run")


def test_texts_that_have_no_room_are_told_before_training(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = 'train.samples=[{"prompt": "床前"}, {"prompt": 3}]'
    assert main(["check", str(recipe), samples, "generate.max_new_tokens=15"]) == 2
    told = capsys.readouterr().err
    assert "train.samples: entry 1" not in told
    assert "train.samples: entry 2: " in told
    assert main(["check", str(recipe), samples]) == 2
    assert "entry 1: its prompt has 1 tokens and up to 100 may follow, but the model reads" in capsys.readouterr().err


def _losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row.get("loss", row.get("eval_loss")) for row in rows]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.split=0,1", "data.split: '0,1' leaves nothing to train on"),
        ("data.split=many", "data.split: 'many'"),
        ("data.pack=true", "data.pack: has no effect with data.split"),
        ("data.split=null", "poems.txt:1"),
        ("model.config.max_length=8", "data.max_length: 16 tokens"),
    ],
)
def test_what_cannot_work_is_said_before(
    recipe: Path, change: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(recipe), change]) != 0
    shown = capsys.readouterr()
    assert message in shown.out + shown.err


def test_a_corpus_without_a_split_is_explained(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recipe.parent
    words = ["--to", "indexed", str(folder / "poems.txt"), str(folder / "corpus"), "--vocab", str(folder / "vocab.txt")]
    assert main(["prepare", *words]) == 0
    changes = [f"data.train=[{folder / 'corpus'}]"]
    assert main(["check", str(recipe), *changes]) == 0
    assert main(["check", str(recipe), *changes, "data.split=null"]) != 0
    shown = capsys.readouterr()
    assert "is a token corpus; say how to divide it" in shown.out + shown.err


@pytest.mark.parametrize(
    ("damage", "said"),
    [("int32", "the ids are likely int32, the index says uint16"), ("vocabulary", "but the tokenizer has")],
)
def test_check_prepare_and_train_refuse_the_same_corpora(
    recipe: Path, damage: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recipe.parent
    corpus, vocab = folder / "corpus", str(folder / "vocab.txt")
    assert main(["prepare", "--to", "indexed", str(folder / "poems.txt"), str(corpus), "--vocab", vocab]) == 0
    ids = np.fromfile(f"{corpus}.bin", "<u2")
    if damage == "int32":
        ids.astype("<i4").tofile(f"{corpus}.bin")
    else:
        ids[-1] = 60_000
        ids.tofile(f"{corpus}.bin")
    changes = [f"data.train=[{corpus}]"]
    back = ["prepare", "--from", "indexed", str(corpus), str(folder / "back.jsonl"), "--vocab", vocab]
    for command in (["check", str(recipe), *changes], ["train", str(recipe), *changes], back):
        capsys.readouterr()
        assert main(command) == 2
        assert said in capsys.readouterr().err
    assert not (folder / "run" / "checkpoints").exists()
    assert not (folder / "back.jsonl").exists()


def test_a_run_does_not_go_on_with_another_vocabulary(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the data are ids, which do not tell what they stood for."""
    folder = recipe.parent
    vocab = folder / "vocab.txt"
    words = [str(folder / "poems.txt"), str(folder / "corpus"), "--vocab", str(vocab)]
    assert main(["prepare", "--to", "indexed", *words]) == 0
    changes = [f"data.train=[{folder / 'corpus'}]", "train.steps=2"]
    assert main(["train", str(recipe), *changes]) == 0
    tokens = vocab.read_text(encoding="utf-8").split("\n")
    tokens[-3:-1] = tokens[-2:-4:-1]
    vocab.write_text("\n".join(tokens), encoding="utf-8")
    capsys.readouterr()
    assert main(["train", str(recipe), *changes, "train.steps=4"]) == 2
    assert "model.vocab content" in capsys.readouterr().err
