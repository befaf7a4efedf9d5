"""The ranks of a run from their meeting to their end: when one fails, all say which, in which step and why.

A rank that fails writes its reason into the store that all share, and ends. The others find out by a broken connection
or by the time-out of a collective; they call the roll in the store: who gave a reason there is to blame, else who does
not answer is dead or hangs.
"""

from __future__ import annotations

import json
import re
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from hanlin.core.errors import RankError, shorten
from hanlin.core.ranks import Ranks, interfaces, join, leave, read_ranks
from hanlin.core.waiting import describe_wait

if TYPE_CHECKING:
    import torch
    from torch.distributed.distributed_c10d import Store

ROLL_CALL_SECONDS = 5.0
"""A rank that has not answered after this time is dead or hangs."""

NAMED_RANKS = 8
"""Ranks of which a message says what they waited for."""

_NETWORK_WORDS = ("gloo", "connection closed", "connection reset", "connectfullmesh", "nccl", "hccl", "socket")


@dataclass(frozen=True)
class FailureReason:
    """Why a rank ended. is_lost: only because it could not talk to another one."""

    text: str
    is_lost: bool


@contextmanager
def report_failures(device: torch.device, *, timeout_seconds: float = 1800) -> Iterator[None]:
    """Meet the other ranks (see `core.ranks.join`), leave them at the end, and tell each other of failures.

    Raises: RankError on the ranks that could not go on because of another one, naming it; what the body raises.
    """
    ranks = read_ranks()
    store = None
    try:
        store = join(device, timeout_seconds=timeout_seconds)
        yield
        leave()
    except RuntimeError as error:
        reason = FailureReason(_in_short(error), _is_of_network(error))
        if ranks.world == 1 or not reason.is_lost:
            _tell(store, ranks, reason)
            raise
        raise RankError(_verdict(store, ranks, reason)) from error
    except BaseException as error:
        _tell(store, ranks, FailureReason(_in_short(error), is_lost=isinstance(error, RankError)))
        raise


def _is_of_network(error: RuntimeError) -> bool:
    from torch import distributed

    return isinstance(error, distributed.DistError) or any(word in str(error).lower() for word in _NETWORK_WORDS)


def _in_short(error: BaseException) -> str:
    """Notes (`step=12`), type and first line of an error, without the place in gloo's files and gloo's advice; where it
    was raised by a collective, which."""
    first = str(error).strip().split("\n")[0].split(". This is typically")[0]
    text = re.sub(r"^\[[^\]]*\.\w+:\d+\] ", "", first)[:300]
    waited = describe_wait(traceback.extract_tb(error.__traceback__))
    told = f"{type(error).__name__}: {text}{f' in {waited}' if waited else ''}"
    return " ".join([*getattr(error, "__notes__", ()), told])


# --- the roll call ---


def _tell(store: Store | None, ranks: Ranks, reason: FailureReason) -> None:
    """Leave the own reason to the others. Rank 0 takes the store with it, unless torchrun keeps it."""
    if store is None:
        return
    with suppress(RuntimeError):  # the store is gone; the true reason is ours, which is raised anyway
        store.set(_key(ranks.rank), json.dumps([reason.text, reason.is_lost]))


def _verdict(store: Store | None, ranks: Ranks, own: FailureReason) -> str:
    """Who is to blame, as far as this rank can find out."""
    here = f"rank {ranks.rank} of {ranks.world}"
    if store is None:
        return f"{here} could not meet the others: {own.text}{_interface_hint()}"
    try:
        store.set(_key(ranks.rank), json.dumps([own.text, own.is_lost]))
        reasons = _wait_for_all(store, ranks)
    except RuntimeError:
        return f"{here} was ended: rank 0 is gone; {own.text}"
    guilty = [f"rank {rank} failed: {reason.text}" for rank, reason in sorted(reasons.items()) if not reason.is_lost]
    silent = [str(rank) for rank in range(ranks.world) if rank not in reasons]
    if guilty:
        return f"{here} was ended: {'; '.join(guilty)}"
    if silent:
        return f"{here} was ended: rank {', '.join(silent)} does not answer: killed, or it hangs; {own.text}"
    every = shorten([f"rank {rank}: {reason.text}" for rank, reason in sorted(reasons.items())], NAMED_RANKS)
    return (
        f"{here} was ended: living ranks lost each other, by the network or because they waited for different things: "
        f"{'; '.join(every)}{_interface_hint()}"
    )


def _wait_for_all(store: Store, ranks: Ranks) -> Mapping[int, FailureReason]:
    """The reasons of all ranks, or of those that gave one in time."""
    store.set_timeout(timedelta(seconds=ROLL_CALL_SECONDS))
    limit = time.monotonic() + ROLL_CALL_SECONDS
    reasons: dict[int, FailureReason] = {}
    while len(reasons) < ranks.world and time.monotonic() < limit:
        for rank in range(ranks.world):
            if rank not in reasons and store.check([_key(rank)]):
                reasons[rank] = FailureReason(*json.loads(store.get(_key(rank))))
        time.sleep(0.05)
    if ranks.is_main:
        time.sleep(0.5)  # rank 0 may keep the store: the others must be able to read the last entry
    return reasons


def _key(rank: int) -> str:
    return f"hanlin/end/{rank}"


def _interface_hint() -> str:
    return (
        f"; if the machines reach each other through another interface (here: {', '.join(interfaces())}), name it in "
        "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
    )
