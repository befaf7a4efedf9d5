"""Where the loader's samples come from: records (prepare.py), several data sets (mixture.py), windows of corpora."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from hanlin.core.batch import Sample
from hanlin.data.pack import Shuffle

if TYPE_CHECKING:
    from hanlin.data.report import DataReport


class SampleSource(Protocol):
    """Samples with random access, by their numbers, and what an epoch reads of them."""

    has_own_order: bool
    """Whether what an epoch draws, and the worked examples before a sample, are the source's own business, whatever the
    recipe says of them.
    """

    @property
    def lengths(self) -> np.ndarray:
        """`[samples]`: tokens of each."""
        ...

    @property
    def identity(self) -> str:
        """Hash of the data: where it is equal, a place in them means the same."""
        ...

    @property
    def num_varying(self) -> int:
        """Samples that are drawn anew in each epoch."""
        ...

    @property
    def source_bounds(self) -> np.ndarray:
        """`[sources + 1]`: where the samples of each file or data set begin."""
        ...

    @property
    def report(self) -> DataReport: ...

    def get(self, number: int, rng: np.random.Generator | None = None) -> Sample:
        """The sample; with `rng` one that varies is drawn anew, its length stays."""
        ...

    def where(self, number: int) -> str:
        """Where the sample comes from, for a message."""
        ...

    def draw(self, seed: int, epoch: int, rng: np.random.Generator, shuffle: Shuffle) -> tuple[np.ndarray, np.ndarray]:
        """The samples of an epoch in their order, int64 `[draws]`, and the pass that each of them belongs to.

        A sample occurs once in a pass.
        """
        ...

    def example_weights(self, in_context: Sequence[float]) -> Sequence[Sequence[float]]:
        """Of each source the weights of 0, 1, 2, ... worked examples before a sample; in_context: the recipe's."""
        ...


@runtime_checkable
class ComparesAnswers(Protocol):
    """A source each of whose rows holds several answers, which stand in one row of a batch; its lengths are of all of
    them together.
    """

    def answers(self, number: int) -> Sequence[Sample]:
        """Those of a row, in an order that is the same for all rows."""
        ...
