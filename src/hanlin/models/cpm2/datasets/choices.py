"""Numbered options, as the templates of C3 and CCPM write them."""

from __future__ import annotations

from collections.abc import Sequence

from hanlin.core.errors import DataError
from hanlin.data.processor import SoftPrompts

from ..pieces import Mark, Piece, Prompts

NUMBERS = tuple(map(Mark, "一二三四五六七八"))
PAUSE, END = Mark("、"), Mark("；")
RATIOS = (0.5, 0.5, 0.0, 0.0)
# Soft prompts before each option.
_PROMPTS_EACH = 3


def write_choices(choices: Sequence[str], prompts: SoftPrompts | None = None) -> list[Piece]:
    """一、...；二、...； with three prompts before each if there are any.

    Raises: DataError when there are too many.
    """
    if len(choices) > len(NUMBERS):
        raise DataError(f"at most {len(NUMBERS)} options can be numbered; found {len(choices)}")
    return [piece for number, choice in enumerate(choices) for piece in _choice(number, choice, prompts)]


def num_choice_prompts(choices: Sequence[str]) -> int:
    """The prompts that the options use; the others begin after them."""
    return _PROMPTS_EACH * len(choices)


def between(prompts: SoftPrompts, place: int) -> list[Piece]:
    """The prompts between two parts of a template, or a mark where no share of them is asked for."""
    borders, ratios = prompts.borders(RATIOS), prompts.ratios or RATIOS
    mark = [] if ratios[place] > 0 else [END]
    return [*mark, Prompts(borders[place - 1], borders[place])]


def _choice(number: int, choice: str, prompts: SoftPrompts | None) -> list[Piece]:
    first = _PROMPTS_EACH * number
    before = [] if prompts is None else [Prompts(first, first + _PROMPTS_EACH)]
    return [*before, NUMBERS[number], PAUSE, choice, END]
