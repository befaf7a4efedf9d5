"""Whether two equations of a mathematics problem have the same value, as CPM-2's `eval_math.py` compares them.

The original evaluates them as Python. Here they are parsed as Python and only numbers and arithmetic are computed, with
the same meaning: `^` is a bitwise exclusive or of whole numbers, `**` a power, `/` true division; without tolerance.
"""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any

# Longer ones are no equation, and could be nested deeper than Python parses.
_MAX_CHARACTERS = 1000
# A power of whole numbers with more binary digits than this is refused: it could take hours.
_MAX_BITS = 10_000
# Of the value (of 1 below that): more than the rounding of a few operations.
_TOLERANCE = 1e-6

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitXor: operator.xor,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Invert: operator.invert,
}
_PERCENT = re.compile(r"([0-9.]+)%")


def has_equal_value(prediction: str, reference: str) -> bool:
    """Whether both can be computed and are equal."""
    try:
        return value_of(prediction) == value_of(reference)
    except (ValueError, ArithmeticError, TypeError, SyntaxError, RecursionError):
        return False


def is_close_in_value(prediction: str, reference: str) -> bool:
    """The standard form: equal up to rounding (1e-6 of the value), and `^` is a power."""
    try:
        found, wanted = (value_of(text.replace("^", "**")) for text in (prediction, reference))
        return abs(found - wanted) <= _TOLERANCE * max(1, abs(wanted))
    except (ValueError, ArithmeticError, TypeError, SyntaxError, RecursionError):
        return False


def share_of_equal_lines(lines: Iterable[str]) -> float:
    """The share, 0 to 1, of lines "prediction reference" whose values are equal; cut at their first space."""
    are_equal = [has_equal_value(*line.rstrip("\n").partition(" ")[::2]) for line in lines]
    return sum(are_equal) / len(are_equal) if are_equal else 0.0


def value_of(equation: str) -> int | float | complex:
    """Compute arithmetic of numbers; "25%" is (25*0.01).

    Raises: ValueError, ArithmeticError, TypeError, SyntaxError or RecursionError for anything else.
    """
    if len(equation) > _MAX_CHARACTERS:
        raise ValueError(f"{len(equation)} characters are no equation")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # such as for "5(3)"
        tree = ast.parse(_PERCENT.sub(r"(\1*0.01)", equation).strip(), mode="eval")
    return _compute(tree.body)


def _compute(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_compute(node.operand))
    if isinstance(node, ast.BinOp):
        left, right = _compute(node.left), _compute(node.right)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        if type(node.op) in _BINARY:
            return _BINARY[type(node.op)](left, right)
    raise ValueError(f"{ast.unparse(node)} is no arithmetic")


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and abs(exponent) * base.bit_length() > _MAX_BITS:
        raise OverflowError(f"{exponent} is too large an exponent")
    return base**exponent
