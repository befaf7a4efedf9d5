"""Both vocabularies of CPM-2: the original's tokens, ids and texts."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hanlin.models.cpm2.tokenizer import Cpm2Tokenizer


def check(case: Path, vocab: Path) -> None:
    for name, expected in json.loads((case / "expected.json").read_text("utf-8")).items():
        tokenizer = Cpm2Tokenizer.load(vocab / "cpm2" / name)
        _check_specials(tokenizer, expected)
        for row in expected["cases"]:
            assert tokenizer.tokenize(row["text"]) == row["tokens"], row["text"]
            assert tokenizer.encode(row["text"]) == row["ids"], row["text"]
            assert tokenizer.decode(row["ids"]) == row["decoded"], row["text"]
        for row in expected["decode_random_ids"]:
            assert tokenizer.tokens_of(row["ids"]) == row["tokens"]
            assert tokenizer.decode(row["ids"]) == row["decoded"]
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save(Path(folder))
            again = Cpm2Tokenizer.load(Path(folder))
            assert again.tokens_of(range(again.vocab_size)) == tokenizer.tokens_of(range(tokenizer.vocab_size))


def _check_specials(tokenizer: Cpm2Tokenizer, expected: dict) -> None:
    found = [tokenizer.vocab_size, tokenizer.pad_id, tokenizer.end_id, tokenizer.num_sentinels]
    found += [tokenizer.sentinel(0), tokenizer.sentinel(1)]
    assert found == [expected[name] for name in ("vocab_size", "pad", "eod", "sentinels", "s0", "s1")]
    assert {word: tokenizer.find(word) for word in expected["special"]} == expected["special"]
