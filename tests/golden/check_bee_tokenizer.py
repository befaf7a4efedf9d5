"""CPM-Bee's and CPM-Ant's tokenizers on many texts: ids, tokens, tables, decoded texts, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hanlin.core.errors import DataError
from hanlin.models.cpm_bee.ant import CpmAntTokenizer
from hanlin.models.cpm_bee.tokenizer import CpmBeeTokenizer, escape, unescape


def check(case: Path, vocab: Path) -> None:
    expected = json.loads((case / "case.json").read_text("utf-8"))
    bee = CpmBeeTokenizer.load(vocab / "bee" / "bee.txt")
    ant = CpmAntTokenizer.load(vocab / "bee" / "ant.txt")
    assert {"bee": bee.vocab_size, "ant": ant.vocab_size} == expected["vocab_size"]
    assert bee.marks == expected["special_ids"]
    for row in _rows(case, "bee"):
        _check_text(bee, row)
    table: dict[int, str] = {}
    for row in _rows(case, "bee_chain"):
        assert bee.encode(row["text"], table) == row["ids"]
        assert table == _table(row)
    for row in _rows(case, "ant"):
        assert ant.encode(row["text"]) == row["ids"], row["text"]
        assert ant.decode(row["ids"]) == row["decoded"]
    for row in _rows(case, "escape"):
        assert (escape(row["text"]), unescape(row["text"])) == (row["escaped"], row["unescaped"])


def _check_text(bee: CpmBeeTokenizer, row: dict) -> None:
    if "error" in row:
        with pytest.raises(DataError, match="character"):
            bee.encode(row["text"])
        return
    table: dict[int, str] = {}
    assert bee.encode(row["text"], table) == row["ids"], row["text"]
    assert table == _table(row)
    assert bee.decode(row["ids"], table) == row["decoded"]
    tokens = bee.tokenize(row["text"])
    assert [token.text for token in tokens] == row["tokens"]
    assert [token.is_unknown for token in tokens] == row["is_unk"]
    assert [token.is_mark for token in tokens] == row["is_special"]
    if "decoded_no_ext_error" in row:
        with pytest.raises(DataError):
            bee.decode(row["ids"])
    else:
        assert bee.decode(row["ids"]) == row["decoded_no_ext"]


def _rows(case: Path, name: str) -> list[dict]:
    return json.loads((case / f"{name}.json").read_text("utf-8"))


def _table(row: dict) -> dict[int, str]:
    return {int(token): entry for token, entry in row["ext_table"].items()}
