"""`samples.jsonl`: what a model in training writes, one answered record a line, with the step."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hanlin.data.expand import records_in
from hanlin.generate.engine import Engine
from hanlin.recipe.settings import GenerateSettings
from hanlin.training.metrics import MetricsFile

log = logging.getLogger(__name__)


class SampleTexts:
    """Answers the same records again and again, with the same random numbers, as the model learns.

    folder: where the file goes; None: this rank does not write. All ranks call `write`.
    Raises: DataError for a record that cannot be a prompt.
    """

    def __init__(
        self, engine: Engine, records: Sequence[Any], options: GenerateSettings, *, seed: int, folder: Path | None
    ) -> None:
        self.engine, self.options, self.seed = engine, options, seed
        self.path = None if folder is None else folder / "samples.jsonl"
        self.records = records_in(records, engine.processor)
        for number, record in enumerate(self.records):
            engine.prompt(record, options, number)

    def write(self, step: int) -> None:
        """Answer all records and add the lines of this step; lines of it or later ones are replaced."""
        answered = dict(self.engine.answers(enumerate(self.records), self.options, self.seed))
        if self.path is None:
            return
        file = MetricsFile(self.path, step - 1)
        for number in range(len(self.records)):
            file.write(step, answered[number])
            log.info("sample step=%d %s", step, json.dumps(answered[number], ensure_ascii=False))
        file.close()
