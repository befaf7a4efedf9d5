from __future__ import annotations

import inspect
import multiprocessing
import os
import re
import signal
import socket
from contextlib import suppress
from threading import BrokenBarrierError

import pytest
import torch
from ranks import run_ranks
from torch import distributed

from hanlin.core.errors import DataError, RankError, noting
from hanlin.core.ranks import LISTENING, meeting_socket
from hanlin.parallel import failure_report
from hanlin.parallel.failure_report import report_failures

CPU = torch.device("cpu")


@pytest.fixture
def _meeting_place(monkeypatch):
    """Where the ranks meet, as a launcher would tell them; a short roll call, so that a test is over soon."""
    with meeting_socket() as listening:
        monkeypatch.setenv("MASTER_PORT", str(listening.getsockname()[1]))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv(LISTENING, str(listening.fileno()))
        monkeypatch.setattr(failure_report, "ROLL_CALL_SECONDS", 3.0)
        yield


def joined(world, body, *, timeout_seconds=20.0, interface=None):
    """Run the body on ranks that meet by themselves; on each rank what it returned, or the text of its RankError.

    body: may take an event, which is set when the first rank has its error.
    """
    fork = multiprocessing.get_context("fork")
    end, told = fork.Barrier(world), fork.Event()

    def rank():
        distributed.barrier()
        distributed.destroy_process_group()  # the one of run_ranks
        if interface:
            os.environ["GLOO_SOCKET_IFNAME"] = interface
        try:
            with report_failures(CPU, timeout_seconds=timeout_seconds), noting(lambda: "step=7"):
                return body(told) if inspect.signature(body).parameters else body()
        except (RankError, DataError) as error:
            told.set()
            return f"{type(error).__name__}: {error}"
        finally:
            with suppress(BrokenBarrierError):  # rank 0 keeps the store, which the others read to the end
                end.wait(30)
            if distributed.is_initialized():
                distributed.destroy_process_group()

    return run_ranks(world, rank)


def add_one() -> float:
    total = torch.ones(1)
    distributed.all_reduce(total)
    return total.item()


@pytest.mark.usefixtures("_meeting_place")
def test_ranks_meet_talk_and_leave():
    assert joined(3, add_one) == [3.0, 3.0, 3.0]


def test_ranks_that_srun_started_meet_on_the_first_node_of_the_list():
    job = os.getpid()

    def rank():
        number = str(distributed.get_rank())
        distributed.barrier()
        distributed.destroy_process_group()
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)
        os.environ |= {"SLURM_PROCID": number, "SLURM_LOCALID": number, "SLURM_STEP_NUM_TASKS": "2"}
        os.environ |= {"SLURM_STEP_NODELIST": "localhost,other[1-3]", "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": "0"}
        with report_failures(CPU, timeout_seconds=20):
            return add_one()

    assert run_ranks(2, rank) == [2.0, 2.0]


@pytest.mark.usefixtures("_meeting_place")
@pytest.mark.parametrize("bad", [0, 1])
def test_all_learn_which_rank_failed_in_which_step_and_why(bad):
    def body():
        add_one()
        if distributed.get_rank() == bad:
            raise DataError("rows.jsonl:3: not JSON")
        return add_one()

    told = joined(2, body, timeout_seconds=5)
    assert told[bad] == "DataError: rows.jsonl:3: not JSON"
    assert f"rank {bad} failed: step=7 DataError: rows.jsonl:3: not JSON" in told[1 - bad]
    assert told[1 - bad].startswith(f"RankError: rank {1 - bad} of 2 was ended")


@pytest.mark.usefixtures("_meeting_place")
def test_a_hung_rank_is_named_after_the_time_out():
    def body(told):
        add_one()
        if distributed.get_rank() == 1:
            assert told.wait(60)
            return "hung"
        return add_one()

    told = joined(3, body, timeout_seconds=4)
    assert all("rank 1 does not answer: killed, or it hangs; step=7" in told[rank] for rank in (0, 2))


@pytest.mark.usefixtures("_meeting_place")
def test_ranks_that_wait_for_different_things_are_told_with_their_collectives():
    def body():
        add_one()
        if distributed.get_rank() == 1:
            distributed.recv(torch.ones(1), src=0)
        return add_one()

    for text in joined(2, body, timeout_seconds=4):
        assert "waited for different things: rank 0: step=7 RuntimeError: " in text
        assert re.search(r"rank 0: step=7 .* in all_reduce, called in .*; rank 1: step=7 .* in recv, called in ", text)


@pytest.mark.usefixtures("_meeting_place")
def test_a_killed_rank_is_named():
    def body():
        add_one()
        if distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        add_one()

    def rank():
        distributed.barrier()
        distributed.destroy_process_group()
        with report_failures(CPU, timeout_seconds=20):
            body()

    with pytest.raises(AssertionError, match="rank 0 of 2 was ended: rank 1 does not answer: killed"):
        run_ranks(2, rank, grace_seconds=60)


@pytest.mark.usefixtures("_meeting_place")
def test_a_wrong_interface_is_told_with_those_that_are_there():
    told = joined(2, add_one, interface="nosuch0")
    assert all("could not meet the others" in text and "GLOO_SOCKET_IFNAME" in text for text in told)
    assert all("nosuch0" in text and socket.if_nameindex()[0][1] in text for text in told)
