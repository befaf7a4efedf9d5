"""What cells (cells.py) do on the stand-in accelerator and on the CPU; a JSON object per line.

python tests/accelerator/run.py PROFILE PRECISION CELL ...    a step: cuda-sm90 bf16 chatglm2.lora.packed.none
    and answers: npu fp32 chatglm2.prefix.beam
python tests/accelerator/run.py acts                          single acts
"""

from __future__ import annotations

import copy
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from itertools import cycle
from math import isfinite
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    TESTS = Path(__file__).resolve().parents[1]
    folders = ("contract", "drills", "parallel", "models/chatglm2", "models/cpm1", "models/cpm2")
    sys.path[:0] = [str(TESTS), *(str(TESTS / folder) for folder in folders)]

import torch
from acts import costs_of_acts
from cells import TOGETHER, Words, is_answer
from family_cases import Case, case_of
from layouts import BATCH_SIZE, VARIANTS, Cell, Kind, loader, model_of
from layouts import case as variant_case
from scratch import scratch
from stand_in import NAME, Costs, stand_in

from hanlin.core.batch import IGNORED, Batch
from hanlin.generate.engine import Engine, record_stream
from hanlin.generate.methods.beam import BeamSettings
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.generate.methods.sample import SampleSettings
from hanlin.generate.running_batch import AnswerRequest
from hanlin.layers.precision import DTYPES
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import OPTIMIZERS, ParallelSettings, TrainSettings
from hanlin.training.objectives.dpo import Dpo, DpoSettings
from hanlin.training.objectives.likelihood import mean_loss
from hanlin.training.optimizer import build_optimizer
from hanlin.training.step import Step

MICRO_BATCHES, ROWS = 2, 2
LONG = ("chatglm2", "cpm2")
"""Variants that are trained by every optimizer, and with the inputs of blocks in the CPU's memory."""
ROUNDED = ("chatglm2", "cpm1", "cpm_bee")
"""Variants that are trained with bf16 weights, too."""
WAYS = {
    "greedy": GreedySettings(max_new_tokens=5),
    "sample": SampleSettings(max_new_tokens=5, top_p=0.9, repetition_penalty=1.2),
    "beam": BeamSettings(max_new_tokens=4, beams=3),
}
ASKED_AT_ONCE: list[dict[str, Any]] = [
    {"options": GreedySettings(max_new_tokens=5), "trace": [], "top": 3, "bias": {9: 1.5, 12: -2.0}},
    {"options": SampleSettings(max_new_tokens=5, presence_penalty=0.5, frequency_penalty=0.3), "trace": [], "top": 1},
    {"options": GreedySettings(max_new_tokens=5, repetition_penalty=1.3), "trace": []},
    {"options": WAYS["beam"]},
    {"options": WAYS["sample"], "bias": {8: 1.0}},
]
"""Of answers that are written together: how each is looked for, and what is told of its tokens."""


def compare(cell: Cell, precision: Any, profile: str) -> dict[str, Any]:
    """A step and an evaluation on both devices, for some by each optimizer and with bf16 weights: the greatest
    difference of a loss, and the most that they cost the device.
    """
    is_long, found = cell.variant in LONG, []
    ways = [(name, "fp32") for name in (OPTIMIZERS.names if is_long and cell.method == "full" else ["adamw"])]
    if precision == "bf16" and cell.method == "full" and cell.variant in ROUNDED:
        ways.append(("adamw", "bf16"))
    for optimizer, weight_dtype in ways:
        losses = _cpu_losses(cell.variant, cell.method, cell.kind, precision, optimizer, weight_dtype)
        settings = _settings(precision, optimizer, weight_dtype)
        others, costs = _run(cell, settings, torch.device(NAME, 0), profile)
        found.append({"difference": _greatest(losses, others), "loss": losses[0], **costs})
        if is_long and cell.method == "lora":
            others, costs = _run(replace(cell, layout="offload"), settings, torch.device(NAME, 0), profile)
            found[-1]["offloaded"] = {**costs["step"], "difference": _greatest(losses, others)}
            found[-1]["preferred"] = _prefer(cell, settings, profile)
    worst = max(found, key=lambda costs: [costs["step"].get(kind, 0) for kind in ("wait", "copy", "launches")])
    unlisted = sorted({name for one in found for part in ("step", "evaluation") for name in one[part]["unlisted"]})
    return {**worst, "difference": max(one["difference"] for one in found), "unlisted": unlisted}


