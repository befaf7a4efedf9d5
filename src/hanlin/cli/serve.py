"""Answer over HTTP, as OpenAI's clients ask: /v1/chat/completions, /v1/completions, /v1/models, streaming.

hanlin serve runs/chat                           the model that a run has trained
hanlin serve --base chatglm2-6b --adapter lora   a model as it is published, with a LoRA on top
hanlin serve --base m --host 0.0.0.0 --api-key-env HANLIN_API_KEY   for other machines, which need the key

Where a request says nothing, answers are looked for as with `hanlin chat`. Fields that are not honoured are refused
(docs/serving.md). SIGTERM takes no more requests and ends those that are being answered.
"""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import math
import os
import signal
import socket
import sys
import time
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from hanlin.cli._recipe import add_model, recipe_of_model, say_remark
from hanlin.core.errors import ConfigError

if TYPE_CHECKING:
    from hanlin.recipe.settings import Recipe
    from hanlin.serve.limits import Limits

HELP = "answer over HTTP, as OpenAI's clients ask"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from hanlin.serve.limits import Limits

    add_model(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one (default: 8000)")
    parser.add_argument("--name", help="of the model, as clients call it (default: its folder's)")
    parser.add_argument("--api-key-env", metavar="VARIABLE", help="environment variable with the key that clients need")
    parser.add_argument("--cors", action="append", default=[], metavar="ORIGIN", help="a page that browsers let call")
    for field in fields(Limits):
        option = f"--{_option(field.name).replace('_', '-')}"
        parser.add_argument(option, type=type(field.default), default=field.default, help=f"default: {field.default:g}")


def run(args: argparse.Namespace) -> int:
    from hanlin.serve.limits import Limits

    key = _key(args)
    for library in ("starlette", "uvicorn"):
        if importlib.util.find_spec(library) is None:
            raise ConfigError(f"hanlin serve needs {library}: pip install 'hanlin[serve]'")
    limits = Limits(**{field.name: getattr(args, _option(field.name)) for field in fields(Limits)})
    if wrong := next((name for name, value in asdict(limits).items() if value <= 0), None):
        raise ConfigError(f"--{_option(wrong).replace('_', '-')}: expected more than 0")
    recipe = recipe_of_model(args)
    say_remark(recipe)
    with _listening(args.host, args.port) as listener:
        return _serve(recipe, args, limits, key, listener)


def _serve(recipe: Recipe, args: argparse.Namespace, limits: Limits, key: str | None, listener: socket.socket) -> int:
    import uvicorn

    from hanlin.api.generation import chatting
    from hanlin.run.memory import answering_memory
    from hanlin.run.weights import load_engine
    from hanlin.serve.app import make_app
    from hanlin.serve.scheduler import Scheduler
    from hanlin.serve.service import Service

    with answering_memory(recipe):
        engine = load_engine(recipe)
        name = args.name or (args.base or recipe.run.folder).name
        settings = chatting(recipe.generate, args.words)
        service = Service(name, engine, settings, Scheduler(engine, limits), limits, int(time.time()))
        host, port = listener.getsockname()[:2]
        print(f"serving {name} at http://{f'[{host}]' if ':' in host else host}:{port}/v1", file=sys.stderr, flush=True)
        config = uvicorn.Config(
            make_app(service, key, args.cors),
            log_level="warning",
            timeout_graceful_shutdown=math.ceil(limits.drain_seconds),
        )
        signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn ends in order, and then raises it once more
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def _listening(host: str, port: int) -> socket.socket:
    """Raises: ConfigError, before the weights are loaded."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--host {host} --port {port}: {error}; is the port taken? --port 0 takes a free one"
        ) from None


def _option(name: str) -> str:
    return f"max_{name}"


def _key(args: argparse.Namespace) -> str | None:
    """Raises: ConfigError for a server that others can reach without a key."""
    key = os.environ.get(args.api_key_env, "") if args.api_key_env else ""
    if args.api_key_env and not key:
        raise ConfigError(f"--api-key-env: the environment has no {args.api_key_env}; export it first")
    if not key and not _is_loopback(args.host):
        raise ConfigError(
            f"--host {args.host}: others could reach the server; give it a key: --api-key-env HANLIN_API_KEY"
        )
    return key or None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
