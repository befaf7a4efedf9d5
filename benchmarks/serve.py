"""Tokens per second and time to the first token of `hanlin serve`, against `transformers serve --continuous-batching`.

python benchmarks/serve.py [--out result.json]        (needs transformers, fastapi, openai)

The same weights and tokenizer in both: ChatGLM2's shape (as GlmForCausalLM) by chats, GPT-2's (as GPT2LMHeadModel) by
texts; random weights, fp32 in both, one thread a server, over HTTP as streams, greedy, prompts of all lengths up to
--prompt characters. 1, 8 and 32 clients ask as soon as their last answer has come; an answer counts as --tokens tokens.
The servers take turns, the other one is stopped meanwhile. `ratio` is of the CPU time of the servers, which others on
the machine disturb less, `ratio_by_the_clock` of the time that clients see. Both must say the same. --weights half:
numbers that half precision has, as published checkpoints of fp16 are; single: any of fp32.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPConnection
from io import BytesIO
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from glm_peer import SMALL, TINY
from script import read_arguments, report, require
from turns import Turns

from hanlin.formats.convert import convert
from hanlin.formats.load import base_parameters, save_base
from hanlin.models import chatglm2, cpm1
from hanlin.models.chatglm2.tokenizer import ChatGlm2Tokenizer
from hanlin.models.cpm1.byte_pairs import BytePairTokenizer, _letters
from hanlin.models.cpm1.config import shape
from hanlin.tokens.sentencepiece import SentencePiece

WAYS = ("transformers", "hanlin")
LETTERS = [chr(0x4E00 + number) for number in range(3000)]


@dataclass(frozen=True)
class Server:
    """A running server of one model: where it listens, and what it calls the model."""

    process: subprocess.Popen[str]
    port: int
    model: str


@dataclass(frozen=True)
class Answer:
    """seconds: until the first piece of text, and until the end."""

    text: str
    first_seconds: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=160)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--answers", type=int, default=2, help="of each client in a round")
    parser.add_argument("--shapes", nargs="+", default=["chatglm2", "gpt2"])
    parser.add_argument("--weights", nargs="+", choices=["half", "single"], default=["half", "single"])
    parser.add_argument("--out", type=Path)
    args = read_arguments(parser, "--rounds 1 --prompt 9 --tokens 4 --clients 1 2 --answers 1 --shapes gpt2")
    require("transformers", "fastapi", "openai")
    figures = {}
    for name, weights in product(args.shapes, args.weights):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            base = MODELS[name](Path(folder), is_half=weights == "half", is_tiny=args.smoke)
            servers = {way: stack.enter_context(START[way](base)) for way in WAYS}
            figures[name if weights == "single" else f"{name}_half"] = compare(servers, name, args)
    report(figures, args.out, ["transformers"])


# --- models ---


def make_chatglm2(folder: Path, *, is_half: bool, is_tiny: bool) -> Path:
    """A folder that both read; the vocabulary is made of random texts."""
    from sentencepiece import SentencePieceTrainer

    draw, model = random.Random(0), BytesIO()
    lines = ["".join(draw.choices(LETTERS, k=40)) for _ in range(400 if is_tiny else 4000)]
    SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=4000 if is_tiny else 8000,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    tokenizer = ChatGlm2Tokenizer(SentencePiece(model.getvalue()))
    config = replace(TINY if is_tiny else SMALL, vocab_size=tokenizer.vocab_size)
    return exported(random_model(chatglm2.family, config, is_half=is_half), chatglm2.family, tokenizer, folder)


def make_gpt2(folder: Path, *, is_half: bool, is_tiny: bool) -> Path:
    """The same of GPT-2's shape; the vocabulary has the bytes and pairs of them."""
    letters = list(_letters().values())
    pairs = [(one, other) for one in letters[:90] for other in letters[:90]]
    tokens = [*letters, *("".join(pair) for pair in pairs), "<eod>"]
    tokenizer = BytePairTokenizer({token: id for id, token in enumerate(tokens)}, pairs)
    config = replace(
        shape(32, 2, 4) if is_tiny else shape(512, 12, 8), vocab_size=tokenizer.vocab_size, max_length=1024
    )
    return exported(random_model(cpm1.family, config, is_half=is_half), cpm1.family, tokenizer, folder)


MODELS: dict[str, Callable[..., Path]] = {"chatglm2": make_chatglm2, "gpt2": make_gpt2}


@torch.no_grad()
def random_model(family: Any, config: Any, *, is_half: bool) -> Any:
    model = family.model()(config)
    draw = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.05, generator=draw)
        if is_half:
            weight.copy_(weight.half())
    return model


def exported(model: Any, family: Any, tokenizer: Any, folder: Path) -> Path:
    save_base(folder / "base", family, model.config, base_parameters(model), tokenizer)
    convert(folder / "base", family, None, "huggingface", folder / "model")
    return folder / "model"


