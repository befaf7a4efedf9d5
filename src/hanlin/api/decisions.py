"""Decisions with a model that is loaded: rows and questions in, probabilities out, by the temperature that lies beside
its weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.core.files import replaced_file
from hanlin.core.remembered import MIN_REMEMBERED_BYTES, remembered_sha256, sha256_of
from hanlin.evaluation.results import Identity

if TYPE_CHECKING:
    from hanlin.evaluation.decisions.calibration import Calibration
    from hanlin.evaluation.decisions.rows import AskedQuestions
    from hanlin.generate.engine import Engine
    from hanlin.run.components import Components

__all__ = ["Decider", "calibrated_by", "calibration_path", "identity_of_weights", "remark_on_calibration"]

_NAME = "calibration"
_ROWS_AHEAD = 8
"""Batches of rows that are scored together, and so the most that a killed command answers anew."""


@dataclass(frozen=True)
class Decider:
    """A model that decides. temperature: of its probabilities; 1: as the model has them."""

    engine: Engine
    batch_size: int
    temperature: float = 1.0

    def answered(self, asked: Iterable[AskedQuestions]) -> Iterator[tuple[AskedQuestions, list[dict[str, Any]]]]:
        """Each row with the answers to its questions, in order; several rows are scored together."""
        from hanlin.evaluation.decisions.answers import probabilities_of

        for rows, scored in self._scored(asked):
            found = iter([probabilities_of(scores, self.temperature) for scores in scored])
            for row in rows:
                yield row, row.answers(list(islice(found, len(row.polls))))

    def calibrate(self, asked: Iterable[AskedQuestions], components: Components, files: Sequence[str]) -> Calibration:
        """Fit the temperature on rows with their right answers, and write it beside the weights: numbers and picture.

        files: that the rows come from, for people.
        Raises: DataError for a row without its right answer, and for too few.
        """
        from hanlin.evaluation.decisions.answers import competing_logits
        from hanlin.evaluation.decisions.calibration import Trial, calibrate, write_calibration
        from hanlin.evaluation.decisions.reliability_diagram import draw_reliability
        from hanlin.evaluation.decisions.rows import golds_of

        trials: list[Trial] = []
        facts = hashlib.sha256()
        for rows, scored in self._scored(asked):
            golds = [gold for row in rows for gold in golds_of(self.engine.processor, row)]
            trials += [Trial(competing_logits(own), gold) for own, gold in zip(scored, golds, strict=True)]
            for row in rows:
                facts.update(json.dumps([row.row, str(row.questions)], ensure_ascii=False, default=str).encode())
        data = Identity(tuple(files), facts.hexdigest())
        found = calibrate(trials, identity_of_weights(components), data)
        path = calibration_path(components)
        if path is not None and self.engine.mesh.is_main:
            write_calibration(path, found)
            with replaced_file(path.with_suffix(".png")) as stream:
                stream.write(draw_reliability(trials))
        return found

    def _scored(self, asked: Iterable[AskedQuestions]) -> Iterator[tuple[list[AskedQuestions], list[Any]]]:
        from hanlin.evaluation.decisions.scoring import score_polls

        asked = iter(asked)
        while rows := list(islice(asked, _ROWS_AHEAD * self.batch_size)):
            polls = [poll for row in rows for poll in row.polls]
            yield rows, score_polls(self.engine, polls, self.batch_size)


def calibrated_by(components: Components) -> Calibration | None:
    """What was fitted for these weights, if anything was.

    Raises: CheckpointError for a file that cannot be read.
    """
    from hanlin.evaluation.decisions.calibration import read_calibration

    path = calibration_path(components)
    if path is None or not path.is_file():
        return None
    found = read_calibration(path)
    return found if found.weights.sha256 == identity_of_weights(components).sha256 else None


def remark_on_calibration(components: Components) -> str:
    """What is to be said of the temperature that a model decides by; nothing where nobody has calibrated."""
    path, found = calibration_path(components), calibrated_by(components)
    if found is not None:
        return f"decisions: calibrated on {found.trials:,} questions, temperature {found.temperature:.3g} ({path})"
    if path is not None and path.is_file():
        return f"decisions: {path} is of other weights or options, and not used; run hanlin calibrate again"
    return ""


def calibration_path(components: Components) -> Path | None:
    """Beside the weights that decide: in the folder of the adapter or of the model, or beside its file. None for fresh
    weights.
    """
    model = components.recipe.model
    path = model.adapter or model.base
    if path is None:
        return None
    return path / f"{_NAME}.json" if path.is_dir() else path.with_name(f"{path.name}.{_NAME}.json")


def identity_of_weights(components: Components) -> Identity:
    """Of the files that hold them, and of what else decides the scores; not of the precision, which hardly does."""
    facts = [components.identity(), [[file.name, _sha256(file)] for file in components.weight_files()]]
    model = components.recipe.model
    named = [str(path) for path in (model.base, model.adapter) if path is not None]
    return Identity.of(tuple(named), json.dumps(facts))


def _sha256(file: Path) -> str:
    return sha256_of(file) if file.stat().st_size < MIN_REMEMBERED_BYTES else remembered_sha256(file)
