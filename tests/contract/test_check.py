"""`hanlin check` refuses what training refuses, and nothing else.

Both are run for each family with each tuning method, kind of data and some fields of the layout. Training is begun:
its data are read, the model is made, tuned and placed. Of several ranks there is the first one only, the others are
pretended (torch's "fake" backend). That a setting has no effect is for check alone to say.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import METHODS, TEXTS, Case
from ranks import import_once
from rich.console import Console
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from hanlin.checking import check
from hanlin.core.errors import HanlinError
from hanlin.data.pretraining.indexing import Encoding, index_texts
from hanlin.data.sources.bee import write_bee
from hanlin.models.family import LoadTokenizer
from hanlin.parallel.mesh import Degrees
from hanlin.recipe.reading import make_recipe
from hanlin.recipe.settings import Recipe
from hanlin.run.assemble import _loaders, assemble
from hanlin.run.components import build_components
from hanlin.run.weights import parallelize_tuned

LAYOUTS: dict[str, dict[str, Any]] = {
    "data": {"data": 2},
    "tensor": {"tensor": 2},
    "uneven tensor": {"tensor": 3},
    "sequence": {"tensor": 2, "sequence_parallel": True},
    "pipe": {"pipe": 2},
    "more stages than blocks": {"pipe": 9},
    "interleaved": {"pipe": 2, "schedule": "interleaved"},
    "expert": {"data": 2, "expert": 2},
    "uneven expert": {"data": 2, "expert": 3},
    "shard": {"data": 2, "shard": "parameters"},
    "uneven shard": {"data": 2, "shard": "gradients", "shard_ranks": 3},
    "offload": {"data": 2, "shard": "parameters", "offload": True},
    "offload without shard": {"offload": True},
    "offload with expert": {"data": 2, "expert": 2, "shard": "parameters", "offload": True},
    "recompute": {"checkpoint_activations": "full"},
}
KINDS = [
    *((kind, "error") for kind in ("JSON list", "binary", "mixture", "with a bad row", "all bad", "in context")),
    *((kind, "drop") for kind in ("with a bad row", "all bad")),
]
TASKS = [
    *((task, "error") for task in ("generate", "likelihood", "loss", "rank", "classify")),
    ("loss", "drop"),
    ("likelihood", "drop"),
]
Refusals = tuple[str, str]
"""What check says and what training says; "" where it is content."""


@pytest.mark.parametrize("data", ["records", "corpus"])
@pytest.mark.parametrize("method", ["full", *METHODS])
def test_check_and_training_agree_on_methods_and_data(case: Case, method: str, data: str, tmp_path: Path) -> None:
    assert_agreed(refusals(recipe_of(case, tmp_path, data=data, method=method)))


@pytest.mark.parametrize("fields", LAYOUTS)
def test_check_and_training_agree_on_layouts(case: Case, fields: str, tmp_path: Path) -> None:
    assert_agreed(refusals(recipe_of(case, tmp_path, parallel=LAYOUTS[fields])))


def test_check_and_training_agree_on_targets_that_are_not_there(case: Case, tmp_path: Path) -> None:
    assert_agreed(refusals(recipe_of(case, tmp_path, method="lora", targets=["no_such_linear"])))


def test_check_and_training_agree_on_a_record_that_is_too_long(case: Case, tmp_path: Path) -> None:
    assert_agreed(refusals(recipe_of(case, tmp_path, max_length=5)))


@pytest.mark.parametrize(("kind", "policy"), KINDS)
def test_check_and_training_agree_on_kinds_of_files(case: Case, kind: str, policy: str, tmp_path: Path) -> None:
    recipe, path = recipe_of(case, tmp_path), tmp_path / "records.jsonl"
    changes: dict[str, Any] = {"bad_rows": policy}
    match kind:
        case "JSON list":
            changes["train"] = [str(write(tmp_path / "list.json", json.dumps(list(case.records))))]
        case "binary":
            write_bee(tmp_path / "binary", "records", case.records)
            changes["train"] = [str(tmp_path / "binary")]
        case "mixture":
            entry = {"task_name": "a", "dataset_name": "b", "path": path.name, "incontext_weight": [1, 1]}
            changes |= {"train": [], "mixture": str(write(tmp_path / "sets.json", json.dumps([entry])))}
        case "with a bad row":
            write(path, path.read_text("utf-8") + '{"nonsense": 1}\n')
        case "all bad":
            write(path, '{"nonsense": 1}\n' * 3)
        case "in context":
            changes["in_context"] = [0.5, 0.5]
    assert_agreed(refusals(changed(recipe, "data", changes)))


@pytest.mark.parametrize(
    ("split", "is_indexed"),
    [("8,1,1", False), ("1,0,0", False), ("0,1,0", False), ("1,1,1", False), ("949,50,1", True), ("1,1,1", True)],
)
def test_check_and_training_agree_on_small_corpora(case: Case, split: str, is_indexed: bool, tmp_path: Path) -> None:
    texts = [text * 9 for text in [*case.texts, *TEXTS]][:4]
    path = write(tmp_path / "four.txt", "".join(f"{text}\n" for text in texts))
    recipe = recipe_of(case, tmp_path, data="corpus")
    if is_indexed:
        index_texts([path], tmp_path / "four", Encoding(LoadTokenizer(case.name, case.vocab)), progress=False)
        path = tmp_path / "four"
    assert_agreed(refusals(changed(recipe, "data", {"train": [str(path)], "split": split})))


@pytest.mark.parametrize("prompt", [{"init_token": "no such token"}, {"init_text": "明月"}, {"init_spread": True}])
def test_check_and_training_agree_on_first_prompts(case: Case, prompt: dict[str, Any], tmp_path: Path) -> None:
    recipe = recipe_of(case, tmp_path, method="prompt")
    begun = {"length": 3, "init": "vocabulary", **prompt}
    assert_agreed(refusals(changed(recipe, "tuning", begun)))


@pytest.mark.parametrize(("task", "policy"), TASKS)
def test_check_and_evaluation_agree(case: Case, task: str, policy: str, tmp_path: Path) -> None:
    recipe, path = recipe_of(case, tmp_path), tmp_path / "records.jsonl"
    if policy == "drop":
        write(path, path.read_text("utf-8") + '{"nonsense": 1}\n')
    recipe = changed(recipe, "data", {"train": [], "eval": [str(path)], "bad_rows": policy})
    recipe = changed(recipe, "generate", {"max_new_tokens": 2, "method": "greedy"})
    recipe = changed(recipe, "evaluate", {"tasks": [task]})
    told = "; ".join(f"{problem.key}: {problem.text}" for problem in check(recipe, purpose="evaluate"))
    try:
        assemble(recipe).evaluate()
        refused = ""
    except HanlinError as error:
        refused = str(error)
    assert_agreed((told, refused))


def changed(recipe: Recipe, section: str, values: dict[str, Any]) -> Recipe:
    """The recipe with other settings in a section."""
    given = recipe.model_dump(mode="json", exclude_unset=True)
    return make_recipe({**given, section: {**given.get(section, {}), **values}})


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def assert_agreed(told: Refusals) -> None:
    by_check, by_training = told
    assert bool(by_check) == bool(by_training), f"check: {by_check or 'fine'}\ntraining: {by_training or 'fine'}"


def refusals(recipe: Recipe) -> Refusals:
    problems = check(recipe, purpose="train")
    return "; ".join(f"{problem.key}: {problem.text}" for problem in problems), refusal_of_training(recipe)


def refusal_of_training(recipe: Recipe) -> str:
    layout = recipe.parallel
    world = (layout.data or 1) * layout.tensor * layout.pipe
    if world == 1:
        return refusal_of_ranks(recipe, world)
    # In a process of its own, since torch remembers the pretended ranks.
    import_once()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(refusal_of_ranks, (recipe, world))


def refusal_of_ranks(recipe: Recipe, world: int) -> str:
    if world > 1:
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(world)}
        distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        begin(recipe, world)
    except HanlinError as error:
        return str(error)
    return ""


def begin(recipe: Recipe, world: int) -> None:
    """What training does until its first step; alone that one's gradients too."""
    components = build_components(recipe)
    loader, *_ = _loaders(components, Console(quiet=True), Degrees(), 0)
    data = loader.prepared
    parallel_model = parallelize_tuned(components, torch.device("cpu"), world)
    if world == 1:
        first = data.get(0)
        parallel_model.forward_backward([components.processor.collate([[first]], first.length)], [1.0])


