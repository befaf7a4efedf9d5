"""Documents and tokens per second of `hanlin prepare --to indexed` against the plain original procedure.

python benchmarks/prepare_cpm1.py --vocab chinese_vocab.model --texts poems.jsonl [--out result.json]

plain: one Python process that reads a JSON line, cuts it by jieba, makes white space visible, encodes it by
sentencepiece, appends <eod> and adds the item to the data file, as CPM-1's tools do. hanlin: the whole command with its
parts on disk, with one and with two processes. Both write the same bytes. CPU seconds are those of all processes
together; "per core" compares those. A first round before the clock loads jieba's dictionary in this process; worker
processes load it again each time, which counts.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import jieba
from script import read_arguments, report
from sentencepiece import SentencePieceProcessor

from hanlin.data.pretraining.indexed_data import IndexedData, indexed_file, written_index
from hanlin.data.pretraining.indexing import Encoding, index_texts
from hanlin.models.family import LoadTokenizer

EOD = 7
VISIBLE = str.maketrans(" \n", "\u2582\u2583")


def plain(texts: Path, prefix: Path, vocab: Path) -> None:
    pieces = SentencePieceProcessor(model_file=str(vocab))
    with texts.open(encoding="utf-8") as lines, written_index(prefix, vocab_size=pieces.get_piece_size()) as writer:
        for line in lines:
            words = [word.translate(VISIBLE) for word in jieba.cut(json.loads(line)["text"].strip(), cut_all=False)]
            writer.add([*pieces.encode(" ".join(words)), EOD])
            writer.end_document()


def hanlin(texts: Path, prefix: Path, vocab: Path, workers: int) -> None:
    encoding = Encoding(LoadTokenizer("cpm1", vocab), end=EOD)
    index_texts([texts], prefix, encoding, workers=workers, progress=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of preparing text for CPM-1")
    parser.add_argument("--vocab", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True, help="JSON lines with a key text")
    parser.add_argument("--repeat", type=int, default=1, help="read them so many times over")
    parser.add_argument("--lines", type=int, help="the first ones only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = read_arguments(
        parser,
        "--rounds 1 --lines 20",
        {"--vocab": "vocab/cpm1/chinese_vocab.model", "--texts": "data/poetry/tang_poems.jsonl"},
    )
    ways: dict[str, Callable[[Path, Path], None]] = {
        "plain": lambda texts, prefix: plain(texts, prefix, args.vocab),
        "hanlin_1_process": lambda texts, prefix: hanlin(texts, prefix, args.vocab, 1),
        "hanlin_2_processes": lambda texts, prefix: hanlin(texts, prefix, args.vocab, 2),
    }
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts.jsonl"
        with args.texts.open("rb") as lines:
            texts.write_bytes(b"".join(islice(lines, args.lines)) * args.repeat)
        result = compare(ways, texts, args.rounds, Path(folder))
    report(result, args.out, ["jieba", "sentencepiece"])


def compare(ways: dict[str, Callable[[Path, Path], None]], texts: Path, rounds: int, folder: Path) -> dict[str, Any]:
    for name, run in ways.items():  # dictionaries and models are loaded, and the outputs compared, before the clock
        run(texts, folder / name)
        assert _content(folder / name) == _content(folder / "plain"), f"{name} writes other bytes"
    times: list[dict[str, tuple[float, float]]] = []
    for number in range(rounds):
        times.append({name: _seconds(lambda: run(texts, folder / f"{name}{number}")) for name, run in ways.items()})  # noqa: B023
    sizes = IndexedData(folder / "plain").sizes
    clock = {name: median(t[name][0] for t in times) for name in ways}
    cpu = {name: median(t[name][1] for t in times) for name in ways}
    return {
        "rounds": rounds,
        "documents": len(sizes),
        "tokens": int(sizes.sum()),
        "same_bytes_as_plain": dict.fromkeys(ways, True),
        "documents_per_second": {name: round(len(sizes) / clock[name]) for name in ways},
        "tokens_per_second": {name: round(int(sizes.sum()) / clock[name]) for name in ways},
        "tokens_per_cpu_second": {name: round(int(sizes.sum()) / cpu[name]) for name in ways},
        "ratio_on_the_clock": {name: round(median(t["plain"][0] / t[name][0] for t in times), 1) for name in ways},
        "ratio_per_core": {name: round(median(t["plain"][1] / t[name][1] for t in times), 1) for name in ways},
    }


def _seconds(run: Callable[[], None]) -> tuple[float, float]:
    """Seconds on the clock, and of all processors, ended child processes included."""
    begin, used = time.perf_counter(), _cpu_seconds()
    run()
    return time.perf_counter() - begin, _cpu_seconds() - used


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _content(prefix: Path) -> list[bytes]:
    return [indexed_file(prefix, ending).read_bytes() for ending in ("bin", "idx")]


if __name__ == "__main__":
    main()
