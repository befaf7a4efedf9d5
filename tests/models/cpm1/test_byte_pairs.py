"""GPT-2's byte-level vocabulary: pieces, joined pairs, the way back, and transformers' ids."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path

import pytest

from hanlin.core.errors import DataError
from hanlin.models.cpm1.byte_pairs import BytePairTokenizer, _letters, cut_pieces
from hanlin.models.cpm1.tokenizer import load_tokenizer

MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w"), ("æ", "Ĺ"), ("æĹ", "¥"), ("'", "s")]
TEXTS = [
    "hello world's  end\n\n x",
    " ",
    "日本 hello日 1²3½ ⅷ",
    "it'S we're 'll  ",
    "a\u3000b\xa0c\t\td",
    "🙂 e\u0301_-",
    "",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokens = [*_letters().values(), *("".join(pair) for pair in MERGES), "<|endoftext|>"]
    ids = {token: id for id, token in enumerate(tokens)}
    (tmp_path / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    lines = "".join(f"{left} {right}\n" for left, right in MERGES)
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{lines}", encoding="utf-8")
    return tmp_path


def test_texts_are_cut_into_words_numbers_and_marks() -> None:
    assert list(cut_pieces("I've 12 cats!!  \n ok")) == ["I", "'ve", " 12", " cats", "!!", "  \n", " ok"]


def test_pairs_are_joined_in_their_order(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, BytePairTokenizer)
    assert [tokenizer.decode([id]) for id in tokenizer.encode("hello w日's")] == ["hell", "o", " w", "日", "'s"]
    assert tokenizer.find("<|endoftext|>") == tokenizer.vocab_size - 1


def test_every_text_comes_back(folder: Path, tmp_path: Path) -> None:
    tokenizer = BytePairTokenizer.load(folder / "vocab.json")
    saved = tmp_path / "saved"
    saved.mkdir()
    tokenizer.save(saved)
    for copy in (tokenizer, load_tokenizer(saved), pickle.loads(pickle.dumps(tokenizer))):
        assert [copy.decode(copy.encode(text)) for text in TEXTS] == TEXTS
        assert copy.fingerprint == tokenizer.fingerprint


def test_ids_are_those_of_transformers(folder: Path) -> None:
    pytest.importorskip("transformers", reason="needs the package transformers")
    from transformers import GPT2Tokenizer

    theirs = GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    ours, draw = BytePairTokenizer.load(folder / "vocab.json"), random.Random(0)
    letters = "helo wd's1²½ \n\t\u3000日本語🙂_'rve!?\xa0ⅷ"
    for text in [*TEXTS, *("".join(draw.choices(letters, k=20)) for _ in range(300))]:
        assert ours.encode(text) == theirs(text)["input_ids"], repr(text)


def test_another_vocabulary_is_refused(folder: Path) -> None:
    (folder / "vocab.json").write_text('{"a": 0}', encoding="utf-8")
    with pytest.raises(DataError, match="it lacks the bytes"):
        load_tokenizer(folder)
    (folder / "vocab.json").write_text("[", encoding="utf-8")
    with pytest.raises(DataError, match="no byte-level vocabulary"):
        load_tokenizer(folder)
