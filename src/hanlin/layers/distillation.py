"""The loss of a model that imitates another one: how far its probabilities are from the teacher's, and from the labels.

Both heads are multiplied out a chunk of rows at a time (layers/loss.py), so neither's logits ever exist as a whole. The
divergences are those of Hinton et al. 2015 (arXiv 1503.02531, forward) and of Gu et al. 2023 (2306.08543, reverse).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from hanlin.layers.loss import HeadPart, HeadParts, LabelledRows, less_at_label
from hanlin.layers.precision import matmul_dtype

__all__ = ["Divergence", "Imitation", "Teacher", "TeacherRows"]

Divergence = Literal["forward", "reverse"]
"""forward: KL(teacher || student), which is large where the student misses what the teacher finds likely; reverse:
KL(student || teacher), which is large where the student finds likely what the teacher does not.
"""


@dataclass(frozen=True)
class TeacherRows:
    """What a teacher's head makes its logits of. hidden: `[labelled rows, hidden_size]`; dtype: of the product."""

    hidden: torch.Tensor
    pieces: Sequence[HeadPart]
    dtype: torch.dtype


class Teacher:
    """Keeps what the head of a teacher was asked for, instead of answering; see `layers.loss.comparing`."""

    def __init__(self) -> None:
        self.rows: TeacherRows | None = None

    def __call__(self, asked: LabelledRows) -> None:
        assert self.rows is None, "a teacher with two heads"
        self.rows = TeacherRows(asked.hidden, asked.pieces, matmul_dtype(asked.hidden))


class Imitation:
    """The `Comparison` with a teacher: share x divergence + (1 - share) x cross entropy, for each labelled row.

    The divergence is that of both probabilities at a temperature, times its square, which keeps the size of its
    gradient (Hinton et al. 2015, section 2). measured: `[3]`, gets the weighted sums of the loss, of the cross entropy
    and of the divergence added.
    """

    def __init__(
        self,
        asked: LabelledRows,
        teacher: TeacherRows,
        divergence: Divergence,
        temperature: float,
        share: float,
        measured: torch.Tensor,
    ) -> None:
        self.asked, self.teacher, self.measured = asked, teacher, measured
        self.is_forward, self.temperature, self.share = divergence == "forward", temperature, share
        with _as_it_is(teacher.hidden):
            self.teacher_parts = HeadParts(teacher.pieces, teacher.dtype)
        rows = tuple(teacher.hidden.shape[:1])
        assert rows == tuple(asked.hidden.shape[:1]), f"the teacher has {rows} labelled rows"

    def losses(self, rows: torch.Tensor, parts: HeadParts, chunk: slice) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """The losses, and their derivatives by the logits."""
        logits = parts.logits(rows)
        likelihood, by_label = self._of_labels(logits, parts, chunk)
        divergence, slopes = self._of_teacher(logits, parts, chunk)
        losses = self.share * divergence + (1 - self.share) * likelihood
        for slope, other in zip(slopes, by_label, strict=False):
            slope.mul_(self.share).add_(other, alpha=1 - self.share)
        weights = self.asked.weights[chunk]
        self.measured += torch.stack([(one * weights).sum() for one in (losses, likelihood, divergence)])
        return losses, slopes

    def slopes(self, made: Sequence[torch.Tensor], parts: HeadParts, chunk: slice) -> Sequence[torch.Tensor]:
        return made

    def _of_labels(
        self, logits: Sequence[torch.Tensor], parts: HeadParts, chunk: slice
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """The cross entropy and, where it counts, its derivatives."""
        classes = self.asked.classes[chunk]
        norm, picked = _norm(logits, parts), parts.sum(parts.picked(logits, classes))
        if self.share == 1:
            return norm - picked, []
        probabilities = [(part - norm[:, None]).exp_() for part in logits]
        return norm - picked, less_at_label(probabilities, parts, classes)

    def _of_teacher(
        self, logits: Sequence[torch.Tensor], parts: HeadParts, chunk: slice
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The divergence, and its derivatives by the logits, which take the place of these."""
        with _as_it_is(self.teacher.hidden):
            wanted = self.teacher_parts.logits(self.teacher.hidden[chunk])
        own = _log_probabilities(logits, parts, self.temperature)
        other = _log_probabilities(wanted, self.teacher_parts, self.temperature)
        differences = [one.to(mine.dtype) - mine for one, mine in zip(other, own, strict=True)]
        if self.is_forward:
            chances = [one.to(mine.dtype).exp_() for one, mine in zip(other, own, strict=True)]
            found = parts.sum([(chance * less).sum(-1) for chance, less in zip(chances, differences, strict=True)])
            slopes = [mine.exp_().sub_(chance) for mine, chance in zip(own, chances, strict=True)]
        else:
            chances = [mine.exp_() for mine in own]
            found = -parts.sum([(chance * less).sum(-1) for chance, less in zip(chances, differences, strict=True)])
            slopes = [
                less.add_(found[:, None]).mul_(chance).neg_() for chance, less in zip(chances, differences, strict=True)
            ]
        return found * self.temperature**2, [slope.mul_(self.temperature) for slope in slopes]


def _log_probabilities(logits: Sequence[torch.Tensor], parts: HeadParts, temperature: float) -> list[torch.Tensor]:
    """At a temperature, in place of the logits."""
    if temperature != 1:
        for part in logits:
            part.div_(temperature)
    norm = _norm(logits, parts)
    return [part.sub_(norm[:, None]) for part in logits]


def _norm(logits: Sequence[torch.Tensor], parts: HeadParts) -> torch.Tensor:
    """The logarithm of the sum of the exponentials of a row, on whichever ranks they are: `[rows]`."""
    peak = parts.maximum(logits)
    return peak + parts.sum([(part - peak[:, None]).exp_().sum(-1) for part in logits]).log()


def _as_it_is(hidden: torch.Tensor) -> torch.autocast:
    """The teacher's arithmetic, whatever that of the model that imitates it."""
    return torch.autocast(hidden.device.type, enabled=False)
