"""A running `hanlin serve` that answers in place of a model here: what `chat --url` and `generate --url` ask it."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from hanlin.core.errors import ConfigError, DataError, HanlinError

from ._http import CONNECT_SECONDS, QUIET_SECONDS, opener_for

__all__ = ["Server", "add_server", "server_of"]

_FIELDS = {
    "generate.max_new_tokens": "max_tokens",
    "generate.repetition_penalty": "repetition_penalty",
    "generate.presence_penalty": "presence_penalty",
    "generate.frequency_penalty": "frequency_penalty",
    "generate.temperature": "temperature",
    "generate.top_p": "top_p",
    "generate.top_k": "top_k",
    "generate.min_p": "min_p",
    "run.seed": "seed",
}
"""Settings that a request can carry, and what they are called there."""
_TRIES = 6
_HERE_ALONE = ("base", "adapter", "vocab", "family", "tuning", "weights", "nproc")


def add_server(parser: argparse.ArgumentParser) -> None:
    """Options for a server that answers; `server_of` reads them."""
    group = parser.add_argument_group("a running server in place of a model")
    group.add_argument("--url", help="of `hanlin serve`: http://127.0.0.1:8000")
    group.add_argument("--model", help="which of its models (default: its base)")
    group.add_argument("--api-key-env", metavar="VARIABLE", help="environment variable with the key that it wants")


def server_of(args: argparse.Namespace) -> Server | None:
    """None where no --url is given.

    Raises: ConfigError, also for options and settings that have no effect with it, or without it.
    """
    if args.url is None:
        if idle := next((name for name in ("model", "api_key_env") if getattr(args, name)), None):
            raise ConfigError(f"--{idle.replace('_', '-')}: has an effect with --url only")
        return None
    if idle := next((name for name in _HERE_ALONE if getattr(args, name, None)), None):
        raise ConfigError(f"--{idle}: says which model is loaded here, and with --url the server has it; leave it out")
    if urlsplit(args.url).scheme not in ("http", "https"):
        raise ConfigError(f"--url {args.url}: expected http://HOST:PORT of a running `hanlin serve`")
    key = os.environ.get(args.api_key_env, "") if args.api_key_env else ""
    if args.api_key_env and not key:
        raise ConfigError(f"--api-key-env: the environment has no {args.api_key_env}; export it first")
    return Server(args.url, args.model, key, _fields(args.words))


class Server:
    """Asks /v1/chat/completions. fields: of every request, beside what is asked."""

    def __init__(self, url: str, model: str | None, key: str, fields: Mapping[str, Any]) -> None:
        self.url, self._key = url.rstrip("/").removesuffix("/v1"), key
        self._fields = {**fields, **({"model": model} if model else {})}

    def identity(self, records: str) -> str:
        """Hash of all that decides the answers, so far as it is known here; records: their fingerprint."""
        facts = json.dumps([self.url, self._fields, records], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()

    def answered(self, row: Any) -> Any:
        """A row with its answer.

        Raises: DataError for a row that the server refuses; HanlinError.
        """
        for number in range(_TRIES):
            try:
                # As a stream too: the server says while it works that it is there.
                *_, end = [{}, *self._deltas(self._post({"record": row, "stream": True}))]
                if "record" not in end:
                    raise HanlinError(f"{self.url}: the answer has no record; is it a `hanlin serve`?")
                return end["record"]
            except _LateError:
                if number == _TRIES - 1:
                    raise
                _wait(number)
        raise AssertionError("the last try raises")

    def reply(self, messages: Sequence[Mapping[str, str]]) -> Iterator[str]:
        """The next message of a dialogue in pieces while it is written; the request is sent at once.

        Raises: DataError for what the server refuses; HanlinError.
        """
        return self._pieces(self._post({"messages": list(messages), "stream": True}))

    def answer_pieces(self, row: Any) -> Iterator[str]:
        """The same for a row."""
        return self._pieces(self._post({"record": row, "stream": True}))

    def _pieces(self, response: HTTPResponse) -> Iterator[str]:
        yield from (text for delta in self._deltas(response) if (text := delta.get("content")))

    def _deltas(self, response: HTTPResponse) -> Iterator[dict[str, Any]]:
        """Raises: DataError, HanlinError, also for a stream that breaks off."""
        try:
            with response:
                for line in response:
                    if line.strip() == b"data: [DONE]":
                        return
                    if not line.startswith(b"data: "):
                        continue
                    found = _json_of(line.removeprefix(b"data: "), self.url)
                    if "error" in found:
                        raise self._told(found["error"])
                    yield from (one["delta"] for one in found["choices"])
        except TimeoutError:
            raise HanlinError(
                f"{self.url}: not a byte came for {QUIET_SECONDS:g} seconds; is the server well?"
            ) from None
        except (OSError, HTTPException) as error:
            raise HanlinError(f"{self.url}: the answer broke off ({error})") from None
        raise HanlinError(f"{self.url}: the answer broke off; has the server ended?")

    def _told(self, error: Mapping[str, Any]) -> HanlinError:
        kind = DataError if error.get("type") == "invalid_request_error" else HanlinError
        kind = _LateError if error.get("code") == "timeout" else kind
        return kind(error["message"] if kind is DataError else f"{self.url}: {error.get('message')}")

    def _post(self, asked: Mapping[str, Any]) -> HTTPResponse:
        """Raises: DataError, HanlinError, ConfigError."""
        body = json.dumps({**self._fields, **asked}, ensure_ascii=False).encode(errors="backslashreplace")
        key = {"authorization": f"Bearer {self._key}"} if self._key else {}
        headers = {"content-type": "application/json", **key}
        for number in range(_TRIES):
            request = urllib.request.Request(f"{self.url}/v1/chat/completions", body, headers)
            try:
                return opener_for(self.url).open(request)
            except HTTPError as error:
                with error:
                    problem = self._problem(error.code, error.read(), error.headers.get("location"))
                if error.code not in (429, 503) or number == _TRIES - 1:
                    raise problem from None
                _wait(number)
            except TimeoutError:
                raise HanlinError(
                    f"{self.url}: no answer began within {QUIET_SECONDS:g} seconds; is the server well?"
                ) from None
            except (URLError, OSError, HTTPException) as error:
                reason = getattr(error, "reason", None) or error
                if isinstance(reason, TimeoutError):
                    reason = f"not reached within {CONNECT_SECONDS:g} seconds"
                raise ConfigError(f"--url {self.url}: no answer ({reason}); is `hanlin serve` running there?") from None
        raise AssertionError("the last try raises")

    def _problem(self, status: int, body: bytes, location: str | None) -> HanlinError:
        if 300 <= status < 400:  # the key is for this server alone, and a POST that is led on may become a GET
            return ConfigError(f"--url {self.url}: leads on to {location}; if that is the server, give its URL")
        try:
            message = json.loads(body)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            return ConfigError(f"--url {self.url}: status {status} without a reason; is it a `hanlin serve`?")
        if status == 401:
            advice = "look at the variable" if self._key else "name the variable that holds it: --api-key-env VARIABLE"
            return ConfigError(f"--url {self.url}: {message}; {advice}")
        if status == 404:
            return ConfigError(f"--url {self.url}: {message}")
        return DataError(message) if status in (400, 413) else HanlinError(f"{self.url}: {message}")


class _LateError(HanlinError):
    """The server was too busy."""


def _wait(number: int) -> None:
    """Before a try more: others are served first."""
    time.sleep(min(2.0**number, 10))


def _json_of(body: bytes, url: str) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        raise HanlinError(f"{url}: the answer is no JSON; is it a `hanlin serve`?") from None


def _fields(words: Sequence[str]) -> dict[str, Any]:
    """The fields of a request that settings stand for.

    Raises: ConfigError.
    """
    fields: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{word}: a recipe or a run answers here, and with --url the server answers; leave one")
        if word == "generate.method=greedy":
            fields["temperature"] = 0
        elif key in _FIELDS:
            fields[_FIELDS[key]] = _number(key, value)
        elif key != "data.bad_rows":
            raise ConfigError(f"{key}: with --url only {', '.join(_FIELDS)}, generate.method=greedy and data.bad_rows")
    return fields


def _number(key: str, value: str) -> int | float:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    raise ConfigError(f"{key}: expected a number, found {value!r}")
