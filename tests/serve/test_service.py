from __future__ import annotations

import asyncio

import pytest

from hanlin.serve.scheduler import Answered, Failed
from hanlin.serve.service import Reply, RequestError


def test_who_reads_slowly_finds_each_answer_once_as_far_as_it_is() -> None:
    async def read() -> None:
        reply = Reply(asyncio.get_running_loop())
        for count in range(1, 1000):
            reply.tell(Answered(0, (5,) * count, "好" * count))
            reply.tell(Answered(1, (6,) * count, "月" * count, "stop" if count == 999 else None))
        await asyncio.sleep(0)
        assert [await reply.next(), await reply.next()] == [
            Answered(0, (5,) * 999, "好" * 999),
            Answered(1, (6,) * 999, "月" * 999, "stop"),
        ]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reply.next(), 0.01)
        reply.tell(Failed("too late", is_late=True))
        with pytest.raises(RequestError, match="too late"):
            await reply.next()

    asyncio.run(read())
