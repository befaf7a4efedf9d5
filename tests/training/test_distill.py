"""Imitating a teacher: gradients and numbers against whole logits, runs by their files, refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import Case, case_of
from torch.nn.functional import cross_entropy, kl_div, log_softmax

import hanlin
from hanlin.checking import check_source
from hanlin.core.batch import IGNORED, Batch
from hanlin.core.errors import CheckpointError, ConfigError
from hanlin.formats.load import save_base
from hanlin.parallel.parallelize import parallelize
from hanlin.planner.estimate import RankMemory, estimate
from hanlin.planner.job import PlannedModel, SequenceLengths
from hanlin.planner.layout import Layout
from hanlin.recipe.reading import make_recipe
from hanlin.recipe.settings import TrainSettings
from hanlin.run.components import build_components
from hanlin.run.teacher import teacher_components
from hanlin.training.objective import RunStart, build_objective
from hanlin.training.optimizer import build_optimizer
from hanlin.training.step import Step

FAMILIES = ("chatglm2", "cpm1", "cpm1_t5", "cpm2", "cpm_bee")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def make_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    return cache(lambda family: case_of(family, tmp_path_factory.mktemp(family)))


def larger(case: Case) -> Case:
    """A teacher: wider and deeper, with the same tokens."""
    kv = {"num_kv_heads": 4} if hasattr(case.config, "num_kv_heads") else {}
    changes = {"hidden_size": 32, "num_heads": 4, "num_layers": 3, **kv}
    return replace(case, config=replace(case.config, **changes))


def logits_of(model: Any, batch: Batch, row: int) -> torch.Tensor:
    """Of the labelled positions of a row."""
    found = model(**batch.part(row, row + 1).inputs)[0]
    return found[batch.labels[row] != IGNORED]


@pytest.mark.parametrize(
    ("family", "how"),
    [
        *((family, {"divergence": "forward", "temperature": 2.0, "share": 0.7}) for family in FAMILIES),
        ("cpm_bee", {"divergence": "reverse", "share": 1.0}),
    ],
)
def test_gradients_are_those_of_whole_logits(
    family: str, how: dict[str, Any], make_case: Callable[[str], Case], tmp_path: Path
) -> None:
    case = make_case(family)
    model, teacher = case.model(dropout=0.0) if hasattr(case.config, "dropout") else case.model(), larger(case).model()
    batch = case.batch()
    batch = replace(batch, weights=batch.weights * torch.rand(batch.weights.shape) + 0.1)
    settings = TrainSettings(
        steps=1, objective={"name": "distill", "teacher": "t", **how}, clip=None, micro_batch_size=2
    )
    objective = build_objective(settings.objective)
    objective.begin(parallelize(model, CPU), {}, RunStart(tmp_path, teacher=parallelize(teacher, CPU)))
    parallel_model = parallelize(model, CPU)
    optimizer = build_optimizer(parallel_model.parameters, settings.optimizer)
    step = Step(parallel_model, optimizer, settings, 1, objective=objective)
    gradients: dict[str, torch.Tensor] = {}
    step.optimizer.step = lambda rate: gradients.update(  # type: ignore[method-assign]
        {name: weight.grad.clone() for name, weight in parallel_model.parameters.items() if weight.grad is not None}
    )
    report = step.run(batch)
    expected, label_loss, divergence = direct_losses(model, teacher, batch, how)
    assert report.loss == pytest.approx(expected.item(), rel=1e-5)
    assert report.measures["label_loss"] == pytest.approx(label_loss.item(), rel=1e-5)
    assert report.measures["divergence"] == pytest.approx(divergence.item(), rel=1e-5)
    held_out = objective.evaluate(parallel_model, [batch], 1)
    assert held_out["loss"] == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    for name, weight in model.named_parameters():
        wanted = torch.zeros_like(weight) if weight.grad is None else weight.grad
        torch.testing.assert_close(gradients.get(name, torch.zeros_like(weight)), wanted, rtol=1e-5, atol=1e-7)
    assert all(weight.grad is None for weight in teacher.parameters())


def direct_losses(
    model: Any, teacher: Any, batch: Batch, how: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Means over the loss tokens of the mixture, the cross entropy and the divergence."""
    heat, size = how.get("temperature", 1.0), batch.loss_tokens
    entropies, divergences = [], []
    for row in range(batch.size):
        is_learned = batch.labels[row] != IGNORED
        own, wanted = logits_of(model, batch, row), logits_of(teacher, batch, row).detach()
        weights = batch.weights[row][is_learned]
        entropies.append((cross_entropy(own, batch.labels[row][is_learned], reduction="none") * weights).sum())
        pair = log_softmax(own / heat, -1), log_softmax(wanted / heat, -1)
        pair = pair if how["divergence"] == "forward" else pair[::-1]
        kept = kl_div(*pair, reduction="none", log_target=True).nan_to_num(0).sum(-1)
        divergences.append((kept * weights).sum() * heat**2)
    label_loss, divergence = sum(entropies) / size, sum(divergences) / size
    return how["share"] * divergence + (1 - how["share"]) * label_loss, label_loss, divergence


