"""Curves at the points that can be computed by hand."""

from __future__ import annotations

import pytest

from hanlin.training.schedules import Curve, endless_rate, floored_rate


def test_pretraining_rises_falls_and_stops_before_the_end() -> None:
    curve = Curve("linear", peak=1.0, steps=100, warmup=10, least=0.1)
    assert [floored_rate(curve, number) for number in (0, 5, 10)] == [0.0, 0.5, 1.0]
    assert floored_rate(curve, 60) == pytest.approx(0.5)
    assert floored_rate(curve, 90) == floored_rate(curve, 1000) == pytest.approx(0.2)


def test_the_least_rate_does_not_touch_the_warm_up() -> None:
    curve = Curve("cosine", peak=1.0, steps=100, warmup=10, least=0.3)
    assert floored_rate(curve, 1) == pytest.approx(0.1)
    assert floored_rate(curve, 89) == 0.3


def test_fine_tuning_has_no_end() -> None:
    curve = Curve("linear", peak=1.0, steps=10.5, warmup=0.5, least=0.3)
    assert endless_rate(curve, 0) == 0.0
    assert endless_rate(curve, 11) == pytest.approx(0.0)
    assert endless_rate(Curve("exponential", 1.0, 10), 9) == 1.0
