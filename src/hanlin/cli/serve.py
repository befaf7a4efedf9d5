"""Answer over HTTP, as OpenAI's clients ask: /v1/chat/completions, /v1/completions, /v1/models, streaming.

hanlin serve runs/chat                           the model that a run has trained
hanlin serve --base chatglm2-6b --adapter lora   a model as it is published, with a LoRA on top
hanlin serve --base m --adapter law=lora1 --adapter tax=lora2       m, m:law and m:tax, chosen by a request's `model`
hanlin serve --base m --host 0.0.0.0 --api-key-env HANLIN_API_KEY   for other machines, which need the key
hanlin serve --base m --nproc 2 parallel.tensor=2                   a model that several devices hold together

Where a request says nothing, answers are looked for as with `hanlin chat`. Fields that are not honoured are refused
(docs/serving.md). SIGTERM takes no more requests and ends those that are being answered.
"""

from __future__ import annotations

import argparse
import errno
import importlib.util
import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hanlin.cli._launch import add_launch, num_to_start, on_all_ranks
from hanlin.cli._numbers import real, whole
from hanlin.cli._recipe import add_model, recipe_of_model, say_remark
from hanlin.cli._say import say
from hanlin.core.collectives import main_first
from hanlin.core.device import use_huge_pages
from hanlin.core.errors import ConfigError
from hanlin.core.ranks import read_ranks

if TYPE_CHECKING:
    from hanlin.generate.engine import Engine
    from hanlin.recipe.settings import Recipe
    from hanlin.run.components import Components
    from hanlin.serve.limits import Limits
    from hanlin.serve.service import Service

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#]+", re.ASCII)
_LIMITS = {
    "cache_tokens": "positions of the KV cache, of all that is answered at once and remembered",
    "rows": "rows that are answered at once",
    "prompt_tokens": "tokens of a prompt that has to be read at once",
    "text_characters": "characters of all texts of a request",
    "step_tokens": "positions of prompts that are read between two tokens of the answers",
    "kept_prompts": "prompts that are remembered with their answers, for others that begin alike",
    "queue": "requests that wait",
    "wait_seconds": "seconds that a request waits before it is turned away",
    "request_seconds": "seconds that a request may take in all",
    "drain_seconds": "seconds that answers have to be finished when the server ends",
    "body_bytes": "bytes of a request",
    "answers": "answers to a request (`n`)",
    "stops": "texts of a request that end its answer",
    "decision_tokens": "tokens that the decisions of a request read, the input once for each option, or its scores",
}
_LEAST_CACHE = 16
"""Positions of a short prompt and a few tokens."""

HELP = "answer over HTTP, as OpenAI's clients ask"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from hanlin.serve.limits import Limits

    add_model(parser, several_adapters=True)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=whole(0, 65535), default=8000, help="0: any free one (default: 8000)")
    parser.add_argument("--name", help="of the model, as clients call it (default: its folder's)")
    parser.add_argument("--api-key-env", metavar="VARIABLE", help="environment variable with the key that clients need")
    parser.add_argument("--cors", action="append", default=[], metavar="ORIGIN", help="a page that browsers let call")
    limits = parser.add_argument_group("limits")
    for field in fields(Limits):
        option = f"--{_option(field.name).replace('_', '-')}"
        number = whole(1, 10**15) if isinstance(field.default, int) else real(1e-3, 1e9)
        default = f"{field.default:,.0f}"
        if field.name == "cache_tokens":
            default = f"{default}, or what there is memory for"
        told = f"{_LIMITS[field.name]} (default: {default})"
        limits.add_argument(option, type=number, metavar="N", help=told)
    add_launch(parser, is_alone=True)


