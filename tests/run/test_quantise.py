"""A base that a recipe has packed in memory: it trains, goes on, answers and scores as its unpacked twin on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import Case, case_of
from ranks import run_ranks

import hanlin
from hanlin.cli.main import main
from hanlin.core.errors import CheckpointError, ConfigError
from hanlin.formats.files import open_weights
from hanlin.formats.load import base_parameters, save_base
from hanlin.layers.quantised import packed_linears, quantise_linears
from hanlin.recipe.reading import load_recipe
from hanlin.run.weights import load_engine
from hanlin.tuning.lora import LoraTuning

# Each family, the mixtures of experts and a head for labels, with one of the forms and one of the methods.
CASES = {
    "cpm_bee": ("nf4", {"method": "lora", "rank": 2}),
    "chatglm2": ("nf4", {"method": "prefix", "length": 2}),
    "cpm1": ("int8", {"method": "lora", "rank": 2, "init": "pissa", "targets": "all-linear", "rslora": True}),
    "cpm1_t5": ("nf4", {"method": "lora", "rank": 2, "dora": True, "targets": "all-linear"}),
    "cpm2": ("nf4", {"method": "prompt", "length": 2}),
    "experts": ("nf4", {"method": "lora", "rank": 2}),
    "experts-prompt": ("int8", {"method": "prompt", "length": 2}),
    "labels": ("int8", {"method": "lora", "rank": 2}),
}
LABELLED = ({"prompt": "床前明月光，", "response": "霜"}, {"prompt": "举头望明月，", "response": "光"})
STEPS = 2
ANSWER_KEYS = ("answer", "response", "target")


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def case(name: str, tmp_path: Path) -> Case:
    if name == "labels":
        return replace(case_of("chatglm2", tmp_path), records=LABELLED)
    made = case_of("cpm2" if name.startswith("experts") else name, tmp_path)
    return replace(made, config=replace(made.config, num_experts=2)) if name.startswith("experts") else made


def write_bases(case: Case, form: str, folder: Path) -> tuple[Path, Path]:
    """A base folder, and its twin with the weights that it has when it was packed."""
    plain = case.model().float()
    values = {name: weight.detach() for name, weight in base_parameters(plain).items()}
    with torch.device("meta"):
        empty = case.family.model()(case.config)
    quantise_linears(empty, form)  # pyright: ignore[reportArgumentType]
    rounded = dict(values)
    for name, packing in packed_linears(empty).items():
        weight = values[f"{name}.weight"]
        rounded[f"{name}.weight"] = packing.unpack(packing.pack(weight), weight.shape[1], torch.float32)
    bases = folder / "plain", folder / "rounded"
    for base, tensors in zip(bases, (values, rounded), strict=True):
        save_base(base, case.family, case.config, tensors, case.tokenizer)
    return bases


def recipe_of(case: Case, base: Path, folder: Path, tuning: Mapping[str, Any]) -> dict[str, Any]:
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in case.records[:2]), "utf-8")
    return {
        "model": {"family": case.name, "base": str(base)},
        "data": {"train": [str(rows)], "eval": [str(rows)], "cache": str(folder / "cache"), "max_length": 64},
        "tuning": dict(tuning),
        "train": {"steps": STEPS, "batch_size": 2, "lr": 0.01, "schedule": "constant"},
        "generate": {"method": "greedy", "max_new_tokens": 4},
        "run": {"folder": str(folder / "run"), "threads": 1, "device": "cpu"},
    }


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    tensors = open_weights(folder / "last")
    return {name: tensors[name].clone() for name in tensors}


def test_a_packed_base_is_tuned_and_answers_as_its_unpacked_twin(
    name: str, case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    form, tuning = CASES[name]
    plain, rounded = write_bases(case, form, tmp_path)
    recipe = recipe_of(case, plain, tmp_path, tuning)
    if name == "labels":
        recipe["model"]["config"] = {"labels": ["霜", "光"]}
    packed = {"model.quantise": form, "run.folder": str(tmp_path / "packed")}
    other = {"model.base": str(rounded), "run.folder": str(tmp_path / "twin")}
    for changes in (packed, other):
        hanlin.train(recipe, changes, quiet=True)
    torch.testing.assert_close(losses(tmp_path / "packed"), losses(tmp_path / "twin"), rtol=1e-4, atol=1e-5)
    scores = [hanlin.evaluate(recipe, changes, quiet=True)["loss"]["loss"] for changes in (packed, other)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
    models = [hanlin.load(recipe, changes) for changes in (packed, other)]
    assert packed_linears(models[0].network)
    assert not packed_linears(models[1].network)
    record = {key: value for key, value in case.records[0].items() if key not in ANSWER_KEYS}
    assert models[0].generate(record, progress=False) == models[1].generate(record, progress=False)
    if tuning["method"] != "lora":
        with pytest.raises(CheckpointError, match="cannot be worked into weights"):
            hanlin.convert(plain, tmp_path / "merged", merge=tmp_path / "packed/last")
        assert "worked into the weights on disk" not in caplog.text


@pytest.mark.parametrize(("name", "form"), [("cpm_bee", "nf4"), ("cpm1", "int8")], indirect=["name"])
def test_a_run_goes_on_bitwise_and_only_on_the_base_that_it_began_with(
    case: Case, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_base(tmp_path / "base", case.family, case.config, base_parameters(case.model().float()), case.tokenizer)
    recipe = recipe_of(case, tmp_path / "base", tmp_path, {"method": "lora", "rank": 2})
    recipe["model"]["quantise"] = form
    hanlin.train(recipe, {"run.folder": str(tmp_path / "whole")}, quiet=True)
    hanlin.train(recipe, {"train.steps": 1}, quiet=True)
    with pytest.raises(ConfigError, match=rf"model\.quantise: {form} -> None"):
        hanlin.train(recipe, {"model.quantise": None}, quiet=True, start="change")
    hanlin.train(recipe, start="change", quiet=True)
    whole, gone_on = adapter(tmp_path / "whole"), adapter(tmp_path / "run")
    assert all(whole[name].equal(gone_on[name]) for name in whole)
    # What was trained says on what; merged, it is worked into the weights on disk, and that is said.
    assert main(["inspect", str(tmp_path / "run"), str(tmp_path / "run/last")]) == 0
    assert capsys.readouterr().out.count(f"{form} (model.quantise)") == 2
    merged = hanlin.convert(tmp_path / "base", tmp_path / "merged", merge=tmp_path / "run/last")
    plain, added = open_weights(merged.target), LoraTuning(rank=2)
    settings = {
        "model.base": str(tmp_path / "base"),
        "model.quantise": None,
        "model.adapter": str(tmp_path / "run/last"),
    }
    twin = hanlin.load(recipe, settings, weights="base").network
    added.merge(twin)
    weights = dict(twin.named_parameters())
    assert all(plain[name].equal(weights[name]) for name in plain)


@pytest.mark.parametrize(("name", "form"), [("chatglm2", "nf4"), ("cpm2", "int8")], indirect=["name"])
def test_stages_of_a_packed_base_answer_as_one_process(case: Case, form: str, tmp_path: Path) -> None:
    """As `hanlin serve --nproc 2` and `generate` load it: each rank reads and packs its blocks."""
    save_base(tmp_path / "base", case.family, case.config, base_parameters(case.model().float()), case.tokenizer)
    values = recipe_of(case, tmp_path / "base", tmp_path, {"method": "full"})
    values["model"]["quantise"] = form
    questions = [{key: value for key, value in record.items() if key not in ANSWER_KEYS} for record in case.records]

    def answers(pipe: int) -> tuple[list[Any], int]:
        recipe = load_recipe(values, {"parallel": {"pipe": pipe}})
        engine = load_engine(recipe)
        held = sum(weight.numel() for weight in engine.model.parameters() if not weight.is_floating_point())
        return engine.generate(questions, recipe.generate), held

    alone, whole = answers(1)
    found = run_ranks(2, answers, 2)
    assert [told for told, _ in found] == [alone] * 2
    assert sum(held for _, held in found) == whole


def test_what_cannot_be_packed_or_trained_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    case = case_of("chatglm2", tmp_path)
    save_base(tmp_path / "base", case.family, case.config, base_parameters(case.model().half()), case.tokenizer)
    hanlin.convert(tmp_path / "base", tmp_path / "int4", to="int4")
    recipe = recipe_of(case, tmp_path / "base", tmp_path, {"method": "lora", "rank": 2})
    recipe["model"]["quantise"] = "nf4"
    assert hanlin.check(recipe) == []

    def problem(**changes: Any) -> str:
        (found,) = hanlin.check(recipe, {key.replace("__", "."): value for key, value in changes.items()})
        return f"{found.key}: {found.text}"

    assert problem(tuning={"method": "full"}).startswith("tuning.method: full cannot train quantised weights")
    assert "packed weights cannot be divided; use 1" in problem(parallel__tensor=2)
    assert "packed as int4; leave it out, or let them be unpacked first" in problem(model__base=str(tmp_path / "int4"))
    fresh = {"model.base": None, "model.vocab": str(case.vocab), "model.config": {"hidden_size": 8}}
    assert "only weights that exist are quantised" in problem(**fresh)
    assert hanlin.check(recipe, {"model.base": str(tmp_path / "int4"), "model.config": {"bits": 0}}) == []
    streamed = {"generate.expert_memory": 1.0, "tuning": "full"}
    (found,) = hanlin.check(recipe, streamed, purpose="generate")
    assert (found.key, found.text.partition(",")[0]) == ("model.quantise", "not with generate.expert_memory")
    model = hanlin.load(tmp_path / "base", {"model.quantise": "nf4"})
    with pytest.raises(ConfigError, match="the weights in memory are packed as nf4, which no layout of files has"):
        model.save(tmp_path / "saved")
