"""`hanlin tokenizer build`: a small vocabulary from the user's own JSONL files."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "build a vocabulary from JSONL files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    build = actions.add_parser("build", help="count characters and words, keep the most frequent ones")
    build.add_argument("files", nargs="+", type=Path, help="JSONL files")
    build.add_argument("--out", type=Path, required=True, help="the vocabulary file to write, one token a line")
    build.add_argument("--size", type=int, default=20_000, help="tokens at most (default: %(default)s)")
    build.add_argument("--min-count", type=int, default=1, help="leave out rarer tokens (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    from hanlin.core.errors import DataError
    from hanlin.tokens.vocabulary import build_vocabulary

    for path in args.files:
        if not path.is_file():
            raise DataError(f"{path}: there is no such file; give JSONL files")
    try:
        tokens = build_vocabulary(args.files, args.size, args.min_count)
    except ValueError as error:
        raise DataError(f"a file is not JSON lines in UTF-8: {error}; `hanlin check` names the row") from error
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    print(f"{args.out}: {len(tokens):,} tokens")
    return 0
