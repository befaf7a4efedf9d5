"""Every kind of bad row gives one clear line with file, line and reason, and never anything else than a DataError."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hanlin.core.errors import DataError
from hanlin.data.prepare import prepare
from hanlin.models.family import load_family
from hanlin.recipe.settings import DataSettings

MARKS = ["<pad>", "<unk>", "<mask>", "<sep>", "</n>", "</_>", "<s>", "</s>", "<root>", "<ans>", "<option>"]
GOOD = {"input": "甲乙", "<ans>": "丙"}


def row(**changes: object) -> bytes:
    return json.dumps({**GOOD, **changes}, ensure_ascii=False).encode()


def answer(value: object) -> bytes:
    return row(**{"<ans>": value})


BAD_ROWS = {
    "not JSON": (b"input: a", "not JSON: Expecting value at column 1"),
    "single quotes": (b"{'input': 'a', '<ans>': 'b'}", "not JSON: Expecting property name"),
    "trailing comma": (b'{"input": "a", "<ans>": "b",}', "not JSON"),
    "missing quote": (b'{"input": "a, "<ans>": "b"}', "not JSON"),
    "two objects on a line": (row() + row(), "not JSON: Extra data"),
    "an object over several lines": (b"{", "spread over several lines"),
    "bytes of another encoding": (json.dumps(GOOD, ensure_ascii=False).encode("gb18030"), "not UTF-8"),
    "NUL bytes": (b"\0" * 40, "NUL byte at column 1"),
    "NaN": (b'{"input": "a", "<ans>": NaN}', "NaN is no JSON number"),
    "half a character": (b'{"input": "\\ud83d", "<ans>": "a"}', "half a character"),
    "duplicate key": (b'{"input": "a", "input": "b", "<ans>": "c"}', "duplicate key 'input'"),
    "a list": (b'["a", "b"]', "expected an object {...}, found a list"),
    "a string": (b'"a"', "expected an object {...}, found a string"),
    "no answer": (b'{"input": "a"}', 'no "<ans>" at the top of the record'),
    "misspelt answer": (b'{"input": "a", "ans": "b"}', 'is "ans" meant?'),
    "answer further down": (b'{"input": {"<ans>": "b"}}', 'no "<ans>" at the top of the record'),
    "empty answer": (answer(""), '"<ans>" is empty'),
    "empty dict of answers": (answer({}), '"<ans>" holds no place for an answer'),
    "null answer": (answer(None), "<ans>: expected a text or a dict, found null"),
    "answer is a number": (answer(3), 'write it as a text: "3"'),
    "answer is a list": (answer(["a"]), "found a list"),
    "value is a number": (row(question=4), "question: expected a text or a dict, found 4"),
    "value is a list": (row(options=["a", "b"]), "options: expected a text or a dict, found a list"),
    "value is null": (row(question=None), "question: expected a text or a dict, found null"),
    "value deep down": (row(options={"<option_0>": True}), "options.<option_0>: expected a text or a dict"),
    "lone opening bracket": (row(input="甲 < 乙"), "input: "),
    "too long": (row(input="甲" * 200), "too long: 217 tokens, data.max_length is 64"),
}


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*MARKS, *"甲乙丙丁", *map(chr, range(33, 127))]) + "\n", "utf-8")
    return path


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_gives_one_clear_line(tmp_path: Path, vocab: Path, kind: str) -> None:
    line, reason = BAD_ROWS[kind]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([row(), b"", line, row()]) + b"\n")
    family = load_family("cpm_bee")
    tokenizer = family.tokenizer(vocab)
    processor = family.processor(tokenizer, family.config(vocab_size=tokenizer.vocab_size))
    settings = DataSettings(max_length=64, cache=tmp_path / "cache")
    with pytest.raises(DataError) as caught:
        prepare([path], processor, settings, tokenizer=tokenizer, progress=False)
    head, told, *rest = str(caught.value).splitlines()
    assert head == "1 of 3 rows cannot be used."
    assert told.startswith(f"  {path}:3: ")
    assert reason in told
    assert rest[0].startswith("Correct these rows")
    dropping = settings.model_copy(update={"bad_rows": "drop", "overlong": "drop"})
    assert len(prepare([path], processor, dropping, tokenizer=tokenizer, progress=False)) == 2
