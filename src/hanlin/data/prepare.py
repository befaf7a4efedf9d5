"""Records -> encoded samples, once: every bad row is found before training, the result is kept on disk.

The cache is named by a hash of the content of the data, the tokenizer, the family's code and the settings that matter,
so a second run finds it and a change of any of them makes another one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hanlin.core.batch import Sample
from hanlin.core.errors import DataError
from hanlin.core.os_errors import naming
from hanlin.core.progress import counted
from hanlin.core.tokenizer import Tokenizer
from hanlin.data import forms
from hanlin.data.bad_rows import BadRow, list_bad_rows, list_dropped
from hanlin.data.cache import SampleArrays, SampleArrayWriter, read_columns
from hanlin.data.expand import FileRecords, open_part
from hanlin.data.forms.content import Side
from hanlin.data.pack import Shuffle, draw_each_once, padding_share, plan_rows
from hanlin.data.processor import HasFingerprint, NotesRecords, ProcessesMany, SampleProcessor, tried
from hanlin.data.report import Counts, DataReport, make_report
from hanlin.data.sealed_folder import open_or_make
from hanlin.data.sources import BadRowError, Records
from hanlin.recipe.settings import DataSettings

log = logging.getLogger(__name__)

VERSION = 4
"""Goes up when the same data and settings would be encoded or stored in another way."""
GROUP_ROWS = 512
"""Rows that are encoded at once."""
LOSS_TOKENS, LENGTHS, ORIGINS, VARYING = "loss_tokens", "lengths", "origins", "varying"


class Prepared:
    """Encoded samples with random access; a sample knows the row that it came from."""

    has_own_order = False

    def __init__(
        self, sources: Sequence[Records], processor: SampleProcessor, settings: DataSettings, columns: SampleArrays
    ) -> None:
        self._sources, self._processor, self._settings, self._columns = sources, processor, settings, columns
        self._bounds = np.cumsum([0, *(len(source) for source in sources)])
        self._origins = np.array(columns.arrays[ORIGINS])  # [samples, 2]: row over all sources, part of that row
        self._varying = np.array(columns.arrays[VARYING])
        self.lengths = np.array(columns.arrays[LENGTHS])
        self.loss_tokens = np.array(columns.arrays[LOSS_TOKENS])
        self.identity = self._hash()
        """Hash of the rows and of the samples' sizes: where it is equal, a place in the data means the same."""
        self.fingerprint: str = columns.facts["fingerprint"]
        """Names the cache: changes with the code too."""

    def __len__(self) -> int:
        return len(self.lengths)

    def _hash(self) -> str:
        digest = hashlib.sha256("".join(source.fingerprint for source in self._sources).encode())
        for array in (self._origins, self.lengths, self.loss_tokens):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @property
    def num_varying(self) -> int:
        """Samples that are encoded anew in each epoch."""
        return int(self._varying.sum())

    @property
    def source_bounds(self) -> np.ndarray:
        """`[sources + 1]`: where the samples of each source begin."""
        return np.searchsorted(self._origins[:, 0], self._bounds)

    def get(self, number: int, rng: np.random.Generator | None = None) -> Sample:
        """The sample; with `rng` one that varies is encoded anew, its length stays."""
        if rng is None or not self._varying[number]:
            return self._columns.sample(number)
        sample = self._processor.sample(self.record(number), rng)
        assert sample.length == self.lengths[number], (self.where(number), sample.length, self.lengths[number])
        return sample

    def draw(self, seed: int, epoch: int, rng: np.random.Generator, shuffle: Shuffle) -> tuple[np.ndarray, np.ndarray]:
        """See `SampleSource`."""
        return draw_each_once(len(self), seed, rng, shuffle)

    def example_weights(self, in_context: Sequence[float]) -> Sequence[Sequence[float]]:
        return [in_context] * (len(self.source_bounds) - 1)

    def record(self, number: int) -> Any:
        """The record behind a sample, after truncation or splitting."""
        row, part = (int(value) for value in self._origins[number])
        record = _read(self._sources, self._bounds, row)
        if part < 0:
            return record
        return self._processor.fit(record, self._settings.max_length, self._settings.overlong)[part]

    def where(self, number: int) -> str:
        """File and line of the row behind a sample."""
        return _where(self._sources, self._bounds, int(self._origins[number, 0]))

    @property
    def rows(self) -> np.ndarray:
        """`[samples]`: the number of the row behind each, over all sources."""
        return self._origins[:, 0]

    @property
    def counts(self) -> Counts:
        return Counts(**self._columns.facts["counts"])

    @property
    def report(self) -> DataReport:
        return self.report_of(self.counts, self.lengths, self.loss_tokens)

    def report_of(self, counts: Counts, lengths: np.ndarray, loss_tokens: np.ndarray) -> DataReport:
        """The report on samples of these lengths that are packed as the settings say; the first is one of these."""
        longest, numbers = self._settings.max_length, np.arange(len(lengths))
        rows = (
            plan_rows(lengths, numbers, longest) if self._settings.pack else [[number] for number in numbers.tolist()]
        )
        padding = padding_share(lengths, rows, longest)
        return make_report(counts, lengths, loss_tokens, longest, padding, self._processor.show(self.get(0)))