def run(args: argparse.Namespace) -> int:
    from hanlin.serve.limits import Limits

    use_huge_pages()
    key = _key(args)
    for library in ("starlette", "uvicorn"):
        if importlib.util.find_spec(library) is None:
            raise ConfigError(f"hanlin serve needs {library}: pip install 'hanlin[serve]'")
    given = {field.name: getattr(args, _option(field.name)) for field in fields(Limits)}
    limits = Limits(**{name: value for name, value in given.items() if value is not None})
    _refuse_idle(args.cors, limits)
    args.adapter, adapters = _adapters(args.adapter)
    recipe = recipe_of_model(args)
    _check_ranks(max(read_ranks().world, num_to_start(args, recipe)), recipe, adapters)
    return on_all_ranks(args, recipe, lambda: _serve_together(args, recipe, adapters, limits, key))


def _check_ranks(world: int, recipe: Recipe, adapters: Mapping[str, Path]) -> None:
    """Raises: ConfigError."""
    together = recipe.parallel.tensor * recipe.parallel.pipe
    if world not in (1, together):
        raise ConfigError(
            f"{world} processes are to serve, but parallel.tensor x parallel.pipe, which hold the model together, are "
            f"{together}; set parallel.tensor={world}, or start {together}. Several copies are several servers"
        )
    if world > 1 and adapters:
        raise ConfigError("--adapter NAME=PATH: a model that several processes hold together has one adapter, or none")


def _serve_together(
    args: argparse.Namespace, recipe: Recipe, adapters: Mapping[str, Path], limits: Limits, key: str | None
) -> int:
    """What every process does; the main one answers, the others compute with it."""
    from hanlin.api.generation import chatting, check_length
    from hanlin.run.memory import answering_memory
    from hanlin.run.weights import load_engine
    from hanlin.serve.server import serve_until_signal

    name = args.name or os.path.basename(os.path.abspath(args.base or recipe.run.folder))
    components = _components(recipe, args, adapters)
    if name in adapters:
        raise ConfigError(f"--adapter {name}=...: the base is called so; --name calls it otherwise")
    check_length(chatting(recipe.generate, args.words), getattr(components[0].config, "max_length", None))
    for one in components:
        say_remark(one.recipe)
    with main_first() as is_main:
        listener = _listening(args.host, args.port) if is_main else None
    with answering_memory(recipe):
        engine = load_engine(components[0].recipe, components[0])
        if args.max_cache_tokens is None:
            limits = _within_memory(limits, engine)
        if listener is None:
            return _follow(engine)
        with listener, _leading(engine):
            service = _service(name, engine, components, list(adapters), args, limits)
            serve_until_signal(service, key, args.cors, listener, say)
    return 0


def _within_memory(limits: Limits, engine: Engine) -> Limits:
    """Fewer positions of the KV cache where there is no memory for all, which is said. Every rank must call it."""
    from hanlin.serve.room import free_room

    room = free_room(engine)
    if room is None or room.positions >= limits.cache_tokens:
        return limits
    positions = max(room.positions, _LEAST_CACHE)
    say(
        f"KV cache: {positions:,} positions, for {engine.device} has {room.free_bytes / 2**30:,.1f} GiB free beside "
        "the weights; --max-cache-tokens sets another number"
    )
    return replace(limits, cache_tokens=positions)


@contextmanager
def _leading(engine: Engine) -> Iterator[None]:
    """Let the other processes compute with this one. When one is lost, the server is ended as by a signal."""
    if engine.mesh.size("all") == 1:
        yield
        return
    from hanlin.parallel.leading import leading

    with leading(engine.model, on_failure=_end_like_a_signal):
        yield


def _end_like_a_signal() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _follow(engine: Engine) -> int:
    """Until the main process ends, which gets the same signals."""
    from hanlin.parallel.leading import follow

    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: asked.append(number))
    try:
        follow(engine.model, engine.inference)
    except RuntimeError:
        time.sleep(0)  # a signal that came meanwhile is noted
        if asked:  # it was cut off in the middle of a step
            os._exit(0)
        raise
    return 0


