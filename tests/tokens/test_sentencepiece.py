from io import BytesIO

import pytest
from sentencepiece import SentencePieceTrainer

from hanlin.core.errors import DataError
from hanlin.tokens.sentencepiece import SentencePiece


@pytest.fixture(scope="module")
def pieces() -> SentencePiece:
    model = BytesIO()
    SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter(["你好 世界"] * 4), model_writer=model, model_type="bpe", vocab_size=270,
        byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    return SentencePiece(model.getvalue())


def test_texts_survive(pieces):
    assert pieces.decode(pieces.encode("你好 世界 abc 😀")) == "你好 世界 abc 😀"


def test_markers_part_the_bytes_around_them(pieces):
    emoji = pieces.encode("😀")[-4:]
    assert pieces.decode(emoji) == "😀"
    assert pieces.decode([emoji[0], 1, *emoji[1:]]) == "\ufffd" * 4
    assert pieces.decode([emoji[0], 99999, *emoji[1:]]) == "\ufffd" * 4


def test_pieces_are_found_by_name(pieces):
    assert pieces.piece(pieces.find("</s>")) == "</s>"
    assert pieces.find("no such piece") is None


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.model: cannot be read"):
        SentencePiece.load(tmp_path / "none.model")
