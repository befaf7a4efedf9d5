"""Plain values between ranks; a process alone answers itself."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
from ranks import run_ranks
from torch import distributed

from hanlin.core.collectives import (
    broadcast_value,
    call_on_main,
    gather_values,
    has_ranks,
    is_main_rank,
    main_first,
    new_cpu_group,
    wait_for_all,
)
from hanlin.core.errors import CheckpointError, HanlinError


def fail() -> None:
    raise CheckpointError("all are damaged")


def test_a_process_alone_answers_itself() -> None:
    assert not has_ranks()
    assert is_main_rank()
    assert new_cpu_group() is None
    assert gather_values(3) == [3]
    assert broadcast_value(3) == 3
    assert call_on_main(lambda: 3) == 3
    wait_for_all()
    with main_first() as is_main:
        assert is_main
    with pytest.raises(CheckpointError, match="all are damaged"):
        call_on_main(fail)


def test_ranks_hear_each_other() -> None:
    def talk() -> dict[str, Any]:
        rank = distributed.get_rank()
        with pytest.raises(CheckpointError, match="all are damaged"):
            call_on_main(fail)
        return {"gathered": gather_values(rank), "main": broadcast_value(rank + 5), "made": call_on_main(lambda: rank)}

    assert run_ranks(2, talk) == [{"gathered": [0, 1], "main": 5, "made": 0}] * 2


@pytest.mark.parametrize("kind", [CheckpointError, ZeroDivisionError])
def test_ranks_do_not_wait_for_a_main_rank_that_failed(kind: type[Exception]) -> None:
    other_goes_on = multiprocessing.get_context("fork").Event()

    def work() -> tuple[str, bool]:
        try:
            with main_first() as is_main:
                if is_main:
                    raise kind("no such file")
        except (HanlinError, ZeroDivisionError) as error:
            if not is_main_rank():
                other_goes_on.set()
            return f"{type(error).__name__}: {error}", other_goes_on.wait(60)  # the main rank lives on until then
        return "nothing", False

    main, other = run_ranks(2, work)
    assert main == (f"{kind.__name__}: no such file", True)
    expected = main[0] if kind is CheckpointError else f"RankError: rank 0 failed: {main[0]}"
    assert other == (expected, True)
