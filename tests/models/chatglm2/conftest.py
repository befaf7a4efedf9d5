from __future__ import annotations

import pytest
from chatglm2_pieces import small_pieces

from hanlin.models.chatglm2.tokenizer import ChatGlm2Tokenizer
from hanlin.tokens.sentencepiece import SentencePiece


@pytest.fixture(scope="session")
def pieces() -> SentencePiece:
    return small_pieces()


@pytest.fixture(scope="session")
def tokenizer(pieces: SentencePiece) -> ChatGlm2Tokenizer:
    return ChatGlm2Tokenizer(pieces)
