"""Pretraining samples: windows of equal length over token corpora, in the order of Megatron's index.

A corpus is indexed data (`PREFIX.bin`, `PREFIX.idx`), or the three files of corrupted documents (`PREFIX_context.idx`
and so on). `CorpusWindows` has the face of `data.prepare.Prepared`, so that the loader does not tell them apart. The
order is random in itself; a loader that keeps it (shuffle=False) reads as the original does.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from hanlin.core.batch import Sample
from hanlin.core.errors import ConfigError, DataError, shorten
from hanlin.core.remembered import remembered
from hanlin.data.pack import Shuffle, draw_each_once
from hanlin.data.pretraining.blend import MARGIN, blend
from hanlin.data.pretraining.corpus_checks import check_first_ids, check_ids, check_spans, read_facts
from hanlin.data.pretraining.indexed_data import IndexedData, indexed_file
from hanlin.data.pretraining.sample_index import SampleIndex, build_index, split_documents, split_shares
from hanlin.data.pretraining.span_corruption import PARTS, SpanData, open_spans
from hanlin.data.processor import ReadsSpans, ReadsTokens, SampleProcessor
from hanlin.data.report import Counts, DataReport
from hanlin.data.sealed_folder import open_or_make, read_seal, seal
from hanlin.recipe.settings import DataSettings

log = logging.getLogger(__name__)

CHECKED_TOKENS = 1 << 29
"""Of a corpus that are read before a run, in a few seconds; a run reads all."""


@dataclass(frozen=True)
class WindowRequest:
    """Which windows of corpora to read.

    split: shares of train, valid and test, as in "949,50,1"; part: one of these names; count: windows, as many passes
    as they take, None: those of one pass, at most `limit`; weights: of each corpus, empty: its tokens.
    """

    split: str
    part: str
    max_length: int
    seed: int
    count: int | None = None
    limit: int | None = None
    weights: Sequence[float] = ()


class CorpusWindows:
    """The windows of one part of the corpora, with random access."""

    has_own_order = False

    def __init__(
        self,
        corpora: Sequence[_Corpus],
        shares: Sequence[float],
        count: int,
        processor: SampleProcessor,
        wanted: WindowRequest,
    ) -> None:
        self._corpora, self._count, self._processor, self._wanted = corpora, count, processor, wanted
        self._sets, self._numbers = blend(shares, count) if len(corpora) > 1 else (None, None)
        self.lengths = np.broadcast_to(np.int32(wanted.max_length), count)
        self.loss_tokens = np.broadcast_to(np.int32(self.get(0).loss_tokens), count)
        facts = [wanted.part, wanted.max_length, wanted.seed, list(shares), [corpus.facts for corpus in corpora]]
        self.identity = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        """Hash of the corpora and of their order: where it is equal, a place in the data means the same."""
        self.fingerprint = self.identity

    def __len__(self) -> int:
        return self._count

    @property
    def num_varying(self) -> int:
        """A family may draw anew for each window."""
        return self._count

    @property
    def source_bounds(self) -> np.ndarray:
        return np.array([0, self._count])

    def get(self, number: int, rng: np.random.Generator | None = None) -> Sample:
        """The sample of a window; without `rng` it is drawn from the seed and the window's number."""
        corpus, place = self._place(number)
        sample = corpus.sample(place, rng or np.random.default_rng([self._wanted.seed, number]))
        assert sample.length <= self._wanted.max_length, (self.where(number), sample.length)
        return sample

    def draw(self, seed: int, epoch: int, rng: np.random.Generator, shuffle: Shuffle) -> tuple[np.ndarray, np.ndarray]:
        """See `SampleSource`."""
        return draw_each_once(len(self), seed, rng, shuffle)

    def example_weights(self, in_context: Sequence[float]) -> Sequence[Sequence[float]]:
        return [in_context]

    def where(self, number: int) -> str:
        """The corpus and the documents behind a window."""
        corpus, place = self._place(number)
        return corpus.where(place)

    @property
    def report(self) -> DataReport:
        first, longest = self.get(0), self._wanted.max_length
        return DataReport(
            counts=Counts(read=sum(len(corpus.documents) for corpus in self._corpora)),
            samples=self._count,
            tokens=first.length * self._count,
            loss_tokens=int(self.loss_tokens[0]) * self._count,
            max_length=longest,
            lengths=dict.fromkeys(("p10", "p50", "p90", "max"), first.length),
            histogram=[(first.length, self._count)],
            padding=1 - first.length / longest,
            first=self._processor.show(first),
        )

    def _place(self, number: int) -> tuple[_Corpus, int]:
        if self._sets is None or self._numbers is None:
            return self._corpora[0], number
        return self._corpora[self._sets[number]], int(self._numbers[number])


