"""Characters per second of CPM-Bee's tokenizer against two plain Python ones that give the same ids.

python benchmarks/tokenize_cpm_bee.py --vocab bee.txt --texts train.jsonl [--out result.json]

trie: nested dicts, walked character by character, as lean as Python allows. longest_first: at each place the longest
possible piece is looked up in a dict, then one character less, and so on: the original CPM-Bee's search, without its
objects and its scan for marks. All encode the same texts in the same process, in turns; a ratio is the median of the
rounds' ratios. Texts are all strings of the JSON lines, "<" escaped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from script import read_arguments, report

from hanlin.models.cpm_bee.tokenizer import CpmBeeTokenizer, escape

END = ""


class PlainTokenizer:
    """Ids of texts without marks; `longest` finds the (token, end) of the longest token at a place."""

    def __init__(self, words: dict[str, int], longest: Callable[[str, int], tuple[int | None, int]]) -> None:
        self.size = len(words)
        self.longest = longest

    def encode(self, text: str) -> list[int]:
        text = text.replace("<<", "<")
        ids: list[int] = []
        unknown: dict[str, int] = {}
        place = run = 0
        while place < len(text):
            token, end = self.longest(text, place)
            if token is None:
                place += 1
                continue
            if run < place:
                ids.append(unknown.setdefault(text[run:place], self.size + len(unknown)))
            ids.append(token)
            place = run = end
        if run < place:
            ids.append(unknown.setdefault(text[run:place], self.size + len(unknown)))
        return ids


def trie_search(words: dict[str, int]) -> Callable[[str, int], tuple[int | None, int]]:
    root: dict[str, Any] = {}
    for word, token in _plain(words):
        node = root
        for character in word:
            node = node.setdefault(character, {})
        node[END] = token

    def longest(text: str, place: int) -> tuple[int | None, int]:
        node, token, end = root, None, place
        while place < len(text) and (node := node.get(text[place])) is not None:
            place += 1
            if END in node:
                token, end = node[END], place
        return token, end

    return longest


def longest_first_search(words: dict[str, int]) -> Callable[[str, int], tuple[int | None, int]]:
    plain = dict(_plain(words))
    limit = max(map(len, plain))

    def longest(text: str, place: int) -> tuple[int | None, int]:
        for end in range(min(place + limit, len(text)), place, -1):
            if (token := plain.get(text[place:end])) is not None:
                return token, end
        return None, place

    return longest


def _plain(words: dict[str, int]) -> list[tuple[str, int]]:
    return [(word, token) for word, token in words.items() if not (word[0] == "<" and word[-1] == ">")]


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the CPM-Bee tokenizer")
    parser.add_argument("--vocab", type=Path, required=True)
    parser.add_argument("--texts", type=Path, nargs="+", required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--limit", type=int, default=400_000, help="characters of each file")
    parser.add_argument("--out", type=Path)
    args = read_arguments(
        parser, "--rounds 1 --limit 2000", {"--vocab": "vocab/bee/bee.txt", "--texts": "data/ccpm/train.jsonl"}
    )
    bee = CpmBeeTokenizer.load(args.vocab)
    words = {bee.decode([token]).replace("<<", "<"): token for token in range(bee.vocab_size)}
    plain = {
        "trie": PlainTokenizer(words, trie_search(words)),
        "longest_first": PlainTokenizer(words, longest_first_search(words)),
    }
    results = {path.name: compare(bee, plain, _texts(path, args.limit), args.rounds) for path in args.texts}
    report({"rounds": args.rounds, "files": results}, args.out)


def compare(bee: CpmBeeTokenizer, plain: dict[str, PlainTokenizer], texts: list[str], rounds: int) -> dict[str, Any]:
    encoders = {"hanlin": bee.encode, **{name: tokenizer.encode for name, tokenizer in plain.items()}}
    different = {name: sum(encode(text) != bee.encode(text) for text in texts) for name, encode in encoders.items()}
    assert not any(different.values()), different
    times = [{name: _seconds(encode, texts) for name, encode in encoders.items()} for _ in range(rounds)]
    characters = sum(map(len, texts))
    return {
        "texts": len(texts),
        "characters": characters,
        "texts_with_other_ids": {name: different[name] for name in plain},
        "characters_per_second": {name: round(characters / median(t[name] for t in times)) for name in encoders},
        "ratio": {name: round(median(t[name] / t["hanlin"] for t in times), 1) for name in plain},
    }


def _seconds(encode: Callable[[str], list[int]], texts: list[str]) -> float:
    begin = time.perf_counter()
    for text in texts:
        encode(text)
    return time.perf_counter() - begin


def _texts(path: Path, limit: int) -> list[str]:
    texts, size = [], 0
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            for text in _strings(json.loads(line)):
                texts.append(escape(text))
                size += len(text)
            if size >= limit:
                break
    return texts


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


if __name__ == "__main__":
    main()
