"""CPM-Bee's and CPM-Ant's tokenizers on many texts: ids, tokens, tables, decoded texts, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from golden_case import Case, needed

from hanlin.core.errors import DataError
from hanlin.models.cpm_bee.ant import CpmAntTokenizer
from hanlin.models.cpm_bee.tokenizer import CpmBeeTokenizer, escape, unescape


def check(case: Case, vocab: Path) -> None:
    bee = CpmBeeTokenizer.load(needed(vocab / "bee" / "bee.txt"))
    ant = CpmAntTokenizer.load(needed(vocab / "bee" / "ant.txt"))
    sizes = {"bee": bee.vocab_size, "ant": ant.vocab_size}
    assert sizes == case.facts.get("vocab_size", sizes)
    assert bee.marks == case.facts.get("special_ids", bee.marks)
    for row in case.json("bee.json", []):
        _check_text(bee, row)
    table: dict[int, str] = {}
    for row in case.json("bee_chain.json", []):
        assert bee.encode(row["text"], table) == row["ids"]
        assert table == _table(row)
    for row in case.json("ant.json", []):
        ids = ant.encode(row["text"])
        assert ids == row["ids"], row["text"]
        assert ant.decode(ids) == row.get("decoded", ant.decode(ids))
    for row in case.json("escape.json", []):
        found = {"escaped": escape(row["text"]), "unescaped": unescape(row["text"])}
        for name, ours in found.items():
            assert ours == row.get(name, ours)
    case.set_aside(r"bee\.json: .*\.message", "of the original's errors, which are refusals in other words here")
    case.set_aside(r"ant\.json: \[\]\.tokens", "its ids are compared, and the words of these have no place in ours")


def _check_text(bee: CpmBeeTokenizer, row: dict[str, Any]) -> None:
    if "error" in row:
        assert row["error"]
        with pytest.raises(DataError, match="character"):
            bee.encode(row["text"])
        return
    table: dict[int, str] = {}
    ids = bee.encode(row["text"], table)
    assert ids == row["ids"], row["text"]
    assert table == _table(row)
    assert bee.decode(ids, table) == row.get("decoded", bee.decode(ids, table))
    tokens, begin, starts = bee.tokenize(row["text"]), 0, []
    for token in tokens:
        starts.append(begin)
        begin += len(token.text)
    found = {
        "tokens": [token.text for token in tokens],
        "is_unk": [token.is_unknown for token in tokens],
        "is_special": [token.is_mark for token in tokens],
        "start": starts,
    }
    for name, ours in found.items():
        assert ours == row.get(name, ours), (name, row["text"])
    if "decoded_no_ext_error" in row:
        assert row["decoded_no_ext_error"]
        with pytest.raises(DataError):
            bee.decode(ids)
    elif "decoded_no_ext" in row:
        assert bee.decode(ids) == row["decoded_no_ext"]


def _table(row: dict[str, Any]) -> dict[int, str]:
    return {int(token): entry for token, entry in row["ext_table"].items()}
