"""Files made to exhaust or to mislead who reads them: refused by what they declare, before anything is allocated."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from hanlin.adapters.opening import open_adapter
from hanlin.checking import check, check_file
from hanlin.core.errors import CheckpointError, ConfigError, DataError
from hanlin.core.files import read_json, write_json
from hanlin.data.sources import open_records
from hanlin.formats.files import open_weights, write_safetensors
from hanlin.formats.source import read_config
from hanlin.models.family import load_family
from hanlin.recipe.reading import make_recipe
from hanlin.recipe.yaml12 import YamlError, parse_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_aliases_do_not_multiply() -> None:
    with pytest.raises(YamlError, match="stand for more than 100,000 values"):
        parse_yaml(BOMB)
    with pytest.raises(YamlError, match="inside of what it names"):
        parse_yaml("a: &a [*a]")
    with pytest.raises(YamlError, match="nested too deeply"):
        parse_yaml("a: " + "[" * 5_000 + "]" * 5_000)
    assert parse_yaml("a: &a {x: 1}\nb: *a")[0] == {"a": {"x": 1}, "b": {"x": 1}}


def test_a_recipe_of_aliases_is_a_problem_and_not_a_hang(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(BOMB, "utf-8")
    with pytest.raises(ConfigError, match="stand for more than"):
        check_file(tmp_path / "recipe.yaml", [])


def test_compressed_weights_are_refused_by_their_declared_size(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain.bin", tmp_path / "packed.bin"
    torch.save({"a": torch.zeros(1 << 18)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert packed.stat().st_size < plain.stat().st_size / 100
    with pytest.raises(CheckpointError, match=r"is compressed \(.* for 1,048,576\)"):
        open_weights(packed)
    assert len(open_weights(plain)) == 1


def test_more_tensors_than_any_model_has_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanlin.formats.files.MAX_TENSORS", 3)
    monkeypatch.setattr("hanlin.formats.torch_file.MAX_TENSORS", 3)
    tensors = {str(number): torch.zeros(1) for number in range(9)}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    torch.save(tensors, tmp_path / "model.bin")
    for name in ("model.safetensors", "model.bin"):
        with pytest.raises(CheckpointError, match="more than any model has"):
            open_weights(tmp_path / name)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", 3])
def test_an_index_names_files_of_its_own_folder(file: object, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    write_safetensors(tmp_path / "model.safetensors", {"a": torch.ones(1)})
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": file}})
    with pytest.raises(CheckpointError, match="lie in its own folder"):
        open_weights(folder)


@pytest.mark.parametrize("value", [1_000_000, 10**12, 1e400, -(10**9)])
def test_a_config_of_no_model_is_refused(value: float, tmp_path: Path) -> None:
    text = json.dumps({"family": "cpm1", "num_layers": value}).replace("Infinity", "1e400")
    (tmp_path / "config.json").write_text(text, "utf-8")
    write_safetensors(tmp_path / "model.safetensors", {"a": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"config value num_layers: |larger than any number that can be kept"):
        read_config(tmp_path, load_family("cpm1"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dropout", 2.0),
        ("attention_dropout", 1.0),
        ("dropout", -0.1),
        ("norm_eps", -1e-6),
        ("init_std", -1.0),
        ("num_heads", 0),
        ("max_length", -1),
        ("vocab_multiple", 0),
    ],
)
def test_a_number_that_no_model_can_compute_with_is_refused(name: str, value: float, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"family": "cpm1", name: value}), "utf-8")
    write_safetensors(tmp_path / "model.safetensors", {"a": torch.ones(1)})
    with pytest.raises(CheckpointError, match=f"config value {name}: .*; found"):
        read_config(tmp_path, load_family("cpm1"))
    given = {name: value}
    recipe = make_recipe({"model": {"family": "cpm1", "vocab": "x", "config": given}, "run": {"folder": "x"}})
    assert f"model.config.{name}" in [problem.key for problem in check(recipe)]


def test_a_gzip_bomb_is_refused_while_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanlin.data.sources.packed._SMALLEST_LIMIT", 1 << 20)
    with gzip.open(tmp_path / "rows.jsonl.gz", "wb") as stream:
        stream.write(b'{"text": "' + b"a" * (1 << 22) + b'"}\n')
    with pytest.raises(DataError, match="times its size"):
        open_records(tmp_path / "rows.jsonl.gz")


def test_a_line_that_is_no_record_is_a_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanlin.data.sources.jsonl.MAX_LINE_BYTES", 1000)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "a" * 2000}) + '\n{"text": "b"}\n', "utf-8")
    rows = open_records(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=r"rows.jsonl:1: a line of 2,012 bytes; at most 1,000"):
        rows[0]
    assert rows[1] == {"text": "b"}


def test_a_pipe_is_named_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for read, error in ((open_records, DataError), (open_weights, CheckpointError), (read_json, CheckpointError)):
        with pytest.raises(error, match="is a pipe or a device"):
            read(pipe)
    with pytest.raises(ConfigError, match="is a pipe or a device"):
        check_file(pipe, [])


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_of_another_program_never_runs(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it_ran"),)

    (tmp_path / "model.bin").write_bytes(pickle.dumps({"a": Runs()}))
    with pytest.raises(CheckpointError):
        open_weights(tmp_path / "model.bin")
    assert not (tmp_path / "it_ran").exists()


def test_an_adapter_cannot_name_code_to_be_run(tmp_path: Path) -> None:
    (tmp_path / "method.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'it_ran')!r})\n", "utf-8")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_json(adapter / "adapter.json", {"method": str(tmp_path / "method.py")})
    write_safetensors(adapter / "adapter.safetensors", {"a": torch.ones(1)})
    with pytest.raises(CheckpointError, match="is not run because an adapter says so"):
        open_adapter(adapter, load_family("cpm1"))
    assert not (tmp_path / "it_ran").exists()


def test_json_that_is_nested_too_deeply_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000, "utf-8")
    with pytest.raises(CheckpointError, match="nested too deeply"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("class method: pass", "must define `method`"),
        ("def method(", "cannot be used"),
        ("raise SystemExit(3)", "ends the program"),
    ],
)
def test_a_file_that_is_no_method_is_a_problem_of_the_recipe(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(content, "utf-8")
    (tmp_path / "recipe.yaml").write_text(
        f"model: {{family: cpm1, vocab: x}}\nrun: {{folder: x}}\ntuning: {{method: {tmp_path / 'own.py'}}}\n", "utf-8"
    )
    with pytest.raises(ConfigError, match=says):
        check_file(tmp_path / "recipe.yaml", [])
