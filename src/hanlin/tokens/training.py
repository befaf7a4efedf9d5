"""A vocabulary of CPM-1's kind learned from a user's own texts: sentencepiece, and word pieces for a T5 out of it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from itertools import islice

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from hanlin.core.errors import ConfigError, DataError
from hanlin.tokens.segments import BLANK, LINE_BREAK, join_segments

__all__ = ["train_pieces", "word_pieces"]

NUM_SPANS = 190
"""Tokens for T5's spans, as many as the original vocabulary has."""
_TEXTS_AT_ONCE = 1000
_WORDS_PER_SENTENCE = 200
_WORD_START = "\u2581"
# After <unk>, <s> and </s>: marks that stand for no text, and pieces of the tokenizer's own.
_CONTROLS, _OWN = ("<sep>", "<pad>", "<mask>"), (LINE_BREAK, "<eod>", BLANK)


def train_pieces(
    texts: Iterable[str], size: int, *, coverage: float = 0.9995, normalization: str = "nmt_nfkc"
) -> bytes:
    """The sentencepiece model (unigram) of the texts, cut and made visible as CPM-1's tokenizer does.

    size: pieces at most; coverage: share of all characters that get a piece of their own; normalization:
    CPM-1's makes "，" a ","; word pieces are matched against the text as it is, so they need "identity".
    Raises: ConfigError for a size that the texts cannot fill or that cannot hold their characters, DataError without
    texts.
    """
    model, sentences = io.BytesIO(), _sentences(iter(texts))
    first = next(sentences, None)
    if first is None:
        raise DataError("there is no text to learn a vocabulary from")
    try:
        SentencePieceTrainer.train(
            sentence_iterator=_chained(first, sentences),
            model_writer=model,
            model_type="unigram",
            vocab_size=size,
            hard_vocab_limit=False,
            character_coverage=coverage,
            normalization_rule_name=normalization,
            control_symbols=list(_CONTROLS),
            user_defined_symbols=list(_OWN),
            max_sentence_length=1 << 16,
            num_threads=1,  # more of them change the result
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ConfigError(
            f"--size {size}: {_reason(error)} (raise the size, or lower --coverage, with which rarer characters have "
            "no piece)"
        ) from None
    return model.getvalue()


def word_pieces(model: bytes) -> list[str]:
    """The pieces as a T5's word pieces, by their ids: without marks of a word's start, with tokens for spans."""
    processor = SentencePieceProcessor(model_proto=model)
    pieces = (processor.id_to_piece(id).replace(_WORD_START, "") for id in range(processor.get_piece_size()))
    spans = (f"<s_{number}>" for number in range(NUM_SPANS))
    return [*dict.fromkeys(piece for piece in pieces if piece), *spans]


def _sentences(texts: Iterator[str]) -> Iterator[str]:
    while some := list(islice(texts, _TEXTS_AT_ONCE)):
        for joined in join_segments(some):
            words = joined.split(" ")
            for start in range(0, len(words), _WORDS_PER_SENTENCE):
                yield " ".join(words[start : start + _WORDS_PER_SENTENCE])


def _chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _reason(error: RuntimeError) -> str:
    """sentencepiece's message without its place in the source."""
    return (str(error).rpartition("] ")[2] or str(error)).partition(". ")[0]
