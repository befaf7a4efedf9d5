"""Words of jieba, pieces of a vocabulary: order of the pieces, unknown characters, white space."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from hanlin.core.errors import DataError
from hanlin.tokens.wordpiece import WordPiece

TOKENS = ["<unk>", "清华", "清华大", "大学", "学", "\u2582", "\u2583", "是"]


def test_the_longest_piece_is_taken_first_even_if_the_rest_is_unknown() -> None:
    # jieba's word is 清华大学; 清华 + 大学 would have fitted as well.
    assert WordPiece(TOKENS).encode("清华大学") == [2, 4]


def test_each_unknown_character_is_one_token_and_white_space_is_kept() -> None:
    tokenizer = WordPiece(TOKENS)
    assert tokenizer.encode("是 龘靐\n") == [7, 5, 0, 0, 6]
    assert tokenizer.decode([7, 5, 0, 6, 99, -1]) == "是 <unk>\n"


def test_a_word_above_200_characters_is_one_unknown() -> None:
    tokenizer = WordPiece(["<unk>", "a"])
    assert (tokenizer.encode("a" * 200), tokenizer.encode("a" * 201)) == ([1] * 200, [0])


def test_a_file_of_lines_and_one_of_json_are_read_alike(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("<unk>\n是\n", encoding="utf-8")
    (tmp_path / "vocab.json").write_text('{"是": 1, "<unk>": 0}', encoding="utf-8")
    lines, names = (WordPiece.load(tmp_path / name) for name in ("vocab.txt", "vocab.json"))
    assert lines.tokens == names.tokens == ["<unk>", "是"]
    assert lines.fingerprint == names.fingerprint
    assert pickle.loads(pickle.dumps(lines)).tokens == lines.tokens


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("vocab.txt", "a\nb\n", "lacks <unk>"),
        ("vocab.json", '{"<unk>": 1}', "with the ids 0, 1, 2"),
        ("vocab.json", "{", "no vocabulary"),
    ],
)
def test_what_is_no_vocabulary_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=f"{name}: .*{message}"):
        WordPiece.load(tmp_path / name)