def prepare(  # noqa: PLR0913 what decides the samples
    files: Sequence[Path],
    processor: SampleProcessor,
    settings: DataSettings,
    *,
    tokenizer: Tokenizer,
    share: float = 1.0,
    limit: int | None = None,
    side: Side | None = None,
    progress: bool = True,
) -> Prepared:
    """Encode the rows of all files, or take them from the cache under `settings.cache`.

    tokenizer: the one that `processor` uses; what it saves of itself is part of the cache's name.
    share, limit: of each file only the first share of its rows, and the first records of these.
    side: which answer of preference rows.
    Raises: DataError listing the rows that cannot be used, unless the settings say that they are dropped.
    """
    if not files:
        raise DataError("no data files were given; name at least one")
    sources = [open_part(path, settings, processor, share=share, limit=limit, side=side) for path in files]
    fingerprint = _fingerprint(sources, processor, tokenizer, settings)
    folder = settings.cache.expanduser() / fingerprint[:32]
    columns, is_new = open_or_make(
        folder,
        read_columns,
        lambda private: _encode_all(sources, processor, settings, tokenizer, private, fingerprint, progress),
        "encoded samples",
    )
    if is_new:
        log.info("data encoded samples=%d cache=%s", len(columns.arrays[LENGTHS]), folder)
    return Prepared(sources, processor, settings, columns)


@dataclass(frozen=True)
class TriedRows:
    """What `prepare` would do with some rows: `bad` ones it would refuse, the `counts` say which it would drop or cut.

    lengths: number of its record and tokens of every sample; first: the first samples, with the numbers of their
    records.
    """

    bad: list[BadRow]
    counts: Counts
    lengths: list[tuple[int, int]]
    first: list[tuple[int, Sample]]


def try_rows(
    source: FileRecords,
    processor: SampleProcessor,
    settings: DataSettings,
    *,
    keep: int = 0,
    tokenizer: Tokenizer | None = None,
) -> TriedRows:
    """Encode all rows of a source, and keep nothing of them but the first `keep` samples.

    tokenizer: the one that `processor` uses, whose unknown tokens are counted.
    """
    tried_rows = TriedRows([], _count([source]), [], [])
    numbers = iter(range(len(source)))
    for number, one in _encode_rows([source], numbers, processor, settings, tried_rows.counts, tried_rows.bad):
        tried_rows.lengths.append((number, one.sample.length))
        tried_rows.counts.count_unknown(one.sample, tokenizer)
        if len(tried_rows.first) < keep:
            tried_rows.first.append((number, one.sample))
    return tried_rows


