"""Small vocabularies of ChatGLM2's kind (sentencepiece, trained in a moment) and of GLM-4's (bytes with ranks)."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import cache
from io import BytesIO

from sentencepiece import SentencePieceTrainer

from hanlin.tokens.sentencepiece import SentencePiece

LINES = ("[Round 1]\n\n问：你好\n\n答：你好，世界！", "类型#裤*颜色#黑色", "黑色九分裤，简单百搭。", "Hello world") * 4


@cache
def small_pieces(lines: Sequence[str] = LINES, vocab_size: int = 340) -> SentencePiece:
    model = BytesIO()
    SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=vocab_size, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, minloglevel=2,
    )  # fmt: skip
    return SentencePiece(model.getvalue())


def small_byte_ranks() -> bytes:
    """GLM-4's tokenizer.model: the 256 bytes, and joined: 你, 好, 你好, ab."""
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += ["你".encode()[:2], "你".encode(), "好".encode()[:2], "好".encode(), "你好".encode(), b"ab"]
    return b"".join(base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(tokens))
