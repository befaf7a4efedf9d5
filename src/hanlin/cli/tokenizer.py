"""A vocabulary from the user's own texts.

hanlin tokenizer train texts/ --out vocab.model --size 8000       sentencepiece, for CPM-1
hanlin tokenizer train texts/ --out vocab.txt --size 8000         word pieces with tokens for spans, for CPM-1's T5
hanlin tokenizer build rows.jsonl --out vocab.txt --size 20000    characters and words, for CPM-Bee
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from hanlin.cli._numbers import real, whole
from hanlin.cli._say import tell
from hanlin.cli._targets import add_overwrite, new_target
from hanlin.core.errors import ConfigError, DataError
from hanlin.core.files import replaced_file

HELP = "make a vocabulary from your own texts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    train = actions.add_parser("train", help="learn pieces: sentencepiece over jieba's words")
    train.add_argument("files", nargs="+", type=Path, help="text or files of rows, also packed, folders, patterns")
    train.add_argument("--out", type=Path, required=True, help="the file: .model for sentencepiece, .txt for T5")
    train.add_argument("--size", type=whole(1, 10**7), default=8_000, help="pieces at most (default: %(default)s)")
    train.add_argument("--coverage", type=real(0.5, 1), default=0.9995, help="share of characters that are pieces")
    train.add_argument("--key", default="text", help="key or column of the text in rows (default: %(default)s)")
    build = actions.add_parser("build", help="count characters and words, keep the most frequent ones")
    build.add_argument("files", nargs="+", type=Path, help="files of rows, as data.train takes them")
    build.add_argument("--out", type=Path, required=True, help="the vocabulary file to write, one token a line")
    build.add_argument("--size", type=whole(1, 10**7), default=20_000, help="tokens at most (default: %(default)s)")
    build.add_argument("--min-count", type=whole(), default=1, help="leave out rarer tokens (default: %(default)s)")
    for action in (train, build):
        add_overwrite(action)


def run(args: argparse.Namespace) -> int:
    new_target(args.out, overwrite=args.overwrite)
    return _train(args) if args.action == "train" else _build(args)


def _train(args: argparse.Namespace) -> int:
    from hanlin.data.pretraining.corpus import BadText, find_files, read_documents, read_pieces
    from hanlin.tokens.training import train_pieces, word_pieces

    if args.out.suffix not in (".model", ".txt"):
        raise ConfigError(f"--out {args.out}: its name ends with .model (sentencepiece) or .txt (word pieces)")

    def texts() -> Iterator[str]:
        for piece in read_pieces(find_files(args.files), key=args.key):
            for text in read_documents(piece, args.key):
                if isinstance(text, BadText):
                    raise DataError(f"{text.where(piece)}: {text.reason}")
                yield text

    if args.out.suffix == ".model":
        content = train_pieces(texts(), args.size, coverage=args.coverage)
    else:
        model = train_pieces(texts(), args.size, coverage=args.coverage, normalization="identity")
        content = "".join(f"{token}\n" for token in word_pieces(model)).encode()
    with replaced_file(args.out) as stream:
        stream.write(content)
    tell(f"{args.out}: {len(content):,} bytes; name it in model.vocab, or in --vocab of `hanlin prepare`")
    return 0


def _build(args: argparse.Namespace) -> int:
    from hanlin.data.sources import open_records
    from hanlin.tokens.vocabulary import build_vocabulary

    sources = [open_records(path) for path in args.files]
    rows = (source[number] for source in sources for number in range(len(source)))
    tokens = build_vocabulary(rows, args.size, args.min_count)
    with replaced_file(args.out) as stream:
        stream.write("".join(f"{token}\n" for token in tokens).encode())
    tell(f"{args.out}: {len(tokens):,} tokens")
    return 0