def open_windows(
    prefixes: Sequence[Path], processor: SampleProcessor, wanted: WindowRequest, vocab_size: int, cache: Path
) -> CorpusWindows:
    """The wanted windows; their index is kept under `cache`.

    vocab_size: of the tokenizer; an id beyond it is an error.
    Raises: ConfigError, DataError.
    """
    corpora = [_Corpus(prefix, processor, wanted, vocab_size) for prefix in prefixes]
    shares = _shares(corpora, wanted.weights)
    total = wanted.count or min(sum(corpus.pass_windows for corpus in corpora), wanted.limit or sys.maxsize)
    for corpus in corpora:
        corpus.check_content(cache)
    for corpus, share in zip(corpora, shares, strict=True):
        corpus.make_index(math.ceil(total * share * MARGIN) if len(corpora) > 1 else total, cache)
        log.info(
            "corpus=%s part=%s documents=%d tokens=%d passes=%d windows=%d",
            corpus.prefix, wanted.part, len(corpus.documents), corpus.num_tokens, corpus.passes, len(corpus.index),
        )  # fmt: skip
    return CorpusWindows(corpora, shares, total, processor, wanted)


@dataclass(frozen=True)
class CorpusPart:
    """The files of one part of the data, and which of their documents it takes: the share `part` of `split`."""

    files: Sequence[Path]
    split: str
    part: str
    weights: Sequence[float] = ()

    @classmethod
    def of(cls, settings: DataSettings, part: str) -> CorpusPart | None:
        """None where the part is empty; files that are held out are taken as a whole.

        Raises: ConfigError.
        """
        if part != "train" and settings.eval:
            return cls(settings.eval, "1", "train")
        split = settings.split or ""
        return cls(settings.train, split, part, settings.weights) if split_shares(split)[part] else None

    def documents(self, path: Path, num_documents: int) -> range:
        """Raises: ConfigError; DataError when there are none."""
        documents = split_documents(self.split, num_documents)[self.part]
        if not documents:
            raise DataError(_empty_part(path, self.split, self.part, num_documents))
        return documents


def check_windows(settings: DataSettings, processor: SampleProcessor, part: CorpusPart, vocab_size: int) -> None:
    """Look for what `open_windows` would refuse; of a large corpus in its first `CHECKED_TOKENS`.

    Raises: ConfigError, DataError.
    """
    wanted = WindowRequest(part.split, part.part, settings.max_length, seed=0, weights=part.weights)
    corpora = [_Corpus(path, processor, wanted, vocab_size) for path in part.files if is_corpus(path)]
    if len(corpora) == len(part.files):
        _shares(corpora, part.weights)
    else:
        _window_length(processor, settings.max_length, has_spans=False)
    for corpus in corpora:
        corpus.check_first()


def is_corpus(prefix: Path) -> bool:
    """Whether indexed data, in one or three files, lie there."""
    return any(indexed_file(path, "idx").is_file() for path in (prefix, _span_file(prefix)))


