"""Rows of packed samples: the original's rule, and a whole epoch at once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from hanlin.data.pack import padding_share, plan_rows, pool_rows


def best_fit(lengths: Iterable[int], *, max_length: int, batch_size: int) -> Iterator[list[list[int]]]:
    """Batches of packed rows, as the original CPM-Bee makes them while it reads.

    A sample goes into the open row with the least free space that still takes it (the earliest on a tie), else into a
    new row; as soon as more than `batch_size` rows are open the first `batch_size` are a batch. The rest comes last.
    """
    rows: list[list[int]] = []
    used: list[int] = []
    for number, length in enumerate(lengths):
        fitting = [row for row in range(len(rows)) if used[row] + length <= max_length]
        if fitting:
            best = max(fitting, key=lambda row: used[row])  # max keeps the first of equals
            rows[best].append(number)
            used[best] += length
        else:
            rows.append([number])
            used.append(length)
        if len(rows) > batch_size:
            yield rows[:batch_size]
            rows, used = rows[batch_size:], used[batch_size:]
    if rows:
        yield rows


def test_best_fit_takes_the_fullest_row_that_fits_and_the_earliest_of_equals() -> None:
    # 6 | 7 | 3 joins 7 (left 3, not 4) | 4 joins 6 | 5 | 5 joins the third | 9: a fourth row, so three go out
    assert list(best_fit([6, 7, 3, 4, 5, 5, 9], max_length=10, batch_size=3)) == [
        [[0, 3], [1, 2], [4, 5]],
        [[6]],
    ]
    assert list(best_fit([6, 6, 6, 4], max_length=10, batch_size=5)) == [[[0, 3], [1], [2]]]


def test_best_fit_gives_nothing_for_nothing() -> None:
    assert list(best_fit([], max_length=10, batch_size=3)) == []


def test_a_planned_epoch_holds_every_sample_once_and_no_row_is_too_long() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 101, size=3000)
    order = rng.permutation(3000)
    rows = plan_rows(lengths, order, 100)
    assert sorted(number for row in rows for number in row) == list(range(3000))
    assert max(int(lengths[row].sum()) for row in rows) <= 100
    assert padding_share(lengths, rows, 100) < 0.04


def test_a_planned_epoch_is_the_best_fit_of_the_original_while_all_rows_are_open() -> None:
    lengths = np.random.default_rng(1).integers(1, 60, size=300)
    (expected,) = best_fit(lengths.tolist(), max_length=100, batch_size=1000)
    assert plan_rows(lengths, np.arange(300), 100) == expected


def test_planning_an_epoch_is_fast() -> None:
    lengths = np.random.default_rng(2).integers(20, 200, size=50_000)
    start = time.process_time()
    plan_rows(lengths, np.arange(50_000), 1024)
    assert time.process_time() - start < 1  # a million samples in seconds, on a slow machine too


def test_pooled_rows_have_like_lengths_and_the_rest_comes_last() -> None:
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 1000, size=1003)
    rows = pool_rows(lengths, rng.permutation(1003), 10, rng)
    assert sorted(number for (number,) in rows) == list(range(1003))
    batches = [lengths[np.concatenate(rows[at : at + 10])] for at in range(0, 1000, 10)]
    used = sum(int(batch.sum()) for batch in batches) / sum(int(batch.max()) * 10 for batch in batches)
    assert used > 0.95


@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_few_rows_can_be_pooled(count: int) -> None:
    rng = np.random.default_rng(4)
    assert len(pool_rows(np.full(count, 5), np.arange(count), 4, rng)) == count
