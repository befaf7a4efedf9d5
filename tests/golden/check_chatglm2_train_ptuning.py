"""The original's P-Tuning v2 end to end, step by step; the base stays bitwise as it was, only the prefix learns."""

from __future__ import annotations

from pathlib import Path

import torch
from check_chatglm2_train_full import check_rows, relative_error, train_as_recorded
from glm_case import load_model
from golden_case import Case, Reading

from hanlin.formats.load import base_parameters
from hanlin.models.chatglm2 import family
from hanlin.tuning.apply import apply_tuning, trained_parameters
from hanlin.tuning.prefix import PrefixTuning

THEIRS = "transformer.prefix_encoder."


def check(case: Case, vocab: Path) -> None:
    del vocab
    model = load_model(case / case.flag("model_name_or_path", default="model"))
    check_rows(case, model.config)
    projection = bool(case.flag("prefix_projection", bool, False))
    apply_tuning(model, PrefixTuning(length=case.flag("pre_seq_len", int), projection=projection), family)
    start = of_prefix(case.arrays("inputs.npz"), "prefix_init.")
    assert start.keys() == trained_parameters(model).keys()
    with torch.no_grad():
        for name, weight in trained_parameters(model).items():
            weight.copy_(start[name])
    base = {name: weight.detach().clone() for name, weight in base_parameters(model).items()}
    train_as_recorded(model, case)
    theirs = of_prefix(case.arrays(), "final.")
    ours = {name: weight.detach() - start[name] for name, weight in trained_parameters(model).items()}
    changes = {name: weight - start[name] for name, weight in theirs.items()}
    assert changes.keys() <= ours.keys()
    if changes:
        assert relative_error(ours, changes, list(changes)) < case.tolerance("update_relative_l2", default=0.02)
    assert all(torch.equal(weight, base[name]) for name, weight in base_parameters(model).items())


def of_prefix(arrays: Reading, start: str) -> dict[str, torch.Tensor]:
    return {f"prefix.{name}": tensor for name, tensor in arrays.under(f"{start}{THEIRS}").items()}
