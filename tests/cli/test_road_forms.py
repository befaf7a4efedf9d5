"""Rows and files as users have them, by commands: file -> trained adapter -> scores -> answers in the rows' form."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from data_files import KINDS, read_rows, write_kind
from family_cases import BUILT_IN, Case, case_of
from transformers import AutoTokenizer

import hanlin
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
WITH_TOOLS: dict[str, Any] = {
    "messages": [*turns(Q), CALL, {"role": "tool", "content": MORE}, {"role": "assistant", "content": A}],
    "tools": TOOLS,
}
BASES: dict[str, dict[str, Any]] = {
    "chatglm2": {},
    "chatglm3": {"family": "chatglm2", "generation": "chatglm3", "max_length": 512, "vocab_size": 349},
    "cpm1": {},
    "cpm1_t5": {},
    "cpm2": {},
    "cpm_bee": {},
}
"""What the configuration of a tiny model has besides that of its family; family: where the name is another."""
SHAPES: dict[str, tuple[dict[str, Any], str, str]] = {
    **{shape: (row, "JSON lines", "chatglm2") for shape, row in ROWS.items()},
    "plain text": (ROWS["plain text"], "JSON lines", "cpm1"),
    "messages with tools": (WITH_TOOLS, "JSON lines", "chatglm3"),
    **{kind: (ROWS["query and response"], kind, "chatglm2") for kind in KINDS},
}
"""A row, the kind of file that it stands in, and the model that learns it."""
TINY = ("train.steps=1", "train.batch_size=2", "run.threads=1", "evaluate.tasks=[generate,loss]",
        "generate.method=greedy", "generate.max_new_tokens=2", "tuning.method=lora", "tuning.rank=2")  # fmt: skip

MakeBase = Callable[[str], Path]


@pytest.fixture(scope="module")
def make_base(tmp_path_factory: pytest.TempPathFactory) -> MakeBase:
    """A base folder of a tiny model, made once."""

    @cache
    def make(name: str) -> Path:
        changes = dict(BASES[name])
        case: Case = case_of(changes.pop("family", name), tmp_path_factory.mktemp(name))
        case = replace(case, config=replace(case.config, **changes))
        weights = {key: value.float() for key, value in case.model().named_parameters()}
        folder = tmp_path_factory.mktemp("base") / name
        save_base(folder, case.family, case.config, weights, case.tokenizer)
        return folder

    return make


@dataclass(frozen=True)
class Travelled:
    """losses: of training; scores: of evaluation by tasks and metrics; answered: the rows that came back."""

    losses: list[float]
    scores: dict[str, dict[str, float]]
    answered: list[dict[str, Any]]


def travel(files: Sequence[Path], base: Path, folder: Path, *changes: str) -> Travelled:
    """Files of rows -> adapter -> scores -> the rows of the first file, answered; nothing but commands."""
    folder.mkdir(exist_ok=True)
    recipe = folder / "recipe.yaml"
    data = {"train": list(map(str, files)), "eval": list(map(str, files)), "cache": str(folder / "cache")}
    model = json.loads((base / "config.json").read_text("utf-8"))
    recipe.write_text(
        f"model: {{family: {model['family']}, base: {base}}}\n"
        f"data: {json.dumps(data, ensure_ascii=False)}\nrun: {{folder: {folder / 'run'}}}\n",
        encoding="utf-8",
    )
    words = [str(recipe), *TINY, f"data.max_length={model.get('max_length', 64)}", *changes]
    assert main(["train", *words]) == 0
    assert is_adapter(folder / "run/last")
    assert main(["evaluate", *words]) == 0
    assert main(["generate", *words, "--input", str(files[0]), "--output", str(folder / "out.jsonl")]) == 0
    steps = read_rows(folder / "run/metrics.jsonl")
    scores = json.loads((folder / "run/evaluation/metrics.json").read_text("utf-8"))
    return Travelled([step["loss"] for step in steps if "loss" in step], scores, read_rows(folder / "out.jsonl"))


@pytest.fixture(scope="module")
def of_lines(make_base: MakeBase, tmp_path_factory: pytest.TempPathFactory) -> Travelled:
    """What JSON lines come to of the row that all kinds of files hold."""
    folder = tmp_path_factory.mktemp("lines")
    path = write_kind(folder, "JSON lines", [ROWS["query and response"]] * 3)
    return travel([path], make_base("chatglm2"), folder)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_goes_from_a_file_to_an_adapter_to_a_score(
    shape: str, make_base: MakeBase, of_lines: Travelled, tmp_path: Path
) -> None:
    row, kind, base = SHAPES[shape]
    went = travel([write_kind(tmp_path, kind, [row] * 3)], make_base(base), tmp_path)
    assert went.scores.keys() == {"generate", "loss"}
    assert all(math.isfinite(value) for scores in went.scores.values() for value in scores.values())
    assert len(went.answered) == 3
    for answered in went.answered:
        check_answered(row, answered)
    if shape in KINDS:
        assert went == of_lines


def test_files_of_several_shapes_are_learned_together(make_base: MakeBase, tmp_path: Path, capsys: Any) -> None:
    files = []
    for number, (row, kind, _) in enumerate(one for one in SHAPES.values() if one[2] == "chatglm2"):
        (tmp_path / str(number)).mkdir()
        files.append(write_kind(tmp_path / str(number), kind, [row] * 2))
    travel(files, make_base("chatglm2"), tmp_path)
    told = capsys.readouterr().err
    for form in ("alpaca", "ShareGPT", "messages (OpenAI)", "prompt/completion"):
        assert f"{form} (told from" in told


def check_answered(row: dict[str, Any], answered: dict[str, Any]) -> None:
    """The row as it was, but for what the model said."""
    assert answered.keys() == row.keys() | ({"answer"} if row.keys() == {"text"} else set())
    for key in row.keys() & {"conversations", "messages"}:
        assert answered[key][:-1] == row[key][:-1]
        assert answered[key][-1].keys() == row[key][-1].keys()


def test_what_the_system_says_stands_in_the_first_question_everywhere(
    make_base: MakeBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ChatGLM2 has no place for it, so it is refused, or put there on demand, also in what other programs get."""
    base, system = make_base("chatglm2"), {"role": "system", "content": OTHER}
    rows = write_kind(tmp_path, "JSON lines", [{"messages": [system, *turns(Q, A, MORE, A)]}] * 2)
    assert main(["data", "show", str(rows), "--base", str(base)]) == 0
    assert "data.options.system: first_question" in capsys.readouterr().out
    went = travel([rows], base, tmp_path / "system", "data.options.system=first_question")
    write_kind(tmp_path, "JSON lines", [{"messages": turns(f"{OTHER}\n{Q}", A, MORE, A)}] * 2)
    joined = travel([rows], base, tmp_path / "joined")
    assert (went.losses, went.scores) == (joined.losses, joined.scores)
    assert [row["messages"][-1] for row in went.answered] == [row["messages"][-1] for row in joined.answered]
    runs = {name: tmp_path / name / "run" for name in ("system", "joined")}
    asked = {"system": [system, *turns(Q, A, MORE)], "joined": turns(f"{OTHER}\n{Q}", A, MORE)}
    said = {name: hanlin.load(run).chat(asked[name]) for name, run in runs.items()}
    assert said["system"] == said["joined"]
    ids = {}
    for name, run in runs.items():
        assert (
            main(["convert", str(base), str(tmp_path / name / "out"), "--merge", str(run), "--to", "huggingface"]) == 0
        )
        theirs = AutoTokenizer.from_pretrained(tmp_path / name / "out")
        ids[name] = theirs.apply_chat_template(asked[name], add_generation_prompt=True, return_dict=False)
    assert ids["system"] == ids["joined"]
    hanlin.load(runs["system"]).save(tmp_path / "saved", to="huggingface")
    written = [
        (folder / "tokenizer_config.json").read_bytes() for folder in (tmp_path / "saved", tmp_path / "system/out")
    ]
    assert written[0] == written[1]


