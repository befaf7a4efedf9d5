"""One record as arrays (`Sample`), the tensors of one forward pass (`Batch`), a prompt and where its answer stands.

torch is imported only when tensors are made, so that checking a recipe never loads it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import mul
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""The label of a position that is not in the loss."""
NO_SPAN = -1
"""The span of padding: no sample's, so that nothing looks at it."""


class Extent(NamedTuple):
    """How much of some samples there is for a model to read, without padding.

    tokens, read_tokens: positions, read_tokens those of an encoder; labels: positions with a label; pairs, read_pairs,
    cross_pairs: of positions of one sample, each with each, also where one does not see the other; of the encoder, and
    between decoder and encoder.
    """

    tokens: int = 0
    read_tokens: int = 0
    labels: int = 0
    pairs: int = 0
    read_pairs: int = 0
    cross_pairs: int = 0

    @staticmethod
    def total(extents: Iterable[Extent]) -> Extent:
        return Extent(*map(sum, zip(*extents, strict=True)))


@dataclass(frozen=True)
class Sample:
    """One record, ready to be packed.

    inputs: arrays by the model's own argument names; `[length]`, or any flat array that belongs to the whole record
        (a relation table).
    labels: `[length]` int32; what the position must predict, `IGNORED` where it predicts nothing. An encoder-decoder's
        labels are filled up with `IGNORED` to the length of its longer side, which is the room that a row must have.
    weights: `[length]` float32; how much a position counts in the loss.
    """

    inputs: dict[str, np.ndarray]
    labels: np.ndarray
    weights: np.ndarray

    @property
    def length(self) -> int:
        return len(self.labels)

    @property
    def loss_tokens(self) -> int:
        return int((self.labels != IGNORED).sum())

    @property
    def extent(self) -> Extent:
        own, read = self._span_lengths(""), self._span_lengths("encoder_")
        pairs = (sum(map(mul, one, other)) for one, other in ((own, own), (read, read), (own, read)))
        return Extent(sum(own), sum(read), self.loss_tokens, *pairs)

    def _span_lengths(self, side: str) -> list[int]:
        """The positions of each part of the sample that sees no other; none where there is no such side."""
        tokens, spans = self.inputs.get(f"{side}tokens"), self.inputs.get(f"{side}spans")
        if tokens is None:
            return [] if side else [self.length]
        return [len(tokens)] if spans is None else np.bincount(spans[spans != NO_SPAN]).tolist()


