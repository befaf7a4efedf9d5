"""The schema that editors get takes what hanlin takes, and says what is wrong where it is."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from small_bee import write_base

from hanlin.cli.main import main
from hanlin.recipe.reading import dump_recipe, load_recipe
from hanlin.recipe.yaml12 import parse_yaml
from hanlin.reference.schema import recipe_schema
from hanlin.reference.settings import all_settings

jsonschema = pytest.importorskip("jsonschema", reason="needs the package jsonschema (hanlin[dev])")

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
SMALL: dict[str, Any] = {"model": {"family": "cpm_bee", "size": "tiny"}, "run": {"folder": "runs/mine"}}


@pytest.fixture(scope="module")
def judge() -> Any:
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def _wrong(judge: Any, values: Any) -> list[str]:
    return [error.json_path for error in judge.iter_errors(values)]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_that_come_with_hanlin_are_right(recipe: Path, judge: Any) -> None:
    assert not _wrong(judge, parse_yaml(recipe.read_text(encoding="utf-8"))[0])


def test_a_runs_own_recipe_is_right(judge: Any) -> None:
    """It spells out all defaults."""
    assert not _wrong(judge, parse_yaml(dump_recipe(load_recipe(RECIPES[0])))[0])


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"optimizer": "adafactor"}},
        {"train": {"optimizer": {"weight_decay": 0.1}}},
        {"train": {"optimizer": {"name": "my.py", "anything": 1}}},
        {"generate": {"method": "sample", "top_p": 0.5}},
        {"data": {"train": "rows.jsonl", "options": {"max_depth": 4}}},
        {"tuning": {"method": "prompt", "ratios": "5_5_0"}},
        {"model": {"family": "my_model.py", "config": {"whatever": 1}}},
    ],
    ids=str,
)
def test_what_hanlin_takes_is_taken(change: dict[str, Any], judge: Any) -> None:
    assert not _wrong(judge, {**deepcopy(SMALL), **change})


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"train": {"lr": -1}}, "$.train.lr"),
        ({"train": {"learning_rate": 1}}, "$.train"),
        ({"model": {"family": "cpm_bee", "size": "huge"}}, "$.model.size"),
        ({"model": {"family": "no_such"}}, "$.model.family"),
        ({"data": {"options": {"template": "auto"}}}, "$.data.options"),
        ({"generate": {"method": "greedy", "beams": 3}}, "$.generate"),
        ({"run": {}}, "$.run"),
    ],
    ids=str,
)
def test_what_hanlin_refuses_is_marked_at_its_place(change: dict[str, Any], place: str, judge: Any) -> None:
    assert _wrong(judge, {**deepcopy(SMALL), **change}) == [place]


def test_every_setting_of_a_recipe_is_explained_there() -> None:
    assert _descriptions(recipe_schema()) >= {one.effect for one in all_settings() if not one.values}


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(
    "words", ["init rows.jsonl --base base --output made.yaml", "recipes copy cpm_bee_ccpm_lora made.yaml"]
)
def test_recipes_that_commands_write_name_the_schema_beside_them(
    words: str, language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HANLIN_LANG", language)
    write_base(tmp_path / "base")
    Path("rows.jsonl").write_text('{"input": "床前", "<ans>": "明月"}\n' * 3, "utf-8")
    assert main(words.split()) == 0
    text = Path("made.yaml").read_text("utf-8")
    place = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    schema = json.loads(Path(place).read_text("utf-8"))
    assert not _wrong(jsonschema.Draft202012Validator(schema), parse_yaml(text)[0])
    assert _wrong(jsonschema.Draft202012Validator(schema), {**parse_yaml(text)[0], "trian": {}}) == ["$"]
    rate = schema["properties"]["train"]["properties"]["lr"]["description"]
    assert bool(re.search("[\u4e00-\u9fff]", rate)) == (language == "zh")


@pytest.mark.parametrize("links", ["file", "file beside", "folder", "file in folder"])
def test_the_schema_is_found_from_a_link_and_from_the_true_file(
    links: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an editor looks for it: what is relative from the folder of the name that it opens."""
    monkeypatch.chdir(tmp_path)
    Path("true 文件").mkdir()
    Path("true 文件/made.yaml").touch()
    (tmp_path / "work").mkdir()
    Path("folder").symlink_to("true 文件")
    names = {
        "file": "work/link.yaml",
        "file beside": "true 文件/link.yaml",
        "folder": "folder/made.yaml",
        "file in folder": "work/link.yaml",
    }
    opened = Path(names[links])
    if opened.name == "link.yaml":
        opened.symlink_to(
            {"file beside": "made.yaml", "file": "../true 文件/made.yaml"}.get(links, "../folder/made.yaml")
        )
    assert main(["recipes", "copy", "cpm_bee_ccpm_lora", str(opened)]) == 0
    for name in (opened, Path("true 文件/made.yaml")):
        line = name.read_text("utf-8").splitlines()[0]
        found = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", line)
        assert found, line
        place = unquote(found[1].removeprefix("file://"))
        assert json.loads((name.parent / place).read_text("utf-8"))["title"], name


def test_another_file_in_the_schema_s_place_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.schema.json").write_text("{}", "utf-8")
    assert main(["recipes", "copy", "cpm_bee_ccpm_lora"]) == 2
    assert "recipe.schema.json: is no schema of recipes" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.schema.json"]


def _descriptions(part: Any) -> set[str]:
    if isinstance(part, list):
        return set().union(*map(_descriptions, part))
    if not isinstance(part, dict):
        return set()
    inner = set().union(*map(_descriptions, part.values()))
    return inner | {part["description"]} if isinstance(part.get("description"), str) else inner
