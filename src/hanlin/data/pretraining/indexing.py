"""Text files -> indexed data, by several processes; what was encoded is never encoded again after a kill.

Each piece of the files is encoded once and lies as a part, under the digest of its text, in `PREFIX.parts/` until all
are put together in the order of the files. So a stopped job goes on where it was, and after a bad row was corrected
only its piece is done anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hanlin.core.errors import ConfigError, DataError, shorten
from hanlin.core.files import replaced_file
from hanlin.core.locks import one_at_a_time
from hanlin.core.progress import progress as shown
from hanlin.core.remembered import remembered_sha256
from hanlin.core.tokenizer import FindsTokens, Tokenizer
from hanlin.data.bad_rows import lines_of
from hanlin.data.prepare import hash_tokenizer
from hanlin.data.pretraining.corpus import BadText, CorpusPiece, Per, find_files, read_documents, read_pieces
from hanlin.data.pretraining.indexed_data import IndexForm, indexed_file, token_dtype, written_index
from hanlin.data.sealed_folder import read_seal, seal

log = logging.getLogger(__name__)

VERSION = 1
"""Goes up when the same text would be encoded or stored in another way."""
ENDS = ("<eod>", "<|endoftext|>", "</s>")
LISTED = 50
_WORKER_BYTES = 1 << 24  # less text than this is encoded in the time that a process takes to start
_AHEAD = 4  # pieces per process that are read before they are needed


@dataclass(frozen=True)
class Encoding:
    """How text becomes tokens.

    load: returns the tokenizer; called once in each process, so it must be picklable. key: of the text in JSON lines;
    end: the id that follows every document, if any; line_break: what stands for a line break inside a line.
    """

    load: Callable[[], Any]
    key: str = "text"
    per: Per = "line"
    end: int | None = None
    line_break: str | None = None


@dataclass(frozen=True)
class CorpusReport:
    """What was read and written; sizes: tokens of each document; reused: share of the pieces that were there already;
    seconds: of the whole."""

    files: int
    sizes: np.ndarray
    characters: int
    bad: list[tuple[str, str]]
    reused: float
    seconds: float

    @property
    def tokens(self) -> int:
        return int(self.sizes.sum(dtype=np.int64))


def index_texts(  # noqa: PLR0913 a command: what to read, what to write, and its switches
    paths: Sequence[Path],
    prefix: Path,
    encoding: Encoding,
    *,
    form: IndexForm = "mmap",
    workers: int | None = None,
    bad_rows: Literal["error", "drop"] = "error",
    rewrite: Callable[[Path], object] | None = None,
    progress: bool = True,
) -> CorpusReport:
    """Write the documents of all files, in their order, to `prefix`.bin and .idx.

    workers: processes; None: as many as there are CPUs and work for.
    rewrite: makes what is wanted out of these data in place of them; it gets the prefix where they lie for a while.
    Raises: DataError, also listing the rows that cannot be used.
    """
    start, files = time.perf_counter(), find_files(paths)
    tokenizer = encoding.load()
    encoder = _Encoder(encoding, parts_folder(prefix), token_dtype(tokenizer.vocab_size), hash_tokenizer(tokenizer))
    encoder.parts.mkdir(parents=True, exist_ok=True)
    digests, bad, num_reused = _encode_all(files, encoder, workers or _count_workers(files), progress)
    if bad and bad_rows == "error":
        raise DataError(_list_bad(bad))
    plain = encoder.parts / "plain" if rewrite else prefix
    sizes, characters = _join(encoder, digests, plain, form, tokenizer.vocab_size)
    if rewrite:
        rewrite(plain)
    shutil.rmtree(encoder.parts)
    seconds = time.perf_counter() - start
    return CorpusReport(len(files), sizes, characters, bad, num_reused / len(digests), seconds)


def parts_folder(prefix: Path) -> Path:
    """Where what is encoded lies until the corpus is whole."""
    return Path(f"{prefix}.parts")


def index_in_cache(path: Path, encoding: Encoding, cache: Path) -> Path:
    """The prefix of the indexed documents of a text file or a folder, under `cache`; made unless they lie there.

    Raises: DataError.
    """
    found = hashlib.sha256(hash_tokenizer(encoding.load()).encode())
    for file in find_files([path]):
        found.update(f"{file.name}\0{remembered_sha256(file, cache)}".encode())
    manner = (VERSION, encoding.key, encoding.per, encoding.end, encoding.line_break)
    found.update(repr(manner).encode())
    prefix = cache.expanduser() / f"corpus-{found.hexdigest()[:32]}" / "documents"
    with one_at_a_time(Path(f"{prefix}.lock")):  # the other ranks of a run wait here
        if not _is_whole(prefix):
            report = index_texts([path], prefix, encoding)
            seal(prefix.parent, {})
            log.info("corpus encoded documents=%d tokens=%d cache=%s", len(report.sizes), report.tokens, prefix)
    return prefix


def _is_whole(prefix: Path) -> bool:
    """Whether a corpus lies in its folder of the cache as it was written there."""
    try:
        read_seal(prefix.parent)
    except ValueError as error:
        if indexed_file(prefix, "idx").is_file():
            log.warning("the corpus in %s: damaged (%s); made again", prefix.parent, error)
        return False
    return True


def try_texts(path: Path, key: str, most: int) -> tuple[int, bool]:
    """Read the first `most` documents of a text file or a folder: how many there are, and whether these are all.

    Raises: DataError, also listing those that cannot be used.
    """
    bad, count, has_more = [], 0, False
    for piece in read_pieces(find_files([path]), key=key):
        for text in read_documents(piece, key):
            if has_more := count == most:
                break
            count += 1
            if isinstance(text, BadText):
                bad.append((text.where(piece), text.reason))
        if has_more:
            break
    if bad:
        raise DataError(_list_bad(bad))
    if count == 0:
        raise DataError(f"{path}: the files hold no documents; give text, one document a line or a file")
    return count, not has_more


def end_id(tokenizer: Tokenizer, name: str | None = None, vocab: Path | None = None) -> int:
    """The id that ends a document: of the token `name`, else of the first of the usual ones that the tokenizer has.

    vocab: the file of the tokenizer, for the message.

    Raises: ConfigError.
    """
    names = [name] if name else ENDS
    found = [id for one in names if isinstance(tokenizer, FindsTokens) and (id := tokenizer.find(one)) is not None]
    if not found:
        of = "" if vocab is None else f" {vocab}"
        raise ConfigError(
            f"the vocabulary{of} has no token {' or '.join(names)} that could end a document; name another"
        )
    return found[0]


@dataclass(frozen=True)
class _Encoder:
    """Makes the parts; what is pickled for another process is small, the tokenizer is loaded there."""

    encoding: Encoding
    parts: Path
    dtype: np.dtype
    tokenizer_hash: str

    def part(self, digest: str) -> Path:
        """The file of a piece."""
        return self.parts / f"{digest}.npz"

    def is_done(self, digest: str) -> bool:
        """Whether the part of a piece lies there, whole by its own checksums."""
        try:
            with np.load(self.part(digest)) as part:
                return all(part[name] is not None for name in part.files)
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
            return False

    def digest(self, piece: CorpusPiece) -> str:
        """Names what becomes of a piece."""
        manner = (VERSION, self.encoding.key, self.encoding.end, self.encoding.line_break, self.tokenizer_hash)
        return hashlib.sha256(f"{manner}{piece.digest}".encode()).hexdigest()[:32]

    def encode(self, piece: CorpusPiece, digest: str, tokenizer: Tokenizer) -> None:
        """Publish the part of a piece."""
        found = list(read_documents(piece, self.encoding.key))
        texts = [self._prepared(text) for text in found if isinstance(text, str)]
        many = getattr(tokenizer, "encode_many", None)
        ids = many(texts) if many else [tokenizer.encode(text) for text in texts]
        end = [] if self.encoding.end is None else [self.encoding.end]
        bad = json.dumps([astuple(text) for text in found if isinstance(text, BadText)])
        with replaced_file(self.part(digest)) as stream:
            np.savez(
                stream,
                tokens=np.fromiter((id for one in ids for id in (*one, *end)), self.dtype),
                sizes=np.array([len(one) + len(end) for one in ids], np.int64),
                characters=np.array(sum(map(len, texts))),
                bad=np.frombuffer(bad.encode(), np.uint8),
            )

    def bad(self, piece: CorpusPiece, digest: str) -> list[tuple[str, str]]:
        """File and line of what the part left out, and why."""
        with np.load(self.part(digest)) as part:
            bad = [BadText(*one) for one in json.loads(part["bad"].tobytes())]
        return [(one.where(piece), one.reason) for one in bad]

    def _prepared(self, text: str) -> str:
        return text.replace(self.encoding.line_break, "\n") if self.encoding.line_break else text


def _encode_all(
    files: Sequence[Path], encoder: _Encoder, workers: int, progress: bool
) -> tuple[list[str], list[tuple[str, str]], int]:
    """Digests of all pieces, what is bad in them, and how many pieces were there already."""
    digests: list[str] = []
    bad: dict[int, list[tuple[str, str]]] = {}
    num_reused = 0
    encode = _here if workers == 1 else partial(_in_processes, workers=workers)
    with shown("Encoding", sum(file.stat().st_size for file in files), shows=progress) as advance:
        jobs = _jobs(files, encoder, digests)
        for job in encode(jobs, encoder):
            bad[job.number] = encoder.bad(job.piece, job.digest)
            num_reused += job.is_done
            advance(job.piece.weight)
    return digests, [one for _, some in sorted(bad.items()) for one in some], num_reused


def _count_workers(files: Sequence[Path]) -> int:
    worthwhile = sum(file.stat().st_size for file in files) // _WORKER_BYTES
    return max(min(worthwhile, os.cpu_count() or 1), 1)


@dataclass(frozen=True)
class _Job:
    """is_done: its part is there already."""

    number: int
    piece: CorpusPiece
    digest: str
    is_done: bool


def _jobs(files: Sequence[Path], encoder: _Encoder, digests: list[str]) -> Iterator[_Job]:
    for number, piece in enumerate(read_pieces(files, encoder.encoding.per, encoder.encoding.key)):
        digests.append(encoder.digest(piece))
        yield _Job(number, piece, digests[-1], encoder.is_done(digests[-1]))


def _here(jobs: Iterator[_Job], encoder: _Encoder) -> Iterator[_Job]:
    tokenizer = encoder.encoding.load()
    for job in jobs:
        if not job.is_done:
            encoder.encode(job.piece, job.digest, tokenizer)
        yield job


def _in_processes(jobs: Iterator[_Job], encoder: _Encoder, workers: int) -> Iterator[_Job]:
    """The jobs in the order in which they are done."""
    context = multiprocessing.get_context("spawn")  # a fork would take along the threads of this process
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(encoder,))
    waiting: dict[Future, _Job] = {}
    try:
        for job in jobs:
            if job.is_done:
                yield job
                continue
            waiting[pool.submit(_work, job)] = job
            if len(waiting) >= workers * _AHEAD:
                yield from _finished(waiting, FIRST_COMPLETED)
        yield from _finished(waiting, ALL_COMPLETED)
    except BrokenProcessPool:
        raise DataError(
            "a process that encoded text has died, perhaps for want of memory; run the same command again, with fewer "
            "--workers: what is done is kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(waiting: dict[Future, _Job], when: str) -> Iterator[_Job]:
    for future in wait(waiting, return_when=when).done:
        future.result()
        yield waiting.pop(future)


# --- inside a worker ---

_parallel_model: list[Any] = []  # encoder and tokenizer of this process


def _start_worker(encoder: _Encoder) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _parallel_model[:] = encoder, encoder.encoding.load()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(job: _Job) -> None:
    encoder, tokenizer = _parallel_model
    encoder.encode(job.piece, job.digest, tokenizer)


# --- putting together ---


def _join(
    encoder: _Encoder, digests: Sequence[str], prefix: Path, form: IndexForm, vocab_size: int
) -> tuple[np.ndarray, int]:
    """Write all parts behind each other; the documents' sizes, and the characters of all."""
    characters = 0
    with written_index(prefix, form, vocab_size) as writer:
        for digest in digests:
            with np.load(encoder.part(digest)) as part:
                writer.add_documents(part["tokens"].astype(writer.dtype), part["sizes"])
                characters += int(part["characters"])
        if not len(writer.sizes):
            raise DataError(f"{prefix}: the files hold no documents; give text, one document a line or a file")
    return np.array(writer.sizes), characters


def _list_bad(bad: Sequence[tuple[str, str]]) -> str:
    lines = [f"  {line}" for line in shorten(lines_of(bad, LISTED), LISTED)]
    advice = "Correct them (the rest is kept and not encoded again), or leave them out with prepare --bad-rows drop."
    return "\n".join([f"{len(bad):,} documents cannot be used.", *lines, advice])
