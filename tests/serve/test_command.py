"""`hanlin serve` as a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from hanlin.cli import serve
from hanlin.cli.main import main


@pytest.fixture(scope="module")
def served(base: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "hanlin", "serve", "--base", str(base), "--port", "0"]
    key = {"HANLIN_API_KEY": "secret"}
    process = subprocess.Popen(
        [*command, "--api-key-env", "HANLIN_API_KEY", "--host", "0.0.0.0"],
        env=os.environ | key,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    line = next(line for line in process.stderr if line.startswith("serving bee at "))
    yield process, line.split()[-1].replace("0.0.0.0", "127.0.0.1")
    process.kill()
    process.wait()
    process.stderr.close()


def test_a_model_that_is_asked_by_dicts_takes_messages_too(served: tuple[subprocess.Popen[str], str]) -> None:
    client = openai.OpenAI(base_url=served[1], api_key="secret", max_retries=0)
    found = client.chat.completions.create(
        model="bee", messages=[{"role": "user", "content": "床前明月"}], max_tokens=4, temperature=0
    )
    assert found.choices[0].message.role == "assistant"
    assert found.usage is not None
    assert found.usage.completion_tokens <= 4


def test_weights_are_read_by_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything of torch takes memory; what the user says holds."""
    for said, expected in ((None, "1"), ("0", "0")):
        monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
        if said is not None:
            monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", said)
        assert main(["serve", "--base", "nowhere"]) == 2
        assert os.environ["THP_MEM_ALLOC_ENABLE"] == expected


def test_answers_that_are_being_written_are_ended_before_the_server_is(
    served: tuple[subprocess.Popen[str], str],
) -> None:
    """Under load: streams and others, some of which still wait for their turn."""
    process, url = served
    client = openai.OpenAI(base_url=url, api_key="secret", max_retries=0)

    def ask(number: int) -> int:
        asked: Any = {"messages": [{"role": "user", "content": "床前"}], "max_tokens": 60, "temperature": 1.8, "n": 8}
        if number % 2:
            chunks = list(client.chat.completions.create(model="bee", **asked, seed=number, stream=True))
            return sum(chunk.choices[0].finish_reason is not None for chunk in chunks)
        found = client.chat.completions.create(model="bee", **asked, seed=number)
        return sum(choice.finish_reason is not None for choice in found.choices)

    with ThreadPoolExecutor(16) as threads:
        before = taken(url)
        answers = [threads.submit(ask, number) for number in range(16)]
        while taken(url) < before + 16:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert [answer.result() for answer in answers] == [8] * 16
    assert process.wait(120) == 0


def taken(url: str) -> int:
    """Requests so far."""
    request = urllib.request.Request(f"{url.removesuffix('/v1')}/metrics", headers={"authorization": "Bearer secret"})
    with urllib.request.urlopen(request, timeout=120) as response:
        lines = response.read().decode().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("hanlin_requests_total ")))


def test_what_cannot_be_served_is_said_before_anything_is_loaded(
    base: Path, lora: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HANLIN_API_KEY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for wrong, expected in (
            (["--host", "0.0.0.0"], "give it a key"),
            (["--api-key-env", "HANLIN_API_KEY"], "the environment has no HANLIN_API_KEY"),
            (["--port", port], "is in use already"),
            (["--cors", "x"], "is no origin"),
            (["--max-cache-tokens", "1"], "holds no prompt and its answer"),
            (["--host", "no.such.host.invalid", "--api-key-env", "PATH"], "no.such.host.invalid"),
            (["--adapter", "a", "--adapter", "b=x"], "each has a name"),
            (["--adapter", "a=x", "--adapter", "a=y"], "two adapters"),
            (["--adapter", "法律=", "--adapter", "b=x"], "expected NAME=PATH"),
            (["--adapter", f"bee={lora}"], "the base is called so"),
            (["--adapter", "a=nowhere"], "nowhere"),
            (["--weights", "last"], "--weights"),
        ):
            assert main(["serve", "--base", str(base), *wrong]) == 2
            assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--port", "99999"),
        ("--max-rows", "0"),
        ("--max-queue", "1.5"),
        *(("--max-wait-seconds", one) for one in ("nan", "inf", "-1", "0")),
    ],
)
def test_a_number_that_makes_no_sense_is_refused_by_its_option(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--base", "nowhere", f"{option}={value}"])
    assert f"argument {option}: '{value}' is no" in capsys.readouterr().err


def test_it_is_this_machine_alone_that_is_answered_by_default(base: Path) -> None:
    command = [sys.executable, "-m", "hanlin", "serve", "--base", ".", "--port", "0"]
    with subprocess.Popen(command, cwd=base, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = next(line for line in process.stderr if line.startswith("serving bee at ")).split()[-1]
        assert url.startswith("http://127.0.0.1:")
        page = next(line for line in process.stderr if line.startswith("a page to try it: ")).split()[-1]
        with urllib.request.urlopen(page) as response:
            assert "<title>Hanlin" in response.read().decode()
        with urllib.request.urlopen(f"{url}/models") as response:
            assert json.load(response)["data"][0]["id"] == "bee"
        body = {
            "messages": [{"role": "user", "content": "床前"}],
            "n": 16,
            "max_tokens": 4000,
            "logit_bias": {"7": -100},
        }
        long = {"content-type": "application/json"}
        asked = urllib.request.Request(f"{url}/chat/completions", json.dumps(body | {"stream": True}).encode(), long)
        with urllib.request.urlopen(asked) as stream:
            stream.readline()
            process.terminate()
            next(line for line in process.stderr if line.startswith("answers that are being written have 30 seconds"))
            process.terminate()  # a second signal ends it at once
            assert process.wait(20) == 128 + signal.SIGTERM


def test_the_files_for_deployment_name_what_the_command_has() -> None:
    folder = Path(__file__).parents[2] / "examples/serve"
    options = {option for action in _options() for option in action.option_strings}
    for file in folder.iterdir():
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", file.read_text("utf-8")))
        assert named <= options | {"--from-literal", "--quiet"}, file
    for name in ("compose.yaml", "kubernetes.yaml"):
        assert list(yaml.safe_load_all((folder / name).read_text("utf-8")))


def _options() -> list[argparse.Action]:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    return parser._actions
