"""What a pipeline's stages are given: the parts' own tensors, of which the host knows the values and the labels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from cases import CASES, make_batch, make_model
from ranks import run_ranks

from hanlin.core.batch import Batch
from hanlin.core.labels import find_places, with_places
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import ParallelSettings


def _as_brought_to_a_device(part: Batch) -> Batch:
    """With what `Batch.to` says of tensors there."""
    with_places(part.labels, find_places(part.labels))
    for tensor in part.inputs.values():
        bearer: Any = tensor
        bearer.host = tensor
    return part


@contextmanager
def _seen_by(model: Any) -> Iterator[list[dict[str, Any]]]:
    """The inputs of each call."""
    seen: list[dict[str, Any]] = []
    hook = model.register_forward_pre_hook(lambda _, state, inputs: seen.append(inputs), with_kwargs=True)
    yield seen
    hook.remove()


def _unknown(settings: ParallelSettings) -> list[list[str]]:
    """For each call of this rank's stages in two steps, the tensors that would have to be fetched from a device."""
    case, device = CASES["cpm2"], torch.device("cpu")
    parallel_model = parallelize(
        make_model(case, "full"), device, "fp32", settings, copy=lambda: make_model(case, "full")
    )
    batch = make_batch(case)
    batch = Batch(batch.inputs, batch.labels, batch.weights.double(), batch.rows)
    found = []
    for stage in parallel_model.models:
        with _seen_by(stage) as seen:
            for _ in range(2):
                parts = [_as_brought_to_a_device(part) for part in batch.split(4)]
                parallel_model.forward_backward(parts, [1.0] * len(parts))
        found += [[name for name in inputs if name != "weights" and not _is_known(inputs[name])] for inputs in seen]
    return found


def _is_known(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, "labelled") or hasattr(tensor, "host")


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved"])
def test_no_stage_has_to_ask_the_device_for_its_inputs(schedule: Any) -> None:
    for found in run_ranks(2, _unknown, ParallelSettings(pipe=2, schedule=schedule)):
        assert len(found) >= 8
        assert not any(found)
