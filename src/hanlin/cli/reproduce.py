"""Measure a published number again: prepare, train and score by the recipe that belongs to it, and compare.

hanlin reproduce                                             what there is
hanlin reproduce cpm2-ccpm-full --weights models/cpm2 --data data/ccpm
hanlin reproduce cpm1-chid-zero-shot-large --weights models/CPM-large --data raw/chid
hanlin reproduce cpm2-ccpm-full --weights W --data D --dry-run     the commands alone, to run them on a cluster
hanlin reproduce cpm2-ccpm-full --weights W --data D parallel.tensor=8 train.precision=bf16

It runs the commands that it prints; stopped and called again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.cli._numbers import MAX_PROCESSES, whole
from hanlin.core.errors import ConfigError
from hanlin.core.files import replace_json
from hanlin.core.hub import locate
from hanlin.core.language import language

if TYPE_CHECKING:
    from hanlin.recipe.published import Published, PublishedRun

HELP = "measure a published number again, by the recipe that belongs to it"

RESULT = "reproduced.json"
"""In the folder: what was published, and what came out here."""


@dataclass(frozen=True)
class _Place:
    """Where things lie: the weights, the data set's files, and what is written."""

    weights: Path
    data: Path
    folder: Path

    def run(self, number: int) -> Path:
        return self.folder / f"run{number}"

    def prepared(self, name: str) -> Path:
        return self.folder / "data" / name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="of the catalogue; without it, all are listed")
    parser.add_argument("changes", nargs="*", default=[], metavar="KEY=VALUE", help="settings to change in all runs")
    parser.add_argument("--weights", type=Path, help="the released weights that the number belongs to, or their name")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the data set's files, as its authors name them")
    parser.add_argument("--folder", type=Path, help="what is written (default: runs/reproduce/NAME)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, and run nothing")
    parser.add_argument("--nproc", type=whole(1, MAX_PROCESSES), metavar="N", help="processes, as of hanlin train")


def run(args: argparse.Namespace) -> int:
    from hanlin.recipe.published import find_published, read_published

    if args.name is None:
        _list(list(read_published().values()))
        return 0
    wanted = find_published(args.name)
    if args.weights is None or args.data is None:
        raise ConfigError(
            f"{wanted.name}: name the weights ({wanted.weights}) with --weights, and with --data the folder of "
            f"{', '.join(_files(wanted)) or wanted.suite[0]}"
        )
    place = _Place(locate(args.weights), args.data, args.folder or Path("runs/reproduce") / wanted.name)
    _refuse_missing(wanted, place)
    launched = [] if args.nproc is None else ["--nproc", str(args.nproc)]
    commands = list(_commands(wanted, place, args.changes, launched))
    if args.dry_run:
        print("\n".join(shlex.join(["hanlin", *words]) for words in commands))
        return 0
    return _run_all(commands) or _compare(wanted, place)


def _run_all(commands: Sequence[Sequence[str]]) -> int:
    """The exit code of the first that does not end well, else 0."""
    from hanlin.cli.main import main
    from hanlin.core.ranks import read_ranks

    for words in commands:
        if read_ranks().is_main:
            print(f"$ {shlex.join(['hanlin', *words])}", file=sys.stderr, flush=True)
        if code := main(words):
            return code
    return 0


# --- the commands ---


def _commands(wanted: Published, place: _Place, changes: Sequence[str], launched: Sequence[str]) -> Iterator[list[str]]:
    from hanlin.recipe.shipped import shipped_file

    if wanted.suite:
        name, *how = wanted.suite
        lying = ("--base", place.weights, "--data", place.data, "--folder", place.run(1))
        yield ["suite", name, *changes, *how, *map(str, lying), *launched]
    for one in wanted.prepared:
        target = place.prepared(one.target)
        if not target.exists():
            yield ["prepare", "--from", one.form, str(place.data / one.source), str(target)]
    for number, own in enumerate(wanted.runs, start=1):
        words = [str(shipped_file(own.recipe)), *_settings(wanted, own, place, number), *changes]
        if own.is_trained:
            yield ["train", *words, *launched]
        if number == len(wanted.runs):
            yield ["evaluate", *words, *launched]