def _settings(precision: Any, optimizer: str, weight_dtype: Any) -> TrainSettings:
    made = OPTIMIZERS.make(optimizer)
    return TrainSettings(steps=10, precision=precision, lr=1e-3, optimizer=made, weight_dtype=weight_dtype)


def _greatest(losses: list[float], others: list[float]) -> float:
    """Difference."""
    return max(abs(one - other) for one, other in zip(losses, others, strict=True))


@cache
def _cpu_losses(variant: str, method: str, kind: Kind, *settings: Any) -> list[float]:
    """Nothing is computed again there: it must make no difference."""
    losses, _ = _run(Cell(variant, method, kind, "none"), _settings(*settings), torch.device("cpu"), "cuda-sm90")
    return losses


@cache
def _drawn(variant: str, method: str, kind: Kind) -> tuple[torch.nn.Module, Batch]:
    cell = Cell(variant, method, kind, "none")
    return model_of(cell).float(), next(iter(loader(cell, 0, 1)))


def _run(cell: Cell, settings: TrainSettings, device: torch.device, profile: str) -> tuple[list[float], dict[str, Any]]:
    """Losses of a step and an evaluation, and what the weights are then; what it cost."""
    model, batch = _drawn(cell.variant, cell.method, cell.kind)
    rows = BATCH_SIZE if VARIANTS[cell.variant].has_experts else BATCH_SIZE // MICRO_BATCHES
    settings = settings.model_copy(update={"micro_batch_size": rows})
    with stand_in(profile) as costs:
        again = ParallelSettings(checkpoint_activations=cell.layout)  # pyright: ignore[reportArgumentType]
        dtype = DTYPES[settings.weight_dtype]
        trained = parallelize(copy.deepcopy(model), device, settings.precision, again, trained=dtype)
        step = Step(trained, build_optimizer(trained.parameters, settings.optimizer), settings, 10)
        costs.clear()
        loss = step.run(batch).loss
        counted = {"step": _counted(costs)}
        statistics = trained.parameter_statistics()
        assert all(isfinite(one.weight.std) for one in statistics.values())
        costs.clear()
        losses = [loss, mean_loss(trained, [batch], rows)]
        counted["evaluation"] = _counted(costs)
        inspected = trained.parameter_statistics()
    spread = sum(one.weight.std for one in inspected.values())
    return [*losses, spread], {**counted, "micro_batches": -(-batch.size // rows)}


def _prefer(cell: Cell, settings: TrainSettings, profile: str) -> dict[str, Any]:
    """A step of an objective that compares answers, the first half of a row's labels with the second."""
    model, batch = _drawn(cell.variant, cell.method, cell.kind)
    places = (batch.labels != IGNORED).cumsum(1)
    answers = torch.where(batch.labels == IGNORED, 0, 1 + (places > places[:, -1:] // 2))
    pairs = replace(batch, answers=answers, weights=(answers > 0).float(), rows=[[n] for n in range(batch.size)])
    reports, counted = [], {}
    for device in (torch.device("cpu"), torch.device(NAME, 0)):
        with stand_in(profile) as costs:
            trained = parallelize(copy.deepcopy(model), device, settings.precision)
            objective = Dpo(DpoSettings(loss="orpo"))
            optimizer = build_optimizer(trained.parameters, settings.optimizer)
            step = Step(trained, optimizer, settings, 10, objective=objective)
            costs.clear()
            report = step.run(pairs)
            reports.append([report.loss, report.grad_norm, *report.measures.values()])
            counted = _counted(costs)
    return {**counted, "difference": _greatest(*reports), "loss": reports[0][0]}


@cache
def _case(family: str) -> Case:
    return case_of(family, scratch())


def answer(case: Case, model: torch.nn.Module, processor: Any, way: str, profile: str) -> dict[str, Any]:
    """Whether the answers of both devices are the same, and what a step of the search costs the device."""
    answers, steps, counted = [], 0, {}
    for device in (torch.device("cpu"), torch.device(NAME, 0)):
        with stand_in(profile) as costs:
            engine = Engine(copy.deepcopy(model).to(device), processor, device, family=case.family)
            prompts = [engine.prompt(record, WAYS[way]) for record in case.records[:ROWS]]
            streams = [record_stream(0, number) for number in range(ROWS)]
            found = engine.search(prompts, WAYS[way], streams)
            next(found)  # reads the prompts
            read = _counted(costs)
            costs.clear()
            searches = list(found)
            counted, steps = _counted(costs), len(searches)
            answers.append([search.best.tokens for search in searches[-1]])
    return {"same": answers[0] == answers[1], "tokens": answers[0], "steps": steps, "prompt": read, "costs": counted}


def answer_at_once(family: str, profile: str) -> dict[str, Any]:
    """Eight rows whose answers are looked for, and noted, in different ways; then one with guesses."""
    case, told, counted = _case(family), [], {}
    model = case.model(None).float().requires_grad_(False)
    for device in (torch.device("cpu"), torch.device(NAME, 0)):
        with stand_in(profile) as costs:
            engine = Engine(copy.deepcopy(model).to(device), case.processor, device, family=case.family)
            asked = [copy.deepcopy(one) for one, _ in zip(cycle(ASKED_AT_ONCE), range(8), strict=False)]
            prompts = [engine.prompt(case.records[0], one["options"]) for one in asked]
            streams = [record_stream(0, number) for number in range(len(asked))]
            questions = [
                AnswerRequest(prompt, stream=stream, **one)
                for prompt, stream, one in zip(prompts, streams, asked, strict=True)
            ]
            steps, ends = _steps(engine, questions, costs)
            alone, lookup = _counted(costs), GreedySettings(max_new_tokens=24, lookup=8)
            ahead, found = _steps(engine, [AnswerRequest(engine.prompt(case.records[0], lookup), lookup)], costs)
            counted = {"costs": alone, "steps": steps, "ahead": _counted(costs), "ahead_steps": ahead}
            traced = [[one.token for one in question.trace or []] for question in questions]
            told.append([ends, found, traced])
            scores = [one.score for question in questions for one in question.trace or []]
            told[-1].append([round(score, 3) for score in scores])
    return {**counted, "same": told[0] == told[1], "tokens": told[0]}


def _steps(engine: Engine, questions: list[AnswerRequest], costs: Costs) -> tuple[int, list[Any]]:
    """How many steps answers take, and their tokens."""
    running, steps, ends = engine.run_together(), 0, {}
    with engine.inference():
        running.add(range(len(questions)), questions)
        costs.clear()
        while not running.is_empty:
            ends |= running.step()
            steps += 1
    return steps, [ends[number].best.tokens for number in sorted(ends)]


def answer_tuned(family: str, tuning: str, dtype: torch.dtype, way: str, profile: str) -> dict[str, Any]:
    case, method = _case(family), None if tuning == "base" else tuning
    processor = case.processor if method is None else case.processor_for(method)
    model = case.model(method).to(dtype).requires_grad_(False)  # pyright: ignore
    return answer(case, model, processor, way, profile)


def answer_variant(variant: str, method: str, dtype: torch.dtype, way: str, profile: str) -> dict[str, Any]:
    """Of a quantised base, or with experts. Not in bf16, in which a CPU multiplies by int8 with a kernel of its own."""
    dtype = torch.float16 if dtype == torch.bfloat16 else dtype
    model = model_of(Cell(variant, method, "single", "none")).to(dtype).requires_grad_(False)
    case = variant_case(variant)
    processor = case.processor if method == "full" else case.processor_for(method)
    return answer(case, model, processor, way, profile)


def _counted(costs: Costs) -> dict[str, Any]:
    known = {name: dict(getattr(costs, name)) for name in ("attention", "unlisted", "products")}
    return {**costs.kinds, **known, "launches": costs.launches.total(), "places": dict(costs.places.most_common())}


def _told(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return make()
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[-6:]
        told = [f"{frame.filename[-40:]}:{frame.lineno}" for frame in frames]
        return {"error": f"{type(error).__name__}: {error}"[:300], "frames": told}


def _cell(words: Words) -> dict[str, Any]:
    profile, precision, cell = words
    name, tuning, *rest = cell.split(".")
    if not is_answer(words):
        return compare(Cell(name, tuning, *rest), precision, profile)  # pyright: ignore[reportCallIssue, reportArgumentType]
    if rest == [TOGETHER]:
        return answer_at_once(name, profile)
    answering = answer_variant if "-" in name else answer_tuned
    return answering(name, tuning, DTYPES[precision], rest[0], profile)


def main(words: list[str]) -> None:
    if words == ["acts"]:
        print(json.dumps(costs_of_acts()))
        return
    for asked in zip(words[::3], words[1::3], words[2::3], strict=True):
        print(json.dumps({"cell": " ".join(asked), **_told(partial(_cell, asked))}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