def test_a_model_without_a_run_is_converted_with_the_options_that_are_named(
    make_base: MakeBase,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    convert = ["convert", str(make_base("chatglm2")), str(tmp_path / "out"), "--to", "huggingface"]
    assert main([*convert, "train.lr=1"]) == 2
    assert "train.lr=1: converting takes data.options.NAME=VALUE alone" in capsys.readouterr().err
    assert main([*convert, "data.options.system=first"]) == 2
    assert "data.options.system: " in capsys.readouterr().err
    assert main([*convert, "data.options.system=first_question"]) == 0
    again = ["convert", str(tmp_path / "out"), str(tmp_path / "again"), "--to", "huggingface"]
    assert main([*again, "data.options.system=first_question"]) == 0
    assert "chat template" not in caplog.text
    assert main([*again, "--overwrite"]) == 0
    assert "name its data.options.template and data.options.system again" in caplog.text
    assert "has_system" in json.loads((tmp_path / "out/tokenizer_config.json").read_text("utf-8"))["chat_template"]


@pytest.mark.parametrize("family", [family for family in BUILT_IN if family != "chatglm2"])
def test_every_family_takes_dialogues(family: str, make_base: MakeBase, tmp_path: Path) -> None:
    row = {"conversations": spoken(Q, A)}
    for answered in travel([write_kind(tmp_path, "JSON lines", [row])], make_base(family), tmp_path).answered:
        check_answered(row, answered)
        assert answered["conversations"][-1]["from"] == "gpt"
