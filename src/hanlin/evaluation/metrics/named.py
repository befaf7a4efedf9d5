"""The scores of texts against texts that a recipe asks for by name; each number's name says its variant.

Some are those of each text and averaged, others belong to all texts together (Dist-n, corpus BLEU).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .bleu import bleu4_characters_method3
from .corpus import Texts, corpus_scores
from .corpus_standard import standard_scores
from .equation import has_equal_value, is_close_in_value
from .rouge import rouge_jieba_sets
from .text import mean

Scores = dict[str, float]


def _bleu4(prediction: str, reference: str) -> Scores:
    return {"bleu-4 characters method3": bleu4_characters_method3(prediction, reference)}


def _rouge(prediction: str, reference: str) -> Scores:
    return {f"{name} jieba sets": score for name, score in rouge_jieba_sets(prediction, reference).items()}


def _equation(prediction: str, reference: str) -> Scores:
    return {
        "equation eval_math": 100.0 * has_equal_value(prediction, reference),
        "equation within 1e-6": 100.0 * is_close_in_value(prediction, reference),
    }


def _corpus_original(predictions: Texts, references: Texts) -> Scores:
    return {f"{name} original": score for name, score in corpus_scores(predictions, references).items()}


def _characters(predictions: Texts, references: Texts) -> Scores:
    return {f"{name} characters": score for name, score in standard_scores(predictions, references).items()}


NAMED: Mapping[str, Callable[[str, str], Scores]] = {"bleu4": _bleu4, "rouge": _rouge, "equation": _equation}
"""Row, reference -> numbers in 0..100."""

OF_CORPUS: Mapping[str, Callable[[Texts, Texts], Scores]] = {
    "corpus_original": _corpus_original,
    "characters": _characters,
}
"""All predictions, all references -> numbers in 0..100."""

Answers = Sequence[str | None]
"""Of a record; None: one that was not reached, which scores as an empty text."""


def score_texts(names: Sequence[str], predictions: Answers, references: Answers) -> Scores:
    """The named scores of one record, those of a corpus left out: the mean over its answers."""
    pairs = _pairs(predictions, references)
    return {
        variant: mean([NAMED[name](*pair)[variant] for pair in pairs])
        for name in names
        if name in NAMED
        for variant in NAMED[name]("", "")
    }


def score_corpus(names: Sequence[str], predictions: Sequence[Answers], references: Sequence[Answers]) -> Scores:
    """The named scores of all records together, those of single records left out."""
    pairs = [pair for own in zip(predictions, references, strict=True) for pair in _pairs(*own)]
    found, wanted = [list(pair[0]) for pair in pairs], [list(pair[1]) for pair in pairs]
    wished = [OF_CORPUS[name] for name in names if name in OF_CORPUS]
    return {variant: score for scores_of in wished for variant, score in scores_of(found, wanted).items()}


def _pairs(predictions: Answers, references: Answers) -> list[tuple[str, str]]:
    return [(found or "", wanted or "") for found, wanted in zip(predictions, references, strict=True)]
