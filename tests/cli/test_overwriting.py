"""No command replaces a file that is there, unless it is asked to: it says so before it begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cpm2_tiny import write_original

from hanlin.cli.main import main

ROW = json.dumps({"source": "今天天气", "target": "好"}, ensure_ascii=False)
ASK = ["generate", "--base", "base", "generate.max_new_tokens=2"]
MINE = "the user's own\n"
COMMANDS = {
    "generate, rows": ([*ASK, "--input", "rows.jsonl", "--output", "out"], "out"),
    "generate, a record": ([*ASK, "--record", ROW, "--output", "out"], "out"),
    "generate, streamed": ([*ASK, "--record", ROW, "--stream", "--output", "out"], "out"),
    "evaluate": (["evaluate", "recipe.yaml", "--weights", "base", "--json", "out"], "out"),
    "prepare": (["prepare", "--from", "jsonl", "rows.jsonl", "out.jsonl"], "out.jsonl"),
    "prepare, a folder": (["prepare", "--from", "jsonl", "rows", "made"], "made/rows.jsonl"),
    "prepare, back": (["prepare", "--from", "indexed", "corpus", "o.jsonl", "--vocab", "base"], "o.jsonl"),
    "tokenizer": (["tokenizer", "build", "rows.jsonl", "--out", "out"], "out"),
    "report": (["report", "run", "--output", "page.html"], "page.html"),
    "report, its picture": (["report", "run", "--output", "page.html"], "page.png"),
    "recipes": (["recipes", "copy", "cpm_bee_ccpm_full", "mine.yaml"], "mine.yaml"),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_original(folder).rename("base")
        Path("rows").mkdir()
        for name in ("rows.jsonl", "rows/rows.jsonl"):
            Path(name).write_text(f"{ROW}\n", encoding="utf-8")
        Path("run").mkdir()
        Path("run/metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
        Path("recipe.yaml").write_text(
            "{model: {family: cpm2, base: base}, evaluate: {data: [rows.jsonl], tasks: [loss]}, run: {folder: scored}}"
        )
        Path("texts.txt").write_text("今天天气\n", encoding="utf-8")
        assert main(["prepare", "--to", "indexed", "texts.txt", "corpus", "--vocab", "base", "--family", "cpm2"]) == 0
    return folder


@pytest.fixture(autouse=True)
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path in template.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_that_is_there_is_kept_and_replaced_only_on_request(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words, target = COMMANDS[name]
    if words[:3] == ["prepare", "--from", "indexed"]:
        words = [*words, "--family", "cpm2"]
    path = Path(target)
    path.parent.mkdir(exist_ok=True)
    path.write_text(MINE)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"{target}: exists already" in said
    assert "another name" in said
    assert "--overwrite" in said
    assert path.read_text() == MINE
    assert main([*words, "--overwrite"]) == 0
    assert MINE.encode() not in path.read_bytes()


def test_answers_of_another_command_stay(capsys: pytest.CaptureFixture[str]) -> None:
    ask = [*ASK, "--input", "rows.jsonl", "--output", "out"]
    assert main(ask) == 0
    whole = Path("out").read_bytes()
    assert main([*ask, "run.seed=7"]) == 2
    assert main(ask) == 2
    assert Path("out").read_bytes() == whole
    mark = Path(".out.unfinished")
    mark.write_text("of another command")
    capsys.readouterr()
    assert main(ask) == 2
    assert "choose another --output, or add --overwrite" in capsys.readouterr().err
    assert main([*ask, "--overwrite"]) == 0
    assert Path("out").read_bytes() == whole
    assert not mark.exists()


def test_tokens_that_are_no_corpus_are_not_written_over(capsys: pytest.CaptureFixture[str]) -> None:
    for to, name in (("indexed", "model.bin"), ("indexed-spans", "model_target.bin")):
        Path(name).write_text(MINE)
        words = ["prepare", "--to", to, "texts.txt", "model", "--vocab", "base", "--family", "cpm2"]
        assert main(words) == 2
        assert f"{name}: exists already" in capsys.readouterr().err
        assert Path(name).read_text() == MINE
        Path(name).unlink()


def test_training_keeps_what_no_run_has_written(capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").unlink()
    Path("recipe.yaml").write_text(
        "{model: {family: cpm2, base: base}, tuning: {method: lora, rank: 2}, "
        "data: {train: [rows.jsonl], cache: cache}, train: {steps: 1, batch_size: 1}, run: {folder: mine}}"
    )
    Path("mine/best").mkdir(parents=True)
    Path("mine/best/thesis.txt").write_text(MINE)
    for command in ("check", "train"):
        assert main([command, "recipe.yaml"]) == 2
        assert "mine: holds best, and no config.yaml" in capsys.readouterr().err
    assert main(["train", "recipe.yaml", "--restart"]) == 0
    assert Path("mine/former/1/best/thesis.txt").read_text() == MINE


def test_the_demo_keeps_other_files_and_recipes_that_were_changed(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/vocab.txt").write_text(MINE)
    assert main(["demo", "--folder", "mine"]) == 2
    assert "--folder mine: holds other files than a demo's (vocab.txt)" in capsys.readouterr().err
    Path("demo").mkdir()
    Path("demo/pinyin.yaml").write_text(MINE)
    assert main(["demo"]) == 2
    assert "demo/pinyin.yaml: was changed since a demo wrote it" in capsys.readouterr().err
    assert Path("demo/pinyin.yaml").read_text() == MINE
