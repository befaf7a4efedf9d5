"""A large base is read once before it is loaded: for its hash and for what is in it."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from family_cases import case_of

import hanlin
from hanlin.core import manifest
from hanlin.core.errors import ConfigError
from hanlin.formats import load, read_once
from hanlin.formats.files import write_safetensors
from hanlin.formats.load import base_parameters, save_base
from hanlin.formats.read_once import known_values, sha256_and_values
from hanlin.formats.values import Sound, count_values

TENSORS = {
    "z": torch.tensor([[1.0, -7.0]]),
    "a": torch.tensor([torch.nan, 1.0, torch.inf]).bfloat16(),
    "zeros": torch.zeros(3, dtype=torch.float16),
    "bytes": torch.arange(5, dtype=torch.int8),
    "none": torch.empty(0, 4),
}


@pytest.fixture(autouse=True)
def _all_is_large_and_settled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for module in (manifest, load):
        monkeypatch.setattr(module, "MIN_REMEMBERED_BYTES", 1)
    monkeypatch.setattr("hanlin.core.remembered._SETTLED_SECONDS", -60.0)


def test_hash_and_values_are_those_of_reading_twice(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_safetensors(file, TENSORS)
    assert known_values([file]) is None
    assert sha256_and_values(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    known = known_values([file])
    assert known is not None
    assert known.as_json() == count_values(TENSORS).as_json()
    os.utime(file, ns=(1, 1))  # another state
    assert known_values([file]) is None


@pytest.mark.parametrize("damage", ["short", "header", "gap", "word", "text"])
def test_of_what_is_no_whole_file_the_hash_is_told(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "model.safetensors"
    write_safetensors(file, TENSORS)
    content = file.read_bytes()
    changed = {
        "short": content[:-3],
        "header": content[:20],
        "gap": content.replace(b'"data_offsets":[0', b'"data_offsets":[1'),
        "word": content.replace(b'"F16"', b'"F17"'),
        "text": b"not at all",
    }[damage]
    assert changed != content
    file.write_bytes(changed)
    assert sha256_and_values(file) == hashlib.sha256(changed).hexdigest()
    assert known_values([file]) is None


class CountedFile(io.FileIO):
    counts: ClassVar[Counter[str]] = Counter()

    def readinto(self, buffer: Any) -> int | None:
        count = super().readinto(buffer)
        self.counts[Path(str(self.name)).name] += count or 0
        return count


def test_the_first_start_reads_a_base_once_and_then_loads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("cpm_bee", tmp_path)
    save_base(tmp_path / "base", case.family, case.config, base_parameters(case.model().float()), case.tokenizer)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in case.records[:2]), "utf-8")
    recipe = {
        "model": {"family": case.name, "base": str(tmp_path / "base")},
        "data": {"train": [str(rows)], "cache": str(tmp_path / "cache"), "max_length": 64},
        "tuning": {"method": "lora", "rank": 2},
        "train": {"steps": 1, "batch_size": 2},
        "run": {"folder": str(tmp_path / "run"), "threads": 1, "device": "cpu"},
    }
    (weights,) = (tmp_path / "base").glob("*.safetensors")
    CountedFile.counts.clear()
    really_open, loaded, get = Path.open, Counter[str](), Sound.__getitem__

    def opened(self: Path, mode: str = "r", *given: Any, **named: Any) -> Any:
        counts = mode == "rb" and self.suffix == ".safetensors"
        return io.BufferedReader(CountedFile(self)) if counts else really_open(self, mode, *given, **named)

    def looked_at(tensors: Any) -> None:
        raise AssertionError("read again for what is in it")

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(Sound, "__getitem__", lambda self, name: loaded.update([name]) or get(self, name))
    monkeypatch.setattr(load, "count_values", looked_at)
    hanlin.train(recipe, quiet=True)
    assert CountedFile.counts[weights.name] == weights.stat().st_size
    assert set(loaded.values()) == {1}
    assert len(loaded) == len(base_parameters(case.empty()))
    # What was found out is known at the next start, until the file changes.
    hanlin.train(recipe, {"run.folder": str(tmp_path / "again")}, quiet=True)
    assert CountedFile.counts[weights.name] == weights.stat().st_size
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ConfigError, match="was changed"):
        hanlin.train(recipe, {"run.folder": str(tmp_path / "third")}, quiet=True)
    assert read_once.known_values([weights]) is not None  # it was read as it is now
