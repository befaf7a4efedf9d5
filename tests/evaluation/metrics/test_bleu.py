import math

import pytest

from hanlin.evaluation.metrics.bleu import bleu4_characters_method3 as bleu


def test_equal_texts_score_all():
    assert bleu("黑色九分裤", "黑色九分裤") == pytest.approx(100)


@pytest.mark.parametrize(("prediction", "reference"), [("", "好"), ("", ""), ("好", ""), ("完全", "不同")])
def test_nothing_shared_scores_nothing(prediction, reference):
    assert bleu(prediction, reference) == 0


def test_zero_precisions_are_smoothed_in_their_order():
    # Precisions 1, then 1/2, 1/4, 1/8 for the three orders that a single character cannot have.
    assert bleu("好", "好") == pytest.approx(100 * (1 / 2 / 4 / 8) ** 0.25)


def test_a_short_prediction_is_punished():
    # 4 of 4, 3 of 3, ... shared; half as long as the reference.
    assert bleu("甲乙丙丁", "甲乙丙丁戊己庚辛") == pytest.approx(100 * math.exp(1 - 8 / 4))


def test_a_repeated_character_counts_as_often_as_in_the_reference():
    # 1 of 4; no pairs: 1/(2*3), 1/(4*2), 1/(8*1).
    assert bleu("好好好好", "好坏") == pytest.approx(100 * (1 / 4 / 6 / 8 / 8) ** 0.25)
