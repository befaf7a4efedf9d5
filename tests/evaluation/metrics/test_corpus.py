"""Scores of a corpus, counted by hand."""

import pytest

from hanlin.evaluation.metrics.bleu import bleu4_corpus_method3, bleu4_method3
from hanlin.evaluation.metrics.corpus import corpus_scores, distinct, distinct_but_last, overlap_f1, rouge_n_joined


def test_dist_counts_every_ngram_and_the_originals_all_but_the_last() -> None:
    assert distinct(["abab"], 2) == pytest.approx(100 * 2 / 3)
    assert distinct_but_last(["abab"], 2) == 100
    assert distinct_but_last(["ab"], 2) == 0


def test_overlap_counts_a_character_as_often_as_the_rarer_side_has_it() -> None:
    assert overlap_f1("aab", "abbb") == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))


def test_joined_rouge_reaches_over_the_borders_of_texts() -> None:
    assert rouge_n_joined(["a", "b"], ["ab"], 2) == 100


def test_a_corpus_of_one_has_the_bleu_of_its_text() -> None:
    assert bleu4_corpus_method3(["abcde"], ["abcdf"]) == bleu4_method3("abcde", "abcdf")


def test_empty_predictions_score_nothing() -> None:
    assert set(corpus_scores([""], ["ab"]).values()) == {0.0}
    assert set(corpus_scores([], []).values()) == {0.0}
