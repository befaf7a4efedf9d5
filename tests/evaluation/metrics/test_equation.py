"""Equations are computed as Python computes them, and nothing else is."""

import pytest

from hanlin.evaluation.metrics.equation import has_equal_value, share_of_equal_lines, value_of


@pytest.mark.parametrize(
    ("equation", "value"),
    [("1+2*3", 7), ("-(2**3)", -8), ("7/2", 3.5), ("6^3", 5), ("50%", 0.5), ("1.5%*200", 3.0), (" 4 ", 4)],
)
def test_arithmetic_is_pythons(equation: str, value: float) -> None:
    assert value_of(equation) == value


@pytest.mark.parametrize(
    "equation",
    [
        "__import__('os')",
        "open",
        "a",
        "'a'*9",
        "[1]",
        "(lambda: 1)()",
        "1 if 1 else 2",
        "1.5^2",
        "1/0",
        "08",
        "",
        "x=1",
    ],
)
def test_anything_else_equals_nothing(equation: str) -> None:
    assert not has_equal_value(equation, equation)


@pytest.mark.parametrize("equation", ["9**9**9", "(" * 900 + "1" + ")" * 90, "1" * 2000, "-" * 999 + "1", "2.0**99999"])
def test_what_would_take_too_long_equals_nothing(equation: str) -> None:
    assert not has_equal_value(equation, "1")


def test_lines_are_cut_at_their_first_space() -> None:
    assert share_of_equal_lines(["1+1 2\n", "7 7 7\n", "3\n", "x 1\n"]) == 0.25
