"""How the rows of a step may go on: computed on the device, of all of them, and then fetched at once.

However many ways of looking for answers and of noting them meet in a step, the host waits for the device once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from hanlin.core.transfer import to_device
from hanlin.recipe.settings import GenerateSettings

from .beam import Beam
from .method import find_method
from .sampling import BANNED, add_bias, penalise_counts, penalise_used

if TYPE_CHECKING:
    from .running_batch import AnswerRequest

__all__ = ["NextTokens", "ProposedRows", "TokenScores", "fetch", "propose_alike", "rows_at"]


class TokenScores(NamedTuple):
    """A token with its log probability, and the likeliest ids with theirs, before any bias and penalty."""

    token: int
    score: float
    likeliest: list[tuple[int, float]]


class NextTokens(NamedTuple):
    """How a row may go on: ids with their log probabilities; told: what is noted of the first of them, if it is."""

    ids: list[int]
    scores: np.ndarray
    told: tuple[float, list[tuple[int, float]]] | None


ProposedRows = tuple[Sequence[int], torch.Tensor]
"""The places of some rows, and what was computed of each."""


def propose_alike(logits: torch.Tensor, beams: Sequence[Beam], questions: Sequence[AnswerRequest]) -> torch.Tensor:
    """Of rows whose answers are looked for in the same way: the peak of the log probabilities, those of the ids with
    which each may go on, and these ids (a float holds every one), `[rows, 1 + 2 * candidates]`.

    logits: without the ids that must not be chosen.
    """
    options = questions[0].options
    logits = _penalise(add_bias(logits, [question.bias for question in questions]), beams, options)
    scores = logits.log_softmax(dim=-1)
    with _drawing([question.stream for question in questions if question.stream is not None]) as streams:
        tokens = find_method(options).propose(logits, scores, options, streams)
    peaks, own = scores.amax(dim=-1, keepdim=True), scores.gather(-1, tokens)
    return torch.cat([peaks, own, tokens.to(own.dtype)], dim=-1)


def fetch(
    logits: torch.Tensor, parts: Sequence[ProposedRows], noted: Mapping[int, int]
) -> dict[int, NextTokens | None]:
    """What was proposed for rows, by their place; None for one whose logits are no numbers.

    noted: how many likeliest ids are told of each row of which something is noted, as its `logits` have them.
    """
    tops = {place: noted[place] for place in _places(parts) if place in noted}
    tables = _fetched([table for _, table in parts] + ([_notes(logits, parts, tops)] if tops else []))
    notes = dict(zip(tops, tables[-1], strict=True)) if tops else {}
    found: dict[int, NextTokens | None] = {}
    for (places, _), table in zip(parts, tables, strict=False):
        scores, ids = np.split(table[:, 1:], 2, axis=1)
        for place, peak, row_scores, row_ids in zip(places, table[:, 0], scores, ids.astype(int), strict=True):
            told = _told(notes[place], tops[place]) if place in tops else None
            found[place] = NextTokens(row_ids.tolist(), row_scores, told) if np.isfinite(peak) else None
    return found


def _places(parts: Sequence[ProposedRows]) -> list[int]:
    return [place for places, _ in parts for place in places]


def rows_at(rows: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
    """Rows in the order of their places."""
    if list(places) == list(range(len(rows))):
        return rows
    return rows.index_select(0, to_device({"places": torch.tensor(places)}, rows.device)["places"])


def _notes(logits: torch.Tensor, parts: Sequence[ProposedRows], tops: Mapping[int, int]) -> torch.Tensor:
    """The log probability of the id with which a row goes on, the largest log probabilities, their logits and ids,
    `[rows, 1 + 3 * most]`; tops: how many of them are told, by the places of the rows.
    """
    chosen = []
    for _, table in parts:
        scores, ids = table[:, 1:].chunk(2, dim=-1)
        chosen.append(ids if ids.shape[1] == 1 else ids.gather(-1, scores.argmax(-1, keepdim=True)))
    order = {place: number for number, place in enumerate(_places(parts))}
    tokens = rows_at(torch.cat(chosen), [order[place] for place in tops]).long()
    own = rows_at(logits, list(tops))
    scores = own.log_softmax(dim=-1)
    top = scores.topk(min(max(tops.values()), scores.shape[-1]))
    parts_of_row = [scores.gather(-1, tokens), top.values, own.gather(-1, top.indices), top.indices.to(own.dtype)]
    return torch.cat(parts_of_row, dim=-1)


def _told(row: np.ndarray, count: int) -> tuple[float, list[tuple[int, float]]]:
    """Of a row of `_notes`: how likely its token is, and so many likeliest ids that may be chosen, with theirs."""
    scores, logits, ids = (part[:count].tolist() for part in np.split(row[1:], 3))
    told = zip(ids, scores, logits, strict=True)
    return row[0].item(), [(int(id_), score) for id_, score, logit in told if logit > BANNED]


def _fetched(tables: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """The same tables in memory of the host, for which the device is waited for once."""
    if len(tables) < 2:
        return [table.cpu().numpy() for table in tables]
    flat = torch.cat([table.flatten() for table in tables]).cpu()
    parts = flat.split([table.numel() for table in tables])
    return [part.view(table.shape).numpy() for part, table in zip(parts, tables, strict=True)]


@contextmanager
def _drawing(streams: list[np.random.Generator]) -> Iterator[list[np.random.Generator]]:
    """Random numbers that are drawn within; where that goes wrong they are still to be drawn."""
    states = [stream.bit_generator.state for stream in streams]
    try:
        yield streams
    except BaseException:
        for stream, state in zip(streams, states, strict=True):
            stream.bit_generator.state = state
        raise


def _penalise(logits: torch.Tensor, beams: Sequence[Beam], options: GenerateSettings) -> torch.Tensor:
    # kept (bee_generate): what counts is the id fed, so the third option counts as a bare "<option>".
    window = options.repetition_window or 0
    logits = penalise_used(logits, [beam.fed[-window:] for beam in beams], options.repetition_penalty)
    return penalise_counts(
        logits,
        [beam.tokens for beam in beams],
        presence=options.presence_penalty,
        frequency=options.frequency_penalty,
    )
