"""Answers that are compared: their log likelihoods, by the model as it is and as it was when the run began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from hanlin.core.batch import Batch
from hanlin.core.collectives import call_on_main
from hanlin.core.errors import CheckpointError
from hanlin.core.files import replaced_file
from hanlin.core.progress import counted
from hanlin.data.loader import Loader
from hanlin.parallel.parallel_model import ParallelModel
from hanlin.training.objective import REFERENCE, RunStart, Weighed

__all__ = ["PairLikelihoods", "pair_likelihoods", "reference", "weighed"]

TOLD_AT_ONCE = 1 << 16
"""Numbers that the ranks tell each other in one message."""


@dataclass(frozen=True)
class PairLikelihoods:
    """Of the pairs of a batch. rows, pairs: `[pairs]`, the row of each and its place among those of the row; numbers:
    in the data; totals: `[answers, pairs]`, natural logarithms of the probabilities of the answers, the chosen ones
    first; counts: their tokens.
    """

    rows: torch.Tensor
    pairs: torch.Tensor
    numbers: torch.Tensor
    totals: torch.Tensor
    counts: torch.Tensor

    def scores(self, reference: torch.Tensor | None) -> torch.Tensor:
        """The log likelihoods, less those of a table `[pairs of the data, answers]`; `totals` gets their gradient."""
        totals = self.totals.requires_grad_()
        return totals if reference is None else totals - reference[self.numbers].t().to(totals)


def pair_likelihoods(parallel_model: ParallelModel, batch: Batch, answers: int) -> PairLikelihoods:
    """Ask the model as it is, without a gradient and without dropout; batch: on its device, of so many answers each."""
    assert batch.answers is not None, "a batch of pairs"
    device = batch.answers.device
    places = [(row, pair, number) for row, held in enumerate(batch.rows) for pair, number in enumerate(held)]
    rows, pairs, numbers = torch.tensor(places, dtype=torch.int64).reshape(-1, 3).t().to(device)
    width = 1 + answers * max(map(len, batch.rows), default=0)
    losses = parallel_model.losses(batch)
    sums, counts = (
        losses.new_zeros(batch.size, width).scatter_add_(1, batch.answers, values)[:, 1:].unflatten(1, (-1, answers))
        for values in (-losses, batch.weights.to(losses.dtype))
    )
    return PairLikelihoods(rows, pairs, numbers, sums[rows, pairs].t().contiguous(), counts[rows, pairs].t())


def weighed(batch: Batch, found: PairLikelihoods, measured: Sequence[torch.Tensor]) -> Weighed:
    """The batch with minus the gradient of `totals` as the weights of the tokens."""
    assert batch.answers is not None, "a batch of pairs"
    assert found.totals.grad is not None, "no backward pass yet"
    slopes = batch.weights.new_zeros(batch.size, max(map(len, batch.rows), default=0), len(found.totals))
    slopes[found.rows, found.pairs] = -found.totals.grad.t().to(slopes.dtype)
    by_answer = torch.cat([slopes.new_zeros(batch.size, 1), slopes.flatten(1)], 1)
    weights = by_answer.gather(1, batch.answers)
    return Weighed(replace(batch, weights=weights), torch.stack([value.detach().float() for value in measured]))


def reference(
    parallel_model: ParallelModel, loaders: Mapping[str, Loader], start: RunStart, answers: int
) -> dict[str, torch.Tensor]:
    """The log likelihoods `[pairs, answers]` of the answers of each loader, by the model that the run began with.

    Where the run goes on, the model is that no more, and what it said is read from the run's folder.
    Raises: CheckpointError when the folder has it no more.
    """
    path = start.folder / REFERENCE
    if start.goes_on:
        shapes = {name: (len(loader.prepared.lengths), answers) for name, loader in loaders.items()}
        found = call_on_main(lambda: _read(path, shapes))
    else:
        found = {name: _ask(parallel_model, loader, answers, start.rows) for name, loader in loaders.items()}
        call_on_main(lambda: _write(path, found))
    return {name: torch.tensor(values).to(parallel_model.device) for name, values in found.items()}


def _ask(parallel_model: ParallelModel, loader: Loader, answers: int, rows: int | None) -> np.ndarray:
    """What the model makes of all answers."""
    values = np.zeros((len(loader.prepared.lengths), answers), np.float32)
    for batch in counted(loader.once(), "Asking the model that the run begins with", loader.steps_per_epoch()):
        for part in parallel_model.split(batch, rows):
            found = pair_likelihoods(parallel_model, part.to(parallel_model.device), answers)
            values[found.numbers.cpu().numpy()] = found.totals.t().cpu().numpy()
    # Each pair is of one data rank, and 0 on the others.
    flat = values.ravel()
    parts = (flat[begin : begin + TOLD_AT_ONCE] for begin in range(0, flat.size, TOLD_AT_ONCE))
    sums = [parallel_model.sum_over_data(part.tolist()) for part in parts]
    return np.concatenate(sums).astype(np.float32).reshape(values.shape)


def _write(path: Path, values: Mapping[str, np.ndarray]) -> None:
    with replaced_file(path) as stream:
        stream.write(to_bytes(dict(values)))


def _read(path: Path, shapes: Mapping[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    """Raises: CheckpointError."""
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: what the model that this run began with made of the answers, which no later one can "
            "say; put it back, or begin anew (--restart)"
        )
    try:
        found = from_bytes(path.read_bytes())
    except Exception as error:  # safetensors has errors of its own for every kind of damage
        raise CheckpointError(f"{path} cannot be read ({error}); put it back, or begin anew (--restart)") from None
    if {name: found[name].shape for name in shapes if name in found} != shapes:
        raise CheckpointError(f"{path} belongs to other data; put the run's own back, or begin anew (--restart)")
    return {name: found[name] for name in shapes}
