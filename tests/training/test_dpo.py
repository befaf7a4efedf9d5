"""Learning from preferences: gradients and numbers against a direct computation, runs by their files, refusals."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import Case, case_of
from sampled import sampled
from torch.nn.functional import log_softmax, logsigmoid

import hanlin
from hanlin.checking import check_source
from hanlin.core.batch import IGNORED
from hanlin.core.errors import ConfigError, DataError
from hanlin.data.forms.content import Side
from hanlin.data.forms.detection import tell_row
from hanlin.data.loader import Loader
from hanlin.data.pairs import prepare_pairs
from hanlin.data.preview import preview
from hanlin.formats.load import save_base
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.reading import make_recipe
from hanlin.recipe.settings import DataSettings, TrainSettings
from hanlin.run.components import build_components
from hanlin.training.objective import RunStart, build_objective, find_objective
from hanlin.training.objectives.dpo import DpoSettings
from hanlin.training.optimizer import build_optimizer
from hanlin.training.step import Step

FAMILIES = ("chatglm2", "cpm1", "cpm1_t5", "cpm2", "cpm_bee")
CPU = torch.device("cpu")
ROWS = [
    {"prompt": "床前明月光，", "chosen": "疑是地上霜。", "rejected": "低头"},
    {"prompt": "举头望", "chosen": "明月", "rejected": "地上"},
    {"prompt": "低头思故乡，", "chosen": "故", "rejected": "明月光明月"},
    {"prompt": "月", "chosen": "光光", "rejected": "霜"},
    {"prompt": "上", "chosen": "地上", "rejected": "月"},
]
LOSSES: dict[str, dict[str, Any]] = {
    "sigmoid": {"beta": 0.3, "label_smoothing": 0.1},
    "ipo": {"beta": 0.2},
    "simpo": {"beta": 2.0, "margin": 0.5},
    "orpo": {"beta": 0.4},
    "kto": {"beta": 0.2, "undesirable_weight": 0.7},
}


@pytest.fixture(scope="module")
def make_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    return cache(lambda family: case_of(family, tmp_path_factory.mktemp(family)))


def write_rows(folder: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def make_loader(case: Case, folder: Path, sides: Sequence[Side], **settings: Any) -> Loader:
    settings = {"max_length": 192, "cache": folder / "cache", **settings}
    data = DataSettings(**settings)
    pairs = prepare_pairs([write_rows(folder)], case.processor, data, sides=sides, tokenizer=case.tokenizer)
    return Loader(pairs, case.processor, max_length=data.max_length, batch_size=5, seed=1, pack=data.pack)


def direct_loss(case: Case, model: Any, start: Any, loss: str, beta: float, **more: float) -> torch.Tensor:
    """The mean over the rows, from the logits of one answer after the other; model, start: as it is, and was."""

    def log_likelihood(answer: str, row: dict[str, Any], of: Any) -> tuple[torch.Tensor, int]:
        sample = case.processor.sample(record_of(case, row["prompt"], row[answer]))
        batch = case.processor.collate([[sample]], sample.length)
        logits = log_softmax(of(**batch.inputs), -1)[0]
        places = torch.nonzero((batch.labels[0] != IGNORED) & (batch.weights[0] > 0))[:, 0]
        return logits[places, batch.labels[0, places]].sum(), len(places)

    losses, gains = [], []
    for row, after in zip(ROWS, [*ROWS[1:], ROWS[0]], strict=True):
        beside = {**row, "chosen": after["chosen"]}
        gains.append((log_likelihood("chosen", beside, model)[0] - log_likelihood("chosen", beside, start)[0]).detach())
    usual = max(float(sum(gains)) / len(gains), 0)
    for row in ROWS:
        (chosen, n), (rejected, m) = (log_likelihood(answer, row, model) for answer in ("chosen", "rejected"))
        (was_chosen, _), (was_rejected, _) = (log_likelihood(answer, row, start) for answer in ("chosen", "rejected"))
        gain, loss_gain = chosen - was_chosen.detach(), rejected - was_rejected.detach()
        match loss:
            case "sigmoid":
                wrong = more["label_smoothing"]
                losses.append(
                    -(1 - wrong) * logsigmoid(beta * (gain - loss_gain)) - wrong * logsigmoid(beta * (loss_gain - gain))
                )
            case "ipo":
                losses.append((gain / n - loss_gain / m - 1 / (2 * beta)) ** 2)
            case "simpo":
                losses.append(-torch.log(torch.sigmoid(beta * (chosen / n - rejected / m) - more["margin"])))
            case "orpo":
                p, q = (chosen / n).exp(), (rejected / m).exp()
                ratio = torch.log((p / (1 - p)) / (q / (1 - q)))
                losses.append(-chosen / n - beta * torch.log(torch.sigmoid(ratio)))
            case "kto":
                up, down = torch.sigmoid(beta * (gain - usual)), torch.sigmoid(beta * (usual - loss_gain))
                losses.append((1 - up + more["undesirable_weight"] * (1 - down)) / 2)
    return torch.stack(losses).mean()


def record_of(case: Case, question: str, answer: str) -> Any:
    row = {"prompt": question, "completion": answer}
    return tell_row(row, case.processor, "prompt_completion", is_asked=False).record(row)


@pytest.mark.parametrize(
    ("family", "loss"),
    [
        *((family, "sigmoid") for family in FAMILIES),
        *(("cpm1", loss) for loss in LOSSES if loss != "sigmoid"),
        ("cpm_bee", "kto"),
    ],
)
def test_gradients_are_those_of_the_loss_itself(
    family: str, loss: str, make_case: Callable[[str], Case], tmp_path: Path
) -> None:
    case = make_case(family)
    model, start = case.model(dropout=0.0) if hasattr(case.config, "dropout") else case.model(), case.model()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(9)), alpha=0.05)
    how = {"name": "kto"} if loss == "kto" else {"name": "dpo", "loss": loss}
    settings = TrainSettings(steps=1, objective={**how, **LOSSES[loss]}, clip=None, micro_batch_size=1)
    loader = make_loader(case, tmp_path, find_objective(settings.objective).answers)
    objective = build_objective(settings.objective)
    objective.begin(parallelize(start, CPU), {"train": loader}, RunStart(tmp_path))
    parallel_model = parallelize(model, CPU)
    step = Step(
        parallel_model, build_optimizer(parallel_model.parameters, settings.optimizer), settings, 1, objective=objective
    )
    gradients: dict[str, torch.Tensor] = {}
    step.optimizer.step = lambda rate: gradients.update(  # type: ignore[method-assign]
        {name: weight.grad.clone() for name, weight in parallel_model.parameters.items() if weight.grad is not None}
    )
    report = step.run(next(iter(loader)))
    expected = direct_loss(case, model, start, loss, **LOSSES[loss])
    assert report.loss == pytest.approx(expected.item(), rel=1e-5)
    assert report.loss_tokens == len(ROWS)
    expected.backward()
    for name, weight in model.named_parameters():
        wanted = torch.zeros_like(weight) if weight.grad is None else weight.grad
        torch.testing.assert_close(gradients.get(name, torch.zeros_like(weight)), wanted, rtol=1e-3, atol=2e-6)


# --- runs ---


@pytest.fixture(scope="module")
def base(make_case: Callable[[str], Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    case, folder = make_case("cpm1"), tmp_path_factory.mktemp("base") / "cpm1"
    weights = {key: value.float() for key, value in case.model().named_parameters()}
    save_base(folder, case.family, case.config, weights, case.tokenizer)
    return folder


def recipe(base: Path, folder: Path, **train: Any) -> dict[str, Any]:
    path = str(write_rows(folder))
    return {
        "model": {"family": "cpm1", "base": str(base)},
        "data": {"train": [path], "eval": [path], "max_length": 60, "cache": str(folder / "cache")},
        "tuning": {"method": "lora", "rank": 2},
        "train": {"steps": 6, "lr": 0.02, "batch_size": 2, "objective": "dpo", "eval_every": 3, **train},
        "run": {"folder": str(folder / "run"), "threads": 1},
    }


def steps_of(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "run/metrics.jsonl").read_text("utf-8").splitlines())
    return [
        {key: value for key, value in line.items() if "second" not in key and "memory" not in key} for line in lines
    ]


def test_a_run_prefers_what_is_chosen_and_goes_on_exactly(base: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    hanlin.train(recipe(base, tmp_path / "whole"))
    whole = steps_of(tmp_path / "whole")
    first, last = whole[0], whole[-1]
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-4)  # the model is its own reference
    assert first["margin"] == pytest.approx(0, abs=1e-4)
    assert last["eval_loss"] < math.log(2)
    assert last["eval_accuracy"] == 1.0
    assert last["eval_margin"] > 0
    # Killed after three steps: what the start said of the answers is read again, not asked again.
    half = recipe(base, tmp_path / "parts", save_every=3, steps=3, decay_steps=7)
    hanlin.train(half)
    hanlin.train({**half, "train": {**half["train"], "steps": 6}})
    rest = [step for step in steps_of(tmp_path / "parts") if step["step"] > 3 and "loss" in step]
    (tmp_path / "long").mkdir()
    hanlin.train(recipe(base, tmp_path / "long", save_every=3, decay_steps=7))
    assert rest == [step for step in steps_of(tmp_path / "long") if step["step"] > 3 and "loss" in step]


@pytest.mark.parametrize("method", sampled(["lora", "full"], ["lora"]))
def test_a_reference_that_is_lost_or_damaged_or_of_other_rows_is_asked_anew(
    method: str, base: Path, tmp_path: Path
) -> None:
    made = recipe(base, tmp_path, steps=2, save_every=2, schedule="constant")
    made["tuning"] = {"method": method}
    hanlin.train(made)
    path, folder = tmp_path / "run/reference.safetensors", tmp_path / "run"
    kept = path.read_bytes()
    shutil.copytree(folder, tmp_path / "before")
    longer = {**made, "train": {**made["train"], "steps": 4}}
    found = []
    for damage in (lambda: None, path.unlink, lambda: path.write_bytes(kept[:-20] + bytes(20))):
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "before", folder)
        damage()
        hanlin.train(longer)
        found.append(steps_of(tmp_path))
        assert path.read_bytes() == kept
    assert found[0] == found[1] == found[2]
    # Held-out rows may be others: they are compared with what the start says of them, whatever their order.
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "before", folder)
    (tmp_path / "others").mkdir()
    others = write_rows(tmp_path / "others", ROWS[::-1])
    hanlin.train({**longer, "data": {**longer["data"], "eval": [str(others)]}})
    assert steps_of(tmp_path)[-1]["eval_loss"] == pytest.approx(found[0][-1]["eval_loss"], rel=1e-5)


def test_another_objective_is_compared_with_the_start_too(base: Path, tmp_path: Path) -> None:
    made = recipe(base, tmp_path, steps=2, objective={"name": "dpo", "loss": "simpo", "beta": 2})
    hanlin.train(made)
    longer = {**made["train"], "steps": 3}
    hanlin.train({**made, "train": {**longer, "objective": "dpo"}}, start="change")
    assert (tmp_path / "run/reference.safetensors").is_file()
    # A batch of its rows holds other answers: it is another run.
    [problem] = check_source({**made, "train": {**longer, "objective": "kto"}}, start="change").problems
    assert "train.objective.name: dpo -> kto" in problem.text


def test_preferences_are_evaluated_as_training_measures_them(base: Path, tmp_path: Path) -> None:
    made = recipe(base, tmp_path, steps=2, objective={"name": "dpo", "loss": "orpo", "beta": 1}, eval_every=2)
    hanlin.train(made)
    last = steps_of(tmp_path)[-1]
    how = {"evaluate.tasks": ["preference"], "evaluate.data": made["data"]["eval"]}
    found = hanlin.evaluate(made, {**how, "generate.batch_size": 2}, weights="last")["preference"]
    assert found["records"] == len(ROWS)
    assert found["accuracy_per_token"] == last["eval_accuracy"]
    assert found["margin_per_token"] == pytest.approx(last["eval_margin"], rel=1e-4)
    with pytest.raises(ConfigError, match="preference reads other rows"):
        hanlin.evaluate(made, {**how, "evaluate.tasks": ["preference", "loss"]})
    with pytest.raises(ConfigError, match=r"compares them \(`hanlin recipes`"):
        hanlin.evaluate(made, {"evaluate.data": made["data"]["eval"]})
    (tmp_path / "plain.jsonl").write_text('{"prompt": "月", "response": "光"}\n', "utf-8")
    with pytest.raises(ConfigError, match="preference rows are compared"):
        hanlin.evaluate(made, {**how, "evaluate.data": str(tmp_path / "plain.jsonl")})


def test_a_score_per_token_counts_for_more_where_nothing_is_said() -> None:
    said = ({"loss": "simpo"}, {"loss": "simpo", "beta": 5}, {"loss": "orpo"}, {})
    assert [DpoSettings.model_validate(one).beta for one in said] == [2, 5, 0.1, 0.1]


def test_rows_that_prefer_nothing_are_refused_before_anything_starts(base: Path, tmp_path: Path) -> None:
    made = recipe(base, tmp_path)
    write_rows(tmp_path, [*ROWS[:2], {"prompt": "月", "chosen": "光", "rejected": "光"}])
    problems = check_source(made).problems
    assert len(problems) == 2  # of data.train and data.eval, once each
    problem = problems[0]
    assert "rows.jsonl:3" in problem.text
    assert "the same answer" in problem.text
    write_rows(tmp_path, [{"prompt": "月", "completion": "光"}])
    [problem, *_] = check_source(made).problems
    assert "preference rows are compared (train.objective, evaluate.tasks)" in problem.text
    with pytest.raises(ConfigError, match="preference rows"):
        hanlin.train(made)
    write_rows(tmp_path, [{"prompt": "月" * 40, "chosen": "光", "rejected": "霜"}])
    [problem, *_] = check_source(made).problems
    assert "its part of data.max_length is 30" in problem.text


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"data": {"overlong": "split"}}, "data.overlong"),
        ({"data": {"in_context": [0.5, 0.5]}}, "data.in_context"),
        ({"train": {"loss_mean": "batch"}}, "train.loss_mean"),
        ({"train": {"objective": {"name": "dpo", "loss": "ipo", "margin": 1.0}}}, "train.objective"),
        ({"train": {"objective": {"name": "dpo", "beta": 0}}}, "train.objective.beta"),
        ({"train": {"objective": {"name": "kto", "desirable_weight": 0, "undesirable_weight": 0}}}, "train.objective"),
        ({"train": {"objective": "ppo"}}, "train.objective"),
    ],
)
def test_settings_that_compare_nothing_are_refused(
    changes: dict[str, Any], key: str, base: Path, tmp_path: Path
) -> None:
    made = recipe(base, tmp_path)
    for section, values in changes.items():
        made[section] |= values
    assert any(problem.key.startswith(key) for problem in check_source(made).problems)


def test_preference_rows_without_the_objective_name_it(base: Path, tmp_path: Path) -> None:
    [problem, *_] = check_source(recipe(base, tmp_path, objective="likelihood")).problems
    assert "train.objective=dpo" in problem.text


def test_kto_compares_with_answers_to_other_questions(base: Path, tmp_path: Path) -> None:
    made = recipe(base, tmp_path, objective={"name": "kto", "beta": 0.5})
    hanlin.train(made)
    last = steps_of(tmp_path)[-1]
    assert last["eval_loss"] < 0.5  # of a model that is its own reference: (1 - sigmoid(0) + 1 - sigmoid(0)) / 2
    assert last["eval_margin"] > 0
    write_rows(tmp_path, ROWS[:1])
    [problem, *_] = check_source(made).problems
    assert "no row behind it has another answer" in problem.text


def test_a_rank_without_rows_takes_part(make_case: Callable[[str], Case], tmp_path: Path) -> None:
    """Of a batch smaller than the data ranks: it asks the model as the others do, and nothing comes of it."""
    case = make_case("cpm1")
    loader = make_loader(case, tmp_path, ("chosen", "rejected"))
    loader.rank, loader.world = 0, 2  # all pairs stand in one row, which the second rank has
    objective = build_objective(TrainSettings(steps=1, objective={"name": "dpo", "loss": "simpo"}).objective)
    batch = next(iter(loader))
    [one] = objective.weigh(parallelize(case.model(), CPU), [batch])
    assert objective.size(batch) == 0
    assert one.measured is not None
    assert not one.measured.any()
    assert not one.batch.weights.any()


def test_a_misspelt_objective_is_the_only_problem(base: Path, tmp_path: Path) -> None:
    """Which rows are read, and whether the folder's run is another one, cannot be said then."""
    made = recipe(base, tmp_path, steps=1)
    hanlin.train(made)
    [problem] = check_source({**made, "train": {**made["train"], "objective": "dpoo"}}).problems
    assert "did you mean 'dpo'" in problem.text


