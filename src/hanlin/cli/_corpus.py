"""`hanlin prepare --to indexed`: texts to token corpora, and token corpora merged, shuffled, corrupted, read back."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hanlin.cli._numbers import MAX_PROCESSES, real, whole
from hanlin.cli._say import tell
from hanlin.cli._targets import new_target
from hanlin.core.errors import ConfigError, DataError
from hanlin.core.files import check_regular, private_folder, written_alone
from hanlin.core.hub import locate

if TYPE_CHECKING:
    from hanlin.data.pretraining.indexed_data import IndexForm
    from hanlin.data.pretraining.indexing import CorpusReport, Encoding
    from hanlin.models.family import LoadTokenizer

INDEXED = ("indexed", "indexed-cached", "indexed-spans")
T5_LINE_BREAK = "<n>"

_DEFAULTS = {
    "vocab": None, "family": "cpm1", "key": "text", "document": "line", "append_eod": True, "eod": None,
    "workers": None, "drop_bad_rows": False, "shuffle": None, "span_density": 0.15, "span_length": 3.0,
}  # fmt: skip


def add_corpus_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("token corpora for pretraining (--to indexed...)")
    group.set_defaults(**_DEFAULTS)
    group.add_argument("--vocab", type=Path, help="the vocabulary: a file or a folder")
    group.add_argument("--family", help=f"whose tokenizer it is (default: {_DEFAULTS['family']})")
    group.add_argument("--key", help="key or column of the text in rows (default: text)")
    group.add_argument("--document", choices=("line", "file"), help="what one document is (default: a line)")
    group.add_argument(
        "--append-eod", action=argparse.BooleanOptionalAction, help="end each document by --eod (default: yes)"
    )
    group.add_argument("--eod", metavar="TOKEN", help="the token that does so (default: <eod>, <|endoftext|> or </s>)")
    group.add_argument(
        "--workers",
        type=whole(1, MAX_PROCESSES),
        metavar="N",
        help="processes (default: by the CPUs and the size of the files)",
    )
    group.add_argument("--drop-bad-rows", action="store_true", help="leave them out; else the job stops and lists them")
    group.add_argument("--shuffle", type=whole(0, 2**32 - 1), metavar="SEED", help="put the documents in random order")
    group.add_argument(
        "--span-density", type=real(0.001, 0.999), help="indexed-spans: share of tokens taken out (default: 0.15)"
    )
    group.add_argument("--span-length", type=real(1, 10**6), help="indexed-spans: mean tokens of a span (default: 3)")


def corpus_options(args: argparse.Namespace) -> list[str]:
    """The options of token corpora that were given."""
    return [f"--{name.replace('_', '-')}" for name, default in _DEFAULTS.items() if getattr(args, name) != default]


def prepare_corpus(args: argparse.Namespace) -> int:
    """Raises: ConfigError, DataError."""
    *sources, target = map(Path, args.words)
    if not sources:
        raise ConfigError("name the sources and, last, the target: the prefix of the files to write")
    if target.suffix in (".bin", ".idx"):
        raise ConfigError(f"{target}: the target is a prefix, without {target.suffix}")
    is_rows = target.suffix in (".jsonl", ".json")
    if args.overwrite and not is_rows:
        raise ConfigError(f"--overwrite: only for files of rows; remove the corpus {target} yourself")
    with written_alone(target):
        if is_rows:
            new_target(target, overwrite=args.overwrite)
        if args.from_ == "indexed":
            return _from_indexed(args, sources, target)
        return _from_text(args, sources, target)


def _from_text(args: argparse.Namespace, sources: Sequence[Path], target: Path) -> int:
    from hanlin.data.pretraining.indexing import index_texts

    is_rewritten = args.to == "indexed-spans" or args.shuffle is not None
    _refuse_existing(args, target)
    report = index_texts(
        sources,
        target,
        _encoding(args),
        form=_form(args),
        workers=args.workers,
        bad_rows="drop" if args.drop_bad_rows or args.bad_rows == "drop" else "error",
        rewrite=(lambda plain: _rewrite(args, [plain], target)) if is_rewritten else None,
    )
    _show(report, target)
    return 0


def _from_indexed(args: argparse.Namespace, sources: Sequence[Path], target: Path) -> int:
    """Merge, shuffle or corrupt corpora, or write their texts as JSON lines."""
    from hanlin.data.pretraining.indexed_data import IndexedData

    if target.suffix in (".jsonl", ".json"):
        return _read_back(args, sources, target)
    if args.to is None:
        raise ConfigError("--to: say what to write: indexed, indexed-cached, indexed-spans, or a target in .jsonl")
    _refuse_existing(args, target)
    _rewrite(args, sources, target)
    if args.to != "indexed-spans":
        data = IndexedData(target)
        tell(f"{target}: {len(data):,} documents, {data.sizes.sum():,} tokens")
    return 0


def _rewrite(args: argparse.Namespace, sources: Sequence[Path], target: Path) -> None:
    from hanlin.data.pretraining.corpus_checks import check_first_ids
    from hanlin.data.pretraining.indexed_data import IndexedData, merge_indexed, shuffle_indexed
    from hanlin.data.pretraining.indexing import end_id
    from hanlin.data.pretraining.span_corruption import write_spans

    if args.to != "indexed-spans":
        if args.shuffle is None:
            merge_indexed(sources, target, _form(args))
        else:
            shuffle_indexed(sources, target, args.shuffle, _form(args))
        return
    with private_folder(target) as folder:
        plain = sources[0]
        if len(sources) > 1 or args.shuffle is not None:
            plain = folder / "plain"
            _rewrite(argparse.Namespace(**{**vars(args), "to": "indexed"}), sources, plain)
        tokenizer, documents = _tokenizer(args)(), IndexedData(plain)
        check_first_ids(documents, tokenizer.vocab_size)
        manner = {"density": args.span_density, "mean_span": args.span_length}
        count = write_spans(documents, target, tokenizer.vocab_size, end_id(tokenizer, args.eod, args.vocab), **manner)
    tell(f"{target}_context, _target, _target_offset: {count:,} documents")


def _read_back(args: argparse.Namespace, sources: Sequence[Path], target: Path) -> int:
    from hanlin.data.pretraining.corpus_checks import check_first_ids
    from hanlin.data.pretraining.indexed_data import IndexedData
    from hanlin.data.sources.jsonl import write_jsonl

    tokenizer, corpora = _tokenizer(args)(), [IndexedData(source) for source in sources]
    for data in corpora:
        check_first_ids(data, tokenizer.vocab_size)
    documents = (data[item] for data in corpora for item in range(len(data)))
    count = write_jsonl(target, ({args.key: tokenizer.decode(ids.tolist())} for ids in documents))
    tell(f"{target}: {count:,} rows")
    return 0


def _encoding(args: argparse.Namespace) -> Encoding:
    from hanlin.data.pretraining.indexing import Encoding, end_id

    load, has_spans = _tokenizer(args), args.to == "indexed-spans"
    return Encoding(
        load,
        key=args.key,
        per=args.document,
        end=end_id(load(), args.eod, args.vocab) if args.append_eod or has_spans else None,
        line_break=T5_LINE_BREAK if has_spans else None,
    )


def _tokenizer(args: argparse.Namespace) -> LoadTokenizer:
    from hanlin.models.family import LoadTokenizer

    if args.vocab is None:
        raise ConfigError("--vocab: name the vocabulary that goes with the tokens, a file or a folder")
    vocab = locate(args.vocab, whole=False)
    check_regular(vocab, ConfigError)
    return LoadTokenizer(args.family, vocab)


def _refuse_existing(args: argparse.Namespace, target: Path) -> None:
    from hanlin.data.pretraining.indexed_data import indexed_file
    from hanlin.data.pretraining.indexing import parts_folder
    from hanlin.data.pretraining.span_corruption import PARTS
    from hanlin.data.pretraining.windows import is_corpus

    if is_corpus(target):
        shutil.rmtree(parts_folder(target), ignore_errors=True)  # a job that was killed in its last moment leaves them
        raise DataError(f"{target}: a corpus is there already; remove it or choose another name")
    prefixes = [Path(f"{target}_{part}") for part in PARTS] if args.to == "indexed-spans" else [target]
    alone = next((file for one in prefixes if (file := indexed_file(one, "bin")).exists()), None)
    if alone is not None and not parts_folder(target).is_dir():  # parts: a killed job's, which is gone on with
        raise DataError(
            f"{alone}: exists already, and without an .idx it is no corpus; choose another name or remove it"
        )


def _form(args: argparse.Namespace) -> IndexForm:
    return "cached" if args.to == "indexed-cached" else "mmap"


def _show(report: CorpusReport, target: Path) -> None:
    import numpy as np
    from rich.markup import escape
    from rich.table import Table

    from hanlin.core.terminal import screen

    p10, p50, p90 = np.percentile(report.sizes, [10, 50, 90]).round().astype(int).tolist()
    documents, tokens = len(report.sizes), report.tokens
    table = Table.grid(padding=(0, 2))
    for name, value in (
        ("written", str(target)),
        ("files", f"{report.files:,}"),
        ("documents", f"{documents:,}"),
        (
            "tokens",
            f"{tokens:,}, {tokens / documents:,.1f} a document, {tokens / max(report.characters, 1):.3f} a character",
        ),
        ("length", f"p10 {p10:,}, p50 {p50:,}, p90 {p90:,}, max {int(report.sizes.max()):,} tokens"),
        ("left out", f"{len(report.bad):,} documents"),
        *(("  such as", f"{where}: {reason}") for where, reason in report.bad[:3]),
        (
            "time",
            f"{report.seconds:,.1f} s, {tokens / report.seconds:,.0f} tokens/s, {report.reused:.0%} was done before",
        ),
    ):
        table.add_row(name, escape(value))
    screen().print(table)
