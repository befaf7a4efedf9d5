"""What the checks of CPM-1's network share: the case's model, closeness, gradients by the original's names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hanlin.formats.convert import load_into, read_config
from hanlin.formats.rules import find_moves
from hanlin.models.cpm1.config import SIZES, Cpm1Config
from hanlin.models.cpm1.formats import FORMATS
from hanlin.models.cpm1.model import Cpm1

Arrays = dict[str, torch.Tensor]


class Facts:
    """What formats/ knows of a family."""

    name = "cpm1"
    config = Cpm1Config
    formats = FORMATS
    sizes = SIZES

    @staticmethod
    def model() -> type:
        return Cpm1


FAMILY: Any = Facts()


def facts_of(case: Path) -> dict[str, Any]:
    return json.loads((case / "case.json").read_text())


def arrays_of(path: Path) -> Arrays:
    return {name: torch.from_numpy(array) for name, array in np.load(path).items()}


def load_model(folder: Path, changes: dict[str, Any]) -> Cpm1:
    with torch.device("meta"):
        model = Cpm1(read_config(folder, FAMILY, changes))
    load_into(model, folder, FAMILY, dtype=torch.float32)
    return model.eval()


def check_gradients(model: Cpm1, loss: torch.Tensor, layout: str, expected: Arrays, atol: float) -> None:
    """Every gradient that the case holds, whole or as its norm."""
    model.zero_grad()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    theirs = {}
    for move in find_moves(FORMATS[layout].rules(model.config), gradients, "to_theirs"):
        theirs |= zip(move.targets, move.run(tuple(gradients[name] for name in move.sources)), strict=True)
    wanted = [name for name in expected if name.startswith(("grad/", "grad_norm/"))]
    assert wanted
    for name in wanted:
        kind, _, tensor = name.partition("/")
        ours = theirs[tensor] if kind == "grad" else theirs[tensor].norm()
        assert_close(name, ours, expected[name], atol)
    total = torch.stack([gradient.double().norm() for gradient in theirs.values()]).norm()
    assert_close("grad_norm_total", total, expected["grad_norm_total"], atol)


def assert_close(name: str, ours: torch.Tensor, theirs: torch.Tensor, atol: float, rtol: float = 1e-4) -> None:
    difference = (ours.detach().double() - theirs.double()).abs()
    assert difference.shape == theirs.shape, f"{name}: {tuple(ours.shape)} instead of {tuple(theirs.shape)}"
    assert bool((difference <= atol + rtol * theirs.double().abs()).all()), (
        f"{name}: differs by up to {float(difference.max()):.3g} (atol {atol:.3g})"
    )
