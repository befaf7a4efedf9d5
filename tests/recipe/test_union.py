"""Sections that are one of several: chosen by name or file, switched on the command line, written and read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from hanlin.core.errors import ConfigError
from hanlin.generate.methods.beam import BeamSettings
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.generate.methods.sample import SampleSettings
from hanlin.recipe.reading import dump_recipe, load_recipe, read_recipe
from hanlin.training.optimizers.adamw import AdamWSettings

LION = Path(__file__).parents[2] / "examples" / "my_optimizer.py"
MINIMAL = "model: {family: cpm_bee}\nrun: {folder: out}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    return path


def write(recipe: Path, text: str) -> Path:
    recipe.write_text(MINIMAL + text, encoding="utf-8")
    return recipe


def test_what_is_not_given_is_the_default(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["generate.batch_size=2", "train.optimizer.eps=1e-6"])
    assert loaded.generate == BeamSettings(batch_size=2)
    assert loaded.train.optimizer == AdamWSettings(eps=1e-6)


def test_a_bare_name_stands_for_the_defaults_of_its_value(recipe: Path) -> None:
    write(recipe, "generate: greedy\ntrain: {optimizer: adamw}\n")
    assert load_recipe(recipe).generate == GreedySettings()
    assert load_recipe(recipe, ["train.optimizer.weight_decay=0"]).train.optimizer == AdamWSettings(weight_decay=0)
    assert load_recipe(recipe, ["generate=sample", "generate.top_k=5"]).generate == SampleSettings(top_k=5)


def test_a_switch_on_the_command_line_leaves_out_what_the_file_says_to_the_old_value_alone(recipe: Path) -> None:
    write(recipe, "generate: {method: beam, beams: 4, max_new_tokens: 7}\n")
    loaded = load_recipe(recipe, ["generate.method=sample", "generate.top_k=5"])
    assert loaded.generate == SampleSettings(top_k=5, max_new_tokens=7)


def test_what_both_values_know_stays_when_they_are_switched(recipe: Path) -> None:
    write(recipe, "train: {optimizer: {name: adamw, weight_decay: 0.3, eps: 1e-6}}\n")
    optimizer = load_recipe(recipe, [f"train.optimizer.name={LION}"]).train.optimizer
    assert optimizer.model_dump() == {"name": str(LION), "betas": (0.9, 0.99), "weight_decay": 0.3}


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("generate:\n  method: greedy\n  beams: 4\n", [], "recipe.yaml:5: generate.beams: is a setting of method beam, "
         "not of greedy; remove it, or set generate.method: beam"),
        ("generate:\n  beams: 4\n", ["generate.method=greedy", "generate.beams=3"], "command line: generate.beams: is"),
        ("generate:\n  beems: 4\n", ["generate.method=greedy"], "recipe.yaml:4: generate.beems: there is no such"),
        ("generate:\n  method: best\n", [], "recipe.yaml:4: generate.method: found 'best', expected one of: beam, "
         "greedy, sample, the path of a Python file"),
        ("train:\n  optimizer: lion.py\n", [], "recipe.yaml:4: train.optimizer.name: there is no file lion.py"),
        ("train:\n  optimizer: empty.py\n", [], "empty.py: it must define `optimizer`, as the modules of hanlin."),
        ("train:\n  optimizer: 3\n", [], "recipe.yaml:4: train.optimizer: a section is expected"),
        ("train:\n  optimizer: {name: 3}\n", [], "recipe.yaml:4: train.optimizer.name: found 3, expected one of: ad"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, text: str, changes: list[str], message: str
) -> None:
    monkeypatch.chdir(recipe.parent)
    Path("empty.py").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(recipe, text), changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_rest_of_a_recipe_survives_a_wrong_name(recipe: Path) -> None:
    write(recipe, "generate: {method: best, top_k: 3}\ntrain: {optimizer: {name: adam, eps: 1}, lr: 0.5}\n")
    draft = read_recipe(recipe)
    assert [problem.key for problem in draft.problems] == ["train.optimizer.name", "generate.method"]
    assert draft.recipe is not None
    assert draft.recipe.train.lr == 0.5


@pytest.mark.parametrize("name", ["adamw", str(LION)])
@pytest.mark.parametrize("method", ["beam", "greedy", "sample"])
def test_the_written_recipe_reads_back_equal(recipe: Path, name: str, method: str) -> None:
    loaded = load_recipe(recipe, [f"train.optimizer={name}", "train.optimizer.weight_decay=0.2", f"generate={method}"])
    (recipe.parent / "config.yaml").write_text(dump_recipe(loaded), encoding="utf-8")
    again = load_recipe(recipe.parent)
    assert again == loaded
    assert (type(again.generate), type(again.train.optimizer)) == (type(loaded.generate), type(loaded.train.optimizer))
