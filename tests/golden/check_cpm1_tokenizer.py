"""The sentencepiece tokenizer of the released models, and the word pieces of the pretraining program."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hanlin.models.cpm1.tokenizer import Cpm1Tokenizer, load_tokenizer
from hanlin.tokens.segments import BLANK, LINE_BREAK
from hanlin.tokens.wordpiece import WordPiece


def check(case: Path, vocab: Path) -> None:
    facts = json.loads((case / "case.json").read_text())
    rows = json.loads((case / "expected.json").read_text())
    folder = vocab / "cpm1"
    released = Cpm1Tokenizer.load(folder / "chinese_vocab.model")
    words = WordPiece.load(folder / "t5_vocab.txt")
    for name, tokenizer in (("gpt2", released), ("t5", words)):
        assert tokenizer.vocab_size == facts["special_ids"][f"{name}_vocab_size"]
        for token, id in facts["special_ids"][name].items():
            assert tokenizer.find(token) == id, (name, token)
    assert (released.find(BLANK), released.find(LINE_BREAK)) == (10, 3)

    _check_rows(released, rows, "")
    _check_rows(words, rows, "t5_")
    _check_rows(WordPiece.load(folder / "vocab.json"), rows, "gpt2_womerge_")
    assert released.encode_many([row["text"] for row in rows]) == [row["ids"] for row in rows]
    with tempfile.TemporaryDirectory() as temporary:
        for tokenizer, prefix in ((released, ""), (words, "t5_")):
            saved = Path(temporary) / f"saved{prefix}"
            saved.mkdir()
            tokenizer.save(saved)
            _check_rows(load_tokenizer(saved), rows[:3], prefix)


def _check_rows(tokenizer: Cpm1Tokenizer | WordPiece, rows: list[dict], prefix: str) -> None:
    for row in rows:
        assert tokenizer.encode(row["text"]) == row[f"{prefix}ids"], row["text"]
        assert tokenizer.decode(row[f"{prefix}ids"]) == row[f"{prefix}decoded"], row["text"]
