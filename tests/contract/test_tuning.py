"""Of the tuning methods: the base stays as it is, and what was trained comes back from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import METHODS, Case, summed_loss

from hanlin.adapters.adapter import load_adapter
from hanlin.adapters.folder import save_adapter
from hanlin.adapters.opening import open_adapter
from hanlin.core.errors import ConfigError
from hanlin.formats.load import added_parameters, base_parameters
from hanlin.recipe.reading import make_recipe
from hanlin.run.components import make_processor
from hanlin.tuning.apply import apply_tuning, trained_parameters


def test_a_method_keeps_every_name_and_value_of_the_base(case: Case) -> None:
    for method in sorted(case.tuning):
        model = fresh(case)
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        apply_tuning(model, METHODS[method], case.family)
        after = base_parameters(model)
        assert after.keys() == before.keys()
        assert [name for name, weight in before.items() if not weight.equal(after[name])] == []


def test_a_method_trains_what_it_adds_and_freezes_the_base(case: Case) -> None:
    for method in sorted(case.tuning):
        model = apply_tuning(fresh(case), METHODS[method], case.family)
        added = added_parameters(model)
        assert added
        assert trained_parameters(model).keys() == added.keys()
        assert [name for name, weight in added.items() if not weight.isfinite().all()] == []


def test_gradients_reach_all_that_a_method_adds(case: Case) -> None:
    for method in sorted(case.tuning):
        model = case.model(method).train()
        summed_loss(model, case.batch(method=method)).backward()
        reached = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
        assert reached == added_parameters(model).keys()


def test_lora_changes_nothing_at_its_start(case: Case) -> None:
    for method in sorted({"lora"} & set(case.tuning)):
        model, batch = case.model(), case.batch()
        with torch.no_grad():
            before = model(**batch.inputs)
            tuned = apply_tuning(model, METHODS[method], case.family).double().eval()
            assert tuned(**batch.inputs).equal(before)


def test_a_method_that_the_model_does_not_take_is_refused(case: Case) -> None:
    for method in sorted(METHODS.keys() - set(case.tuning)):
        with pytest.raises(ConfigError, match=r"tuning\."):
            tune(case, method)


def test_an_adapter_comes_back_from_its_folder(case: Case, tmp_path: Path) -> None:
    for method in sorted(case.tuning):
        folder, batch = tmp_path / method, case.batch(method=method)
        model = case.model(method).float()
        save_adapter(model, METHODS[method], folder)
        again = case.model().float()
        adapter = open_adapter(folder, case.family)
        apply_tuning(again, adapter.settings, case.family)
        again.load_state_dict({name: weight.detach() for name, weight in base_parameters(model).items()}, strict=False)
        load_adapter(again, adapter)
        with torch.no_grad():
            assert again.eval()(**batch.inputs).equal(model(**batch.inputs))


def tune(case: Case, method: str) -> None:
    """What a run does with a method: to its rows, then to its model."""
    make_processor(recipe_of(case, method), case.family, case.tokenizer, case.config)
    apply_tuning(case.empty(), METHODS[method], case.family)


def fresh(case: Case) -> Any:
    model = case.family.model()(case.config)
    model.init_weights(torch.Generator().manual_seed(1))
    return model


def recipe_of(case: Case, method: str) -> Any:
    model = {"family": case.name, "vocab": str(case.vocab)}
    return make_recipe({"model": model, "run": {"folder": "run"}, "tuning": {"method": method}})
