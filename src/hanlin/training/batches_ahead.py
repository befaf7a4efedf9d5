"""The batches of a run, each made while the step before it runs, with the position in the data that belongs to it."""

from __future__ import annotations

from itertools import islice
from typing import Any

from hanlin.core.batch import Batch
from hanlin.data.ahead import Ahead
from hanlin.training.run_checkpoints import Batches


class BatchesAhead:
    """At most `count` batches of a loader, whose own position is further on by what is made ahead."""

    def __init__(self, loader: Batches, count: int) -> None:
        self.position: dict[str, Any] = loader.state_dict()
        """Behind the last batch that was taken."""
        self._ahead = Ahead((batch, loader.state_dict()) for batch in islice(loader.forever(), count))

    def __enter__(self) -> BatchesAhead:
        return self

    def __exit__(self, *exception: object) -> None:
        self._ahead.close()

    def take(self) -> Batch:
        """Raises: what the loader raised."""
        taken = self._ahead.take()
        assert taken is not None, "more batches than were ordered"
        batch, self.position = taken
        return batch

    def peek(self) -> Batch | None:
        """The batch that `take` will give; None where there is none, or an error."""
        coming = self._ahead.peek()
        return None if coming is None else coming[0]

    @property
    def seconds_waited(self) -> float:
        return self._ahead.seconds_waited
