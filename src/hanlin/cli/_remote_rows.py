"""`hanlin generate --url`: rows answered by a running server, many at once, written in their order."""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from hanlin.cli._answers import is_unfinished, open_output, ready_lines, text_output
from hanlin.cli._remote import Server
from hanlin.cli._say import say
from hanlin.cli._targets import sole_target
from hanlin.core.errors import DataError

__all__ = ["generate_remotely"]

_AT_ONCE = 16
"""Requests that are on their way together; the server has its own bounds, and asks to wait."""

Groups = Iterable[Iterable[tuple[int, Any]]]
"""Rows with their numbers from 1; a group is answered whole before the next one is waited for."""


def generate_remotely(args: argparse.Namespace, server: Server) -> int:
    """Raises: DataError for a row that the server refuses, unless data.bad_rows drops it; HanlinError."""
    if args.record and args.input:
        raise DataError("give --record or --input, not both")
    drops = _drops(args.words)
    is_file = args.input not in (None, "-")
    name = "--record" if args.record else args.input if is_file else "standard input"
    rows, identity = _rows(args, server, name)
    if args.stream:
        return _stream(server, rows, args, name)
    if args.output is None or (args.output.exists() and not args.output.is_file()):
        return _write(server, rows, None if drops else identity, args, name)
    may_write = args.overwrite or (is_file and is_unfinished(args.output))
    with sole_target(args.output, overwrite=may_write):
        # A line of the output tells its row only where none is left out.
        return _write(server, rows, None if drops else identity, args, name)


def _rows(args: argparse.Namespace, server: Server, name: str) -> tuple[Groups, str | None]:
    """The rows with their numbers from 1, and what they are answered with, where it is known beforehand."""
    from hanlin.data.sources.opening import open_records

    if args.input not in (None, "-"):
        source = open_records(Path(args.input))
        numbered = ((number + 1, source[number]) for number in range(len(source)))
        return [numbered], server.identity(source.fingerprint)
    if not args.record and args.input is None and sys.stdin.isatty():
        raise DataError("no records; give --record '{...}', --input FILE, or pipe JSON lines into standard input")
    return _parsed(args, name), None


def _parsed(args: argparse.Namespace, name: str) -> Groups:
    given = list(enumerate((text.encode(errors="surrogateescape") for text in args.record), start=1))
    for lines in [given] if args.record else ready_lines(sys.stdin.buffer, _AT_ONCE):
        yield [(number, _row(line, f"{name}:{number}")) for number, line in lines]


def _row(line: bytes, where: str) -> Any:
    from hanlin.data.sources.jsonl import parse_row

    try:
        return parse_row(line)
    except (ValueError, DataError) as error:
        raise DataError(f"{where}: {error}") from None


def _write(server: Server, rows: Groups, identity: str | None, args: argparse.Namespace, name: str) -> int:
    with open_output(args.output, identity, overwrite=args.overwrite) as output:
        if output.num_done:
            say(f"{args.output}: going on behind the {output.num_done:,} answers that are there")
        count = output.num_done
        for answered in _answers(server, rows, output.num_done, _drops(args.words), name):
            output.write(answered)
            count += 1
        output.finish(count)
    return 0


def _answers(server: Server, groups: Groups, num_done: int, drops: bool, name: str) -> Iterator[Any]:
    """The answered rows in their order, those behind the first `num_done`; some of a group are asked ahead."""
    waiting: deque[tuple[int, Future[Any]]] = deque()
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        for group in groups:
            for number, row in group:
                if number <= num_done:
                    continue
                waiting.append((number, pool.submit(server.answered, row)))
                while len(waiting) >= 2 * _AT_ONCE or (waiting and waiting[0][1].done()):
                    yield from _first(waiting, drops, name)
            while waiting:
                yield from _first(waiting, drops, name)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _first(waiting: deque[tuple[int, Future[Any]]], drops: bool, name: str) -> Iterator[Any]:
    number, answer = waiting.popleft()
    try:
        yield answer.result()
    except DataError as error:
        bad = DataError(f"{name}:{number}: {error}")
        if not drops:
            raise bad from None
        say(f"left out: {bad}")


def _stream(server: Server, rows: Groups, args: argparse.Namespace, name: str) -> int:
    if args.output is not None:
        with sole_target(args.output, overwrite=args.overwrite):
            return _stream_to(server, rows, args.output, name)
    return _stream_to(server, rows, None, name)


def _stream_to(server: Server, rows: Groups, target: Path | None, name: str) -> int:
    with text_output(target) as output:
        for number, row in chain.from_iterable(rows):
            try:
                pieces = server.answer_pieces(row)
            except DataError as error:
                raise DataError(f"{name}:{number}: {error}") from None
            for piece in chain(pieces, ["\n"]):
                print(piece, end="", flush=True, file=output)
    return 0


def _drops(words: Iterable[str]) -> bool:
    chosen = [word.partition("=")[2] for word in words if word.partition("=")[0] == "data.bad_rows"]
    return chosen[-1:] == ["drop"]
