"""What the checks of CPM-1's network share: the case's model, closeness, gradients by the original's names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hanlin.formats.convert import load_into, read_config
from hanlin.formats.rules import find_moves
from hanlin.models.cpm1.config import Cpm1Config
from hanlin.models.cpm1.formats import FORMATS
from hanlin.models.cpm1.model import Cpm1
from hanlin.models.cpm1_t5.config import Cpm1T5Config
from hanlin.models.cpm1_t5.formats import FORMATS as T5_FORMATS
from hanlin.models.cpm1_t5.model import Cpm1T5

Arrays = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Facts:
    """What formats/ knows of a family."""

    name: str
    config: type
    formats: Mapping[str, Any]
    network: type

    def model(self) -> type:
        return self.network


FAMILY = Facts("cpm1", Cpm1Config, FORMATS, Cpm1)
T5_FAMILY = Facts("cpm1_t5", Cpm1T5Config, T5_FORMATS, Cpm1T5)


def facts_of(case: Path) -> dict[str, Any]:
    return json.loads((case / "case.json").read_text())


def arrays_of(path: Path) -> Arrays:
    return {name: torch.from_numpy(array) for name, array in np.load(path).items()}


def load_model(folder: Path, changes: dict[str, Any], family: Facts = FAMILY) -> Any:
    with torch.device("meta"):
        model = family.network(read_config(folder, family, changes))
    load_into(model, folder, family, dtype=torch.float32)
    return model.eval()


def documents(is_end: torch.Tensor) -> torch.Tensor:
    """The number of each column's document in its row; an end is the last column of its own."""
    return is_end.long().cumsum(1) - is_end.long()


def positions(is_end: torch.Tensor) -> torch.Tensor:
    """Columns counted from 0 in each document."""
    columns = torch.arange(is_end.shape[1]).expand_as(is_end)
    begins = torch.where(is_end, columns + 1, 0).roll(1, 1)
    begins[:, 0] = 0
    return columns - begins.cummax(1).values


def check_gradients(model: Any, loss: torch.Tensor, layout: str, expected: Arrays, atol: float) -> None:
    """Every gradient that the case holds, whole or as its norm."""
    model.zero_grad()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    family = T5_FAMILY if isinstance(model, Cpm1T5) else FAMILY
    rules, theirs = family.formats[layout].rules(model.config), {}
    for move in find_moves(rules, gradients, "to_theirs"):
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
