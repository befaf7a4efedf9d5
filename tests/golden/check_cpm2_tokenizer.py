"""Both vocabularies of CPM-2: the original's tokens, ids and texts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from golden_case import Case, needed

from hanlin.models.cpm2.tokenizer import Cpm2Tokenizer


def check(case: Case, vocab: Path) -> None:
    for name in (expected := case.json("expected.json")):
        tokenizer = Cpm2Tokenizer.load(needed(vocab / "cpm2" / name))
        _check_specials(tokenizer, expected[name])
        for row in expected[name].get("cases", ()):
            _check_text(tokenizer, row)
        for row in expected[name].get("decode_random_ids", ()):
            _check_ids(tokenizer, row)
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save(Path(folder))
            again = Cpm2Tokenizer.load(Path(folder))
            assert again.tokens_of(range(again.vocab_size)) == tokenizer.tokens_of(range(tokenizer.vocab_size))


def _check_text(tokenizer: Cpm2Tokenizer, row: dict[str, Any]) -> None:
    tokens, ids = tokenizer.tokenize(row["text"]), tokenizer.encode(row["text"])
    assert tokens == row.get("tokens", tokens), row["text"]
    assert ids == row.get("ids", ids), row["text"]
    assert tokenizer.decode(ids) == row.get("decoded", tokenizer.decode(ids)), row["text"]


def _check_ids(tokenizer: Cpm2Tokenizer, row: dict[str, Any]) -> None:
    tokens, text = tokenizer.tokens_of(row["ids"]), tokenizer.decode(row["ids"])
    assert tokens == row.get("tokens", tokens)
    assert text == row.get("decoded", text)


def _check_specials(tokenizer: Cpm2Tokenizer, expected: dict[str, Any]) -> None:
    found = {
        "vocab_size": tokenizer.vocab_size,
        "pad": tokenizer.pad_id,
        "eod": tokenizer.end_id,
        "sentinels": tokenizer.num_sentinels,
        "s0": tokenizer.sentinel(0),
        "s1": tokenizer.sentinel(1),
    }
    for name, ours in found.items():
        assert ours == expected.get(name, ours), name
    for word, id in dict(expected.get("special", {})).items():
        assert tokenizer.find(word) == id, word