def test_a_run_that_ends_before_its_rate_has_risen_says_so(base: Path, tmp_path: Path) -> None:
    made = recipe(base, tmp_path, epochs=1, warmup_steps=50)
    del made["train"]["steps"]
    hanlin.train(made)
    assert "train.warmup_steps=50, but the run has" in (tmp_path / "run/log.txt").read_text("utf-8")


def test_answers_that_are_the_same_tokens_are_refused(base: Path, tmp_path: Path) -> None:
    made = recipe(base, tmp_path)
    rows = [*ROWS, {"prompt": "月", "chosen": "龘", "rejected": "靐"}]  # the vocabulary has neither
    path = write_rows(tmp_path, rows)
    problems = check_source(made).problems
    assert ["same as tokens" in problem.text for problem in problems] == [True, True]
    assert "rows.jsonl:6" in problems[0].text
    case_settings = {"max_length": 60, "cache": tmp_path / "cache"}
    components = build_components(make_recipe(made))
    given = ([path], components.processor)
    with pytest.raises(DataError, match=r"rows\.jsonl:6.*same as tokens"):
        prepare_pairs(*given, DataSettings(**case_settings), tokenizer=components.tokenizer)
    dropping = DataSettings(**case_settings, bad_rows="drop")
    assert len(prepare_pairs(*given, dropping, tokenizer=components.tokenizer)) == len(ROWS)


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_what_the_length_of_a_rejected_answer_costs_is_told(
    overlong: str, make_case: Callable[[str], Case], tmp_path: Path
) -> None:
    case = make_case("cpm1")
    long = {"prompt": "床前明月光，" * 3, "chosen": "光", "rejected": "明月光" * 5}
    same = {"prompt": "月", "chosen": "龘", "rejected": "靐"}
    path = write_rows(tmp_path, [*ROWS, long, same])
    data = DataSettings(max_length=60, overlong=overlong, bad_rows="drop", cache=tmp_path / "cache")
    pairs = prepare_pairs([path], case.processor, data, tokenizer=case.tokenizer)
    counts, shown = pairs.report.counts, preview(path, data, case.processor, case.tokenizer, shown=1, most=10)
    assert sum(counts.dropped.values()) == len(ROWS) + 2 - len(pairs)
    assert counts.dropped["its two answers are the same as tokens"] == 1
    if overlong == "drop":
        assert counts.dropped["another of its answers is left out"] == 1
        assert counts.examples[0][0] == f"{path}:6"
        assert [text[:4] for label, text in shown.fates if label == "rows dropped (rejected)"] == ["1 (1"]
    else:
        assert counts.notes == {"another of its answers is shortened": 1}
        assert [text[:4] for label, text in shown.fates if label == "rows truncated (rejected)"] == ["1 (1"]
