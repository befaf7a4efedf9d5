"""Characters per second of CPM-2's tokenizer against jieba and word pieces in plain Python; the ids are compared.

python benchmarks/tokenize_cpm2.py --vocab vocab.txt --texts poems.jsonl ccpm.jsonl [--out result.json]

plain: the original's procedure without its objects: the text is folded (Chinese vocabulary), cut by jieba, white space
is made visible, and each word is cut into the longest tokens from the left, which are looked up in a dict. hanlin:
`encode_many`, the texts of 512 lines at a time, as data are prepared for training. one: `encode`, text by text. Each
way sees all texts before the clock, so dictionaries are loaded. The ways take turns, CPU time counts. Texts are all
strings of the JSON lines.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import jieba
from script import read_arguments, report
from turns import take_turns

from hanlin.models.cpm2.tokenizer import Cpm2Tokenizer

VISIBLE = str.maketrans(" \n", "\u2582\u2583")
FOLDED = {code: code - 0xFEE0 for code in range(0xFF00, 0xFF5F) if chr(code) not in "，。！（）？、；："} | {
    0x3000: 0x20
}
MAX_WORD = 200
GROUP_LINES = 512

Encode = Callable[[list[str]], list[list[int]]]


def plain_encoder(file: Path) -> Encode:
    ids = {line.strip(): id for id, line in enumerate(file.read_text("utf-8").removesuffix("\n").split("\n"))}
    assert "<go>" not in ids, "the Chinese vocabulary is measured"
    unknown = ids["<unk>"]

    def encode(text: str) -> list[int]:
        found: list[int] = []
        for word in jieba.cut(text.translate(FOLDED), cut_all=False):
            word = word.translate(VISIBLE)  # noqa: PLW2901
            if len(word) > MAX_WORD:
                found.append(unknown)
                continue
            start = 0
            while start < len(word):
                end = len(word)
                while end > start and word[start:end] not in ids:
                    end -= 1
                found.append(ids[word[start:end]] if end > start else unknown)
                start = max(end, start + 1)
        return found

    return lambda texts: [encode(text) for text in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of CPM-2's tokenizer")
    parser.add_argument("--vocab", type=Path, required=True, help="vocab.txt of the Chinese CPM-2, or one like it")
    parser.add_argument("--texts", type=Path, nargs="+", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=200_000, help="characters of each file")
    parser.add_argument("--out", type=Path)
    args = read_arguments(
        parser,
        "--rounds 1 --limit 2000",
        {"--vocab": "vocab/cpm2/cn/vocab.txt", "--texts": "data/ccpm/train.jsonl"},
    )
    files = {path.name: compare(args.vocab, _lines(path, args.limit), args.rounds) for path in args.texts}
    report({"files": files}, args.out, ["jieba"])


def compare(vocab: Path, lines: list[list[str]], rounds: int) -> dict[str, Any]:
    tokenizer = Cpm2Tokenizer.load(vocab)
    texts, groups = list(chain(*lines)), list(_groups(lines))
    ways: dict[str, Encode] = {
        "plain": plain_encoder(vocab),
        "hanlin": lambda texts: [ids for group in groups for ids in tokenizer.encode_many(group)],
        "one": lambda texts: [tokenizer.encode(text) for text in texts],
    }
    wanted = ways["plain"](texts)
    different = {name: sum(a != b for a, b in zip(way(texts), wanted, strict=True)) for name, way in ways.items()}
    assert not any(different.values()), different
    turns = take_turns({name: lambda way=way: way(texts) for name, way in ways.items()}, rounds)
    characters = sum(map(len, texts))
    return {
        "texts": len(texts),
        "characters": characters,
        "tokens": sum(map(len, wanted)),
        "texts_with_other_ids": {name: count for name, count in different.items() if name != "plain"},
        "characters_per_second": {name: turns.per_second(name, characters) for name in ways},
        "ratio": {name: turns.ratio("plain", name) for name in ways if name != "plain"},
    }


def _groups(lines: list[list[str]]) -> Iterator[list[str]]:
    return (list(chain(*lines[start : start + GROUP_LINES])) for start in range(0, len(lines), GROUP_LINES))


def _lines(path: Path, limit: int) -> list[list[str]]:
    """The texts of each line."""
    found, size = [], 0
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            found.append(list(_strings(json.loads(line))))
            size += sum(map(len, found[-1]))
            if size >= limit:
                break
    return found


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


if __name__ == "__main__":
    main()
