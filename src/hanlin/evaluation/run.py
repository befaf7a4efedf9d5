"""Score a model on records: a predictions file per task, written as it goes, and metrics.json.

Folder (evaluation/results.py): for each pair of weights and data predictions/<task>.jsonl (one line per record, in
order, with the gold answer), metrics.json. Until a task is complete its lines lie in <task>.jsonl.part; when run again,
lines of the same weights, settings and record are reused, from whichever of them.

On several ranks the data ranks share the work and all know all rows; the main rank alone reads and writes the folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from hanlin.core.errors import DataError
from hanlin.core.files import replaced_file
from hanlin.core.progress import counted
from hanlin.formats.fingerprint import weights_fingerprint
from hanlin.generate.engine import Engine, naming, show_progress
from hanlin.generate.method import find_method
from hanlin.recipe.settings import GenerateSettings

from .metrics.named import score_corpus, score_texts
from .metrics.text import mean
from .results import METRICS, NO_FILES, PREDICTIONS, About, EvaluatedFiles, Identity, all_predictions, open_results
from .scorable import parts_of
from .tasks import classify, generate, likelihood, loss, preference, rank
from .tasks.task import Prediction, Task

log = logging.getLogger(__name__)

TASKS: dict[str, Task] = {
    "generate": generate.TASK,
    "likelihood": likelihood.TASK,
    "loss": loss.TASK,
    "rank": rank.TASK,
    "classify": classify.TASK,
    "preference": preference.TASK,
}

_KEY = re.compile(rb'\{"record": \d+, "key": "([0-9a-f]+)"')

_SUM = "sum"
"""In each line of predictions: the check sum of the rest of it, since it is used again."""

Metrics = dict[str, dict[str, float]]
"""Task -> metric -> number."""


def evaluate(  # noqa: PLR0913 what is scored, how, and where to
    engine: Engine,
    records: Sequence[Any],
    tasks: Sequence[str],
    options: GenerateSettings,
    folder: Path,
    *,
    seed: int = 0,
    metrics: Sequence[str] = (),
    network: str = "",
    files: EvaluatedFiles = NO_FILES,
) -> Metrics:
    """Score the model on the records, each with its gold answer, by the named tasks; write all of it into `folder`.

    metrics: further scores of texts by name (metrics/named.py), for tasks that compare texts; network: what decides the
    answers besides the weights (`Components.identity`), so that those of another model are not used again;
    files: what both came from.
    Raises: DataError for a record without gold answer or, where the task needs them, without options.
    """
    if not records:
        raise DataError("there is nothing to score: the files hold no records (evaluate.data, evaluate.limit)")
    for number, record in enumerate(records):
        with naming(number):
            for part in parts_of(tasks, record):
                engine.processor.check(part)
    weights = network + identity_of_weights(engine)
    about = About(Identity.of(files.weights, weights), Identity.of(files.data, _as_json(list(records))))
    own = open_results(folder, about) if engine.mesh.is_main else folder / about.name
    results = {}
    for name in tasks:
        task = TASKS[name]
        keys = [_key(name, weights, engine, options, seed, number, record) for number, record in enumerate(records)]
        path = own / PREDICTIONS / f"{name}.jsonl"
        rows = _predictions(task, engine, records, options, seed, keys, path)
        results[name] = {"records": len(rows), **task.summarise(rows)}
        if metrics and task.compares_texts:
            scores = [score_texts(metrics, row["answer"], row["gold"]) for row in rows]
            results[name] |= _summarise(rows, scores, metrics)
            if engine.mesh.is_main:
                _write(path, ({**row, "scores": own} for row, own in zip(rows, scores, strict=True)))
        log.info("evaluated task=%s %s", name, " ".join(f"{key}={value:.4g}" for key, value in results[name].items()))
    if engine.mesh.is_main:
        write_metrics(own, results)
        log.info("results folder=%s %s", own, about)
    return results


def identity_of_weights(engine: Engine) -> str:
    """The hash of the weights, on all ranks, which must all ask for it; the main one takes it."""
    weights = counted(engine.weights(), "Hashing the weights", 0)
    if engine.mesh.is_main:
        return engine.mesh.from_main(weights_fingerprint(weights))
    for _ in weights:  # of a divided model the main rank gets them from all
        pass
    return engine.mesh.from_main("")


def write_metrics(folder: Path, metrics: Metrics) -> None:
    with replaced_file(folder / METRICS) as stream:
        stream.write((json.dumps(_with_null(metrics), indent=2, allow_nan=False) + "\n").encode())


def _with_null(metrics: Metrics) -> dict[str, dict[str, float | None]]:
    """What has no value, such as a mean over nothing, is null: JSON has no NaN."""
    return {
        task: {name: value if math.isfinite(value) else None for name, value in values.items()}
        for task, values in metrics.items()
    }


def metrics_table(metrics: Metrics) -> Table:
    """The metrics as a table for the terminal."""
    table = Table("task", "metric", "value")
    for task, values in metrics.items():
        for place, (name, value) in enumerate(values.items()):
            shown = f"{value:,.0f}" if float(value).is_integer() and abs(value) > 1 else f"{value:.4f}"
            table.add_row("" if place else task, name, shown)
    return table


def _predictions(
    task: Task,
    engine: Engine,
    records: Sequence[Any],
    options: GenerateSettings,
    seed: int,
    keys: Sequence[str],
    path: Path,
) -> list[Prediction]:
    """All rows in order, known ones reused; `path` holds them at the end."""
    part, is_main = path.with_name(path.name + ".part"), engine.mesh.is_main
    known = engine.mesh.from_main(_known(path, keys) if is_main else {})
    missing = [number for number, key in enumerate(keys) if key not in known]
    if len(missing) < len(keys):
        counts = len(keys) - len(missing), len(missing)
        log.info("predictions reused=%d left=%d, of the same weights, settings and records; %s", *counts, path)
    predicted = task.predict(engine, ((number, records[number]) for number in missing), options, seed)
    shown = show_progress(predicted, path.stem, len(missing))
    named = (_named_row(number, keys, row) for number, row in shown)
    for row in _kept(part, named) if is_main else named:
        known[row["key"]] = row
    rows = [{**known[key], "record": number + 1} for number, key in enumerate(keys)]
    if is_main:
        _write(path, rows)
        part.unlink(missing_ok=True)
    return rows


def _known(path: Path, keys: Sequence[str]) -> dict[str, Prediction]:
    """By key the rows that are there already: those of these weights and data first, then those of others."""
    known: dict[str, Prediction] = {}
    wanted = set(keys)
    for file in all_predictions(path.parent.parent, path.stem):
        if not wanted:
            break
        known |= {row["key"]: row for row in _read(file, wanted)}
        wanted -= known.keys()
    return known


def _summarise(
    rows: Sequence[Prediction], scores: Sequence[Mapping[str, float]], metrics: Sequence[str]
) -> dict[str, float]:
    """The means of the rows' own scores, and the scores of all texts together."""
    means = {name: mean([own[name] for own in scores]) for name in scores[0]}
    return means | score_corpus(metrics, [row["answer"] for row in rows], [row["gold"] for row in rows])


