"""Small projects to be drilled: data, vocabularies, bases, recipes and the commands on them, made from the golden case
of one original checkpoint and the cases of the families' contract, which both lie beside the tests.
"""

from __future__ import annotations

import gzip
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
import zstandard
from family_cases import case_of

from hanlin.cli.main import main
from hanlin.formats.load import save_base

CASE = Path(__file__).parents[1] / "golden" / "cases" / "bee_generate"
ROWS = [
    {"input": "今天天气", "prompt": "x", "<ans>": "好"},
    {"input": "北京", "<ans>": "ab"},
    {"input": "ab", "options": {"<option_0>": "好", "<option_1>": "坏"}, "question": "x", "<ans>": "<option_1>"},
    {"input": "甲<mask_0>丙<mask_1>", "<ans>": {"<mask_0>": "乙", "<mask_1>": "b"}},
]
TABLES = [{"input": f"今天天气{number}", "<ans>": "好"} for number in range(8)]
CHARACTERS = "床前明月光疑是地上霜举头望低思故乡"
FORMS = {
    "full": {},
    "fresh": {},
    "background": {"train": {"save_in_background": True}},
    "lora": {"tuning": {"method": "lora"}},
    "data": {"parallel": {"data": 2, "shard": "parameters"}},
    "tensor": {"parallel": {"tensor": 2}},
    "pipe": {"parallel": {"pipe": 2, "micro_batches": 2}},
}
"""What the runs differ in from one of all weights on one process; `fresh` is never begun here."""
FAMILIES = {
    "chatglm2": {"data": {"max_length": 128}, "tuning": {"method": "lora", "rank": 2}},
    "cpm2": {"tuning": {"method": "prompt", "length": 3}},
    "cpm1": {},
    "cpm1_t5": {},
}
"""The others, each with a base, rows and a recipe of its name, and what that recipe differs in."""


def make_world(folder: Path) -> Path:
    """All files of a project, none of its results; `folder` must be where it is used, since recipes name paths."""
    folder.mkdir(parents=True)
    write_rows(folder / "rows.jsonl", ROWS * 3)
    write_tables(folder)
    _must(["convert", str(CASE), str(folder / "base"), "--vocab", str(CASE / "vocab.txt")])
    for name, changes in FORMS.items():
        _write_recipe(folder, name, changes)
    _write_recipe(folder, "warm", {**FORMS["lora"], "model": {"adapter": str(folder / "lora" / "best")}})
    _write_pretraining(folder)
    for name, changes in FAMILIES.items():
        _write_family(folder, name, changes)
    asked = [{**row, "<ans>": _without_text(row["<ans>"])} for row in ROWS * 2]
    write_rows(folder / "asked.jsonl", asked)
    return folder


def train_all(folder: Path) -> None:
    """The results that other commands begin with."""
    for name in ("full", "lora", "windows"):
        _must(["train", str(folder / f"{name}.yaml")])
    _must(["evaluate", str(folder / "full.yaml")])
    _must(["convert", str(folder / "full" / "best"), str(folder / "original"), "--to", "original"])


def recipe_of(folder: Path, name: str = "") -> dict[str, Any]:
    """Of a small model on a base, all sections given; name: of one of `FAMILIES`."""
    rows, base = (f"{name}.jsonl", f"{name}.base") if name else ("rows.jsonl", "base")
    return {
        "model": {"family": name or "cpm_bee", "base": str(folder / base)},
        "data": {
            "train": [str(folder / rows)],
            "eval": [str(folder / rows)],
            "max_length": 64,
            "cache": str(folder / "cache"),
        },
        "train": {"steps": 4, "batch_size": 2, "lr": 0.01, "eval_every": 2, "save_every": 1, "keep": 2},
        "generate": {"method": "greedy", "max_new_tokens": 6},
        "evaluate": {"tasks": ["generate", "loss"], "limit": 4},
        "run": {"seed": 3, "threads": 1, "device": "cpu"},
    }


