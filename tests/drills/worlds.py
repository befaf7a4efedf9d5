"""Small projects to be drilled: data, vocabularies, bases, recipes and the commands on them, made from nothing but the
golden case of one original checkpoint that lies beside the tests.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import yaml

from hanlin.cli.main import main

CASE = Path(__file__).parents[1] / "golden" / "cases" / "bee_generate"
ROWS = [
    {"input": "今天天气", "prompt": "x", "<ans>": "好"},
    {"input": "北京", "<ans>": "ab"},
    {"input": "ab", "options": {"<option_0>": "好", "<option_1>": "坏"}, "question": "x", "<ans>": "<option_1>"},
    {"input": "甲<mask_0>丙<mask_1>", "<ans>": {"<mask_0>": "乙", "<mask_1>": "b"}},
]
CHARACTERS = "床前明月光疑是地上霜举头望低思故乡"
FORMS = {
    "full": {},
    "background": {"train": {"save_in_background": True}},
    "lora": {"tuning": {"method": "lora"}},
    "data": {"parallel": {"data": 2, "shard": "parameters"}},
    "tensor": {"parallel": {"tensor": 2}},
    "pipe": {"parallel": {"pipe": 2, "micro_batches": 2}},
}
"""What the runs differ in from one of all weights on one process."""


def make_world(folder: Path) -> Path:
    """All files of a project, none of its results; `folder` must be where it is used, since recipes name paths."""
    folder.mkdir(parents=True)
    _write_rows(folder / "rows.jsonl", ROWS * 3)
    _must(["convert", str(CASE), str(folder / "base"), "--vocab", str(CASE / "vocab.txt")])
    for name, changes in FORMS.items():
        _write_recipe(folder, name, changes)
    _write_pretraining(folder)
    asked = [{**row, "<ans>": _without_text(row["<ans>"])} for row in ROWS * 2]
    _write_rows(folder / "asked.jsonl", asked)
    return folder


def train_all(folder: Path) -> None:
    """The results that other commands begin with."""
    for name in ("full", "lora", "windows"):
        _must(["train", str(folder / f"{name}.yaml")])
    _must(["evaluate", str(folder / "full.yaml")])
    _must(["convert", str(folder / "full" / "best"), str(folder / "original"), "--to", "original"])


def recipe_of(folder: Path) -> dict[str, Any]:
    """Of a small model on a base, all sections given."""
    return {
        "model": {"family": "cpm_bee", "base": str(folder / "base")},
        "data": {
            "train": [str(folder / "rows.jsonl")],
            "eval": [str(folder / "rows.jsonl")],
            "max_length": 64,
            "cache": str(folder / "cache"),
        },
        "train": {"steps": 4, "batch_size": 2, "lr": 0.01, "eval_every": 2, "save_every": 1, "keep": 2},
        "generate": {"method": "greedy", "max_new_tokens": 6},
        "evaluate": {"tasks": ["generate", "loss"], "limit": 4},
        "run": {"seed": 3, "threads": 1, "device": "cpu"},
    }


def _write_recipe(folder: Path, name: str, changes: dict[str, Any]) -> None:
    recipe = recipe_of(folder)
    recipe["run"]["folder"] = str(folder / name)
    for section, values in changes.items():
        recipe[section] = {**recipe.get(section, {}), **values}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")


def _write_pretraining(folder: Path) -> None:
    """A corpus of texts, one of ids, one of spans, and the recipe of windows of the second."""
    drawn = random.Random(0)
    lines = ["".join(drawn.choices(CHARACTERS, k=30)) for _ in range(60)]
    (folder / "poems.txt").write_text("\n".join(lines), encoding="utf-8")
    tokens = ["<unk>", "<pad>", "<eod>", *"▂▃，。", *CHARACTERS]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    words = ["--vocab", str(folder / "vocab.txt")]
    _must(["prepare", "--to", "indexed", str(folder / "poems.txt"), str(folder / "corpus"), *words])
    recipe = {
        "model": {
            "family": "cpm1",
            "vocab": str(folder / "vocab.txt"),
            "config": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_length": 16},
        },
        "data": {
            "train": [str(folder / "corpus")],
            "split": "8,1,1",
            "max_length": 16,
            "cache": str(folder / "cache"),
        },
        "train": {"steps": 4, "batch_size": 4, "lr": 0.01, "eval_every": 2, "save_every": 1, "keep": 2},
        "run": {"folder": str(folder / "windows"), "device": "cpu", "threads": 1},
    }
    (folder / "windows.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


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
