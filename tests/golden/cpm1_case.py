"""What the checks of CPM-1's network share: the case's model, closeness, gradients by the original's names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hanlin.formats.load import load_into
from hanlin.formats.rules import find_moves
from hanlin.formats.source import read_config
from hanlin.models.cpm1_t5.model import Cpm1T5
from hanlin.models.family import Family, load_family
from hanlin.recipe.settings import TrainSettings
from hanlin.train.optimizer import build_optimizer
from hanlin.train.optimizers.adamw import AdamWSettings
from hanlin.train.schedules import learning_rate

Arrays = dict[str, torch.Tensor]

FAMILY, T5_FAMILY = load_family("cpm1"), load_family("cpm1_t5")


def facts_of(case: Path) -> dict[str, Any]:
    return json.loads((case / "case.json").read_text())


def arrays_of(path: Path) -> Arrays:
    return {name: torch.from_numpy(array) for name, array in np.load(path).items()}


def load_model(folder: Path, changes: dict[str, Any], family: Family = FAMILY) -> Any:
    with torch.device("meta"):
        model = family.model()(read_config(folder, family, changes))
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
    theirs = under_their_names(model, gradients, layout)
    wanted = [name for name in expected if name.startswith(("grad/", "grad_norm/"))]
    assert wanted
    for name in wanted:
        kind, _, tensor = name.partition("/")
        ours = theirs[tensor] if kind == "grad" else theirs[tensor].norm()
        assert_close(name, ours, expected[name], atol)
    total = torch.stack([gradient.double().norm() for gradient in theirs.values()]).norm()
    assert_close("grad_norm_total", total, expected["grad_norm_total"], atol)


def check_training(model: Any, batches: Sequence[Arrays], facts: dict[str, Any], expected: Arrays) -> None:
    """The steps of the case's training run: rates, losses, norms before clipping, and the weights after them.

    batches: what each step's model is called with, `labels` and `weights` among it.
    """
    stated, atol = facts["train"], facts["measured"]["suggested_atol"]["train_losses"]
    settings = TrainSettings(
        lr=stated["lr"],
        min_lr=stated["min_lr"],
        schedule=stated["style"],
        schedule_form="floored",
        warmup_share=stated["warmup"],
        optimizer=AdamWSettings(weight_decay=stated["weight_decay"]),
        clip=stated["clip_grad"],
    )
    optimizer = build_optimizer(dict(model.named_parameters()), settings.optimizer)
    for number, batch in enumerate(batches):
        loss = model(**batch) / batch["weights"].sum()
        model.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), stated["clip_grad"])
        rate = learning_rate(settings, number + 1, stated["train_iters"])
        optimizer.step(rate)
        assert_close("lr", torch.tensor(rate), expected["train/train_lr"][number], 1e-9)
        assert_close("loss", loss, expected["train/train_losses"][number], atol)
        assert_close("norm", norm, expected["train/train_grad_norms"][number], atol)
    assert len(batches) == stated["steps"]
    after = under_their_names(model, dict(model.named_parameters()), "megatron")
    for name in (name for name in expected if name.startswith("train/after")):
        kind, _, tensor = name.removeprefix("train/").partition("/")
        if kind == "after" and tensor.endswith("query_key_value.bias"):
            continue  # the key's bias changes no score: its gradient is rounding, which Adam makes steps of
        assert_close(name, after[tensor].norm() if kind == "after_norm" else after[tensor], expected[name], atol)


def under_their_names(model: Any, ours: Arrays, layout: str) -> Arrays:
    """Tensors of ours (weights or gradients) by the original's names."""
    family = T5_FAMILY if isinstance(model, Cpm1T5) else FAMILY
    theirs: Arrays = {}
    for move in find_moves(family.formats[layout].rules(model.config), ours, "to_theirs"):
        theirs |= zip(move.targets, move.run(tuple(ours[name] for name in move.sources)), strict=True)
    return theirs


def assert_close(name: str, ours: torch.Tensor, theirs: torch.Tensor, atol: float, rtol: float = 1e-4) -> None:
    difference = (ours.detach().double() - theirs.double()).abs()
    assert difference.shape == theirs.shape, f"{name}: {tuple(ours.shape)} instead of {tuple(theirs.shape)}"
    assert bool((difference <= atol + rtol * theirs.double().abs()).all()), (
        f"{name}: differs by up to {float(difference.max()):.3g} (atol {atol:.3g})"
    )