def write_recipe(path: Path, recipe: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    return path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_tables(folder: Path) -> None:
    """The same rows, `TABLES`, in every kind of table, packed ones too, and in `tables/`, a folder of some."""
    table = pa.Table.from_pylist(TABLES)
    pq.write_table(table, folder / "rows.parquet")
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    lines = [",".join(TABLES[0]), *(",".join(row.values()) for row in TABLES)]
    text = "".join(f"{line}\n" for line in lines)
    write_rows(folder / "table.jsonl", TABLES)
    (folder / "rows.csv").write_text(text, encoding="utf-8")
    (folder / "rows.tsv").write_text(text.replace(",", "\t"), encoding="utf-8")
    (folder / "rows.csv.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "rows.jsonl.zst").write_bytes(zstandard.compress((folder / "table.jsonl").read_bytes()))
    (folder / "tables").mkdir()
    for name in ("rows.csv", "rows.parquet"):
        shutil.copy(folder / name, folder / "tables" / f"a{Path(name).suffix}")
    (folder / "table.jsonl").unlink()


def write_poems(folder: Path, length: int) -> None:
    """`poems.txt`, 60 lines of so many characters, and `vocab.txt` of CPM-1's kind with each of them."""
    drawn = random.Random(0)
    lines = ["".join(drawn.choices(CHARACTERS, k=length)) for _ in range(60)]
    (folder / "poems.txt").write_text("\n".join(lines), encoding="utf-8")
    tokens = ["<unk>", "<pad>", "<eod>", *"▂▃，。", *CHARACTERS]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")


def pretraining_recipe(folder: Path, data: str, run: str) -> dict[str, Any]:
    """Windows of the text or corpus `data`, with the vocabulary of `write_poems`."""
    return {
        "model": {
            "family": "cpm1",
            "vocab": str(folder / "vocab.txt"),
            "config": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_length": 16},
        },
        "data": {
            "train": [str(folder / data)],
            "split": "8,1,1",
            "max_length": 16,
            "cache": str(folder / "cache"),
        },
        "train": {"steps": 4, "batch_size": 4, "eval_every": 2, "lr": 0.01},
        "run": {"folder": str(folder / run), "device": "cpu"},
    }


def _write_recipe(folder: Path, name: str, changes: dict[str, Any], family: str = "") -> None:
    recipe = recipe_of(folder, family)
    recipe["run"]["folder"] = str(folder / name)
    for section, values in changes.items():
        recipe[section] = {**recipe.get(section, {}), **values}
    write_recipe(folder / f"{name}.yaml", recipe)


def _write_family(folder: Path, name: str, changes: dict[str, Any]) -> None:
    """A base, rows and a recipe of one of the other families."""
    (folder / f"{name}.case").mkdir()
    case = case_of(name, folder / f"{name}.case")
    model = case.family.model()(case.config)
    model.init_weights(torch.Generator().manual_seed(1))
    save_base(folder / f"{name}.base", case.family, case.config, dict(model.named_parameters()), case.tokenizer)
    write_rows(folder / f"{name}.jsonl", list(case.records) * 3)
    _write_recipe(folder, name, changes, name)


def _write_pretraining(folder: Path) -> None:
    """A corpus of texts, and the recipe of its windows."""
    write_poems(folder, 30)
    words = ["--vocab", str(folder / "vocab.txt")]
    _must(["prepare", "--to", "indexed", str(folder / "poems.txt"), str(folder / "corpus"), *words])
    recipe = pretraining_recipe(folder, "corpus", "windows")
    recipe["train"].update(save_every=1, keep=2)
    recipe["run"]["threads"] = 1
    write_recipe(folder / "windows.yaml", recipe)


def _must(argv: list[str]) -> None:
    code = main(argv)
    assert code == 0, (code, argv)


def remove(path: Path) -> None:
    """A file or a folder that may be there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _without_text(answer: Any) -> Any:
    return dict.fromkeys(answer, "") if isinstance(answer, dict) else ""
