"""Answers that are compared: their log likelihoods, by the model as it is and as it was when the run began."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save as to_bytes

from hanlin.core.batch import Batch
from hanlin.core.collectives import call_on_main
from hanlin.core.files import replaced_file
from hanlin.core.progress import counted
from hanlin.data.forms.content import Side
from hanlin.data.loader import Loader
from hanlin.parallel.parallel_model import ParallelModel
from hanlin.training.objective import REFERENCE, RunStart, Weighed

log = logging.getLogger(__name__)

__all__ = ["PairLikelihoods", "pair_likelihoods", "reference", "weighed"]

_TOLD = "tables"
"""In the metadata of the file: by the names of its tables whose they are, and their hashes."""
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
    asked = torch.arange(1, 1 + answers * max(map(len, batch.rows), default=0), device=device)
    losses = parallel_model.losses(batch)
    sums, counts = (
        _by_answer(batch.answers, values, asked).unflatten(1, (-1, answers))
        for values in (-losses, batch.weights.to(losses.dtype))
    )
    return PairLikelihoods(rows, pairs, numbers, sums[rows, pairs].t().contiguous(), counts[rows, pairs].t())


def _by_answer(answers: torch.Tensor, values: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """Sums `[rows, asked]` of the values `[rows, length]` of each answer's tokens; answers: whose they are.

    Not by `scatter_add_`, which on CUDA adds in an order that is left open. A row at a time, for the memory's sake.
    """
    rows = zip(answers, values, strict=True)
    return torch.stack([torch.where(of[:, None] == asked, row[:, None], 0).sum(0) for of, row in rows])


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
    parallel_model: ParallelModel, loaders: Mapping[str, Loader], start: RunStart, answers: Sequence[Side]
) -> dict[str, torch.Tensor]:
    """The log likelihoods `[pairs, answers]` of the answers of each loader, by the model that the run began with, which
    this one is at every start until a checkpoint fills it.

    What it said is kept in the run's folder, so that a run that goes on under another layout compares with the same
    numbers; what is not there, or is of other rows or answers, is asked anew.
    """
    path, wanted = start.folder / REFERENCE, {name: _identity(loader, answers) for name, loader in loaders.items()}
    found = call_on_main(lambda: _read(path, wanted) if start.goes_on else {})
    lacking = [name for name in loaders if name not in found]
    if start.goes_on and lacking:
        log.warning("%s tells nothing of these rows of %s; the first model is asked again", path, " and ".join(lacking))
    asked = {name: _ask(parallel_model, loaders[name], len(answers), start.rows) for name in lacking}
    found |= asked
    if asked:
        call_on_main(lambda: _write(path, found, wanted))
    return {name: torch.tensor(values).to(parallel_model.device) for name, values in found.items()}


def _identity(loader: Loader, answers: Sequence[Side]) -> str:
    """Of which rows' answers a table tells."""
    return f"{loader.prepared.identity} {' '.join(answers)}"


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


def _write(path: Path, tables: Mapping[str, np.ndarray], identities: Mapping[str, str]) -> None:
    told = {name: f"{identities[name]} {_hash(values)}" for name, values in tables.items()}
    content = to_bytes(dict(tables), {_TOLD: json.dumps(told)})  # one entry: safetensors leaves several in no order
    with replaced_file(path) as stream:
        stream.write(content)


def _read(path: Path, identities: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The tables of a file that are whole, and of these rows and answers."""
    if not path.exists():
        return {}
    try:
        with safe_open(path, "numpy") as file:
            told = json.loads((file.metadata() or {}).get(_TOLD, "{}"))
            tables = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except Exception as error:  # safetensors has errors of its own for every kind of damage
        log.warning("%s cannot be read: %s", path, error)
        return {}
    wanted = {name: f"{identity} {_hash(tables[name])}" for name, identity in identities.items() if name in tables}
    return {name: tables[name] for name in wanted if told.get(name) == wanted[name]}


def _hash(values: np.ndarray) -> str:
    return hashlib.sha256(f"{values.dtype} {values.shape}".encode() + values.tobytes()).hexdigest()
