"""The recipes of CPM-2 by commands on a tiny model: the original's files -> trained -> scored, and out again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cpm2_tiny import RANKING, ROWS, write_original, write_raw, write_rows

from hanlin.adapters.opening import is_adapter
from hanlin.cli.main import main
from hanlin.formats.load import load_into
from hanlin.formats.source import read_config
from hanlin.models.cpm2 import family
from hanlin.models.cpm2.datasets import DATA_SETS
from hanlin.recipe.reading import load_recipe

# Those of a small model are in test_road_ccpm_small.py.
RECIPES = [
    path
    for path in sorted((Path(__file__).parents[2] / "recipes").glob("cpm2_*.yaml"))
    if str(load_recipe(path).model.base).startswith("models/cpm2")
]
# A recipe for each script of the original, which has no prompts for two of the data sets.
WITHOUT_SCRIPT = [("kdconv", "prompt"), ("sogou-log", "prompt")]
TINY = (
    "train.epochs=null", "train.steps=2", "train.batch_size=2", "train.micro_batch_size=1", "train.precision=fp32",
    "train.eval_every=null", "train.save_every=null", "train.lr=1e-3", "data.train_share=1.0", "data.eval_share=1.0",
    "data.max_length=128", "generate.max_new_tokens=6", "run.threads=1",
    "parallel.tensor=1", "parallel.shard=none", "parallel.checkpoint_activations=none",
)  # fmt: skip
SCORES = {
    "generate": {"exact_match"},
    "likelihood": {"accuracy"},
    "rank": {"rank_accuracy"},
    "corpus_original": {"bleu-4 original", "rouge-l original", "dist-4 original", "f1 original"},
    "characters": {"bleu-4 characters", "rouge-l characters", "dist-4 characters"},
    "equation": {"equation eval_math", "equation within 1e-6"},
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original(tmp_path_factory.mktemp("cpm2"))


def tiny(recipe: Path, original: Path, folder: Path, *changes: str, dataset: str | None = None) -> list[str]:
    """The recipe's file and the changes that make it tiny; dataset: another than the recipe's own."""
    settings = load_recipe(recipe)
    raw = write_raw(folder, dataset or settings.data.options["dataset"])
    small = ["tuning.length=20"] if settings.tuning.method == "prompt" else []
    paths = [f"model.base={original}", f"data.train={raw}", f"data.eval={raw}", f"evaluate.data={raw}"]
    return [
        str(recipe),
        *TINY,
        *small,
        *paths,
        f"run.folder={folder / 'run'}",
        f"data.cache={folder / 'cache'}",
        *changes,
    ]


def scores(folder: Path) -> dict[str, Any]:
    metrics = json.loads((folder / "run/evaluation/metrics.json").read_text())
    return {name: value for own in metrics.values() for name, value in own.items()}


def predictions(folder: Path, task: str) -> list[dict[str, Any]]:
    text = (folder / f"run/evaluation/predictions/{task}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def expected_scores(tasks: Sequence[str], metrics: Sequence[str]) -> set[str]:
    return {score for name in (*tasks, *metrics) for score in SCORES[name]}


def test_every_script_of_the_original_has_its_recipe() -> None:
    found = {(load_recipe(recipe).data.options["dataset"], load_recipe(recipe).tuning.method) for recipe in RECIPES}
    assert found == {(name, method) for name in DATA_SETS for method in ("full", "prompt")} - set(WITHOUT_SCRIPT)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_trains_and_scores_its_data_set(recipe: Path, original: Path, tmp_path: Path) -> None:
    words, settings = tiny(recipe, original, tmp_path), load_recipe(recipe)
    assert main(["train", *words]) == 0
    assert is_adapter(tmp_path / "run/last") == (settings.tuning.method == "prompt")
    assert main(["evaluate", *words]) == 0
    found = scores(tmp_path)
    assert found.keys() >= expected_scores(settings.evaluate.tasks, settings.evaluate.metrics)
    assert found["records"] == {"c3": 3, "sogou-log": 2}.get(settings.data.options["dataset"], 2)


@pytest.mark.parametrize("dataset", [name for name, _ in WITHOUT_SCRIPT])
def test_prompts_are_tuned_where_the_original_has_none(dataset: str, original: Path, tmp_path: Path) -> None:
    stem = {"sogou-log": "sogou"}.get(dataset, dataset)
    recipe = next(recipe for recipe in RECIPES if recipe.stem == f"cpm2_{stem}_full")
    words = tiny(recipe, original, tmp_path, "tuning.method=prompt", "tuning.length=5")
    assert main(["train", *words]) == 0
    assert is_adapter(tmp_path / "run/last")
    assert main(["evaluate", *words]) == 0
    settings = load_recipe(recipe)
    assert scores(tmp_path).keys() >= expected_scores(settings.evaluate.tasks, settings.evaluate.metrics)


def test_a_trained_model_goes_back_into_the_original_s_files(original: Path, tmp_path: Path) -> None:
    words = tiny(recipe_of("math_full"), original, tmp_path)
    assert main(["train", *words]) == 0
    assert main(["convert", str(tmp_path / "run/last"), str(tmp_path / "theirs"), "--to", "original"]) == 0
    assert (tmp_path / "theirs/latest_checkpointed_iteration.txt").is_file()
    inputs = {"tokens": torch.arange(4)[None], "encoder_tokens": torch.arange(9)[None] + 3}
    ours, theirs, before = (logits_of(path, inputs) for path in (tmp_path / "run/last", tmp_path / "theirs", original))
    # The original's files are fp16.
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-3)
    assert not before.allclose(ours, atol=1e-2)
    assert main(["evaluate", *words, "--weights", str(tmp_path / "theirs")]) == 0


def test_lora_tunes_it_too(original: Path, tmp_path: Path) -> None:
    words = tiny(recipe_of("ccpm_full"), original, tmp_path, "tuning.method=lora", "data.pack=true")
    assert main(["train", *words]) == 0
    assert is_adapter(tmp_path / "run/last")
    assert main(["evaluate", *words]) == 0
    assert scores(tmp_path)["chance"] == 0.25
    assert all(set(row["scores"]) == set("一二三四") for row in predictions(tmp_path, "likelihood"))


def test_titles_without_a_better_one_are_ranked(original: Path, tmp_path: Path) -> None:
    ranking = write_rows(tmp_path / "test.json", RANKING)
    words = tiny(recipe_of("sogou_full"), original, tmp_path, f"evaluate.data={ranking}")
    assert main(["evaluate", *words, "--weights", "base"]) == 0
    assert scores(tmp_path)["ranked"] == len(RANKING)
    first, second = predictions(tmp_path, "rank")
    assert set(first["scores"]) == {"17", "2"}
    assert first["answer"] == max(first["scores"], key=first["scores"].get)
    assert second["answer"] == "9"


@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
def test_equations_are_written_from_and_to_files(method: str, original: Path, tmp_path: Path) -> None:
    questions = write_rows(tmp_path / "in.jsonl", [{"text": row["text"]} for row in ROWS["math"]])
    words = [f"generate.method={method}", "generate.max_new_tokens=5", "data.options={dataset: math}", "run.threads=1"]
    out = tmp_path / "out.jsonl"
    files = ["--base", str(original), "--family", "cpm2", "--input", str(questions), "--output", str(out)]
    assert main(["generate", *words, *files]) == 0
    answered = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row["text"] for row in answered] == [row["text"] for row in ROWS["math"]]
    assert all(row["equation"].startswith("x=") for row in answered)


def test_all_questions_of_a_text_are_answered(original: Path, tmp_path: Path) -> None:
    rows = [[texts, [{"question": one["question"], "choice": one["choice"]} for one in questions], name]
            for texts, questions, name in ROWS["c3"]]  # fmt: skip
    questions, out = write_rows(tmp_path / "in.json", rows, as_list=True), tmp_path / "out.jsonl"
    files = ["--base", str(original), "--family", "cpm2", "--input", str(questions), "--output", str(out)]
    assert main(["generate", "generate.method=greedy", "data.options={dataset: c3}", "run.threads=1", *files]) == 0
    answered = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row["question"] for row in answered] == ["借了几本？", "去了哪里？", "去哪里？"]
    assert all(row["answer"] for row in answered)


def test_a_wrong_row_is_named_with_its_line(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = tiny(recipe_of("math_full"), original, tmp_path)
    (tmp_path / "math.json").write_text('[\n{"text": "甲", "equation": "x=1"},\n{"text": "甲"}\n]', "utf-8")
    assert main(["train", *words]) == 2
    assert "math.json:3 (entry 2): the key 'equation' is missing" in capsys.readouterr().err


def recipe_of(name: str) -> Path:
    return next(recipe for recipe in RECIPES if recipe.stem == f"cpm2_{name}")


def logits_of(folder: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.device("meta"):
        model = family.model()(read_config(folder, family))
    load_into(model, folder, family, dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(**inputs)
