"""The sentencepiece tokenizer of the released models, and the word pieces of the pretraining program."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from golden_case import Case, needed

from hanlin.models.cpm1.tokenizer import Cpm1Tokenizer, load_tokenizer
from hanlin.tokens.segments import BLANK, LINE_BREAK, cut_segments
from hanlin.tokens.wordpiece import WordPiece


def check(case: Case, vocab: Path) -> None:
    rows, folder = case.json("expected.json"), vocab / "cpm1"
    released = Cpm1Tokenizer.load(needed(folder / "chinese_vocab.model"))
    words = WordPiece.load(needed(folder / "t5_vocab.txt"))
    special = case.facts.get("special_ids", {})
    for name, tokenizer in (("gpt2", released), ("t5", words)):
        assert tokenizer.vocab_size == special.get(f"{name}_vocab_size", tokenizer.vocab_size)
        for token, id in special.get(name, {}).items():
            assert tokenizer.find(token) == id, (name, token)
    assert (released.find(BLANK), released.find(LINE_BREAK)) == (10, 3)

    _check_rows(released, rows, "")
    _check_rows(words, rows, "t5_")
    _check_rows(WordPiece.load(folder / "vocab.json"), rows, "gpt2_womerge_")
    _check_pieces(released, rows)
    told = [row for row in rows if "ids" in row]
    assert released.encode_many([row["text"] for row in told]) == [row["ids"] for row in told]
    with tempfile.TemporaryDirectory() as temporary:
        for tokenizer, prefix in ((released, ""), (words, "t5_")):
            saved = Path(temporary) / f"saved{prefix}"
            saved.mkdir()
            tokenizer.save(saved)
            _check_rows(load_tokenizer(saved), rows[:3], prefix)
    case.set_aside(r"expected\.json: \[\]\.hf_.*", "transformers' CpmTokenizer, which is none of the originals'")


def _check_rows(tokenizer: Cpm1Tokenizer | WordPiece, rows: list[dict[str, Any]], prefix: str) -> None:
    for row in (row for row in rows if f"{prefix}ids" in row):
        assert tokenizer.encode(row["text"]) == row[f"{prefix}ids"], row["text"]
        if f"{prefix}decoded" in row:
            assert tokenizer.decode(row[f"{prefix}ids"]) == row[f"{prefix}decoded"], row["text"]


def _check_pieces(tokenizer: Cpm1Tokenizer, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if "pieces" in row and "ids" in row:
            assert [tokenizer.pieces.piece(id) for id in row["ids"]] == row["pieces"], row["text"]
        if "jieba" in row:
            words = [word.replace(" ", BLANK).replace("\n", LINE_BREAK) for word in row["jieba"]]
            assert list(cut_segments(row["text"])) == words, row["text"]