def _components(recipe: Recipe, args: argparse.Namespace, adapters: Mapping[str, Path]) -> list[Components]:
    """Those of the model, then those of each adapter.

    Raises: ConfigError, CheckpointError, before any weights are read.
    """
    from hanlin.api.recipes import recipe_of_base
    from hanlin.run.adapted import check_same_base
    from hanlin.run.components import build_components

    base = build_components(recipe)
    if not adapters:
        return [base]
    if args.base is None:
        raise ConfigError("--adapter NAME=PATH: goes with --base; a run's own base is its model.base, or best/")
    found = []
    for path in adapters.values():
        own = recipe_of_base(args.base, args.words, family=args.family, adapter=path, vocab=args.vocab)
        found.append(build_components(own))
        check_same_base(base, found[-1])
    return [base, *found]


def _service(
    name: str,
    engine: Engine,
    components: Sequence[Components],
    adapters: Sequence[str],
    args: argparse.Namespace,
    limits: Limits,
) -> Service:
    from hanlin.api.generation import chatting
    from hanlin.run.adapted import adapted_engine, joint_engine
    from hanlin.serve.scheduler import Scheduler
    from hanlin.serve.service import Service

    base, *others = components
    settings = chatting(base.recipe.generate, args.words)
    engine.prepack_weights()
    scheduler, created = Scheduler(engine, limits, on_lost=_end_like_a_signal), int(time.time())
    chances = [_temperature(one) for one in components]
    engines = {short: adapted_engine(engine, one) for short, one in zip(adapters, others, strict=True)}
    joint, together = joint_engine(engine, engines)
    common = (settings, scheduler, limits, created)
    adapted = {
        short: Service(f"{name}:{short}", one, *common, {}, own, joint if short in together else None, short)
        for (short, one), own in zip(engines.items(), chances[1:], strict=True)
    }
    return Service(name, engine, *common, adapted, chances[0], joint)


def _temperature(components: Components) -> float:
    """Of decisions; it is said where it comes from."""
    from hanlin.api.decisions import calibrated_by, remark_on_calibration

    if remark := remark_on_calibration(components):
        say(remark)
    found = calibrated_by(components)
    return 1.0 if found is None else found.temperature


def _listening(host: str, port: int) -> socket.socket:
    """Raises: ConfigError, before the weights are loaded."""
    from hanlin.serve.server import listen

    try:
        return listen(host, port)
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise ConfigError(f"--port {port}: is in use already; --port 0 takes a free one") from None
        raise ConfigError(f"--host {host} --port {port}: nothing can listen there: {error}") from None


def _refuse_idle(origins: Sequence[str], limits: Limits) -> None:
    """Raises: ConfigError for what would let nobody in, or answer nothing."""
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"--cors: {origin!r} is no origin; expected a scheme and a host, as in https://example.org:8080, or *"
            )
    if limits.cache_tokens < _LEAST_CACHE:
        raise ConfigError(
            f"--max-cache-tokens {limits.cache_tokens}: holds no prompt and its answer; give it {_LEAST_CACHE} or more"
        )


def _adapters(given: Sequence[str]) -> tuple[Path | None, dict[str, Path]]:
    """A lone adapter, which is always asked, or those of several that have names.

    Raises: ConfigError.
    """
    named: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            if len(given) > 1:
                raise ConfigError(f"--adapter {text}: of several adapters each has a name: --adapter NAME={text}")
            return Path(text), {}
        if not re.fullmatch(r"[\w.-]+", name) or not path:
            raise ConfigError(f"--adapter {text}: expected NAME=PATH, the name of letters, digits, '_', '-' and '.'")
        if name in named:
            raise ConfigError(f"--adapter {text}: {name} is the name of two adapters")
        named[name] = Path(path)
    return None, named


def _option(name: str) -> str:
    return f"max_{name}"


def _key(args: argparse.Namespace) -> str | None:
    """Raises: ConfigError for a server that others can reach without a key."""
    from hanlin.core.loopback import is_loopback

    key = os.environ.get(args.api_key_env, "") if args.api_key_env else ""
    if args.api_key_env and not key:
        raise ConfigError(f"--api-key-env: the environment has no {args.api_key_env}; export it first")
    if not key and not is_loopback(args.host):
        raise ConfigError(
            f"--host {args.host}: others could reach the server; give it a key: --api-key-env HANLIN_API_KEY"
        )
    return key or None
