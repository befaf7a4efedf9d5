"""The original's P-Tuning v2 end to end, step by step; the base stays bitwise as it was, only the prefix learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from check_chatglm2_train_full import check_rows, flags_of, relative_error, train_as_recorded
from glm_case import facts_of, load_model

from hanlin.formats.load import base_parameters
from hanlin.models.chatglm2 import family
from hanlin.tuning.apply import apply_tuning, trained_parameters
from hanlin.tuning.prefix import PrefixTuning

THEIRS = "transformer.prefix_encoder."


def check(case: Path, vocab: Path) -> None:
    del vocab
    check_rows(case)
    model = load_model(case / "model")
    apply_tuning(model, PrefixTuning(length=flags_of(case).pre_seq_len), family)
    start = of_prefix(case / "inputs.npz", f"prefix_init.{THEIRS}")
    with torch.no_grad():
        for name, weight in trained_parameters(model).items():
            weight.copy_(start[name])
    base = {name: weight.detach().clone() for name, weight in base_parameters(model).items()}
    train_as_recorded(model, case)
    theirs = of_prefix(case / "expected.npz", f"final.{THEIRS}")
    ours = {name: weight.detach() - start[name] for name, weight in trained_parameters(model).items()}
    changes = {name: weight - start[name] for name, weight in theirs.items()}
    assert ours.keys() == changes.keys()
    assert relative_error(ours, changes, list(ours)) < facts_of(case)["tolerance"]["update_relative_l2"]
    assert all(torch.equal(weight, base[name]) for name, weight in base_parameters(model).items())


def of_prefix(path: Path, start: str) -> dict[str, torch.Tensor]:
    arrays = np.load(path)
    return {f"prefix.{n.removeprefix(start)}": torch.from_numpy(arrays[n]) for n in arrays if n.startswith(start)}
