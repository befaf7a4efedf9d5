"""A small sentencepiece model of ChatGLM2's kind, trained in a moment."""

from __future__ import annotations

import pytest
from chatglm2_pieces import small_pieces

from hanlin.models.chatglm2.tokenizer import ChatGlm2Tokenizer


@pytest.fixture(scope="session")
def chatglm2_tokenizer() -> ChatGlm2Tokenizer:
    return ChatGlm2Tokenizer(small_pieces())
