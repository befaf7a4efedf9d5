from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import yaml

from hanlin.core.errors import ConfigError
from hanlin.recipe.reading import dump_recipe, listing, load_recipe, make_recipe, read_recipe
from hanlin.recipe.settings import GENERATE_METHODS, OPTIMIZERS, Recipe
from hanlin.recipe.tuning import TUNING_METHODS
from hanlin.recipe.yaml12 import parse_yaml

MINIMAL = """\
model:
  family: cpm_bee
run:
  folder: out
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    return path


def test_numbers_are_read_as_yaml_1_2_reads_them(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["train.lr=1e-4", "train.min_lr=1E-6", "train.steps=1e3", "run.seed=0x10"])
    assert (loaded.train.lr, loaded.train.min_lr, loaded.train.steps, loaded.run.seed) == (1e-4, 1e-6, 1000, 16)


def test_words_that_yaml_1_1_took_as_truth_values_stay_words(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["model.config={a: no, b: 2024-01-01, c: true}"])
    assert loaded.model.config == {"a": "no", "b": "2024-01-01", "c": True}


def test_the_last_change_wins_over_the_file_and_earlier_changes(recipe: Path) -> None:
    assert load_recipe(recipe, ["run.folder=a", "run.folder=b"]).run.folder == Path("b")


def test_a_single_value_stands_for_a_list_of_one(recipe: Path) -> None:
    assert load_recipe(recipe, ["data.train=a.jsonl"]).data.train == (Path("a.jsonl"),)


def test_home_is_expanded_in_single_paths_and_lists(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["run.folder=~/run", "data.train=[~/a.jsonl]"])
    assert loaded.run.folder == Path.home() / "run"
    assert loaded.data.train == (Path.home() / "a.jsonl",)


def test_all_mistakes_are_listed_with_their_lines(recipe: Path) -> None:
    wrong = "train:\n  lr: fast\n  stepz: 3\ntuning:\n  method: lora\n  rank: 0\n"
    recipe.write_text(MINIMAL + wrong, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, ["data.overlong=cut"])
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{recipe}: 4 problems"
    assert sorted(line.strip() for line in lines[1:]) == [
        f"{recipe}:10: tuning.rank: expected greater than 0; found 0",
        f"{recipe}:6: train.lr: expected a valid number, unable to parse string as a number; found 'fast'",
        f"{recipe}:7: train.stepz: there is no such setting; did you mean 'steps'?",
        "command line: data.overlong: found 'cut', expected one of: error, drop, truncate, split",
    ]


@pytest.mark.parametrize(
    ("change", "suggestion"),
    [
        ("train.rank=4", "did you mean 'tuning.rank'?"),
        ("train.learning_rate=4", "did you mean 'train.lr'?"),
        ("train.colour=4", "batch_size, clip"),
        ("optim.lr=1", "known: data, evaluate"),
        ("trian.lr=1", "did you mean 'train'?"),
        ("lr=1", "did you mean 'train.lr'?"),
        ("train.schedule=cosin", "did you mean 'cosine'?"),
        ("train.schedule_form=megatron", "did you mean 'floored'?"),
        ("data.shuffle=cpm2", "expected one of: True, False, once; did you mean 'once'?"),
        ("evaluate.metrics=cpm2", "did you mean 'corpus_original'?"),
    ],
)
def test_an_unknown_name_gets_a_suggestion(recipe: Path, change: str, suggestion: str) -> None:
    with pytest.raises(ConfigError, match=r"command line") as caught:
        load_recipe(recipe, [change])
    assert suggestion in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("run.threads=100000", "expected less than or equal to 1024"),
        ("run.seed=9223372036854775808", "expected less than 4294967296"),
        ("train.steps=1e10", "expected less than or equal to 100000000"),
        ("train.epochs=1e12", "expected less than or equal to 100000"),
        ("train.batch_size=1e12", "expected less than or equal to 10000000"),
        ("train.keep=1e30", "the number is far too large"),
        ("data.max_length=1e12", "expected less than or equal to 16777216"),
        ("tuning={method: lora, rank: 1e12}", "expected less than or equal to 65536"),
        ("tuning={method: prefix, length: 1e12}", "expected less than or equal to 65536"),
        ("tuning={method: prompt, length: 1e12}", "expected less than or equal to 65536"),
    ],
)
def test_numbers_beyond_what_a_machine_can_hold_are_refused(recipe: Path, change: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"command line: .*: {reason}; found "):
        load_recipe(recipe, [change])


def number_settings() -> list[tuple[str, str]]:
    """What chooses the value of a section, and the key of each of its settings that is a number."""
    choices = [
        "run.log_every=1",
        *(f"tuning.method={name}" for name in TUNING_METHODS.names),
        *(f"generate.method={name}" for name in GENERATE_METHODS.names),
        *(f"train.optimizer.name={name}" for name in OPTIMIZERS.names),
    ]
    found: dict[str, str] = {}
    for choice in choices:
        made = make_recipe({"model": {"family": "cpm_bee"}, "run": {"folder": "out"}}, [choice])
        sections = {name: getattr(made, name) for name in Recipe.model_fields}
        sections["train.optimizer"] = made.train.optimizer
        for section, settings in sections.items():
            for name, field in type(settings).model_fields.items():
                if {int, float} & {field.annotation, *get_args(field.annotation)}:
                    found.setdefault(f"{section}.{name}", choice)
    return [(choice, key) for key, choice in found.items()]


@pytest.mark.parametrize("number", ["1e18", "1e300", "-1e18", ".nan", ".inf"])
def test_no_setting_takes_a_number_that_arithmetic_cannot_bear(recipe: Path, number: str) -> None:
    settings = number_settings()
    assert len(settings) > 40
    for choice, key in settings:
        with pytest.raises(ConfigError, match=f"{key}: "):
            load_recipe(recipe, [choice, f"{key}={number}"])


def test_what_is_right_survives_what_is_wrong(recipe: Path) -> None:
    draft = read_recipe(recipe, ["train.lr=-1", "train.batch_size=3", "parallel=two"])
    assert [problem.key for problem in draft.problems] == ["train.lr", "parallel"]
    assert draft.recipe is not None
    assert draft.recipe.train.batch_size == 3


def test_a_missing_setting_is_named(recipe: Path) -> None:
    recipe.write_text("model: {size: tiny}\n", encoding="utf-8")
    draft = read_recipe(recipe)
    assert draft.recipe is None
    assert [str(problem) for problem in draft.problems] == [
        f"{recipe}:1: model.family: is missing; it has no default",
        f"{recipe}: run: is missing; it has no default",
    ]


def test_a_key_that_stands_twice_is_named_with_both_lines(recipe: Path) -> None:
    recipe.write_text(MINIMAL + "run:\n  folder: other\n", encoding="utf-8")
    problems = read_recipe(recipe).problems
    assert "run: stands twice, first in line 3" in listing(problems, recipe)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [1", "recipe.yaml:1: not YAML"),
        ("model:\n\tfamily: x", "recipe.yaml:2: not YAML: .*tab"),
        ("model: {family: x，size: y}", r"recipe.yaml:1: not YAML: .*\(，\) is full-width, and YAML knows ',' alone"),
        ("tuning：{method: lora}", r"no such setting; U\+FF1A \(：\) is full-width, and YAML knows ':' alone"),
        ("model:\n  family: chatglm2  # 用，这个：\n base: base", r"not YAML: [^，：]*$"),
        ("just words", "a recipe has sections"),
        ("", "a recipe has sections"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(recipe: Path, text: str, message: str) -> None:
    recipe.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe)


def test_a_file_in_another_encoding_is_refused(recipe: Path) -> None:
    recipe.write_bytes("model: 模型".encode("gb18030"))
    with pytest.raises(ConfigError, match="not a text file in UTF-8"):
        load_recipe(recipe)


def test_a_missing_file_is_refused_with_the_nearest_name(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such recipe; did you mean .*recipe\.yaml"):
        load_recipe(recipe.with_name("recepi.yaml"))


@pytest.mark.parametrize("change", ["train.lr", "=3", "train..lr=3", "model.family.x=1", "train.lr=[1"])
def test_a_change_that_is_none_is_refused(recipe: Path, change: str) -> None:
    with pytest.raises(ConfigError, match="command line"):
        load_recipe(recipe, [change])


def test_the_written_recipe_reads_back_equal(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["train.lr=1e-5", "data.train=[诗.jsonl]", "train.epochs=1"])
    text = dump_recipe(loaded)
    (recipe.parent / "config.yaml").write_text(text, encoding="utf-8")
    assert load_recipe(recipe.parent) == loaded
    assert "诗" in text


def test_the_recipe_of_a_run_folder_is_of_the_run_in_there_wherever_it_was_moved_to(tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    (moved / "checkpoints").mkdir(parents=True)
    (moved / "config.yaml").write_text(MINIMAL, encoding="utf-8")
    assert load_recipe(moved).run.folder == moved
    assert load_recipe(moved, ["run.folder=runs/second"]).run.folder == Path("runs/second")


def test_a_folder_in_which_no_run_has_written_is_not_taken_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(MINIMAL, encoding="utf-8")
    assert load_recipe(tmp_path).run.folder == Path("out")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (("tuning.method=prefix",), {"method": "prefix", "length": 128, "projection": False, "dropout": 0.5}),
        (("tuning.length=4", "tuning.method=prefix"), {"method": "prefix", "length": 4}),
        (("tuning.method=lora", "tuning.alpha=3"), {"method": "lora", "rank": 4, "alpha": 3.0, "dropout": 0.5}),
        (("tuning={method: full}",), {"method": "full"}),
    ],
)
def test_another_tuning_method_leaves_the_settings_of_the_file_s_behind(
    recipe: Path, changes: tuple[str, ...], expected: dict[str, object]
) -> None:
    recipe.write_text(MINIMAL + "tuning: {method: lora, rank: 4, dropout: 0.5}\n", encoding="utf-8")
    loaded = load_recipe(recipe, changes)
    assert expected.items() <= loaded.tuning.model_dump().items()
    (recipe.parent / "config.yaml").write_text(dump_recipe(loaded), encoding="utf-8")
    assert load_recipe(recipe.parent) == loaded


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        (
            "rank: 4",
            r"tuning.rank: is a setting of method lora, not of full; remove it, or set tuning.method: lora",
        ),
        ("method: lora\n  length: 4", "tuning.length: is a setting of method prefix or prompt, not of lora"),
        ("method: lora\n  rnak: 4", r"tuning.rnak: there is no such setting; did you mean 'rank'\?"),
        ("method: magic\n  rank: 4", "tuning.method: found 'magic', expected one of: full, ia3, lora, prefix"),
        ("method: prompt\n  file: nowhere.json", "tuning.file: nowhere.json: cannot be read"),
    ],
)
def test_a_setting_that_the_tuning_method_does_not_have_is_told_with_its_line(
    recipe: Path, tuning: str, message: str
) -> None:
    recipe.write_text(f"{MINIMAL}tuning:\n  {tuning}\n", encoding="utf-8")
    line = 5 + len(tuning.split("\n")) if "magic" not in tuning else 6
    with pytest.raises(ConfigError, match=f"recipe.yaml:{line}: {message}"):
        load_recipe(recipe)


def test_the_written_recipe_leaves_out_what_has_no_effect(recipe: Path) -> None:
    written = yaml.safe_load(dump_recipe(load_recipe(recipe, ["train.precision=fp32"])))
    assert written["tuning"] == {"method": "full", "frozen": []}
    assert "loss_scale" not in written["train"]


@pytest.mark.parametrize(
    ("change", "key", "says"),
    [
        ("tuning={method: lroa, rank: 2}", "tuning.method", "did you mean 'lora'"),
        ("generate={method: smaple}", "generate.method", "did you mean 'sample'"),
        ("train.optimizer={name: admw}", "train.optimizer.name", "did you mean 'adamw'"),
        ("tuning={method: full, rank: 64}", "tuning.rank", "is a setting of method lora, not of full"),
        (
            "generate={method: sample, top_k: 5, beams: 2}",
            "generate.beams",
            "is a setting of method beam, not of sample",
        ),
    ],
)
def test_a_section_typed_whole_is_judged_whole(recipe: Path, change: str, key: str, says: str) -> None:
    given = ["tuning={method: lora, rank: 4}", "generate={method: beam, beams: 4}"]
    for before in ([], given):
        draft = read_recipe(recipe, [*before, change])
        found = [problem for problem in draft.problems if problem.key == key]
        assert found, [problem.key for problem in draft.problems]
        assert says in found[0].text
        assert found[0].place == "command line"


def test_digits_with_underscores_are_a_text() -> None:
    assert parse_yaml("ratios: 33_34_33")[0] == {"ratios": "33_34_33"}


def test_a_dict_is_a_recipe_and_is_left_as_it_was(tmp_path: Path) -> None:
    values = {"model": {"family": "cpm1", "size": "tiny"}, "run": {"folder": tmp_path}, "train": {"optimizer": "adamw"}}
    before = repr(values)
    recipe = load_recipe(values, {"train.lr": 1e-3, "train": {"steps": 3}, "generate": {"method": "greedy"}})
    assert (recipe.train.lr, recipe.train.steps, recipe.generate.method) == (1e-3, 3, "greedy")
    assert repr(values) == before
    again = load_recipe(recipe, ["train.steps=4"])
    assert (again.train.steps, again.train.lr, again.model) == (4, 1e-3, recipe.model)


def test_mistakes_in_a_dict_and_in_changes_are_told_apart(tmp_path: Path) -> None:
    values = {"model": {"family": "cpm1"}, "run": {"folder": str(tmp_path)}, "train": {"lrr": 1}}
    with pytest.raises(ConfigError) as told:
        load_recipe(values, {"train.stepz": 3, "run": {"seed": "x"}})
    lines = str(told.value).splitlines()
    assert lines[0] == "recipe: 3 problems"
    assert any(line.startswith("  recipe: train.lrr: there is no such setting") for line in lines)
    assert any(line.startswith("  overrides: train.stepz: there is no such setting") for line in lines)
    assert any(line.startswith("  overrides: run.seed: expected a valid integer") for line in lines)


def test_a_value_chosen_in_a_dict_of_changes_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    values = {
        "model": {"family": "cpm1"},
        "run": {"folder": str(tmp_path)},
        "generate": {"method": "sample", "top_p": 0.5},
    }
    assert load_recipe(values, {"generate": {"method": "greedy"}}).generate.method == "greedy"


def test_a_file_of_data_in_the_place_of_a_recipe_is_told(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    with pytest.raises(ConfigError, match=r"rows\.jsonl: a file of data, no recipe; .*data\.train.*hanlin data show"):
        load_recipe(tmp_path / "rows.jsonl")


def test_a_model_where_a_recipe_is_expected_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ConfigError, match="a model, where a recipe or a run folder is expected; name it with --base"):
        read_recipe(tmp_path)