def _kept(part: Path, rows: Iterable[Prediction]) -> Iterator[Prediction]:
    """The rows, each appended to the file as soon as it is there."""
    part.parent.mkdir(parents=True, exist_ok=True)
    whole = b"".join(_line(row) for row in _read(part))
    with replaced_file(part) as stream:  # a line that was cut off by a kill would spoil the next one
        stream.write(whole)
    with part.open("ab") as stream:
        for row in rows:
            stream.write(_line(row))
            stream.flush()
            yield row


def _write(path: Path, rows: Iterable[Prediction]) -> None:
    with replaced_file(path) as stream:
        stream.writelines(_line(row) for row in rows)


def _read(path: Path, wanted: Container[str] | None = None) -> Iterator[Prediction]:
    """The lines of a predictions file; a last one that was cut off, and those that were changed, are left out.

    wanted: the keys of those that are (None: all); another one is not even parsed.
    """
    if not path.is_file():
        return
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                return
            if wanted is not None and (key := _KEY.match(line)) and key[1].decode() not in wanted:
                continue
            try:
                row = json.loads(line)
                is_whole = row.pop(_SUM, None) == _sum_of(row)
            except (ValueError, AttributeError):
                raise DataError(
                    f"{path}: this is no predictions file; move it away, or choose another folder"
                ) from None
            if is_whole:
                yield row
            else:
                log.warning("%s: line %d is not as it was written, and is made again", path, number)


def _key(
    name: str, weights: str, engine: Engine, options: GenerateSettings, seed: int, number: int, record: Any
) -> str:
    """What decides a row; neither the batch size nor, unless there is chance, the record's number."""
    facts: list[Any] = [name, weights, engine.precision, record]
    if TASKS[name].reads_options:
        facts.append(options.model_dump(exclude={"batch_size"}))
        facts.append([seed, number] if find_method(options).is_random else None)
    return hashlib.sha256(_as_json(facts).encode()).hexdigest()[:16]


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=lambda ids: ids.tolist())


def _named_row(number: int, keys: Sequence[str], row: Prediction) -> Prediction:
    return {"record": number + 1, "key": keys[number], **row}


def _line(row: Mapping[str, Any]) -> bytes:
    values = {name: value for name, value in row.items() if name != _SUM}
    return (_as_json(values | {_SUM: _sum_of(values)}) + "\n").encode()


def _sum_of(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(_as_json(values).encode()).hexdigest()[:16]
