"""Perplexity on the windows of a held-out part of token corpora, per token and per character."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path

from hanlin.core.batch import IGNORED, Sample
from hanlin.core.tokenizer import Tokenizer
from hanlin.data.pretraining.windows import CorpusWindows
from hanlin.evaluation.results import NO_FILES, About, EvaluatedFiles, Identity, open_results
from hanlin.evaluation.run import Metrics, identity_of_weights, write_metrics
from hanlin.evaluation.tasks.loss import sample_losses
from hanlin.generate.engine import Engine, show_progress

log = logging.getLogger(__name__)

_MARK = re.compile(r"<[^<>\s]+>")


def evaluate_windows(
    engine: Engine,
    windows: CorpusWindows,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    folder: Path,
    network: str = "",
    files: EvaluatedFiles = NO_FILES,
) -> Metrics:
    """Mean loss per token of all windows and what follows from it; metrics.json goes into a folder of its own inside
    `folder`. network, files: as `evaluate` takes them.

    A token that is shown as <name>, such as <eod> and <unk>, counts as one character.
    """
    samples = [windows.get(number) for number in range(len(windows))]
    scored = list(show_progress(sample_losses(engine, enumerate(samples), batch_size), "windows", len(samples)))
    loss, tokens = (math.fsum(row[column] for row in scored) for column in (1, 2))
    characters = sum(_count_characters(sample, tokenizer) for sample in samples)
    values = {
        "windows": len(samples),
        "tokens": tokens,
        "loss": loss / tokens,
        "perplexity": _perplexity(loss / tokens),
        "characters": characters,
        "character_perplexity": _perplexity(loss / characters),
    }
    weights = network + identity_of_weights(engine)
    about = About(Identity.of(files.weights, weights), Identity(files.data, windows.identity))
    if engine.mesh.is_main:
        own = open_results(folder, about)
        write_metrics(own, {"windows": values})
        log.info("results folder=%s %s", own, about)
    return {"windows": values}


def _count_characters(sample: Sample, tokenizer: Tokenizer) -> int:
    ids = sample.labels[sample.labels != IGNORED].tolist()
    marks = {id for id in set(ids) if _MARK.fullmatch(tokenizer.decode([id]))}
    return len(tokenizer.decode([id for id in ids if id not in marks])) + sum(id in marks for id in ids)


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 20.0))  # as the original cuts it off