# --- servers ---


@contextmanager
def start_hanlin(base: Path) -> Iterator[Server]:
    line = [sys.executable, "-m", "hanlin", "serve", "--base", str(base), "--port", "0"]
    with running(line, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = ""
        while not (found := re.search(r"http://127.0.0.1:(\d+)/v1", said)):
            said = process.stderr.readline()
            assert said, "hanlin serve has ended"
        yield Server(process, int(found[1]), base.name)


@contextmanager
def start_transformers(base: Path) -> Iterator[Server]:
    port = free_port()
    program = Path(sys.executable).with_name("transformers")
    line = [str(program), "serve", str(base), "--continuous-batching", "--device", "cpu", "--dtype", "float32"]
    line += ["--cb-block-size", "32", "--cb-num-blocks", "512"]  # by default 90 % of the memory
    with running([*line, "--port", str(port)], stdout=subprocess.DEVNULL) as process:
        yield Server(process, port, str(base))


START: dict[str, Callable[[Path], Any]] = {"hanlin": start_hanlin, "transformers": start_transformers}


@contextmanager
def running(line: Sequence[str], **streams: Any) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(line, text=True, env=environment, **streams)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_until_up(server: Server) -> None:
    end = time.monotonic() + 180
    while time.monotonic() < end:
        assert server.process.poll() is None, "the server has ended"
        with socket.socket() as attempt:
            if not attempt.connect_ex(("127.0.0.1", server.port)):
                return
        time.sleep(0.1)
    raise AssertionError("the server does not listen")


# --- clients ---


def ask(server: Server, shape: str, text: str, tokens: int) -> Answer:
    """A question of one client, and its answer as a stream."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=600)
    asked: dict[str, Any] = (
        {"messages": [{"role": "user", "content": text}]} if shape == "chatglm2" else {"prompt": text}
    )
    body = {"model": server.model, **asked, "max_tokens": tokens, "temperature": 0, "stream": True}
    path = "/v1/chat/completions" if shape == "chatglm2" else "/v1/completions"
    start, first, pieces = time.monotonic(), 0.0, []
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        choice = (json.loads(line[6:]).get("choices") or [{}])[0]
        if piece := choice.get("text") or choice.get("delta", {}).get("content"):
            first = first or time.monotonic() - start
            pieces.append(piece)
    connection.close()
    return Answer("".join(pieces), first, time.monotonic() - start)


def compare(servers: dict[str, Server], shape: str, args: argparse.Namespace) -> dict[str, Any]:
    draw = random.Random(1)
    count = max(args.clients) * args.answers
    texts = ["".join(draw.choices(LETTERS, k=draw.randint(1, args.prompt))) for _ in range(count)]
    if shape == "gpt2":  # three bytes a letter, nearly as many tokens
        texts = [text[: len(text) // 2 + 1] for text in texts]
    for server in servers.values():
        wait_until_up(server)
    said = {way: [ask(server, shape, text, args.tokens).text for text in texts[:4]] for way, server in servers.items()}
    assert said["transformers"] == said["hanlin"], "the servers say other things"
    figures: dict[str, Any] = {"same_answers": True}
    for clients in args.clients:
        figures[f"clients_{clients}"] = measure(servers, shape, texts[: clients * args.answers], clients, args)
    return figures


def measure(
    servers: dict[str, Server], shape: str, texts: Sequence[str], clients: int, args: argparse.Namespace
) -> dict[str, Any]:
    rates: dict[str, list[float]] = {way: [] for way in servers}
    costs: dict[str, list[float]] = {way: [] for way in servers}
    firsts: dict[str, list[float]] = {way: [] for way in servers}
    for _ in range(args.rounds):
        for way, server in servers.items():
            for other in servers.values():
                other.process.send_signal(signal.SIGCONT if other is server else signal.SIGSTOP)
            start, cpu_start = time.monotonic(), cpu_seconds(server.process.pid)
            with ThreadPoolExecutor(clients) as threads:
                answers = list(threads.map(partial(ask, server, shape, tokens=args.tokens), texts))
            rates[way].append(len(texts) * args.tokens / (time.monotonic() - start))
            costs[way].append(cpu_seconds(server.process.pid) - cpu_start)
            firsts[way].append(mean(answer.first_seconds for answer in answers))
    for server in servers.values():
        server.process.send_signal(signal.SIGCONT)
    return {
        "tokens_per_second": {way: round(median(some), 1) for way, some in rates.items()},
        "ratio": Turns(costs).ratio(*WAYS),
        "ratio_by_the_clock": round(median(b / a for a, b in zip(*rates.values(), strict=True)), 2),
        "mean_first_token_seconds": {way: round(median(some), 3) for way, some in firsts.items()},
    }


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, on all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
