"""Training on the stand-in accelerator (stand_in.py): the CPU's numbers, and never more waits than today.

`make test` runs some cells, `make drill` the others and the whole matrix (matrix.py).
"""

from __future__ import annotations

from typing import Any

import pytest
from asking import ask
from budgets import faults
from cells import Words, some_steps
from layouts import VARIANTS
from sampled import sampled

WORDS = list(some_steps())
_TURNS = {f"{name}.{one.methods[number % len(one.methods)]}." for number, (name, one) in enumerate(VARIANTS.items())}
OFTEN = [words for words in WORDS if words[2].startswith((*_TURNS, "chatglm2.full.", "chatglm2.lora."))]
"""Every variant, each with one method by turns; every optimizer, and inputs of blocks in the CPU's memory."""


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[Words, dict[str, Any]]:
    items = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    return ask(item.callspec.params["words"] for item in items)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("words", sampled([(word,) for word in WORDS], [(word,) for word in OFTEN]), ids=" ".join)
def test_the_numbers_are_the_cpus_and_nothing_waits_for_the_device(
    found: dict[Words, dict[str, Any]], words: Words
) -> None:
    assert not list(faults(words, found[words]))
