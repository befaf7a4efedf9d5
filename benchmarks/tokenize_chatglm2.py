"""Rows per second of ChatGLM2's tokenizer, one by one and many at once, against the usual slow class; the same ids.

python benchmarks/tokenize_chatglm2.py --vocab tokenizer.model --texts train.jsonl [--out result.json]

slow: a `transformers` tokenizer in Python as the model's own file defines it: sentencepiece gives the pieces as
strings, each is turned into its id by a call, special tokens, mask and positions are added (needs transformers).
pieces: the same turning of pieces into ids without anything else of transformers, as lean as Python allows.
row_by_row and at_once are our tokenizer alone, on one thread; at_once_all_cores the same on as many threads as there
are cores; samples is what `hanlin prepare` does with a group of records, on all cores: template, ids, labels, weights.
A row is the text of a prompt of ChatGLM2's form with two columns of the JSON lines, one as the question and one as the
answer. All encode the same rows in the same process, in turns; a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from script import read_arguments, report, require
from sentencepiece import SentencePieceProcessor

from hanlin.core.batch import Sample
from hanlin.data.prepare import GROUP_ROWS
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.processor import ChatGlm2Processor
from hanlin.models.chatglm2.record import ChatGlm2Options
from hanlin.models.chatglm2.templates import Dialogue, Message, make_template
from hanlin.models.chatglm2.tokenizer import ChatGlm2Tokenizer

Row = tuple[str, str]
"""Prompt and answer."""
PEERS = ("slow", "pieces")
Encoder = Callable[[list[Row]], Sequence[Sequence[int]]]


class PieceByPiece:
    """Pieces as strings, then an id for each."""

    def __init__(self, file: Path, specials: dict[str, int]) -> None:
        self.processor = SentencePieceProcessor(model_file=str(file))
        self.specials = specials
        self.prefix = [specials["[gMASK]"], specials["sop"]]

    def id_of(self, piece: str) -> int:
        return self.specials[piece] if piece in self.specials else self.processor.PieceToId(piece)

    def encode_row(self, row: Row) -> list[int]:
        prompt, answer = (self.processor.EncodeAsPieces(text) for text in row)
        return [*self.prefix, *map(self.id_of, prompt), *map(self.id_of, answer)]


def slow_class(pieces: PieceByPiece) -> Callable[[Row], list[int]]:
    """The encoding of a row by a tokenizer class of transformers."""
    from transformers import PreTrainedTokenizer  # pyright: ignore[reportMissingImports]

    class Slow(PreTrainedTokenizer):
        model_input_names = ["input_ids", "attention_mask", "position_ids"]  # noqa: RUF012 - transformers' interface

        @property
        def vocab_size(self) -> int:
            return pieces.processor.get_piece_size() + len(pieces.specials)

        def get_vocab(self) -> dict[str, int]:
            return {}

        def _tokenize(self, text: str, **_: Any) -> list[str]:
            return pieces.processor.EncodeAsPieces(text)

        def _convert_token_to_id(self, token: str) -> int:
            return pieces.id_of(token)

        def build_inputs_with_special_tokens(self, first: list[int], _: list[int] | None = None) -> list[int]:
            return pieces.prefix + first

        def _pad(self, encoded: Any, *_: Any, **__: Any) -> Any:
            length = len(encoded["input_ids"])
            encoded.setdefault("attention_mask", [1] * length)
            encoded.setdefault("position_ids", list(range(length)))
            return encoded

    slow = Slow(padding_side="left")

    def encode_row(row: Row) -> list[int]:
        return [*slow.encode(row[0], add_special_tokens=True), *slow.encode(row[1], add_special_tokens=False)]

    return encode_row


def compare(encoders: dict[str, Encoder], rows: list[Row], rounds: int) -> dict[str, Any]:
    """Encode the rows in turns; `slow` and `pieces` are what the others are measured by."""
    ids = {name: encode(rows) for name, encode in encoders.items()}
    for name, found in ids.items():
        if different := sum(list(one) != other for one, other in zip(found, ids["row_by_row"], strict=True)):
            raise SystemExit(f"{name}: {different} of {len(rows)} rows get other ids")
    times = [{name: _seconds(encode, rows) for name, encode in encoders.items()} for _ in range(rounds)]
    return {
        "rows": len(rows),
        "characters_per_row": round(sum(len(a) + len(b) for a, b in rows) / len(rows), 1),
        "tokens_per_row": round(sum(map(len, ids["row_by_row"])) / len(rows), 1),
        "rows_per_second": {name: round(len(rows) / median(t[name] for t in times)) for name in encoders},
        "ratio": {
            f"{ours} to {other}": round(median(t[other] / t[ours] for t in times), 1)
            for ours in encoders
            if ours not in PEERS
            for other in PEERS
        },
    }


def row_by_row(encode: Callable[[Row], list[int]]) -> Encoder:
    return lambda rows: [encode(row) for row in rows]


def at_once(tokenizer: ChatGlm2Tokenizer, threads: int) -> Encoder:
    return lambda rows: tokenizer.encode_parts([(*tokenizer.prefix, *row) for row in rows], threads)


def as_samples(tokenizer: ChatGlm2Tokenizer) -> Callable[[list[Row]], list[Any]]:
    """Without the ends of the answers, which a sample has and a row has not."""
    processor = ChatGlm2Processor(tokenizer, ChatGlm2Config(), ChatGlm2Options(template="plain"))

    def encode(rows: list[Row]) -> list[Any]:
        groups = (rows[start : start + GROUP_ROWS] for start in range(0, len(rows), GROUP_ROWS))
        records = ([{"prompt": prompt, "response": answer} for prompt, answer in group] for group in groups)
        made = (sample for group in records for sample in processor.process_many(group))
        return [sample.inputs["tokens"][:-1] for sample in made if isinstance(sample, Sample)]

    return encode


def _seconds(encode: Encoder, rows: list[Row]) -> float:
    begin = time.perf_counter()
    encode(rows)
    return time.perf_counter() - begin


def _rows(path: Path, columns: list[str], limit: int) -> list[Row]:
    template = make_template("rounds", "chatglm2")
    with path.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in islice(lines, limit)]
    question, answer = columns
    prompts = [template.text(Dialogue((Message("user", record[question]),))) for record in records]  # pyright: ignore
    return [(prompt, record[answer]) for prompt, record in zip(prompts, records, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of ChatGLM2's tokenizer")
    parser.add_argument("--vocab", type=Path, required=True, help="tokenizer.model")
    parser.add_argument("--texts", type=Path, required=True, help="JSON lines")
    parser.add_argument("--columns", nargs=2, default=["content", "summary"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--limit", type=int, default=2000, help="rows")
    parser.add_argument("--out", type=Path)
    args = read_arguments(
        parser,
        "--columns input target --rounds 1 --limit 30",
        {"--vocab": "golden/chatglm2_tokenizer/tokenizer.model", "--texts": "data/ccpm/train.jsonl"},
    )
    require("transformers")
    tokenizer = ChatGlm2Tokenizer.load(args.vocab)
    pieces = PieceByPiece(args.vocab, tokenizer.specials)
    encoders: dict[str, Encoder] = {
        "row_by_row": row_by_row(lambda row: tokenizer.encode_prompt(row[0]) + tokenizer.encode(row[1])),
        "at_once": at_once(tokenizer, 1),
        "at_once_all_cores": at_once(tokenizer, -1),
        "samples": as_samples(tokenizer),
        "slow": row_by_row(slow_class(pieces)),
        "pieces": row_by_row(pieces.encode_row),
    }
    found = compare(encoders, _rows(args.texts, args.columns, args.limit), args.rounds)
    report({"rounds": args.rounds, **found}, args.out, ["sentencepiece", "transformers"])


if __name__ == "__main__":
    main()
