"""Of a tokenizer: texts come back, and so does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from family_cases import Case

from hanlin.data.prepare import hash_tokenizer


def test_a_text_of_known_tokens_comes_back(case: Case) -> None:
    for text in case.texts:
        ids = case.tokenizer.encode(text)
        assert all(0 <= id < case.tokenizer.vocab_size for id in ids), text
        assert case.tokenizer.decode(ids) == text


def test_many_texts_at_once_get_the_same_ids(case: Case) -> None:
    if hasattr(case.tokenizer, "encode_many"):
        assert case.tokenizer.encode_many(list(case.texts)) == list(map(case.tokenizer.encode, case.texts))


def test_a_saved_tokenizer_gives_the_same_ids_and_has_the_same_fingerprint(case: Case, tmp_path: Path) -> None:
    case.tokenizer.save(tmp_path)
    again = case.family.tokenizer(tmp_path)
    assert again.vocab_size == case.tokenizer.vocab_size
    assert list(map(again.encode, case.texts)) == list(map(case.tokenizer.encode, case.texts))
    assert _fingerprints(again) == _fingerprints(case.tokenizer)


def _fingerprints(tokenizer: Any) -> list[str]:
    """Of what it saves, which names the cache of the data; and its own, where it has one."""
    own = [tokenizer.fingerprint] if hasattr(tokenizer, "fingerprint") else []
    return [hash_tokenizer(tokenizer), *own]
