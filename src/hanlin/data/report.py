"""What the data look like before training: how many rows, why some are missing, how long, how much of it is learned."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from hanlin.core.errors import shorten
from hanlin.core.language import translated
from hanlin.core.terminal import LOSS_BEGIN, LOSS_END, has_colours, marked
from hanlin.core.tokenizer import HasUnknown
from hanlin.data.bad_rows import LISTED_ROWS

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from hanlin.core.batch import Sample
    from hanlin.core.tokenizer import Tokenizer

BARS = 12
BAR_WIDTH = 32
SHOWN_NOTES = 10
_MOST_NOTES = 1000


@dataclass
class Counts:
    """What happened to the records while they were encoded; those that fit are counted nowhere.

    in_files: rows of all files, none of a corpus; rows: those of them that were read; read: the records that they hold,
    and the rows that hold none, or the documents of a corpus; dropped: records and rows left out by reason; examples:
    (where, reason) of the first of them; truncated, split: long rows that were shortened or became several; parts:
    samples that these became; cut_tokens: tokens that truncation took away; notes: what may be wrong with rows that are
    used, and how many rows; read_as: the forms of the files, and how many rows have each; unknown: how many tokens of
    the samples that are used stand for text without a token, and of how many; nothing where that is not counted.
    """

    in_files: int = 0
    rows: int = 0
    read: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: list[tuple[str, str]] = field(default_factory=list)
    truncated: int = 0
    cut_tokens: int = 0
    split: int = 0
    parts: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    read_as: dict[str, int] = field(default_factory=dict)
    unknown: list[int] = field(default_factory=list)

    def count_unknown(self, sample: Sample, tokenizer: Tokenizer | None) -> None:
        """Count those of a sample that is used, if its tokenizer has an id for them."""
        unknown = tokenizer.unknown_id if isinstance(tokenizer, HasUnknown) else None
        if unknown is None:
            return
        tokens = [ids for name, ids in sample.inputs.items() if name.endswith("tokens")]
        before = self.unknown or [0, 0]
        found = sum(int((ids == unknown).sum()) for ids in tokens)
        self.unknown = [before[0] + found, before[1] + sum(ids.size for ids in tokens)]

    def unknown_share(self) -> list[tuple[str, str]]:
        """The line of a report on them."""
        if not self.unknown:
            return []
        return [("unknown", f"{_share(*self.unknown)} of the tokens: text that the vocabulary lacks")]

    def note(self, text: str) -> None:
        """Note what may be wrong with a record that is used."""
        known = text if text in self.notes or len(self.notes) < _MOST_NOTES else "and others"
        self.notes[known] = self.notes.get(known, 0) + 1

    def fates(self) -> list[tuple[str, str]]:
        """What happened to records that were not taken as they are."""
        reasons = {_kind(reason): translated(reason) for _, reason in self.examples}
        found = [
            ("rows dropped", f"{number:,} ({number / self.read:.1%}): {_kind(reasons.get(why, why))}")
            for why, number in self.dropped.items()
        ]
        found += [("  such as", f"{where}: {reason}") for where, reason in self.examples[:3]]
        if self.truncated:
            found.append(
                ("rows truncated", f"{_share(self.truncated, self.read)}, {self.cut_tokens:,} tokens cut away")
            )
        if self.split:
            found.append(("rows split", f"{_share(self.split, self.read)}, into {self.parts:,} samples"))
        return found

    def drop(self, where: str, reason: str) -> None:
        """Note a row that is left out."""
        kind = _kind(reason)
        self.dropped[kind] = self.dropped.get(kind, 0) + 1
        if len(self.examples) < LISTED_ROWS:
            self.examples.append((where, reason))


@dataclass(frozen=True)
class DrawnSet:
    """A data set of a mixture. share: of all that is drawn; passes: over its rows, in an epoch."""

    name: str
    share: float
    passes: float


@dataclass(frozen=True)
class DataReport:
    """lengths: of the samples in tokens (p10, p50, p90, max); histogram: (longest length of the bar, samples);
    loss_tokens: tokens that carry loss; padding: share of the packed rows that is empty; first: the first sample as
    (text, carries loss) pieces; sets: what is read by weight."""

    counts: Counts
    samples: int
    tokens: int
    loss_tokens: int
    max_length: int
    lengths: dict[str, int]
    histogram: list[tuple[int, int]]
    padding: float
    first: list[tuple[str, bool]]
    sets: list[DrawnSet] = field(default_factory=list)

    @property
    def dropped(self) -> int:
        return sum(self.counts.dropped.values())


def make_report(
    counts: Counts, lengths: np.ndarray, loss_tokens: np.ndarray, max_length: int, padding: float, first: list
) -> DataReport:
    """lengths, loss_tokens: `[samples]`."""
    p10, p50, p90 = np.percentile(lengths, [10, 50, 90]).round().astype(int).tolist()
    return DataReport(
        counts=counts,
        samples=len(lengths),
        tokens=int(lengths.sum(dtype=np.int64)),
        loss_tokens=int(loss_tokens.sum(dtype=np.int64)),
        max_length=max_length,
        lengths={"p10": p10, "p50": p50, "p90": p90, "max": int(lengths.max())},
        histogram=_histogram(lengths),
        padding=padding,
        first=first,
    )


def render_report(report: DataReport, title: str = "Data") -> RenderableType:
    """The report for a terminal (rich)."""
    from rich.console import Group
    from rich.panel import Panel

    return Panel(Group(_facts(report), _bars(report), _FirstSample(report.first)), title=title, title_align="left")


def _histogram(lengths: np.ndarray) -> list[tuple[int, int]]:
    """Each bar holds what is longer than the bar before it and not longer than its own length; none is empty."""
    known, counts = np.unique(lengths, return_counts=True)
    if len(known) > BARS:
        limits = _limits(lengths)
        bars = np.searchsorted(limits, lengths)
        known, counts = limits, np.bincount(bars, minlength=len(limits))
    return [(longest, count) for longest, count in zip(known.tolist(), counts.tolist(), strict=True) if count]


def _limits(lengths: np.ndarray) -> np.ndarray:
    """The longest length of each bar: round, at equal distances where most samples are, then the longest of all."""
    low, high = np.percentile(lengths, [5, 95]).tolist()
    width = next(width for width in _round_numbers() if width * (BARS - 3) >= high - low)
    limits = width * np.arange(math.ceil(low / width), math.ceil(high / width) + 1)
    return np.append(limits[limits < lengths.max()], lengths.max())


def _round_numbers() -> Iterator[int]:
    for power in itertools.count():
        yield from (digit * 10**power for digit in range(1, 6))


def _facts(report: DataReport) -> RenderableType:
    from rich.markup import escape
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, value in _fact_rows(report):
        table.add_row(name, escape(value))
    return table


def _fact_rows(report: DataReport) -> list[tuple[str, str]]:
    counts, at = report.counts, report.lengths
    is_corpus = not counts.rows and not counts.in_files
    read = ("documents", f"{counts.read:,}") if is_corpus else ("rows read", _rows_read(counts))
    rows = [read, *(("read as", text) for text in _forms(counts))]
    rows += [("samples used", f"{report.samples:,}")]
    rows += counts.fates()
    shown = [f"{number:,} rows: {note}" for note, number in sorted(counts.notes.items(), key=lambda one: -one[1])]
    rows += [("note", text) for text in shorten(shown, SHOWN_NOTES)]
    return [
        *rows,
        ("tokens", f"{report.tokens:,}, of these carry loss {_share(report.loss_tokens, report.tokens)}"),
        *counts.unknown_share(),
        ("length", f"p10 {at['p10']:,}, p50 {at['p50']:,}, p90 {at['p90']:,}, max {at['max']:,} tokens"),
        ("rows of the model", f"{report.max_length:,} tokens, {report.padding:.1%} of them padding"),
        *((one.name, f"{one.share:.1%} of what is drawn, {one.passes:,.3g} passes an epoch") for one in report.sets),
    ]


def _forms(counts: Counts) -> list[str]:
    """The forms of the files, with their rows where there are several."""
    named = {form: number for form, number in counts.read_as.items() if form}
    return list(named) if len(named) == 1 else [f"{form}: {number:,} rows" for form, number in named.items()]


def _rows_read(counts: Counts) -> str:
    rows = f"{counts.rows:,}"
    if counts.rows < counts.in_files:
        rows += f" of {counts.in_files:,} (data.train_share, train_limit and eval_share leave the others out)"
    return rows if counts.read == counts.rows else f"{rows}, with {counts.read:,} records"


def _kind(reason: str) -> str:
    """The reason without what is particular to the row, to count rows by it."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|[\d,]*\d", "…", re.split(r"[:;,(：；，（]", reason, maxsplit=1)[0]).strip()


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / max(whole, 1):.1%})"


def _bars(report: DataReport) -> RenderableType:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_row()
    most = max(count for _, count in report.histogram)
    for longest, count in report.histogram:
        bar = "█" * -(-count * BAR_WIDTH // most)
        table.add_row(f"up to {longest:,}", f"[cyan]{bar}[/cyan] {count:,}")
    return table


class _FirstSample:
    """The first sample; how the tokens that carry loss are marked, the console decides that shows it."""

    def __init__(self, pieces: list[tuple[str, bool]]) -> None:
        self.pieces = pieces

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        how = "is marked" if has_colours(console) else f"stands within {LOSS_BEGIN} {LOSS_END}"
        text = Text(f"\n{translated(f'The first sample; what carries loss {how}:')}\n", style="bold")
        for carries_loss, run in itertools.groupby(self.pieces, key=lambda piece: piece[1]):
            text.append_text(marked("".join(piece for piece, _ in run), carries_loss, console))
        yield text
