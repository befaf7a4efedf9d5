"""The same rows in every kind of file: the commands read them as JSON lines, and say what is wrong with one alike."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard

from hanlin.cli.main import main
from hanlin.formats.files import write_safetensors
from hanlin.models.cpm_bee.config import CpmBeeConfig
from hanlin.models.cpm_bee.model import CpmBee

SPECIALS = ["<pad>", "<unk>", "<mask>", "<sep>", "</n>", "</_>", "<s>", "</s>", "<root>", "<ans>", "<option>"]
SMALL = CpmBeeConfig(vocab_size=16, hidden_size=8, num_layers=1, num_heads=2, head_dim=4, ffn_size=8)
ROWS = [{"input": "床前" * (number % 5 + 1), "<ans>": "明月光"[: number % 3 + 1]} for number in range(12)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def write_csv(path: Path, mark: str = ",", encoding: str = "utf-8-sig") -> None:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, ["input", "<ans>"], delimiter=mark)
        writer.writeheader()
        writer.writerows(ROWS)


def write_arrow(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table)


def write_pieces(folder: Path) -> None:
    folder.mkdir()
    lines = LINES.splitlines(keepends=True)
    for number in range(3):
        (folder / f"part-{number}.jsonl").write_text("".join(lines[number * 4 : number * 4 + 4]), "utf-8")


FORMS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "list": ("rows.json", lambda path: path.write_text(json.dumps(ROWS), "utf-8")),
    "csv": ("rows.csv", write_csv),
    "csv of Excel in China": ("rows.csv", lambda path: write_csv(path, encoding="gbk")),
    "tsv": ("rows.tsv", lambda path: write_csv(path, mark="\t")),
    "gzip": ("rows.jsonl.gz", lambda path: path.write_bytes(gzip.compress(LINES.encode()))),
    "zstd": ("rows.jsonl.zst", lambda path: path.write_bytes(zstandard.compress(LINES.encode()))),
    "parquet": ("rows.parquet", lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path)),
    "arrow": ("rows.arrow", write_arrow),
    "saved": ("saved", lambda path: write_arrow(path / "data-00000-of-00001.arrow")),
    "folder": ("pieces", write_pieces),
    "pattern": ("pieces/part-*.jsonl", lambda path: write_pieces(path.parent)),
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text(json.dumps({"family": "cpm_bee", **asdict(SMALL)}), "utf-8")
    (tmp_path / "base/vocab.txt").write_text("\n".join([*SPECIALS, *"床前明月光"]) + "\n", "utf-8")
    torch.manual_seed(0)
    weights = {name: torch.randn(weight.shape) / 2 for name, weight in CpmBee(SMALL).named_parameters()}
    write_safetensors(tmp_path / "base/model.safetensors", weights)
    (tmp_path / "rows.jsonl").write_text(LINES, "utf-8")
    return tmp_path


def recipe(data: str, name: str) -> str:
    Path(f"{name}.yaml").write_text(
        f"model: {{family: cpm_bee, base: base}}\ndata: {{train: ['{data}'], eval: ['{data}'], cache: cache}}\n"
        "tuning: {method: lora, rank: 2, alpha: 4}\ntrain: {steps: 2, batch_size: 4}\n"
        f"run: {{folder: runs/{name}}}\n"
        "evaluate: {tasks: [loss]}\n",
        "utf-8",
    )
    return f"{name}.yaml"


def facts(name: str) -> list:
    """Losses of training and evaluation, without times."""
    lines = [json.loads(line) for line in Path(f"runs/{name}/metrics.jsonl").read_text("utf-8").splitlines()]
    scores = json.loads(Path(f"runs/{name}/evaluation/metrics.json").read_text("utf-8"))
    return [[{key: value for key, value in line.items() if "loss" in key} for line in lines], scores]


def test_training_and_evaluation_give_the_numbers_of_json_lines(project: Path) -> None:
    data = {"lines": "rows.jsonl"}
    for form in ("csv", "parquet", "pattern"):
        data[form], write = FORMS[form]
        write(project / data[form])
    for run, path in data.items():
        assert main(["train", recipe(path, run)]) == 0
        assert main(["evaluate", f"runs/{run}"]) == 0
        assert facts(run) == facts("lines")


@pytest.mark.parametrize("form", FORMS)
def test_answers_and_conversions_are_those_of_json_lines(form: str, project: Path) -> None:
    name, write = FORMS[form]
    write(project / name)
    if form not in ("folder", "pattern"):  # of these each file gets a place of its own
        assert main(["prepare", "--to", "jsonl", name, "back.jsonl"]) == 0
        assert Path("back.jsonl").read_text("utf-8") == LINES
    assert main(["check", recipe(name, "run")]) == 0
    ask = ["generate", "--base", "base", "generate.max_new_tokens=2"]
    for source in ("rows.jsonl", name):
        assert main([*ask, "--input", source, "--output", f"{source.replace('/', '.')}.out"]) == 0
    assert Path(f"{name.replace('/', '.')}.out").read_bytes() == Path("rows.jsonl.out").read_bytes()


def test_a_pattern_of_files_is_converted_file_by_file(project: Path) -> None:
    write_pieces(project / "pieces")
    assert main(["prepare", "--to", "bee", "pieces/part-[02].jsonl", "sets"]) == 0
    assert sorted(path.name for path in Path("sets").iterdir()) == ["part-0", "part-2"]


def test_data_sets_by_weight_may_be_patterns_and_tables(project: Path) -> None:
    write_pieces(project / "pieces")
    FORMS["parquet"][1](project / "rows.parquet")
    paths = {"a": "pieces/*.jsonl", "b": "rows.parquet"}
    sets = [{"task_name": name, "dataset_name": "x", "path": path} for name, path in paths.items()]
    Path("sets.json").write_text(json.dumps(sets), "utf-8")
    words = [recipe("rows.jsonl", "run"), "data.train=[]", "data.mixture=sets.json"]
    assert main(["check", *words]) == 0
    assert main(["train", *words]) == 0
    sets[0]["path"] = "pieces/*.csv"
    Path("sets.json").write_text(json.dumps(sets), "utf-8")
    assert main(["check", *words]) == 2


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("none/*.jsonl", "data.train: none/*.jsonl: nothing matches this pattern; there is no none"),
        ("x*.csv", "data.train: x*.csv: nothing matches this pattern; . has bad.csv"),
        ("notes", "notes: a folder without data files"),
        ("bad.csv", "bad.csv:3: 3 values, the first line names 2 columns"),
        ("bad.parquet", "bad.parquet: row 2: "),
    ],
)
def test_check_tells_what_training_would(data: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.csv").write_text("input,<ans>\n床,前\n床,前,月\n", "utf-8")
    pq.write_table(pa.Table.from_pylist([ROWS[0], {"input": "床"}]), "bad.parquet")
    Path("notes").mkdir()
    assert main(["check", recipe(data, "run")]) == 2
    assert said in capsys.readouterr().err