# --- runs ---


def save(case: Case, folder: Path) -> Path:
    weights = {key: value.float() for key, value in case.model().named_parameters()}
    save_base(folder, case.family, case.config, weights, case.tokenizer)
    return folder


@pytest.fixture(scope="module")
def bases(make_case: Callable[[str], Case], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of a student and of its teacher."""
    case, folder = make_case("cpm1"), tmp_path_factory.mktemp("bases")
    return save(case, folder / "student"), save(larger(case), folder / "teacher")


def recipe(bases: tuple[Path, Path], folder: Path, case: Case, **objective: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in case.records), encoding="utf-8")
    return {
        "model": {"family": "cpm1", "base": str(bases[0])},
        "data": {"train": [str(rows)], "eval": [str(rows)], "max_length": 60, "cache": str(folder / "cache")},
        "train": {
            "steps": 4, "lr": 0.01, "schedule": "constant", "batch_size": 2, "eval_every": 2,
            "objective": {"name": "distill", "teacher": str(bases[1]), **objective},
        },
        "run": {"folder": str(folder / "run"), "threads": 1},
    }  # fmt: skip


def steps_of(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "run/metrics.jsonl").read_text("utf-8").splitlines())
    varying = ("second", "memory")
    return [{key: value for key, value in line.items() if not any(word in key for word in varying)} for line in lines]


def test_a_run_comes_nearer_and_goes_on_exactly(
    bases: tuple[Path, Path], make_case: Callable[[str], Case], tmp_path: Path
) -> None:
    case = make_case("cpm1")
    whole = recipe(bases, tmp_path / "whole", case, share=1.0, temperature=1.5)
    hanlin.train(whole)
    steps = steps_of(tmp_path / "whole")
    assert steps[-1]["eval_divergence"] < steps[0]["divergence"] / 2
    half = recipe(bases, tmp_path / "parts", case, share=1.0, temperature=1.5)
    half["train"] |= {"save_every": 2, "steps": 2}
    hanlin.train(half)
    # The teacher has moved, and is the same.
    moved = shutil.copytree(bases[1], tmp_path / "moved")
    half["train"] |= {"steps": 4, "objective": {**half["train"]["objective"], "teacher": str(moved)}}
    hanlin.train(half)
    kept = [step for step in steps if step["step"] > 2]
    assert [step for step in steps_of(tmp_path / "parts") if step["step"] > 2] == kept
    # Another one is another run.
    half["train"] |= {"steps": 6, "objective": {**half["train"]["objective"], "teacher": str(bases[0])}}
    with pytest.raises(CheckpointError, match=r"train\.objective\.teacher weights: was"):
        hanlin.train(half)


def test_a_run_with_its_adapter_teaches_another_method_packed(
    bases: tuple[Path, Path], make_case: Callable[[str], Case], tmp_path: Path
) -> None:
    case = make_case("cpm1")
    tuned = recipe((bases[1], bases[1]), tmp_path / "teacher", case)
    tuned["train"] |= {"objective": "likelihood", "lr": 0.05}
    hanlin.train({**tuned, "tuning": {"method": "lora", "rank": 2}})
    run = tmp_path / "teacher/run"
    found = {}
    for name, how in {
        "run": {"teacher": str(run)},
        "parts": {"teacher": str(bases[1]), "teacher_adapter": str(run / "best")},
        "base": {"teacher": str(bases[1])},
        "packed": {"teacher": str(run), "teacher_quantise": "int8", "teacher_precision": "bf16"},
    }.items():
        made = recipe(bases, tmp_path / name, case, **how)
        hanlin.train({**made, "tuning": {"method": "prefix", "length": 2}})
        found[name] = [step["divergence"] for step in steps_of(tmp_path / name) if "divergence" in step]
    assert found["run"] == found["parts"] != found["base"]
    assert found["packed"] == pytest.approx(found["run"], rel=0.05)
    assert found["packed"] != found["run"]
    assert "quantise=int8" in (tmp_path / "packed/run/log.txt").read_text("utf-8")


@pytest.mark.parametrize(
    ("changes", "key", "text"),
    [
        ({"objective": {"teacher": None}}, "train.objective.teacher", "name the model that is to be imitated"),
        ({"objective": {"teacher": "nowhere"}}, "train.objective.teacher", "there is no nowhere"),
        ({"objective": {"temperature": 0}}, "train.objective.temperature", "greater than 0"),
        ({"parallel": {"pipe": 2}}, "parallel.pipe", "stages of a pipeline"),
        ({"tuning": {"method": "prompt"}}, "tuning.method", "a teacher cannot read"),
    ],
)
def test_what_has_no_teacher_is_refused(
    changes: dict[str, Any],
    key: str,
    text: str,
    bases: tuple[Path, Path],
    make_case: Callable[[str], Case],
    tmp_path: Path,
) -> None:
    made = recipe(bases, tmp_path / "run", make_case("cpm1"), **changes.pop("objective", {}))
    [problem] = [one for one in check_source({**made, **changes}).problems if one.key == key]
    assert text in problem.text


def test_a_teacher_of_other_tokens_rows_or_family_is_refused(
    bases: tuple[Path, Path], make_case: Callable[[str], Case], tmp_path: Path
) -> None:
    case = make_case("cpm1")

    def problem_of(teacher: Path, **how: Any) -> str:
        made = recipe(bases, tmp_path / "run", case, teacher=str(teacher), **how)
        [problem] = check_source(made).problems
        assert problem.key == "train.objective.teacher"
        with pytest.raises(ConfigError, match=r"train\.objective\.teacher"):
            hanlin.train(made)
        return problem.text

    more = replace(case, config=replace(case.config, vocab_size=case.config.vocab_size + 8))
    assert "rows in its embedding" in problem_of(save(more, tmp_path / "more"))
    short = replace(case, config=replace(case.config, max_length=32))
    assert "reads at most 32" in problem_of(save(short, tmp_path / "short"))
    other = make_case("cpm2")
    assert "cpm2" in problem_of(save(other, tmp_path / "cpm2"))
    damaged = shutil.copytree(bases[1], tmp_path / "damaged")
    weights = next(damaged.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-4] + b"\xff\xff\xff\xff")
    assert "something else than numbers" in problem_of(damaged)


def test_rows_to_be_ranked_have_no_teacher(make_case: Callable[[str], Case], tmp_path: Path) -> None:
    """Their loss compares two positions, and no probabilities of the vocabulary."""
    base = save(make_case("cpm2"), tmp_path / "base")
    made = make_recipe(
        {
            "model": {"family": "cpm2", "base": str(base)},
            "data": {"options": {"dataset": "sogou-log"}, "max_length": 60},
            "train": {"objective": {"name": "distill", "teacher": str(base)}},
            "run": {"folder": str(tmp_path / "run")},
        }
    )
    with pytest.raises(ConfigError, match=r"train\.objective\.teacher: .*rows to be ranked"):
        teacher_components(build_components(made))


def test_the_plan_counts_the_teacher(
    bases: tuple[Path, Path], make_case: Callable[[str], Case], tmp_path: Path
) -> None:
    made = recipe(bases, tmp_path, make_case("cpm1"), teacher_precision="bf16")

    def planned(how: Any) -> RankMemory:
        job = PlannedModel(make_recipe({**made, "train": {**made["train"], "objective": how}}), SequenceLengths(60))
        return estimate(job, Layout()).ranks[0].memory

    alone, beside = planned("likelihood"), planned(made["train"]["objective"])
    count = sum(weight.numel() for weight in larger(make_case("cpm1")).model().parameters())
    assert beside.teacher == 2 * count
    assert beside.peak - alone.peak >= beside.teacher
    assert planned({**made["train"]["objective"], "teacher": "nowhere"}).teacher == 0
