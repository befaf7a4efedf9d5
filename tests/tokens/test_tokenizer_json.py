"""tokenizer.json: read by the package tokenizers, it gives the ids of the vocabulary that it was written from."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hanlin.core.errors import DataError
from hanlin.models.chatglm2.tokenizer import GLM4_PATTERN
from hanlin.tokens.byte_ranks import ByteRanks
from hanlin.tokens.sentencepiece import SentencePiece
from hanlin.tokens.sentencepiece_file import read_file
from hanlin.tokens.tokenizer_json import tokenizer_json

TEXTS = Path(__file__).parents[2] / "docs"
LIKE_CHATGLM2 = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "split_digits": True,
}


def _lines() -> list[str]:
    """Text in both languages, code, tables, and letters of all kinds."""
    return [line for page in sorted(TEXTS.glob("*.md")) for line in page.read_text("utf-8").splitlines()]


def _odd_texts(count: int, alphabet: list[str]) -> Iterator[str]:
    draw = random.Random(0)
    letters = [*" \t\n  ▁的一是。，1a0", *alphabet]
    for _ in range(count):
        top = draw.choice([0x7F, 0x7FF, 0xFFFF, 0x1FFFF])
        codes = [draw.randrange(top) for _ in range(draw.randrange(20))]
        yield "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)
        yield "".join(draw.choice(letters) for _ in range(draw.randrange(30)))


def _sentencepiece(**settings: object) -> SentencePiece:
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_lines()),
        model_writer=model,
        vocab_size=3000,
        minloglevel=2,
        **{**LIKE_CHATGLM2, **settings},
    )
    return SentencePiece(model.getvalue())


@pytest.fixture(scope="module")
def pieces() -> SentencePiece:
    return _sentencepiece()


def _read(pieces: SentencePiece | ByteRanks, specials: dict[str, int], prefix: tuple[str, ...] = ()) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(tokenizer_json(pieces, specials, prefix)))


def _hold_equal(theirs: Tokenizer, ours: SentencePiece | ByteRanks, texts: list[str]) -> None:
    ids = ours.encode_many(texts)
    assert [found.ids for found in theirs.encode_batch(texts, add_special_tokens=False)] == ids
    assert [theirs.decode(one, skip_special_tokens=False) for one in ids] == [ours.decode(one) for one in ids]


def test_sentencepieces_get_their_ids_and_texts(pieces: SentencePiece) -> None:
    alphabet = [pieces.piece(id).replace("▁", " ") for id in range(259, pieces.size)]
    _hold_equal(_read(pieces, {}), pieces, [*_lines(), *_odd_texts(1000, alphabet)])


def test_chatglm2s_vocabulary_gets_its_ids_and_texts(shared: Path) -> None:
    pieces = SentencePiece.load(shared / "golden/chatglm2_tokenizer/tokenizer.model")
    alphabet = [pieces.piece(id).replace("▁", " ") for id in range(259, pieces.size)]
    _hold_equal(_read(pieces, {}), pieces, [*_lines(), *_odd_texts(1500, alphabet)])


def test_byte_ranks_get_their_ids_and_texts() -> None:
    ranks = _byte_ranks()
    alphabet = [text for token in ranks.ranks if "�" not in (text := token.decode(errors="replace"))]
    _hold_equal(_read(ranks, {}), ranks, [*_lines(), *_odd_texts(1000, alphabet)])


def _byte_ranks() -> ByteRanks:
    """Trained by the package tokenizers and written as tiktoken's file."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        _lines(), trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, show_progress=False)
    )
    bytes_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    ranked = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    tokens = [bytes(bytes_of[letter] for letter in token) for token, _ in ranked]
    lines = [base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(tokens)]
    return ByteRanks(b"".join(lines), GLM4_PATTERN)


def test_special_tokens_stand_before_a_text_and_part_it(pieces: SentencePiece) -> None:
    end = pieces.size
    found = _read(pieces, {"[gMASK]": end, "<sop>": end + 1}, ("[gMASK]", "<sop>"))
    assert found.encode("你好").ids == [end, end + 1, *pieces.encode("你好")]
    assert found.encode("一<sop>二", add_special_tokens=False).ids == [
        *pieces.encode("一"),
        end + 1,
        *pieces.encode("二"),
    ]
    assert found.decode([end, *pieces.encode("你好")]) == "你好"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model_type": "unigram"}, "algorithm is unigram"),
        ({"normalization_rule_name": "nmt_nfkc"}, "has_charmap is True"),
        ({"remove_extra_whitespaces": True}, "removes_extra_spaces is True"),
        ({"add_dummy_prefix": False}, "adds_space_before is False"),
        ({"byte_fallback": False}, "falls_back_to_bytes is False"),
        ({"user_defined_symbols": ["<a>"]}, "user-defined pieces"),
    ],
)
def test_vocabularies_of_other_kinds_are_refused(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        tokenizer_json(_sentencepiece(**settings), {}, ())


def test_a_model_file_is_read_as_its_library_reads_it(pieces: SentencePiece) -> None:
    file = read_file(pieces.model)
    assert [piece.text for piece in file.pieces] == [pieces.piece(id) for id in range(pieces.size)]
    processor = sentencepiece.SentencePieceProcessor(model_proto=pieces.model)
    assert [piece.score for piece in file.pieces] == [processor.get_score(id) for id in range(pieces.size)]
    with pytest.raises(DataError, match="damaged"):
        read_file(pieces.model[:-7])
