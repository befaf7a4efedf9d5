"""Standard scores of a corpus, counted by hand."""

import math

import pytest

from hanlin.evaluation.metrics.bleu import bleu4_corpus
from hanlin.evaluation.metrics.corpus_standard import rouge_n, standard_scores


def test_bleu_is_of_all_texts_and_not_smoothed() -> None:
    # 9 of 10 characters, 7 of 8 pairs, 5 of 6, 3 of 4; as long as the references.
    expected = 100 * math.exp(sum(map(math.log, (9 / 10, 7 / 8, 5 / 6, 3 / 4))) / 4)
    assert bleu4_corpus(["abcde", "fghij"], ["abcde", "fghiz"]) == pytest.approx(expected)
    assert bleu4_corpus(["abc"], ["abc"]) == 0  # it has no four characters
    assert bleu4_corpus(["abcd"], ["abcdefgh"]) == pytest.approx(100 * math.exp(1 - 2))


def test_rouge_counts_an_ngram_as_often_as_the_rarer_side_has_it() -> None:
    # Two of aab and of abbb are shared: precision 2/3, recall 2/4.
    assert rouge_n("aab", "abbb", 1) == pytest.approx(100 * 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert rouge_n("a", "a", 2) == 0


def test_empty_predictions_score_nothing() -> None:
    assert set(standard_scores([""], ["ab"]).values()) == {0.0}
    assert set(standard_scores([], []).values()) == {0.0}
