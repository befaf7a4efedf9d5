"""Fit how sure a model is of its decisions on held-out rows, by one number: the temperature of its probabilities.

hanlin calibrate runs/mood --input held_out.jsonl
hanlin calibrate --base cpm-bee-1b --input rows.csv --questions questions.json

Rows are those of `hanlin decide` with their right answers: in the record, or (of questions) under `gold`. Shown are
accuracy, negative log likelihood and expected calibration error before and after (each half of the rows by the
temperature of the other). calibration.json and a reliability diagram (.png) are written beside the weights; `hanlin
decide`, `hanlin serve` and `model.decide` use it from then on, as long as the weights are these.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from hanlin.cli._decisions import add_rows, open_decision_rows
from hanlin.cli._launch import add_launch, on_all_ranks
from hanlin.cli._recipe import add_model, recipe_of_model, say_remark
from hanlin.cli._say import say
from hanlin.core.errors import ConfigError
from hanlin.core.files import check_target

if TYPE_CHECKING:
    from hanlin.evaluation.decisions.calibration import Calibration
    from hanlin.recipe.settings import Recipe

HELP = "fit how sure a model is of its decisions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_rows(parser)
    add_launch(parser, is_alone=True)


def run(args: argparse.Namespace) -> int:
    recipe = recipe_of_model(args)
    from hanlin.run.memory import answering_memory

    def work() -> int:
        with answering_memory(recipe):
            return _calibrate(args, recipe)

    return on_all_ranks(args, recipe, work)


def _calibrate(args: argparse.Namespace, recipe: Recipe) -> int:
    from hanlin.api.decisions import Decider, calibration_path
    from hanlin.generate.engine import show_progress
    from hanlin.run.components import build_components
    from hanlin.run.weights import load_engine

    components = build_components(recipe)
    if (path := calibration_path(components)) is None:
        raise ConfigError("fresh weights, beside which nothing can be written; name a model that was trained")
    check_target(path)
    rows = open_decision_rows(args, components, with_gold=True)
    say_remark(recipe)
    engine = load_engine(recipe, components)
    decider = Decider(engine, recipe.generate.batch_size)
    found = decider.calibrate(show_progress(rows.read(), "calibrate", len(rows)), components, (str(args.input),))
    if engine.mesh.is_main:
        _show(found)
        print(f"{path}\n{path.with_suffix('.png')}")
    return 0


def _show(found: Calibration) -> None:
    from rich.table import Table

    from hanlin.core.terminal import screen

    table = Table("", "before", "after", title=f"{found.trials:,} questions, temperature {found.temperature:.4g}")
    for name, before in asdict(found.before).items():
        table.add_row(name.replace("_", " "), f"{before:.4f}", f"{asdict(found.after)[name]:.4f}")
    screen().print(table)
    if found.temperature == 1.0:
        say("no temperature does better on rows that it was not fitted on; 1 is kept")
    if found.is_at_bound:
        say("the temperature is at its bound: the rows are all right, or no better than guessed; give more of them")
