"""`hanlin init` writes of each family's base and rows a recipe that `check` passes at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from family_cases import Case

from hanlin.api.first_recipe import Memory, first_recipe, memory_of
from hanlin.checking import check_file
from hanlin.cli import init
from hanlin.cli.main import main
from hanlin.core.language import Language
from hanlin.formats.load import base_parameters, save_base
from hanlin.recipe.reading import make_recipe
from hanlin.recipe.yaml12 import parse_yaml


def write_base(case: Case, folder: Path) -> Path:
    save_base(folder / "base", case.family, case.config, base_parameters(case.model().float()), case.tokenizer)
    return folder / "base"


def write_rows(case: Case, folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in case.records) + "\n", "utf-8")
    return path


def test_a_first_recipe_passes_check_at_once(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_base(case, tmp_path), write_rows(case, tmp_path)
    monkeypatch.chdir(tmp_path)
    named = ["--family", case.name] if case.name.endswith(".py") else []
    assert main(["init", "rows.jsonl", "--base", "base", *named]) == 0
    assert "hanlin train recipe.yaml" in capsys.readouterr().out
    recipe = check_file(Path("recipe.yaml"), purpose="train")
    assert recipe.model.family == case.name
    assert recipe.run.folder == Path("runs/rows")
    assert recipe.tuning.method == "full"
    assert recipe.data.max_length <= (getattr(case.config, "max_length", None) or 128)


@pytest.mark.parametrize(("language", "words"), [("en", "and small has 0.0"), ("zh", "而 small 有 0.0")])
def test_what_does_not_fit_whole_gets_another_method(
    language: Language, words: str, make_case: Callable[[str], Case], tmp_path: Path
) -> None:
    case = make_case("cpm1")
    model = {"family": case.name, "base": str(write_base(case, tmp_path))}
    text = first_recipe(model, [write_rows(case, tmp_path)], tmp_path / "run", Memory("small", 1), language)
    recipe = make_recipe(parse_yaml(text)[0])
    assert recipe.tuning.method == "lora"
    assert recipe.model.quantise == "nf4"
    assert recipe.parallel.checkpoint_activations == "full"
    assert recipe.train.micro_batch_size == 1
    assert words in text


def test_samples_longer_than_the_model_reads_are_shortened(make_case: Callable[[str], Case], tmp_path: Path) -> None:
    case = make_case("cpm1")
    model = {"family": case.name, "base": str(write_base(case, tmp_path))}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"instruction": "床前明月光" * 20, "output": "疑是地上霜"}) + "\n", "utf-8")
    text = first_recipe(model, [rows], tmp_path / "run", memory_of("A100-80"), "en")
    recipe = make_recipe(parse_yaml(text)[0])
    assert (recipe.data.max_length, recipe.data.overlong) == (case.config.max_length, "truncate")
    assert "read as: alpaca" in text


@pytest.mark.parametrize("overrides", [(), ("data.max_length=64",)])
@pytest.mark.parametrize("name", ["chatglm2", "cpm1"])
def test_answers_longer_than_a_row_get_a_recipe_that_check_passes(
    name: str, overrides: tuple[str, ...], make_case: Callable[[str], Case], tmp_path: Path
) -> None:
    case = make_case(name)
    model = {"family": case.name, "base": str(write_base(case, tmp_path))}
    rows, longest = tmp_path / "rows.jsonl", getattr(case.config, "max_length", None) or 2048
    answers = ["明月", "床前明月光" * (24 if overrides else longest)]
    lines = [json.dumps({"prompt": "床前", "response": answer}, ensure_ascii=False) for answer in answers]
    rows.write_text("\n".join(lines) + "\n", "utf-8")
    text = first_recipe(model, [rows], tmp_path / "run", memory_of("A100-80"), "en", overrides)
    assert make_recipe(parse_yaml(text)[0]).data.overlong == "drop"
    assert "longer samples are left out" in text


def test_fresh_weights_get_a_recipe_too(make_case: Callable[[str], Case], tmp_path: Path) -> None:
    case = make_case("cpm_bee")
    model = {"family": case.name, "size": "tiny", "vocab": str(case.vocab / "vocab.txt")}
    text = first_recipe(model, [write_rows(case, tmp_path)], tmp_path / "run", memory_of("A100-80"), "en")
    assert make_recipe(parse_yaml(text)[0]).train.batch_size == 1  # of few rows, for the sake of the steps
    assert "GiB of A100-80, by `hanlin plan`" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "name a file of rows"),
        ("rows.jsonl", "name a model"),
        ("rows.jsonl --size tiny", "say of which family"),
        ("rows.jsonl --base b --size tiny", "leave one of them out"),
        ("rows.jsonl --base nowhere", "there is no nowhere"),
    ],
)
def test_what_is_missing_is_said_where_nobody_can_be_asked(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", *words.split()]) == 2
    assert said in capsys.readouterr().err
    assert not Path("recipe.yaml").exists()


def test_rows_that_cannot_be_read_are_said_and_nothing_is_written(
    make_case: Callable[[str], Case],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_base(make_case("cpm1"), tmp_path)
    Path("rows.jsonl").write_text('{"who": "1"}\n', "utf-8")
    assert main(["init", "rows.jsonl", "--base", "base"]) == 2
    assert "rows.jsonl:1" in capsys.readouterr().err
    assert not Path("recipe.yaml").exists()


def test_a_person_at_a_terminal_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: f" answer to {prompt}")
    assert init._asked("file of rows", "") == "answer to file of rows:"


def test_a_size_that_there_is_not_is_named(
    make_case: Callable[[str], Case],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"text": "床前明月光"}\n', encoding="utf-8")
    words = ["init", "rows.jsonl", "--family", "cpm1", "--size", "smal", "--vocab", str(make_case("cpm1").vocab)]
    assert main(words) == 2
    assert "cpm1 has no size 'smal'; did you mean 'small'?" in capsys.readouterr().err


def test_no_key_of_a_row_gets_out_of_its_comment(make_case: Callable[[str], Case], tmp_path: Path) -> None:
    case = make_case("chatglm2")
    model = {"family": case.name, "base": str(write_base(case, tmp_path))}
    rows = tmp_path / "rows.jsonl"
    row = {"prompt": "床前", "response": "明月光", "a\ntrain: {steps: 9}\u2028x\0": 1}
    rows.write_text(json.dumps(row) + "\n", "utf-8")
    text = first_recipe(model, [rows], tmp_path / "run", memory_of("A100-80"), "en")
    assert "a train: {steps: 9} x " in text
    assert make_recipe(parse_yaml(text)[0]).train.steps is None


def test_preference_rows_are_compared(make_case: Callable[[str], Case], tmp_path: Path) -> None:
    case = make_case("chatglm2")
    model = {"family": case.name, "base": str(write_base(case, tmp_path))}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "床前", "chosen": "明月光", "rejected": "月"}) + "\n", "utf-8")
    text = first_recipe(model, [rows], tmp_path / "run", memory_of("A100-80"), "en")
    train = make_recipe(parse_yaml(text)[0]).train
    assert (train.objective.name, train.lr, train.batch_size) == ("dpo", 5e-7, 1)
    assert "about 3 steps, which are few" in text


@pytest.mark.parametrize(("objective", "row"), [("dpo", 256), ("kto", 512)])
def test_a_row_has_room_for_the_longest_answer_as_often_as_answers_are_compared(
    objective: str, row: int, make_case: Callable[[str], Case], tmp_path: Path
) -> None:
    case = make_case("chatglm2")
    model = {"family": case.name, "base": str(write_base(case, tmp_path))}
    rows = tmp_path / "rows.jsonl"
    answers = [{"prompt": f"{number}", "chosen": "明月光" * 10 + f"{number}", "rejected": "月"} for number in range(3)]
    rows.write_text("".join(json.dumps(answer) + "\n" for answer in answers), "utf-8")
    decided = ["model.config.max_length=1024", f"train.objective={objective}"]
    text = first_recipe(model, [rows], tmp_path / "run", memory_of("A100-80"), "en", decided)
    data = make_recipe(parse_yaml(text)[0]).data
    assert (data.max_length, data.overlong) == (row, "error")


@pytest.mark.parametrize(
    ("decided", "rows", "at_once"),
    [
        ("train.batch_size=6", 6, 6),
        ("train.batch_size=100", 100, 5),
        ("train.micro_batch_size=3", 3, 3),
        ("train.micro_batch_size=16", 16, 16),
    ],
)
def test_the_rows_of_a_step_are_a_multiple_of_those_of_a_forward_pass(
    decided: str, rows: int, at_once: int, make_case: Callable[[str], Case], tmp_path: Path
) -> None:
    case = make_case("cpm1")
    model = {"family": case.name, "base": str(write_base(case, tmp_path))}
    files, memory = [write_rows(case, tmp_path)], memory_of("A100-80")
    text = first_recipe(model, files, tmp_path / "run", memory, "en", [decided])
    train = make_recipe(parse_yaml(text)[0]).train
    assert (train.batch_size, train.micro_batch_size) == (rows, at_once)


def test_settings_that_are_decided_stay(
    make_case: Callable[[str], Case],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = make_case("chatglm2")
    write_base(case, tmp_path), write_rows(case, tmp_path)
    monkeypatch.chdir(tmp_path)
    decided = ["tuning.method=lora", "tuning.rank=4", "train.steps=7", "train.batch_size=2", "data.max_length=64"]
    assert main(["init", "rows.jsonl", "--base", "base", *decided, "data.overlong=drop"]) == 0
    recipe = check_file(Path("recipe.yaml"), purpose="train")
    assert (recipe.tuning.method, recipe.train.steps, recipe.train.epochs) == ("lora", 7, None)
    assert (recipe.train.batch_size, recipe.train.micro_batch_size, recipe.data.max_length) == (2, 2, 64)
    assert main(["init", "rows.jsonl", "--base", "base", "train.stepz=7", "--output", "other.yaml"]) == 2
    assert "did you mean 'steps'" in capsys.readouterr().err