def recipe_of(
    case: Case,
    folder: Path,
    *,
    data: str = "records",
    method: str = "full",
    targets: Sequence[str] = (),
    parallel: dict[str, Any] | None = None,
    max_length: int | None = None,
) -> Recipe:
    """A run of one step; only what is asked for is written down, as a user would."""
    tuning: dict[str, Any] = {"method": method, **({"targets": list(targets)} if targets else {})}
    if method == "prompt":
        tuning["length"] = 3
    rows = case.records if data == "records" else [{"text": text} for text in [*case.texts, *TEXTS] * 40]
    path = folder / f"{data}.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    given = {"config": {name: list(v) if isinstance(v, tuple) else v for name, v in vars(case.config).items()}}
    return make_recipe(
        {
            "model": {"family": case.name, "vocab": str(case.vocab), **given},
            "data": {
                "train": str(path),
                "max_length": max_length or min(getattr(case.config, "max_length", 256), 256),
                "cache": str(folder / "cache"),
                "options": dict(case.options),
                **({"split": "8,1,1"} if data == "corpus" else {}),
            },
            "train": {"steps": 1, "batch_size": 4},
            "tuning": tuning,
            "parallel": parallel or {},
            "run": {"folder": str(folder / "run"), "device": "cpu", "threads": 1, "seed": 1},
        }
    )
