"""Answers on their way: from records as they come to a file or a pipe, in order, whole line by whole line.

An output file that is not finished has a mark beside it (`.NAME.unfinished`), which says what is being answered with
what: the same command goes on behind the last whole line, another one is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from hanlin.cli._say import say
from hanlin.core.errors import DataError
from hanlin.core.files import check_target, replaced_file
from hanlin.core.os_errors import naming
from hanlin.core.progress import idle

if TYPE_CHECKING:
    from hanlin.run.components import Components

__all__ = ["identity_of", "in_order", "is_unfinished", "open_output", "ready_lines", "text_output"]


class Output:
    """Answers as lines of JSON on standard output."""

    num_done = 0

    def write(self, record: Any) -> None:
        print(json.dumps(record, ensure_ascii=False), flush=True)

    def finish(self, count: int) -> None:
        """count: of all answers."""

    def close(self) -> None:
        """After an error too."""


@contextmanager
def open_output(target: Path | None, identity: str | None, *, overwrite: bool = False) -> Iterator[Output]:
    """Where answers go: a file, or standard output.

    identity: of what is answered, with what and how; None: it is not known, and nothing is gone on with.
    overwrite: replace the first answers of another command, where they would be refused.
    """
    output = Output() if target is None else _FileOutput(target, identity, overwrite=overwrite)
    try:
        yield output
    finally:
        output.close()


class _FileOutput(Output):
    """The same in a file. num_done: how many answers of an earlier, interrupted command are there."""

    def __init__(self, target: Path, identity: str | None, *, overwrite: bool) -> None:
        """Raises: DataError when the file holds the first answers of something else, or cannot be written."""
        self.target = check_target(target)
        self.num_done = 0
        self._mark = _mark_of(self.target)
        self._stream = self._open(identity, overwrite)

    def write(self, record: Any) -> None:
        """The line is in the file when this returns."""
        with naming(self.target):
            self._stream.write(json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
            self._stream.flush()

    def finish(self, count: int) -> None:
        with naming(self.target):
            if self.target.is_file():
                os.fsync(self._stream.fileno())
            self._stream.close()
        self._mark.unlink(missing_ok=True)
        say(f"{self.target}: {count:,} records")

    def close(self) -> None:
        with suppress(OSError):
            self._stream.close()

    def _open(self, identity: str | None, overwrite: bool) -> BinaryIO:
        with naming(self.target):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            if self.target.exists() and not self.target.is_file():
                return self.target.open("wb")  # a device or a pipe
            if identity is None:
                self._mark.unlink(missing_ok=True)
                return self.target.open("wb")
            if self._mark.is_file() and self.target.is_file():
                if self._mark.read_text(encoding="utf-8", errors="replace") == identity:
                    self.num_done = _keep_whole_lines(self.target)
                    return self.target.open("ab")
                if self.target.stat().st_size and not overwrite:
                    raise self._others()
            # Emptied before it is marked: what is there of an earlier command must not be taken for ours.
            self.target.open("wb").close()
            with replaced_file(self._mark) as stream:
                stream.write(identity.encode())
            return self.target.open("ab")

    def _others(self) -> DataError:
        return DataError(
            f"{self.target}: holds the first answers of a command with another input, model or settings, which has "
            "not ended; go on with that one, choose another --output, or add --overwrite"
        )


def is_unfinished(target: Path) -> bool:
    """Whether a file holds the first answers of a command that has not ended."""
    return _mark_of(check_target(target)).is_file()


def _mark_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.unfinished")


def _keep_whole_lines(path: Path) -> int:
    """Cut off what a killed process has left of a line; the number of lines."""
    with path.open("r+b") as stream:
        count = size = 0
        for line in stream:
            if not line.endswith(b"\n"):
                break
            count, size = count + 1, size + len(line)
        stream.truncate(size)
    return count


def identity_of(components: Components, records: str) -> str:
    """Hash of all that decides the answers; records: their fingerprint. Of weights the files' sizes and times count."""
    facts = [
        records,
        components.identity(),
        components.recipe.generate.model_dump(mode="json", exclude={"batch_size"}),
        components.recipe.run.seed,
        components.recipe.train.precision,
        components.recipe.data.bad_rows,
        [[str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns] for file in components.weight_files()],
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def in_order(numbered: Iterable[tuple[int, Any]], wanted: Sequence[int]) -> Iterator[Any]:
    """The values by the numbers wanted, each as soon as it and all before it are there."""
    waiting: dict[int, Any] = {}
    place = 0
    for number, value in numbered:
        waiting[number] = value
        while place < len(wanted) and wanted[place] in waiting:
            yield waiting.pop(wanted[place])
            place += 1


def ready_lines(stream: BinaryIO, most: int) -> Iterator[list[tuple[int, bytes]]]:
    """The lines that have come by now, with their numbers from 1, `most` at a time; blank ones are left out.

    So a program that waits for the answer to a line before it writes the next one gets it.
    """
    come: queue.Queue[tuple[int, bytes] | None] = queue.Queue(maxsize=most)
    threading.Thread(target=_read_lines, args=(stream, come), daemon=True).start()
    while True:
        with idle():
            line = come.get()
        if line is None:
            return
        lines = [line]
        while len(lines) < most:
            try:
                line = come.get_nowait()
            except queue.Empty:
                break
            if line is None:
                yield lines
                return
            lines.append(line)
        yield lines


def _read_lines(stream: BinaryIO, come: queue.Queue[tuple[int, bytes] | None]) -> None:
    try:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                come.put((number, line.rstrip(b"\r\n")))
    finally:
        come.put(None)


@contextmanager
def text_output(target: Path | None) -> Iterator[TextIO]:
    """Where streamed text goes: a file, or standard output."""
    if target is None:
        yield sys.stdout
        return
    path = check_target(target)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", errors="backslashreplace") as stream:
            yield stream
