from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanlin.core.errors import CheckpointError, DataError
from hanlin.evaluation.decisions.answers import answer_of, probabilities_of
from hanlin.evaluation.decisions.calibration import (
    LARGEST,
    SMALLEST,
    Trial,
    calibrate,
    calibration_error,
    fit_temperature,
    quality_of,
    read_calibration,
    write_calibration,
)
from hanlin.evaluation.decisions.questions import read_questions
from hanlin.evaluation.decisions.reliability_diagram import draw_reliability
from hanlin.evaluation.decisions.scoring import OptionScores
from hanlin.evaluation.results import Identity

NOBODY = Identity((), "0")
scores = st.lists(st.floats(-50, 50), min_size=1, max_size=6).map(lambda values: OptionScores(tuple(values), 2.0))
temperatures = st.floats(0.05, 100)
trials = st.lists(
    st.lists(st.floats(-20, 20), min_size=2, max_size=4).flatmap(
        lambda logits: st.integers(0, len(logits) - 1).map(lambda gold: Trial(np.array(logits), gold))
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(scores, temperatures)
def test_probabilities_sum_to_one_and_keep_the_order_of_the_scores(scores: OptionScores, temperature: float) -> None:
    chances = probabilities_of(scores, temperature)
    assert all(0 <= chance <= 1 for chance in chances)
    if len(chances) > 1:
        assert sum(chances) == pytest.approx(1)
        assert chances[int(np.argmax(scores.scores))] == max(chances)


@settings(max_examples=60, deadline=None)
@given(scores, temperatures, st.randoms(use_true_random=False))
def test_the_order_of_options_changes_no_probability(scores: OptionScores, temperature: float, draws) -> None:
    order = list(range(len(scores.scores)))
    draws.shuffle(order)
    turned = OptionScores(tuple(scores.scores[place] for place in order), scores.tokens)
    chances = probabilities_of(scores, temperature)
    assert probabilities_of(turned, temperature) == pytest.approx([chances[place] for place in order], abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(scores)
def test_temperature_one_is_none(scores: OptionScores) -> None:
    if len(scores.scores) > 1:
        logits = np.array(scores.scores) * 2.0
        expected = np.exp(logits - logits.max())
        assert probabilities_of(scores, 1.0) == pytest.approx(list(expected / expected.sum()))
    else:
        assert probabilities_of(scores) == pytest.approx([1 / (1 + math.exp(-2.0 * scores.scores[0]))])


@settings(max_examples=60, deadline=None)
@given(trials)
def test_no_other_temperature_makes_the_right_answers_likelier(trials: list[Trial]) -> None:
    fitted = fit_temperature(trials)
    assert SMALLEST <= fitted <= LARGEST
    best = quality_of([(trial, fitted) for trial in trials]).negative_log_likelihood
    for other in (SMALLEST, 0.3, 1.0, 2.5, LARGEST, fitted * 0.9, fitted * 1.1):
        if SMALLEST <= other <= LARGEST:
            assert best <= quality_of([(trial, other) for trial in trials]).negative_log_likelihood + 1e-9


def drawn_trials(temperature: float, count: int = 2000) -> list[Trial]:
    """Right answers drawn from the logits divided by a temperature, which is the one to be found."""
    draws = np.random.default_rng(5)
    logits = draws.normal(scale=3.0, size=(count, 3))
    chances = np.exp(logits / temperature)
    chances /= chances.sum(-1, keepdims=True)
    return [Trial(row, int(draws.choice(3, p=own))) for row, own in zip(logits, chances, strict=True)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_temperature_that_answers_were_drawn_with_is_found(temperature: float) -> None:
    trials = drawn_trials(temperature)
    assert fit_temperature(trials) == pytest.approx(temperature, rel=0.1)
    found = calibrate(trials, NOBODY, NOBODY)
    assert found.after.accuracy == found.before.accuracy
    assert found.after.calibration_error < 0.03
    if temperature != 1.0:
        assert found.before.calibration_error > 0.08
        assert found.after.negative_log_likelihood < found.before.negative_log_likelihood


def test_the_calibration_error_of_a_case_by_hand() -> None:
    """Bins (0.6, 0.667] and (0.8, 0.867]: |1/2 - 0.65| * 1/2 + |1 - 0.85| * 1/2."""
    assert calibration_error([0.65, 0.65, 0.85, 0.85], [True, False, True, True]) == pytest.approx(0.15)


def test_rows_that_are_all_right_or_all_wrong_lead_to_a_bound() -> None:
    right = [Trial(np.array([2.0, 0.0]), 0)] * 20
    wrong = [Trial(np.array([2.0, 0.0]), 1)] * 20
    assert fit_temperature(right) == SMALLEST
    assert fit_temperature(wrong) == LARGEST
    assert calibrate(right, NOBODY, NOBODY).is_at_bound


def test_a_temperature_that_does_not_hold_on_other_rows_is_not_taken() -> None:
    """Of guesses a few rows ask for one temperature, others for another one."""
    draws = np.random.default_rng(1)
    trials = [Trial(draws.normal(scale=0.1, size=2), int(draws.integers(2))) for _ in range(12)]
    found = calibrate(trials, NOBODY, NOBODY)
    assert found.temperature == 1.0
    assert found.after == found.before


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(DataError, match="9 questions with a known answer are too few"):
        calibrate([Trial(np.array([1.0, 0.0]), 0)] * 9, NOBODY, NOBODY)


def test_a_calibration_comes_back_from_its_file_and_a_broken_one_is_told(tmp_path: Path) -> None:
    path, found = tmp_path / "calibration.json", calibrate(drawn_trials(2.0, 40), Identity(("a",), "1"), NOBODY)
    write_calibration(path, found)
    assert read_calibration(path) == found
    path.write_text(path.read_text().replace(str(found.temperature), "0"))
    with pytest.raises(CheckpointError, match="no calibration"):
        read_calibration(path)
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="no calibration"):
        read_calibration(path)


def test_the_diagram_is_a_picture() -> None:
    assert draw_reliability(drawn_trials(2.0, 40)).startswith(b"\x89PNG")


def test_a_score_is_the_mean_of_the_levels() -> None:
    [question] = read_questions([{"type": "score", "instructions": "", "levels": [{"label": n} for n in "abc"]}])
    answer = answer_of(question, [0.1, 0.2, 0.7])
    assert answer["score"] == pytest.approx(1.6)
    assert answer["confidence"] == 0.7
    assert answer["probabilities"][2] == {"label": "c", "value": 2, "probability": 0.7}