def _settings(wanted: Published, own: PublishedRun, place: _Place, number: int) -> Iterator[str]:
    """The changes of a recipe: the catalogue's, and where things lie here."""
    data = _data_of(own.recipe)
    if wanted.scored == "dev":
        data["evaluate.data"] = data["data.eval"]
    files = {key: [str(_at(wanted, place, path.name)) for path in paths] for key, paths in data.items() if paths}
    before = str(place.run(number - 1))
    given = {key: value.format(run=before) if isinstance(value, str) else value for key, value in own.changes.items()}
    lying = {"model.base": str(place.weights), **files, "run.folder": str(place.run(number))}
    yield from (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in {**lying, **given}.items())


def _data_of(recipe: str) -> dict[str, Sequence[Path]]:
    from hanlin.recipe.reading import load_recipe
    from hanlin.recipe.shipped import shipped_file

    read = load_recipe(shipped_file(recipe))
    return {"data.train": read.data.train, "data.eval": read.data.eval, "evaluate.data": read.evaluate.data}


def _at(wanted: Published, place: _Place, name: str) -> Path:
    is_prepared = any(name == one.target for one in wanted.prepared)
    return place.prepared(name) if is_prepared else place.data / name


def _files(wanted: Published) -> list[str]:
    """The names of the data set's files that are read."""
    if wanted.prepared:
        return [one.source for one in wanted.prepared]
    parts = [paths for own in wanted.runs for key, paths in _data_of(own.recipe).items() if _is_read(wanted, key)]
    return list(dict.fromkeys(path.name for paths in parts for path in paths))


def _is_read(wanted: Published, key: str) -> bool:
    return key != "evaluate.data" or wanted.scored == "test"


def _refuse_missing(wanted: Published, place: _Place) -> None:
    """Raises: ConfigError."""
    if not place.weights.exists():
        raise ConfigError(f"--weights: there is no {place.weights}; expected {wanted.weights}")
    if missing := [name for name in _files(wanted) if not (place.data / name).is_file()]:
        named = ", ".join(f"{name} ({_use_of(wanted, name)})" for name in missing)
        raise ConfigError(f"--data: there is no {named} in {place.data}; put the data set's files there")


def _use_of(wanted: Published, name: str) -> str:
    """The settings that name a file of the data set, or what is made of it."""
    made = {one.target for one in wanted.prepared if one.source == name} or {name}
    keys = [
        key
        for own in wanted.runs
        for key, paths in _data_of(own.recipe).items()
        if _is_read(wanted, key)
        if made & {path.name for path in paths}
    ]
    return ", ".join(dict.fromkeys(keys))


# --- what came out ---


def _compare(wanted: Published, place: _Place) -> int:
    from rich.table import Table

    from hanlin.core.ranks import read_ranks
    from hanlin.core.terminal import screen

    if not read_ranks().is_main:
        return 0
    metrics = place.run(1) / "metrics.json" if wanted.suite else place.run(len(wanted.runs)) / "evaluation/metrics.json"
    scores = json.loads(metrics.read_text("utf-8"))
    here = {metric: wanted.as_printed(metric, _score(scores, metric)) for metric in wanted.numbers}
    table = Table("metric", "published", "here", "difference")
    for metric, value in wanted.numbers.items():
        table.add_row(metric, f"{value:g}", f"{here[metric]:.4g}", f"{here[metric] - value:+.4g}")
    told = {
        "name": wanted.name,
        "source": wanted.source,
        "weights": str(place.weights),
        "data": str(place.data),
        "published": dict(wanted.numbers),
        "here": here,
    }
    replace_json(place.folder / RESULT, told)
    console = screen()
    console.print(f"{wanted.what[language()]}\n{wanted.source}")
    console.print(table)
    return 0


def _score(scores: Mapping[str, Any], metric: str) -> float:
    task, _, name = metric.partition("/")
    value = scores[task][name]
    return float("nan") if value is None else float(value)


def _list(known: Sequence[Published]) -> None:
    from rich.table import Table

    from hanlin.core.terminal import screen

    table = Table("name", "what", "published")
    for one in known:
        table.add_row(one.name, one.what[language()], ", ".join(f"{value:g}" for value in one.numbers.values()))
    screen().print(table)
