"""`hanlin serve` on two processes that hold a model together."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from hanlin.api.generation import chatting
from hanlin.api.recipes import recipe_of_base
from hanlin.cli.main import main
from hanlin.generate.answer_text import follow_text
from hanlin.generate.engine import Engine, record_stream
from hanlin.recipe.settings import GenerateSettings
from hanlin.run.weights import load_engine
from hanlin.serve.schema import ChatBody, request_settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
ASKED: dict[str, Any] = {"model": "bee", "temperature": 1.4, "max_tokens": 12}


@contextmanager
def served(base: Path) -> Iterator[tuple[subprocess.Popen[str], openai.OpenAI, list[int]]]:
    """The process that starts the others, a client, and the others."""
    words = ["serve", "--base", str(base), "--port", "0", "--nproc", "2", "parallel.tensor=2"]
    command = [sys.executable, "-m", "hanlin", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if line.startswith("serving bee at "))
        client = openai.OpenAI(base_url=line.split()[-1], api_key="none", max_retries=0)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("utf-8")
        yield process, client, [int(number) for number in children.split()]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def ask(client: openai.OpenAI, seed: int) -> str | None:
    messages: Any = [{"role": "user", "content": "床前明月光"[: 1 + seed % 3]}]
    return client.chat.completions.create(messages=messages, seed=seed, **ASKED).choices[0].message.content


def test_answers_are_those_of_one_process_and_a_signal_ends_all(base: Path) -> None:
    with served(base) as (process, client, ranks):
        assert len(ranks) == 2
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(lambda seed: ask(client, seed), range(6)))
        choice: Any = {"type": "choice", "instructions": "月", "choices": [{"value": "明"}, {"value": "光"}]}
        [decided] = client.decisions.create(model="bee", input="床前", questions=[choice]).answers
        assert decided.type == "choice"
        assert sum(one.probability for one in decided.probabilities) == pytest.approx(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    recipe = recipe_of_base(base, [])
    engine, usual = load_engine(recipe), chatting(recipe.generate, [])
    assert found == [lone(engine, usual, seed) for seed in range(6)]


def lone(engine: Engine, usual: GenerateSettings, seed: int) -> str:
    body = ChatBody.model_validate({**ASKED, "messages": [{"role": "user", "content": "-"}]})
    settings = request_settings(body, usual)
    prompt = engine.prompt({"input": "床前明月光"[: 1 + seed % 3], "<ans>": ""}, settings)
    *_, [search] = engine.search([prompt], settings, [record_stream(seed, 0)])
    return follow_text(engine.processor, prompt, is_plain=True)(search.best.tokens)


@pytest.mark.drill
def test_a_rank_that_dies_ends_the_server(base: Path) -> None:
    with served(base) as (process, client, ranks):
        assert ask(client, 1) is not None
        os.kill(ranks[1], signal.SIGKILL)
        with pytest.raises(openai.APIError):
            list(ThreadPoolExecutor(3).map(lambda seed: ask(client, seed), range(3)))
        assert process.wait(120) != 0
        assert process.stderr is not None
        told = process.stderr.read()
        assert "rank 1 was killed" in told
        assert "Traceback" not in told


def test_processes_and_degrees_must_fit(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--base", str(base), "--nproc", "2"]) == 2
    assert re.search(r"2 processes are to serve.*set parallel.tensor=2", capsys.readouterr().err)
    named = ["--adapter", "a=none", "--adapter", "b=none", "--nproc", "2", "parallel.tensor=2"]
    assert main(["serve", "--base", str(base), *named]) == 2
    assert "has one adapter, or none" in capsys.readouterr().err