def hash_tokenizer(tokenizer: Tokenizer) -> str:
    """Hash of what a tokenizer saves of itself."""
    with tempfile.TemporaryDirectory() as scratch:
        with naming(Path(scratch)):
            tokenizer.save(Path(scratch))
        return _hash_files(sorted(path for path in Path(scratch).rglob("*") if path.is_file()))


def _fingerprint(
    sources: Sequence[Records], processor: SampleProcessor, tokenizer: Tokenizer, settings: DataSettings
) -> str:
    facts = {
        "version": VERSION,
        "sources": [source.fingerprint for source in sources],
        "tokenizer": hash_tokenizer(tokenizer),
        "samples": processor.fingerprint if isinstance(processor, HasFingerprint) else "",
        "code": _hash_files([*_code_of(processor), *sorted(Path(forms.__file__).parent.glob("*.py"))]),
        "settings": [settings.max_length, settings.overlong, settings.bad_rows],
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _code_of(processor: SampleProcessor) -> list[Path]:
    """The files that decide how a record is encoded: the family's folder, or the user's one file."""
    module = sys.modules[type(processor).__module__]
    file = Path(str(module.__file__))
    return sorted(file.parent.rglob("*.py")) if module.__package__ else [file]


def _hash_files(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        data = path.read_bytes()
        digest.update(f"{path.name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


# --- encoding ---


@dataclass(frozen=True)
class _Encoded:
    """One sample of a row; part: its number among the samples of the row, -1 when the row was taken as it is."""

    sample: Sample
    varies: bool
    part: int = -1


class _OverlongError(DataError):
    """A row longer than the model may see."""


def _encode_all(
    sources: Sequence[FileRecords],
    processor: SampleProcessor,
    settings: DataSettings,
    tokenizer: Tokenizer,
    folder: Path,
    fingerprint: str,
    progress: bool,
) -> None:
    num_rows = sum(len(source) for source in sources)
    counts, bad, kept = _count(sources), [], []
    writer = SampleArrayWriter(folder)
    for row, one in _encode_rows(
        sources, counted(range(num_rows), "Encoding", num_rows, shows=progress), processor, settings, counts, bad
    ):
        writer.append(one.sample)
        counts.count_unknown(one.sample, tokenizer)
        kept.append((row, one.part, one.varies, one.sample.length, one.sample.loss_tokens))
    if bad:
        raise DataError(list_bad_rows(bad, f"{len(bad):,} of {counts.read:,} rows cannot be used."))
    if not kept:
        raise DataError(list_dropped(counts.examples))
    table = np.array(kept, np.int64)
    per_sample = {
        ORIGINS: table[:, :2],
        VARYING: table[:, 2].astype(bool),
        LENGTHS: table[:, 3].astype(np.int32),
        LOSS_TOKENS: table[:, 4].astype(np.int32),
    }
    writer.finish(per_sample, {"fingerprint": fingerprint, "counts": dataclasses.asdict(counts)})


def _count(sources: Sequence[FileRecords]) -> Counts:
    """What is known before anything is encoded: how much there is, and what holds nothing."""
    counts = Counts(rows=sum(source.num_rows for source in sources), in_files=sum(one.num_in_file for one in sources))
    for source in sources:
        counts.read += len(source) + len(source.left_out)
        counts.read_as[source.read_as] = counts.read_as.get(source.read_as, 0) + source.num_rows
        for where, reason in source.left_out:
            counts.drop(where, reason)
    return counts


def _encode_rows(
    sources: Sequence[FileRecords],
    numbers: Iterator[int],
    processor: SampleProcessor,
    settings: DataSettings,
    counts: Counts,
    bad: list[BadRow],
) -> Iterator[tuple[int, _Encoded]]:
    """The samples of the rows that can be used, each with the number of its row; the others are noted in `counts`, if
    the settings say that they are dropped, or in `bad`.
    """
    bounds = np.cumsum([0, *(len(source) for source in sources)])
    for rows in _groups(numbers):
        read = [tried(_read_noted, sources, bounds, row) for row in rows]
        records = [one if isinstance(one, DataError) else one[0] for one in read]
        for row, one, record, sample in zip(rows, read, records, _sample_all(records, processor), strict=True):
            try:
                encoded = _encode(record, sample, processor, settings, counts)
            except DataError as error:
                _note_bad_row(error, _where(sources, bounds, row), settings, counts, bad)
                continue
            assert not isinstance(one, DataError), one
            for note in (*one[1], *_notes_of(record, processor)):
                counts.note(note)
            yield from ((row, one) for one in encoded)


def _read_noted(sources: Sequence[FileRecords], bounds: np.ndarray, row: int) -> tuple[Any, Sequence[str]]:
    source, at = _place(bounds, row)
    return sources[source].noted(at)


def _notes_of(record: Any, processor: SampleProcessor) -> Sequence[str]:
    return processor.notes(record) if isinstance(processor, NotesRecords) else ()


def _sample_all(records: Sequence[Any | DataError], processor: SampleProcessor) -> list[Sample | DataError]:
    """The sample of each record, or why there is none; a record may be an error already."""
    if not isinstance(processor, ProcessesMany):
        return [tried(_sample, record, processor) for record in records]
    made = iter(processor.process_many([record for record in records if not isinstance(record, DataError)]))
    return [record if isinstance(record, DataError) else next(made) for record in records]


def _sample(record: Any | DataError, processor: SampleProcessor) -> Sample:
    if isinstance(record, DataError):
        raise record
    processor.check(record)
    return processor.sample(record)


def _encode(
    record: Any, sample: Sample | DataError, processor: SampleProcessor, settings: DataSettings, counts: Counts
) -> list[_Encoded]:
    """The samples of one record, whose whole sample is known.

    Raises: DataError.
    """
    if isinstance(sample, DataError):
        raise sample
    if sample.length <= settings.max_length:
        return [_Encoded(_with_loss(sample), processor.varies(record))]
    if settings.overlong in ("error", "drop"):
        raise _OverlongError(f"too long: {sample.length} tokens, {settings.told_length}")
    fitted = [(one, processor.sample(one)) for one in processor.fit(record, settings.max_length, settings.overlong)]
    encoded = [_Encoded(_with_loss(cut), processor.varies(one), part) for part, (one, cut) in enumerate(fitted)]
    assert all(one.sample.length <= settings.max_length for one in encoded), [one.sample.length for one in encoded]
    if settings.overlong == "truncate":
        counts.truncated += 1
        counts.cut_tokens += sample.length - sum(one.sample.length for one in encoded)
    else:
        counts.split += 1
        counts.parts += len(encoded)
    return encoded


def _groups(rows: Iterator[int]) -> Iterator[list[int]]:
    while group := list(islice(rows, GROUP_ROWS)):
        yield group


def _with_loss(sample: Sample) -> Sample:
    if sample.loss_tokens == 0:
        raise DataError("no token carries loss; the record has no answer to learn")
    return sample


def _note_bad_row(error: DataError, where: str, settings: DataSettings, counts: Counts, bad: list[BadRow]) -> None:
    reason = error.reason if isinstance(error, BadRowError) else str(error)
    policy = settings.overlong if isinstance(error, _OverlongError) else settings.bad_rows
    if policy != "drop":
        bad.append((where, reason))
        return
    counts.drop(where, reason)


def _read(sources: Sequence[Records], bounds: np.ndarray, row: int) -> Any:
    source, at = _place(bounds, row)
    return sources[source][at]


def _where(sources: Sequence[Records], bounds: np.ndarray, row: int) -> str:
    source, at = _place(bounds, row)
    return sources[source].where(at)


def _place(bounds: np.ndarray, row: int) -> tuple[int, int]:
    source = int(np.searchsorted(bounds, row, side="right")) - 1
    return source, row - int(bounds[source])
