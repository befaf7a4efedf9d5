"""A vocabulary learned from texts: the marks stand where the released one has them, texts come back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hanlin.cli.main import main
from hanlin.models.cpm1.tokenizer import load_tokenizer

POEM = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"
MARKS = ["<unk>", "<s>", "</s>", "<sep>", "<pad>", "<mask>", "▃", "<eod>", "▂"]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"{POEM} {number}"}) + "\n" for number in range(30)), "utf-8")
    return path


@pytest.mark.parametrize("name", ["vocab.model", "vocab.txt"])
def test_a_learned_vocabulary_loads_and_gives_texts_back(texts: Path, tmp_path: Path, name: str) -> None:
    assert main(["tokenizer", "train", str(texts), "--out", str(tmp_path / name), "--size", "80"]) == 0
    tokenizer = load_tokenizer(tmp_path / name)
    assert [tokenizer.find(mark) for mark in MARKS] == list(range(len(MARKS)))
    ids = tokenizer.encode(POEM)
    assert tokenizer.find("<unk>") not in ids
    assert tokenizer.decode(ids).replace(",", "，") == POEM
    if name == "vocab.txt":
        assert tokenizer.find("<s_189>") == tokenizer.vocab_size - 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "v.model", "--size", "12"], "--size 12: Vocabulary size is smaller than required_chars"),
        (["--out", "v"], "--out v: its name ends with .model"),
        (["--out", "v.model", "--key", "body"], "a.jsonl:1: no key 'body'"),
    ],
)
def test_mistakes_are_explained(
    texts: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(texts.parent)
    assert main(["tokenizer", "train", str(texts), *words]) == 2
    assert message in capsys.readouterr().err
