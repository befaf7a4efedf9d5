"""Answers on the stand-in accelerator (stand_in.py): those of the CPU, with one wait for each token.

Every operation stands in the table of those that Ascend NPUs have (hanlin/diagnosis/npu_operations.py).
"""

from __future__ import annotations

from typing import Any

import pytest
from asking import ask, run_cells
from budgets import faults
from cells import FAMILIES, TOGETHER, TUNED, WAYS, Words, some_answers

ACTS = {
    "tensor": [1, 0, 1],
    "tensor of a number": [1, 0, 1],
    "new_tensor": [1, 0, 1],
    "as_tensor": [1, 0, 1],
    "to": [1, 0, 1],
    "list as index": [1, 0, 2],
    "made there": [0, 0, 2],
    "item": [0, 1, 2],
    "branch": [0, 1, 2],
    "boolean index": [0, 1, 2],
    "tolist": [0, 1, 0],
    "cpu": [0, 1, 1],
    "two products": [0, 0, 3],
}
"""Copies to the device, waits for it, kernel launches."""


@pytest.fixture(scope="module")
def found() -> dict[Words, dict[str, Any]]:
    return ask(some_answers())


@pytest.mark.parametrize("family", sorted({family for family, _ in TUNED}))
def test_answers_are_the_cpus_and_each_token_waits_once(found: dict[Words, dict[str, Any]], family: str) -> None:
    of_family = {words: one for words, one in found.items() if words[2].startswith(f"{family}.")}
    of_family = {words: one for words, one in of_family.items() if not words[2].endswith(TOGETHER)}
    assert {words[2].split(".")[2] for words in of_family} == {*WAYS}
    assert not {words: told for words, one in of_family.items() if (told := list(faults(words, one)))}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_waits_once_whatever_its_rows_ask_for(found: dict[Words, dict[str, Any]], family: str) -> None:
    """Several methods, biases, penalties, and log probabilities that are noted; a lone answer with guesses ahead."""
    [(words, one)] = [item for item in found.items() if item[0][2] == f"{family}.base.{TOGETHER}"]
    assert not list(faults(words, one))


def test_what_a_budget_counts() -> None:
    """Also small tensors that are made of numbers of the host, for which a device waits."""
    assert run_cells(["acts"])[0] == [ACTS]


def test_a_cell_at_which_the_process_dies_is_told() -> None:
    words = ("npu", "fp32", "no-such.base.greedy")
    good = ("npu", "fp32", "cpm1.base.greedy")
    found = ask([good, words])
    assert not list(faults(good, found[good]))
    assert "no-such" in next(faults(words, found[words]))
