from __future__ import annotations

import pytest

from hanlin.evaluation.metrics.named import score_corpus, score_texts


def test_the_names_say_the_variant() -> None:
    scores = score_texts(["bleu4", "rouge"], ["今天天气好"], ["今天天气好"])
    assert scores == {
        "bleu-4 characters method3": pytest.approx(100),
        "rouge-1 jieba sets": pytest.approx(100),
        "rouge-2 jieba sets": pytest.approx(100),
        "rouge-l jieba sets": pytest.approx(100),
    }


def test_several_answers_count_equally_and_a_missing_one_scores_nothing() -> None:
    scores = score_texts(["bleu4"], ["今天天气好", None], ["今天天气好", "北京"])
    assert scores == {"bleu-4 characters method3": pytest.approx(50)}
    assert score_texts([], ["a"], ["b"]) == {}


def test_scores_of_a_corpus_are_of_all_its_texts() -> None:
    found, wanted = [["天气好"], ["天气好"]], [["天气好"], ["天气好"]]
    scores = score_corpus(["corpus_original", "characters", "bleu4"], found, wanted)
    assert scores["dist-3 characters"] == pytest.approx(50)
    assert scores["dist-3 original"] == 0  # each text's only 3-gram is its last one
    assert scores["rouge-l characters"] == pytest.approx(100)
    assert scores["rouge-1 original"] == pytest.approx(100)
    assert not any(name.startswith("bleu-4 characters method3") for name in scores)
    assert score_texts(["corpus_original"], ["天"], ["天"]) == {}


def test_equations_have_a_value_in_both_forms() -> None:
    assert score_texts(["equation"], ["0.1+0.2"], ["0.3"]) == {"equation eval_math": 0, "equation within 1e-6": 100}
    assert score_texts(["equation"], ["2^3"], ["8"]) == {"equation eval_math": 0, "equation within 1e-6": 100}
    assert score_texts(["equation"], ["2^3"], ["1"]) == {"equation eval_math": 100, "equation within 1e-6": 0}
    assert score_texts(["equation"], ["__import__('os')"], ["1"]) == {
        "equation eval_math": 0,
        "equation within 1e-6": 0,
    }
    assert score_texts(["equation"], [None], ["1"]) == {"equation eval_math": 0, "equation within 1e-6": 0}
