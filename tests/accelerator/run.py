"""What the cells of tests/drills/layouts.py do on the stand-in accelerator and on the CPU; a JSON object per line.

python tests/accelerator/run.py                        every variant, tuning, kind of rows, precision and profile
python tests/accelerator/run.py PROFILE PRECISION CELL ...    some: cuda-sm90 bf16 chatglm2.lora.packed
"""

from __future__ import annotations

import copy
import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    TESTS = Path(__file__).resolve().parents[1]
    folders = ("contract", "drills", "parallel", "models/chatglm2", "models/cpm1", "models/cpm2")
    sys.path[:0] = [str(TESTS), *(str(TESTS / folder) for folder in folders)]

import torch
from layouts import BATCH_SIZE, VARIANTS, Cell, loader, model_of
from stand_in import NAME, PROFILES, Costs, stand_in

from hanlin.core.batch import Batch
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import TrainSettings
from hanlin.training.optimizer import build_optimizer
from hanlin.training.step import Step, mean_loss

MICRO_BATCHES = 2


def compare(cell: Cell, precision: Any, profile: str) -> dict[str, Any]:
    """A step and an evaluation on both devices: the greatest difference of a loss, and what they cost the device."""
    model, batch = model_of(cell).float(), next(iter(loader(cell, 0, 1)))
    losses, _ = _run(model, batch, cell, precision, torch.device("cpu"), profile)
    others, costs = _run(model, batch, cell, precision, torch.device(NAME, 0), profile)
    return {"difference": max(abs(a - b) for a, b in zip(losses, others, strict=True)), "loss": losses[0], **costs}


def _run(
    model: torch.nn.Module, batch: Batch, cell: Cell, precision: Any, device: torch.device, profile: str
) -> tuple[list[float], dict[str, Any]]:
    rows = BATCH_SIZE if VARIANTS[cell.variant].has_experts else BATCH_SIZE // MICRO_BATCHES
    settings = TrainSettings(steps=10, precision=precision, micro_batch_size=rows, lr=1e-3)
    with stand_in(profile) as costs:
        trained = parallelize(copy.deepcopy(model), device, precision)
        step = Step(trained, build_optimizer(trained.parameters, settings.optimizer), settings, 10)
        costs.clear()
        loss = step.run(batch).loss
        counted = {"step": _counted(costs)}
        costs.clear()
        losses = [loss, mean_loss(trained, [batch], rows)]
    return losses, {**counted, "evaluation": _counted(costs), "micro_batches": -(-batch.size // rows)}


def _counted(costs: Costs) -> dict[str, Any]:
    return {**costs.kinds, "launches": costs.launches.total(), "places": dict(costs.places.most_common())}


def _every() -> Iterator[tuple[str, str, Cell]]:
    for name, variant in VARIANTS.items():
        for method in variant.methods:
            for kind in ("packed", "single"):
                for precision in ("fp32", "bf16", "fp16"):
                    for profile, known in PROFILES.items():
                        if precision != "bf16" or torch.bfloat16 not in known.refused:
                            yield profile, precision, Cell(name, method, kind, "none")


def main(words: list[str]) -> None:
    given = zip(words[::3], words[1::3], words[2::3], strict=True)
    asked = [(profile, precision, Cell(*cell.split("."), "none")) for profile, precision, cell in given]  # pyright: ignore
    for profile, precision, cell in asked or _every():
        try:
            found = compare(cell, precision, profile)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)[-6:]
            told = [f"{frame.filename[-40:]}:{frame.lineno}" for frame in frames]
            found = {"error": f"{type(error).__name__}: {error}"[:300], "frames": told}
        print(json.dumps({"cell": f"{profile} {precision} {cell.name.removesuffix('.none')}", **found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
