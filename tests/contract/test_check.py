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
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from hanlin.check import check
from hanlin.core.errors import HanlinError
from hanlin.data.processor import ReadsTokens
from hanlin.layers.experts import Experts
from hanlin.models.family import TakesPrompts
from hanlin.recipe.reading import make_recipe
from hanlin.recipe.settings import Recipe
from hanlin.run.assemble import load_data
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
# Where they do not agree yet: check is content, and training refuses.
UNCHECKED = {
    "expert": "parallel.expert of a model without a mixture is not looked at",
    "uneven expert": "parallel.expert is not compared with parallel.data",
    "offload with expert": "parallel.offload is not compared with parallel.expert",
    "method": "whether the model takes a prefix or soft prompts is not looked at",
    "targets": "tuning.targets are not looked for in the model",
    "length": "the first rows are not compared with data.max_length",
}
Refusals = tuple[str, str]
"""What check says and what training says; "" where it is content."""


def unchecked(key: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(strict=True, reason=UNCHECKED[key], raises=AssertionError)


@pytest.mark.parametrize("data", ["records", "corpus"])
@pytest.mark.parametrize("method", ["full", *METHODS])
def test_check_and_training_agree_on_methods_and_data(
    case: Case, method: str, data: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if is_taken_unchecked(case, method, data):
        request.applymarker(unchecked("method"))
    assert_agreed(refusals(recipe_of(case, tmp_path, data=data, method=method)))


def is_taken_unchecked(case: Case, method: str, data: str) -> bool:
    """Whether only the model, and not its processor, says that it does not take a method."""
    if method not in ("prefix", "prompt") or method in case.tuning:
        return False
    if method == "prompt":
        return isinstance(case.processor, TakesPrompts) and data == "records"
    return isinstance(case.processor, ReadsTokens) or data == "records"


@pytest.mark.parametrize("fields", LAYOUTS)
def test_check_and_training_agree_on_layouts(
    case: Case, fields: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    has_experts = any(isinstance(module, Experts) for module in case.empty().modules())
    if fields in UNCHECKED and not (fields == "expert" and has_experts):
        request.applymarker(unchecked(fields))
    assert_agreed(refusals(recipe_of(case, tmp_path, parallel=LAYOUTS[fields])))


@unchecked("targets")
def test_check_and_training_agree_on_targets_that_are_not_there(case: Case, tmp_path: Path) -> None:
    assert_agreed(refusals(recipe_of(case, tmp_path, method="lora", targets=["no_such_linear"])))


@unchecked("length")
def test_check_and_training_agree_on_a_record_that_is_too_long(case: Case, tmp_path: Path) -> None:
    assert_agreed(refusals(recipe_of(case, tmp_path, max_length=5)))


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
    data = load_data(recipe, components, "train")
    assert data is not None
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