class _Corpus:
    """One part of one corpus; `check_content` and `make_index` come before all that asks for a window."""

    index: SampleIndex
    fingerprint: str
    """Hash of all bytes."""

    def __init__(self, prefix: Path, processor: SampleProcessor, wanted: WindowRequest, vocab_size: int) -> None:
        self.prefix, self.seed, self.vocab_size = prefix, wanted.seed, vocab_size
        self.has_spans = not indexed_file(prefix, "idx").is_file() and is_corpus(prefix)
        self.data = IndexedData(_span_file(prefix) if self.has_spans else prefix)
        self.processor, self.length = processor, _window_length(processor, wanted.max_length, self.has_spans)
        self.documents = split_documents(wanted.split, len(self.data))[wanted.part]
        self.num_tokens = int(self.data.sizes[self.documents.start : self.documents.stop].sum(dtype=np.int64))
        if self.num_tokens == 0:
            raise DataError(_empty_part(prefix, wanted.split, wanted.part, len(self.data)))

    @property
    def pass_windows(self) -> int:
        """The windows of one pass over the tokens."""
        return max((self.num_tokens - 1) // self.length, 1)

    @property
    def passes(self) -> int:
        return len(self.index.documents) // len(self.documents)

    @property
    def facts(self) -> list:
        """What decides which tokens a window holds."""
        return [self.fingerprint, self.documents.start, self.documents.stop, self.length, self.passes]

    def check_first(self) -> None:
        """As `check_content`, of the first `CHECKED_TOKENS`; of a larger corpus of spans only whether it has all files.

        Raises: DataError.
        """
        if not self.has_spans:
            check_first_ids(self.data, self.vocab_size, CHECKED_TOKENS)
            return
        assert isinstance(self.processor, ReadsSpans)
        parts = open_spans(self.prefix)
        if len(self.data.tokens) <= CHECKED_TOKENS:
            check_spans(parts, self.processor.marks.vocab_size)

    def check_content(self, cache: Path) -> None:
        """Read all of it, unless `cache` remembers it.

        Raises: DataError for ids that are no tokens, and for files that are not of one run.
        """
        parts = [self.data]
        if self.has_spans:
            assert isinstance(self.processor, ReadsSpans)
            parts, marks = open_spans(self.prefix), self.processor.marks
            files = [path for part in parts for path in part.files]
            remembered(cache, files, f"spans 1 {marks.vocab_size}", lambda: check_spans(parts, marks.vocab_size))
        facts = [read_facts(part, cache) for part in parts]
        if not self.has_spans:
            check_ids(self.data, facts[0], self.vocab_size)
        self.fingerprint = hashlib.sha256("".join(one.digest for one in facts).encode()).hexdigest()

    def make_index(self, num_windows: int, cache: Path) -> None:
        """Build the index, or map the one that an earlier run has left."""
        facts = [self.fingerprint, self.documents.start, self.documents.stop, self.length, num_windows, self.seed]
        folder = cache.expanduser() / f"index-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}"

        def make(private: Path) -> None:
            build_index(self.data.sizes, self.documents, num_windows, self.length, self.seed).save(private / "index")
            seal(private, {})

        self.index, _ = open_or_make(folder, _read_index, make, "the index of windows")

    def sample(self, number: int, rng: np.random.Generator) -> Sample:
        if self.has_spans:
            assert isinstance(self.processor, ReadsSpans)
            return self.processor.pair(*self._spans.pair(number))
        assert isinstance(self.processor, ReadsTokens)
        return self.processor.window(self.index.tokens(number, self.data), rng)

    def where(self, number: int) -> str:
        items = [item for item, _ in self.index.pieces(number, self.data)]
        return f"{self.prefix}: document {', '.join(shorten([str(item) for item in items]))}"

    @cached_property
    def _spans(self) -> SpanData:
        assert isinstance(self.processor, ReadsSpans)
        return SpanData(self.prefix, self.index, self.processor.marks)


def _read_index(folder: Path) -> SampleIndex:
    """Raises: ValueError for a damaged one."""
    read_seal(folder)
    index = SampleIndex.load(folder / "index")
    if index is None:
        raise ValueError("files are missing")
    return index


def _window_length(processor: SampleProcessor, max_length: int, has_spans: bool) -> int:
    """Tokens from the beginning of a window to that of the next: all of them but one."""
    if has_spans:
        if not isinstance(processor, ReadsSpans):
            raise ConfigError("data.train: documents with spans taken out are for a T5; give plain ones")
        return max_length - 1
    if not isinstance(processor, ReadsTokens):
        raise ConfigError("data.split: this family is not pretrained on token corpora; remove it and give records")
    return processor.window_tokens(max_length) - 1


def _empty_part(path: Path, split: str, part: str, num_documents: int) -> str:
    return (
        f"{path}: data.split {split!r} leaves no tokens for {part} ({num_documents:,} documents in all); give it a "
        "larger share or more documents"
    )


def _shares(corpora: Sequence[_Corpus], given: Sequence[float]) -> list[float]:
    weights = list(given) or [float(corpus.num_tokens) for corpus in corpora]
    if len(weights) != len(corpora) or not sum(weights) > 0:
        raise ConfigError(
            f"data.weights: {len(weights)} weights ({weights}) for {len(corpora)} corpora; give each one, not all 0"
        )
    return [weight / sum(weights) for weight in weights]


def _span_file(prefix: Path) -> Path:
    return Path(f"{prefix}_{PARTS[0]}")
