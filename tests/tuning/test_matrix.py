"""Every family with every tuning method: it trains, goes on, comes back from its folder and answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import BUILT_IN, Case, case_of
from sampled import sampled

from hanlin.adapters.adapter import load_adapter
from hanlin.adapters.folder import save_adapter
from hanlin.adapters.opening import open_adapter
from hanlin.core.batch import Batch
from hanlin.formats.load import added_parameters, base_parameters
from hanlin.generate.engine import Engine
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import GENERATE_METHODS, TrainSettings
from hanlin.recipe.tuning import TUNING_METHODS, TuningMethod
from hanlin.training.optimizer import build_optimizer
from hanlin.training.step import Step
from hanlin.tuning.apply import apply_tuning, trained_parameters

METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "full but for embeddings": {"method": "full", "frozen": ["embedding"]},
    "lora": {"method": "lora", "rank": 2},
    "lora of all linears": {"method": "lora", "rank": 2, "targets": "all-linear", "rslora": True, "b_rate": 4},
    "lora with magnitudes": {"method": "lora", "rank": 2, "targets": "all-linear", "dora": True},
    "lora from principal parts": {"method": "lora", "rank": 2, "targets": "all-linear", "init": "pissa"},
    "ia3": {"method": "ia3"},
    "prefix": {"method": "prefix", "length": 3},
    "projected prefix": {"method": "prefix", "length": 3, "projection": True},
    "prompt": {"method": "prompt", "length": 4},
    "prompt and base": {"method": "prompt", "length": 4, "trains_model": True},
}
"""Sections `tuning`."""
FAMILIES = [*sorted(BUILT_IN), "cpm2 experts"]
CELLS = [(family, name) for family in FAMILIES for name in METHODS]
OFTEN = [cell for number, cell in enumerate(CELLS) if number % 2 == 0 or cell[1] in ("full", "lora")]
"""Each method with every other family, by turns: there is an odd number of methods."""
STEPS = 6


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    found = {name: case_of(name, tmp_path_factory.mktemp(name)) for name in BUILT_IN}
    experts = replace(found["cpm2"], config=replace(found["cpm2"].config, num_experts=2))
    return {**found, "cpm2 experts": experts}


@pytest.mark.parametrize(("family", "name"), sampled(CELLS, OFTEN))
def test_a_cell_trains_and_comes_back(family: str, name: str, cases: dict[str, Case], tmp_path: Path) -> None:
    cell = Cell(cases[family], TUNING_METHODS.make(METHODS[name]))
    trained = cell.trains()
    cell.goes_on(trained)
    cell.comes_back(trained.parallel_model.model, tmp_path / "adapter")


@dataclass(frozen=True)
class Cell:
    """A family tuned by a method."""

    case: Case
    method: TuningMethod

    @cached_property
    def processor(self) -> Any:
        return self.method.adapt_processor(self.case.processor, self.case.family)

    @cached_property
    def batch(self) -> Batch:
        made = [self.processor.sample(record) for record in self.case.records]
        return self.processor.collate([[sample] for sample in made], max(sample.length for sample in made))

    def base(self) -> Any:
        """With noise, so that no gradient is nearly nothing."""
        model, draw = self.case.family.model()(self.case.config), torch.Generator().manual_seed(1)
        model.init_weights(draw)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn(weight.shape, generator=draw), alpha=0.1)
        return model

    def step(self) -> Step:
        """What trains the cell from its beginning."""
        assert self.batch.size
        model = apply_tuning(self.base(), self.method, self.case.family, torch.Generator().manual_seed(2))
        self.method.init_from_settings(model, self.case.tokenizer, self.case.family, None)
        settings = TrainSettings(lr=0.02, steps=STEPS, schedule="constant")
        parallel_model = parallelize(model, torch.device("cpu"))
        optimizer = build_optimizer(parallel_model.parameters, settings.optimizer, self.method.rate_factors)
        return Step(parallel_model, optimizer, settings, STEPS)

    def trains(self) -> Step:
        """The loss falls, all that is added moves, and what is not trained stays as it is."""
        step = self.step()
        model = step.parallel_model.model
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        losses = [step.run(self.batch).loss for _ in range(STEPS)]
        assert losses[-1] < losses[0], losses
        moved = {name for name, weight in model.named_parameters() if not weight.detach().equal(before[name])}
        trained, added = trained_parameters(model).keys(), added_parameters(model).keys()
        assert moved <= trained
        assert moved >= added & trained
        assert bool(moved - added) == self.method.trains_base
        return step

    def goes_on(self, whole: Step) -> None:
        """From half way, with what a checkpoint holds."""
        first, second = self.step(), self.step()
        for _ in range(STEPS // 2):
            first.run(self.batch)
        with torch.no_grad():
            for name, weight in second.parallel_model.parameters.items():
                weight.copy_(first.parallel_model.parameters[name])
            for name, tensor in second.optimizer.tensors().items():
                tensor.copy_(first.optimizer.tensors()[name])
        second.restore(first.values())
        for _ in range(STEPS - STEPS // 2):
            second.run(self.batch)
        for name, weight in second.parallel_model.parameters.items():
            assert weight.equal(whole.parallel_model.parameters[name]), name

    def comes_back(self, model: Any, folder: Path) -> None:
        """As files, into a model that says the same and answers."""
        again, family = self.base(), self.case.family
        if self.method.trains_base:
            again.load_state_dict(dict(base_parameters(model).items()))
        if added_parameters(model):
            save_adapter(model, self.method, folder)
            adapter = open_adapter(folder, family, self.case.config)
            apply_tuning(again, adapter.settings, family, is_loaded=True)
            load_adapter(again, adapter)
        again.requires_grad_(False).eval()
        with torch.no_grad():
            assert again(**self.batch.inputs).equal(model.eval()(**self.batch.inputs))
        options = GENERATE_METHODS.make({"method": "greedy", "max_new_tokens": 3})
        answered = Engine(again, self.processor, family=family).generate(self.case.records[:2], options)
        assert len(answered) == 2
