"""Rows as users have them, by commands: file -> trained adapter -> scores -> answers in the rows' own form."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from family_cases import BUILT_IN, Case, case_of

from hanlin.adapters.opening import is_adapter
from hanlin.cli.main import main
from hanlin.formats.load import save_base

Q, A, MORE, OTHER = "床前明月光，", "疑是地上霜。", "举头望明月", "低头思故乡"
TOOLS = [{"type": "function", "function": {"name": "poem", "parameters": {"type": "object"}}}]
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "poem", "arguments": "{}"}}]}


def turns(*texts: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]


def spoken(*texts: str) -> list[dict[str, Any]]:
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


ROWS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": Q, "input": MORE, "output": A},
    "alpaca with history": {"instruction": MORE, "input": "", "output": OTHER, "history": [[Q, A]]},
    "ShareGPT": {"conversations": spoken(Q, A, MORE, OTHER)},
    "ShareGPT by roles": {"conversations": turns(Q, A)},
    "messages": {"messages": turns(Q, A, MORE, OTHER)},
    "messages in parts": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": Q}]}, *turns(Q, A)[1:]],
    },
    "prompt and completion": {"prompt": Q, "completion": A},
    "query and response": {"query": Q, "response": A},
    "question and answer": {"question": Q, "answer": A},
    "input and output": {"input": Q, "output": A},
    "content and summary": {"content": Q + MORE, "summary": A},
    "plain text": {"text": Q + A},
}
ALONE = ("alpaca", "ShareGPT", "messages", "prompt and completion")
WITH_TOOLS = {
    "messages": [*turns(Q), CALL, {"role": "tool", "content": MORE}, {"role": "assistant", "content": A}],
    "tools": TOOLS,
}
TINY = ("train.steps=1", "train.batch_size=2", "run.threads=1", "evaluate.tasks=[generate,loss]",
        "generate.method=greedy", "generate.max_new_tokens=2", "tuning.method=lora", "tuning.rank=2")  # fmt: skip

MakeBase = Callable[..., Path]


@pytest.fixture(scope="module")
def make_base(tmp_path_factory: pytest.TempPathFactory) -> MakeBase:
    """A base folder of a family's tiny model, made once; changes: of its configuration."""
    made: dict[str, Path] = {}

    def make(name: str, **changes: Any) -> Path:
        key = f"{name} {sorted(changes.items())}"
        if key not in made:
            case: Case = case_of(name, tmp_path_factory.mktemp(name))
            case = replace(case, config=replace(case.config, **changes))
            weights = {key: value.float() for key, value in case.model().named_parameters()}
            made[key] = tmp_path_factory.mktemp("base") / name
            save_base(made[key], case.family, case.config, weights, case.tokenizer)
        return made[key]

    return make


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def travel(rows: dict[str, dict[str, Any]], base: Path, folder: Path) -> list[dict[str, Any]]:
    """A file for each row -> adapter -> scores -> answers; the answered rows."""
    files = [write_rows(folder / f"{name}.jsonl", [row, row]) for name, row in rows.items()]
    recipe = folder / "recipe.yaml"
    data = {"train": list(map(str, files)), "eval": list(map(str, files)), "cache": str(folder / "cache")}
    recipe.write_text(
        f"model: {{family: {base.name}, base: {base}}}\n"
        f"data: {json.dumps(data, ensure_ascii=False)}\nrun: {{folder: {folder / 'run'}}}\n",
        encoding="utf-8",
    )
    longest = json.loads((base / "config.json").read_text("utf-8")).get("max_length", 64)
    words = [str(recipe), *TINY, f"data.max_length={longest}"]
    assert main(["train", *words]) == 0
    assert is_adapter(folder / "run/last")
    assert main(["evaluate", *words]) == 0
    scores = json.loads((folder / "run/evaluation/metrics.json").read_text("utf-8"))
    assert scores.keys() == {"generate", "loss"}
    asked = write_rows(folder / "asked.jsonl", list(rows.values())) if len(rows) == 1 else None
    if asked is not None:
        assert main(["generate", *words, "--input", str(asked), "--output", str(folder / "out.jsonl")]) == 0
        return read_rows(folder / "out.jsonl")
    given = [word for row in rows.values() for word in ("--record", json.dumps(row, ensure_ascii=False))]
    assert main(["generate", *words, *given, "--output", str(folder / "out.jsonl")]) == 0
    return read_rows(folder / "out.jsonl")


@pytest.mark.parametrize("shape", ALONE)
def test_each_shape_goes_from_a_file_to_an_adapter_to_a_score(shape: str, make_base: MakeBase, tmp_path: Path) -> None:
    row = ROWS[shape]
    for answered in travel({shape: row}, make_base("chatglm2"), tmp_path):
        check_answered(row, answered)


def test_files_of_other_shapes_are_learned_together(make_base: MakeBase, tmp_path: Path, capsys: Any) -> None:
    shapes = {shape: row for shape, row in ROWS.items() if shape not in (*ALONE, "plain text")}
    for row, answered in zip(shapes.values(), travel(shapes, make_base("chatglm2"), tmp_path), strict=True):
        check_answered(row, answered)
    told = capsys.readouterr().err
    for form in ("alpaca", "ShareGPT", "messages", "prompt/completion"):
        assert f"{form} (told from" in told or f"{form} (OpenAI) (told from" in told


def check_answered(row: dict[str, Any], answered: dict[str, Any]) -> None:
    """The row as it was, but for what the model said."""
    assert answered.keys() == row.keys()
    for key in row.keys() & {"conversations", "messages"}:
        assert answered[key][:-1] == row[key][:-1]
        assert [turn.keys() for turn in answered[key]] == [turn.keys() for turn in row[key]]


@pytest.mark.parametrize("family", [family for family in BUILT_IN if family != "chatglm2"])
def test_every_family_takes_dialogues(family: str, make_base: MakeBase, tmp_path: Path) -> None:
    row = {"conversations": spoken(Q, A)}
    for answered in travel({"ShareGPT": row}, make_base(family), tmp_path):
        assert answered["conversations"][:-1] == row["conversations"][:-1]
        assert answered["conversations"][-1]["from"] == "gpt"


def test_tools_are_called_and_answered(make_base: MakeBase, tmp_path: Path) -> None:
    base = make_base("chatglm2", generation="chatglm3", max_length=512, vocab_size=349)
    for answered in travel({"tools": WITH_TOOLS}, base, tmp_path):
        assert answered["messages"][:-1] == WITH_TOOLS["messages"][:-1]
        assert answered["tools"] == TOOLS


def test_plain_text_is_learned_and_gone_on_with(make_base: MakeBase, tmp_path: Path) -> None:
    for answered in travel({"text": ROWS["plain text"]}, make_base("cpm1"), tmp_path):
        assert answered.keys() == {"text", "answer"}
