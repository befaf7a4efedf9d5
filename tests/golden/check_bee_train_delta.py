"""The original's delta tuning, step by step, and its delta file at the end; the base stays bitwise as it was."""

from __future__ import annotations

from pathlib import Path

import torch
from check_bee_train_full import assert_same_weights, check_packing, load_model, train_as_recorded
from golden_case import Case

from hanlin.adapters.adapter import load_adapter
from hanlin.adapters.opening import open_adapter
from hanlin.formats.load import base_parameters
from hanlin.models.cpm_bee import family
from hanlin.models.cpm_bee.model import CpmBee
from hanlin.tuning.apply import apply_tuning


def check(case: Case, vocab: Path) -> None:
    del vocab
    model = load_tuned(case, case / "delta_init.pt")
    check_packing(case, model)
    base = {name: weight.detach().clone() for name, weight in base_parameters(model).items()}
    train_as_recorded(model, case)
    best = case.one("*-best.pt")
    if best is not None:
        assert_same_weights(model, load_tuned(case, best), case.tolerance("final_param_atol", default=1e-3))
    assert all(torch.equal(weight, base[name]) for name, weight in base_parameters(model).items())


def load_tuned(case: Case, delta: Path) -> CpmBee:
    model = load_model(case / "pytorch_model.bin", case / "config.json")
    adapter = open_adapter(delta, family)
    apply_tuning(model, adapter.settings, family)
    load_adapter(model, adapter)
    return model
