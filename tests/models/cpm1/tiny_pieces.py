"""A small vocabulary of CPM-1's kind, trained in a moment."""

from __future__ import annotations

import io

import sentencepiece

from hanlin.models.cpm1.tokenizer import Cpm1Tokenizer
from hanlin.tokens.sentencepiece import SentencePiece

TEXT = (
    "床前 明月 光 疑 是 地上 霜 举头 望 明月 低头 思 故乡 对话 上文 回复 选项 答案 上下文 ▂ ▃ , . : 0 1 2 3 4 5 6 7 8 9"
)
MARKERS = ["<sep>", "<pad>", "<mask>"]


def small_tokenizer() -> Cpm1Tokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 4),
        model_writer=model,
        vocab_size=90,
        hard_vocab_limit=False,
        minloglevel=2,
        control_symbols=MARKERS,
        user_defined_symbols=["<eod>", *(f"\u2581{digit}" for digit in range(10))],
    )
    return Cpm1Tokenizer(SentencePiece(model.getvalue()))
