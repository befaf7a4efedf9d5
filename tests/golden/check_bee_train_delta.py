"""The original's delta tuning, step by step, and its delta file at the end; the base stays bitwise as it was."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from check_bee_train_full import assert_same_weights, load_model, train_as_recorded

from hanlin.adapters.adapter import load_adapter
from hanlin.adapters.opening import open_adapter
from hanlin.formats.load import base_parameters
from hanlin.models.cpm_bee import family
from hanlin.models.cpm_bee.model import CpmBee
from hanlin.tuning.apply import apply_tuning


def check(case: Path, vocab: Path) -> None:
    del vocab
    facts = json.loads((case / "case.json").read_text())
    model = load_tuned(case, case / "delta_init.pt")
    base = {name: weight.detach().clone() for name, weight in base_parameters(model).items()}
    train_as_recorded(model, case, facts)
    tuned = load_tuned(case, next(case.glob("*-best.pt")))
    assert_same_weights(model, tuned, facts["tolerance"]["final_param_atol"])
    assert all(torch.equal(weight, base[name]) for name, weight in base_parameters(model).items())


def load_tuned(case: Path, delta: Path) -> CpmBee:
    model = load_model(case, case / "pytorch_model.bin")
    adapter = open_adapter(delta, family)
    apply_tuning(model, adapter.settings, family)
    load_adapter(model, adapter)
    return model
