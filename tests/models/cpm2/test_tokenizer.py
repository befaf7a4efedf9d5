"""CPM-2's tokenizer on small vocabularies; the original's are compared in tests/golden."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from hanlin.core.errors import DataError
from hanlin.models.cpm2.tokenizer import Cpm2Tokenizer

SPECIALS = ["<unk>", "<s>", "</s>", "\u2583", "<sep>", "<pad>", "<mask>"]
END = ["<s_0>", "<s_1>"]
CN = [*SPECIALS, "<eod>", "\u2582", "今天", "天", "天气", "，", "A", *END]
CN_EN = [*SPECIALS, "<go>", "<eod>", "\u2582", "今天", "天气", "he", "##llo", "hi", ",", *END]


def test_full_width_letters_are_folded_but_not_chinese_punctuation() -> None:
    tokenizer = Cpm2Tokenizer(CN)
    assert tokenizer.tokens_of(tokenizer.encode("今天Ａ，\u3000天气\n")) == [
        "今天",
        "A",
        "，",
        "\u2582",
        "天气",
        "\u2583",
    ]


def test_each_unknown_character_is_one_unknown_token() -> None:
    assert Cpm2Tokenizer(CN).encode("鑫鑫") == [0, 0]
    assert Cpm2Tokenizer(CN).encode("x" * 201) == [0]


def test_specials_in_a_text_are_no_specials() -> None:
    assert not {"<s_0>", "<pad>"} & set(Cpm2Tokenizer(CN).tokenize("<s_0><pad>"))


def test_spaces_between_english_words_come_back() -> None:
    tokenizer = Cpm2Tokenizer(CN_EN)
    ids = tokenizer.encode("hello hi 今天")
    assert tokenizer.tokens_of(ids) == ["he", "##llo", "hi", "\u2582", "今天"]
    assert tokenizer.decode(ids) == "hello hi 今天"


def test_a_lone_id_is_doubled_unless_told_otherwise() -> None:
    assert Cpm2Tokenizer(CN_EN).encode("\n") == [3, 3]
    assert Cpm2Tokenizer(CN_EN, doubles_lone=False).encode("\n") == [3]
    assert Cpm2Tokenizer(CN_EN).encode("") == []


def test_ids_outside_are_named() -> None:
    for id in (-1, len(CN)):
        with pytest.raises(DataError, match=f"id {id} is not in the vocabulary"):
            Cpm2Tokenizer(CN).decode([id])


def test_other_files_are_no_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"vocab\.txt: this is no CPM-2 vocabulary: it lacks <unk>"):
        Cpm2Tokenizer.load(tmp_path)
    with pytest.raises(DataError, match="there is no vocabulary"):
        Cpm2Tokenizer.load(tmp_path / "none")


def test_it_can_be_sent_to_another_process() -> None:
    tokenizer = pickle.loads(pickle.dumps(Cpm2Tokenizer(CN)))
    assert tokenizer.encode("今天天气") == Cpm2Tokenizer(CN).encode("今天天气")


@pytest.mark.parametrize("words", [CN, CN_EN], ids=["cn", "cn_en"])
def test_many_texts_get_the_ids_of_each(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["今天Ａ，\u3000天气\n", "hello hi hi, 今天", "", " ", "\n\n", "天" * 300, "x\u2582今天 天气", "hi"]
    tokenizer = Cpm2Tokenizer(words)
    each = [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_many(texts) == each
    monkeypatch.setattr("hanlin.tokens.segments._WORTHWHILE", 0)
    assert tokenizer.encode_many(texts) == each
    known = tokenizer.knowing(texts)
    assert [known.encode(text) for text in texts] == each
