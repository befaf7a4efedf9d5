"""A large base is read once for its hash, for what is in it, and into the model; on several ranks by the first one."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import case_of
from ranks import run_ranks
from safetensors.torch import load_file

import hanlin
from hanlin.checking import check_file
from hanlin.core import manifest
from hanlin.core.errors import CheckpointError
from hanlin.formats import load, read_once
from hanlin.formats.files import write_safetensors
from hanlin.formats.load import base_parameters, save_base
from hanlin.formats.read_once import known_values, sha256_and_values
from hanlin.formats.values import Sound, count_values
from hanlin.run.assemble import assemble

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
    for module in (manifest, load, read_once):
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


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    case = case_of("cpm_bee", tmp_path)
    save_base(tmp_path / "base", case.family, case.config, base_parameters(case.model().float()), case.tokenizer)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in case.records[:2]), "utf-8")
    return {
        "model": {"family": case.name, "base": str(tmp_path / "base")},
        "data": {"train": [str(rows)], "cache": str(tmp_path / "cache"), "max_length": 64},
        "tuning": {"method": "lora", "rank": 2},
        "train": {"steps": 1, "batch_size": 2},
        "run": {"folder": str(tmp_path / "run"), "threads": 1, "device": "cpu"},
    }


@pytest.fixture
def weights(recipe: dict[str, Any]) -> Path:
    (file,) = Path(recipe["model"]["base"]).glob("*.safetensors")
    return file


@pytest.fixture
def num_read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each tensor of a base was read by loading, and how many bytes were read of it besides ("")."""
    counts = Counter[str]()
    really_open, get = Path.open, Sound.__getitem__

    class Counted(io.FileIO):
        def readinto(self, buffer: Any) -> int | None:
            count = super().readinto(buffer)
            counts[""] += count or 0
            return count

    def opened(self: Path, mode: str = "r", *given: Any, **named: Any) -> Any:
        counts_it = mode == "rb" and self.suffix == ".safetensors"
        return io.BufferedReader(Counted(self), 1) if counts_it else really_open(self, mode, *given, **named)

    def looked_at(tensors: Any) -> None:
        raise AssertionError("read again for what is in it")

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(Sound, "__getitem__", lambda self, name: counts.update([name]) or get(self, name))
    monkeypatch.setattr(load, "count_values", looked_at)
    return counts


@pytest.mark.parametrize("quantise", [None, "nf4"])
def test_the_first_start_reads_a_base_once(
    recipe: dict[str, Any], weights: Path, num_read: Counter[str], tmp_path: Path, quantise: str | None
) -> None:
    hanlin.train(recipe, {"model.quantise": quantise}, quiet=True)
    headers, listed = num_read.pop(""), len(load_file(weights))
    assert headers < weights.stat().st_size // 2  # a header is looked at several times
    assert (set(num_read.values()), len(num_read)) == ({1}, listed)
    assert known_values([weights]) == count_values(load_file(weights))
    # What was found out is known at the next start and to who checks it, until the file changes.
    num_read.clear()
    hanlin.train(recipe, {"run.folder": str(tmp_path / "again")}, quiet=True)
    assert not hanlin.check(recipe, purpose="train", start="restart")
    assert num_read.pop("", 0) <= headers
    assert (set(num_read.values()), len(num_read)) == ({1}, listed)
    os.utime(weights, ns=(1, 1))
    num_read.clear()
    assert not hanlin.check(recipe, purpose="train", start="restart")
    assert num_read[""] >= weights.stat().st_size


LAYOUTS = {"data": {}, "parameters": {"shard": "parameters"}, "tensor": {"tensor": 2}, "pipe": {"pipe": 2}}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_of_a_machine_read_a_base_once_each_and_the_first_hashes_it(
    recipe: dict[str, Any], weights: Path, num_read: Counter[str], layout: str
) -> None:
    recipe |= {"parallel": LAYOUTS[layout]}
    counts = run_ranks(2, lambda: (_train_as_rank(recipe), dict(num_read))[1])
    for count in counts:
        assert count.pop("") < weights.stat().st_size // 2  # headers
        assert set(count.values()) == {1}
    listed = len(load_file(weights))
    assert len(counts[0]) == listed
    assert (len(counts[1]) < listed) is (layout == "pipe")
    assert known_values([weights]) == count_values(load_file(weights))


def test_a_changed_base_is_refused_by_the_rank_that_hashes_it(recipe: dict[str, Any], weights: Path) -> None:
    content = bytearray(weights.read_bytes())
    content[-4] ^= 1
    weights.write_bytes(content)
    with pytest.raises(AssertionError, match=r"base: not as it was written: model\.safetensors was changed"):
        run_ranks(2, _train_as_rank, recipe)
    assert not (Path(recipe["run"]["folder"]) / "metrics.jsonl").exists()


def _train_as_rank(recipe: dict[str, Any]) -> None:
    """As `hanlin train` does in one of several processes."""
    assemble(check_file(recipe, purpose="train", is_loaded_next=True)).train()


@pytest.mark.parametrize("use", ["train", "evaluate", "load"])
@pytest.mark.parametrize("damage", ["a bit", "no number"])
def test_a_changed_base_is_refused_when_it_is_loaded(
    recipe: dict[str, Any], weights: Path, use: str, damage: str
) -> None:
    content = bytearray(weights.read_bytes())
    content[-4:] = bytes([content[-4] ^ 1, *content[-3:]]) if damage == "a bit" else b"\x00\x00\xc0\x7f"
    weights.write_bytes(content)
    recipe["evaluate"] = {"data": recipe["data"]["train"], "tasks": ["loss"]}
    told = r"model\.base: .*base: not as it was written: model\.safetensors was changed"
    with pytest.raises(CheckpointError, match=told):
        {"train": hanlin.train, "evaluate": partial(hanlin.evaluate, weights="base"), "load": hanlin.load}[use](recipe)
    assert not (Path(recipe["run"]["folder"]) / "metrics.jsonl").exists()
    [problem] = hanlin.check(recipe, purpose="train")
    assert re.match(told, f"{problem.key}: {problem.text}")


@pytest.mark.parametrize("use", ["train", "evaluate", "load"])
def test_what_is_no_number_is_refused_when_it_is_loaded(recipe: dict[str, Any], weights: Path, use: str) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    tensors[next(iter(tensors))].view(-1)[0] = torch.inf
    write_safetensors(weights, tensors)
    weights.with_name("manifest.json").unlink()
    recipe["evaluate"] = {"data": recipe["data"]["train"], "tasks": ["loss"]}
    told = r"model\.base: .*base: holds something else than numbers \(.*: 0 NaN, 1 inf of"
    with pytest.raises(CheckpointError, match=told):
        {"train": hanlin.train, "evaluate": partial(hanlin.evaluate, weights="base"), "load": hanlin.load}[use](recipe)
    [problem] = hanlin.check(recipe, purpose="train")
    assert re.match(told, f"{problem.key}: {problem.text}")


def test_a_base_that_changes_while_it_loads_is_not_remembered(
    recipe: dict[str, Any], weights: Path, num_read: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Sound.__getitem__

    def touched(self: Sound, name: str) -> torch.Tensor:
        os.utime(weights, ns=(1, len(num_read)))
        return counted(self, name)

    monkeypatch.setattr(Sound, "__getitem__", touched)
    hanlin.train(recipe, quiet=True)
    assert known_values([weights]) is None
