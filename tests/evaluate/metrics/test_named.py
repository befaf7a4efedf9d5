from __future__ import annotations

import pytest

from hanlin.evaluate.metrics.named import score_texts


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