@dataclass(frozen=True)
class Batch:
    """The tensors of one forward pass; batch is dim 0 of every one of them.

    inputs: by the model's argument names, `[batch, ...]`.
    labels: `[batch, length]` int64; weights: `[batch, length]` float32.
    rows: for each batch row, the numbers of the data set's rows packed into it.
    answers: `[batch, length]` int64, where a row of the data set has several answers that are compared: whose token a
        label is, counted from 1 within the batch row; 0 = nobody's.
    most_rows: batch rows of the data rank that has most of the same batch; None: not known.
    extents: of each batch row; empty: not known.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    weights: torch.Tensor
    rows: Sequence[Sequence[int]] = field(default=())
    answers: torch.Tensor | None = None
    most_rows: int | None = None
    extents: Sequence[Extent] = field(default=())

    @property
    def size(self) -> int:
        return self.labels.shape[0]

    @property
    def loss_tokens(self) -> float:
        """The sum of the weights of the labelled positions."""
        return float((self.weights * (self.labels != IGNORED)).sum())

    @property
    def extent(self) -> Extent:
        """Of all rows; where it is not known, as if each were one sample, without padding if the family says no
        lengths."""
        if self.extents:
            return Extent.total(self.extents)
        lengths = self.inputs.get("lengths")
        tokens = self.labels.numel() if lengths is None else int(lengths.sum())
        return Extent(tokens, labels=int((self.labels != IGNORED).sum()), pairs=tokens * self.labels.shape[1])

    def split(self, parts: int) -> list[Batch]:
        """Cut the batch into `parts` micro-batches of (nearly) equal size; empty ones are left out."""
        bounds = np.linspace(0, self.size, parts + 1).round().astype(int)
        return [self.part(a, b) for a, b in itertools.pairwise(bounds) if b > a]

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device, its labels with their places (`labelled_places`)."""
        if self.labels.device == device:
            return self
        from hanlin.core.labels import find_places, with_places
        from hanlin.core.transfer import to_device

        places = find_places(self.labels)
        names = [f"inputs.{name}" for name in self.inputs]
        tensors = dict(zip(names, self.inputs.values(), strict=True))
        tensors |= {"labels": self.labels, "weights": self.weights, "places": places}
        if self.answers is not None:
            tensors["answers"] = self.answers
        there = to_device(tensors, device)
        labels = with_places(there["labels"], there["places"])
        inputs = dict(zip(self.inputs, (there[name] for name in names), strict=True))
        return Batch(inputs, labels, there["weights"], self.rows, there.get("answers"))

    def fill_rows(self, rows: int) -> Batch:
        """At least so many rows: copies of the first one, which carry no loss, stand behind."""
        missing = rows - self.size
        if missing <= 0:
            return self
        import torch

        def more(tensor: torch.Tensor) -> torch.Tensor:
            return torch.cat([tensor, tensor[:1].expand(missing, *tensor.shape[1:])])

        def empty(tensor: torch.Tensor, value: int = 0) -> torch.Tensor:
            return torch.cat([tensor, torch.full_like(tensor[:1], value).expand(missing, -1)])

        labels, weights = empty(self.labels, IGNORED), empty(self.weights)
        inputs = {name: more(tensor) for name, tensor in self.inputs.items()}
        held = [*self.rows, *[() for _ in range(missing)]] if self.rows else ()
        return Batch(inputs, labels, weights, held, None if self.answers is None else empty(self.answers))

    def part(self, begin: int, end: int) -> Batch:
        """Some of the rows."""
        part = slice(begin, end)
        inputs = {name: tensor[part] for name, tensor in self.inputs.items()}
        answers = None if self.answers is None else self.answers[part]
        labels, weights, rows = self.labels[part], self.weights[part], self.rows[part]
        return Batch(inputs, labels, weights, rows, answers, extents=self.extents[part])


class Cursor(Protocol):
    """Where one answer stands while it is written; immutable, so that beams can share it."""

    @property
    def is_done(self) -> bool:
        """True after the token that ends the (last) answer."""
        ...

    def inputs(self) -> dict[str, int]:
        """The model's arguments for the next position: one number each, `tokens` among them."""
        ...

    def advance(self, token: int) -> Cursor:
        """The cursor after `token` (an id of the logits) was chosen."""
        ...


@dataclass(frozen=True)
class Prompt:
    """One record that waits for its answer.

    inputs: as in `Sample`; state: what the family needs to write the answer back.
    """

    record: Any
    inputs: dict[str, np.ndarray]
    cursor: Cursor
    state: Any = None

    @property
    def length(self) -> int:
        return len(self.inputs["tokens"])

    @property
    def ids(self) -> list[int]:
        """The tokens that are read before the first one is chosen, without those of an encoder."""
        return [*self.inputs["tokens"].tolist(), self.cursor.inputs()["tokens"]]

    @property
    def size(self) -> int:
        """Tokens that are read, those of an encoder as well."""
        return self.length + len(self.inputs.get("encoder_tokens", ()))


@dataclass(frozen=True)
class PromptBatch:
    """Prompts as tensors, padded on the left.

    inputs: `[batch, length, ...]`; cursors: one per prompt, each holds the first position to feed;
    banned: per prompt the ids of the logits that its answer must not use.
    """

    inputs: dict[str, torch.Tensor]
    cursors: Sequence[Cursor]
    banned: Sequence[Sequence[int]]
