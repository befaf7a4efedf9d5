"""A family as small as can be: a record {"text", "<ans>"} is its characters, the answer carries loss."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hanlin.core.batch import IGNORED, Batch, Sample
from hanlin.core.errors import DataError


class Letters:
    """A tokenizer that is known by its name alone."""

    def __init__(self, name: str = "small") -> None:
        self.name = name

    def save(self, folder: Path) -> None:
        (folder / "name.txt").write_text(self.name)


class LetterProcessor:
    """{"text": "abc", "<ans>": "de"} -> 5 tokens, 2 of them in the loss; with "draw" the answer's letters are mixed."""

    def __init__(self) -> None:
        self.num_encoded = 0

    def check(self, record: Any) -> None:
        for key in ("text", "<ans>"):
            if key not in record:
                raise DataError(f"no key {key!r}")
            if not isinstance(record[key], str):
                raise DataError(f"the value of {key!r} must be a string, found {record[key]!r}")

    def sample(self, record: Any, rng: np.random.Generator | None = None) -> Sample:
        self.num_encoded += 1
        answer = list(record["<ans>"])
        if rng is not None and self.varies(record):
            rng.shuffle(answer)
        tokens = np.array([ord(letter) for letter in [*record["text"], *answer]], np.int32)
        labels = np.full(len(tokens), IGNORED, np.int32)
        start = len(record["text"])
        labels[start:] = tokens[start:]
        inputs = {"tokens": tokens, "square": np.arange(len(record["text"]) ** 2, dtype=np.int32)}
        return Sample(inputs, labels, np.ones(len(tokens), np.float32))

    def varies(self, record: Any) -> bool:
        return bool(record.get("draw"))

    def fit(self, record: Any, max_length: int, policy: str) -> list[Any]:
        room = max_length - len(record["<ans>"])
        if room <= 0:
            raise DataError("the answer alone is too long")
        text = record["text"]
        pieces = [text[at : at + room] for at in range(0, len(text), room)]
        return [{**record, "text": piece} for piece in (pieces if policy == "split" else pieces[:1])]

    def collate(self, rows: Sequence[Sequence[Sample]], length: int) -> Batch:
        tokens = torch.zeros(len(rows), length, dtype=torch.long)
        labels = torch.full((len(rows), length), IGNORED)
        weights = torch.zeros(len(rows), length)
        for row, samples in enumerate(rows):
            at = 0
            for sample in samples:
                part = slice(at, at + sample.length)
                tokens[row, part] = torch.from_numpy(sample.inputs["tokens"].astype(np.int64))
                labels[row, part] = torch.from_numpy(sample.labels.astype(np.int64))
                weights[row, part] = torch.from_numpy(sample.weights)
                at = part.stop
        return Batch({"tokens": tokens}, labels, weights)

    def show(self, sample: Sample) -> list[tuple[str, bool]]:
        marks = (sample.labels != IGNORED).tolist()
        return [(chr(token), mark) for token, mark in zip(sample.inputs["tokens"].tolist(), marks, strict=True)]


class JoiningProcessor(LetterProcessor):
    """The same, with worked examples."""

    def join(self, main: Sample, examples: Sequence[Sample]) -> Sample:
        tokens = np.concatenate([main.inputs["tokens"], *(example.inputs["tokens"] for example in examples)])
        shown = np.full(len(tokens) - main.length, IGNORED, np.int32)
        return Sample({"tokens": tokens}, np.concatenate([main.labels, shown]), np.ones(len(tokens), np.float32))


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def letters(count: int, *, seed: int = 0, longest: int = 12, **more: Any) -> list[dict[str, Any]]:
    """Records of different lengths and different texts."""
    rng = np.random.default_rng(seed)
    return [
        {
            "text": "".join(chr(97 + letter) for letter in rng.integers(26, size=rng.integers(2, longest))),
            "<ans>": "答案",
            **more,
        }
        for _ in range(count)
    ]
