"""What a server takes at most."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """cache_tokens: positions of the KV cache, over all rows that are answered together and all that is remembered;
    rows: that are answered together; prompt_tokens: of a prompt that is read whole, which takes memory by the square of
    its length; text_characters: of all texts of a request together, before they are made into tokens; step_tokens:
    positions of prompts that are read between two tokens of the answers; kept_prompts: that are remembered with their
    answers, for others that begin alike; queue: requests that wait; wait_seconds: how long one waits before it is
    turned away; request_seconds: how long one may take in all; drain_seconds: how long answers that are being written
    have when the server ends; body_bytes: of a request; answers: of one request (`n`); stops: texts that end an answer;
    decision_tokens: that the decisions of one request read, the input once for each option, or the scores of its
    prompts.
    """

    cache_tokens: int = 65536
    rows: int = 64
    prompt_tokens: int = 4096
    text_characters: int = 2**18
    step_tokens: int = 512
    kept_prompts: int = 64
    queue: int = 256
    wait_seconds: float = 60.0
    request_seconds: float = 600.0
    drain_seconds: float = 30.0
    body_bytes: int = 4 * 2**20
    answers: int = 16
    stops: int = 16
    decision_tokens: int = 2**20
