import os
import time

import pytest
import torch
from ranks import run_ranks
from torch import distributed

from hanlin.core.ranks import Ranks, read_ranks


def test_each_rank_s_result_comes_back_in_order():
    def work(offset):
        total = torch.tensor([float(distributed.get_rank() + offset)])
        distributed.all_reduce(total)
        return read_ranks(), total

    results = run_ranks(2, work, 10)
    assert [ranks for ranks, _ in results] == [Ranks(0, 2, 0), Ranks(1, 2, 1)]
    assert all(total.item() == 21 for _, total in results)


def test_gradients_are_computed_though_the_parent_computed_some():
    weight = torch.ones(3, requires_grad=True)
    weight.sum().backward()

    def work():
        (weight * 2).sum().backward()
        return weight.grad

    assert all(torch.equal(grad, torch.full((3,), 3.0)) for grad in run_ranks(2, work))


def test_a_failure_shows_its_traceback_and_ends_the_others():
    def work():
        if distributed.get_rank() == 1:
            raise ValueError("the real cause")
        distributed.barrier()

    start = time.monotonic()
    with pytest.raises(AssertionError, match=r"--- rank 1 ---(.|\n)*the real cause"):
        run_ranks(2, work)
    assert time.monotonic() - start < 60  # of the 300 that they had


def test_a_hung_rank_is_killed_at_the_time_out():
    def work():
        if distributed.get_rank() == 0:
            time.sleep(60)
        return os.getpid()

    with pytest.raises(AssertionError, match="too late"):
        run_ranks(2, work, timeout_seconds=0.5)
