"""Answer questions that have fixed answers: rows in, the probability of each answer out, as JSON lines.

hanlin decide runs/mood --input rows.csv --output answers.jsonl --questions questions.json
hanlin decide --base cpm-bee-1b --input rows.jsonl     rows with options of their own, as `hanlin evaluate` takes them

A row has what is asked about under `input`, and its questions under `questions` unless --question or --questions gives
them for all rows; or it is a record of the model's own, with options (docs/decisions.md). `decisions` is added to it.
On a terminal the first answers are shown as a table. After a kill the same command goes on behind what --output has.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanlin.cli._answers import identity_of, is_unfinished, open_output
from hanlin.cli._decisions import DecisionRows, add_rows, open_decision_rows
from hanlin.cli._launch import add_launch, on_all_ranks
from hanlin.cli._recipe import add_model, recipe_of_model, say_remark
from hanlin.cli._say import say
from hanlin.cli._targets import add_overwrite, sole_target
from hanlin.core.collectives import entered_on_main

if TYPE_CHECKING:
    from hanlin.api.decisions import Decider
    from hanlin.recipe.settings import Recipe
    from hanlin.run.components import Components

HELP = "answer questions with fixed answers: rows in, probabilities out"

_SHOWN_ROWS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    rows = add_rows(parser)
    rows.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    add_overwrite(rows)
    add_launch(parser, is_alone=True)


def run(args: argparse.Namespace) -> int:
    recipe = recipe_of_model(args)
    from hanlin.run.memory import answering_memory

    def work() -> int:
        target: Path | None = args.output
        if target is None:
            alone = nullcontext()
        else:
            alone = entered_on_main(sole_target(target, overwrite=args.overwrite or is_unfinished(target)))
        with alone, answering_memory(recipe):
            return _decide(args, recipe)

    return on_all_ranks(args, recipe, work)


def _decide(args: argparse.Namespace, recipe: Recipe) -> int:
    from hanlin.api.decisions import Decider, calibrated_by, remark_on_calibration
    from hanlin.run.components import build_components
    from hanlin.run.weights import load_engine

    components = build_components(recipe)
    rows = open_decision_rows(args, components)
    say_remark(recipe)
    calibration = calibrated_by(components)
    engine = load_engine(recipe, components)
    if engine.mesh.is_main and (remark := remark_on_calibration(components)):
        say(remark)
    temperature = 1.0 if calibration is None else calibration.temperature
    decider = Decider(engine, recipe.generate.batch_size, temperature)
    return _write(decider, components, rows, args.output, overwrite=args.overwrite)


def _write(
    decider: Decider, components: Components, rows: DecisionRows, target: Path | None, *, overwrite: bool
) -> int:
    from hanlin.evaluation.decisions.rows import DECISIONS
    from hanlin.generate.engine import show_progress

    mesh = decider.engine.mesh
    shows_table = mesh.is_main and target is None and sys.stdout.isatty()
    identity = identity_of(components, f"{rows.fingerprint} {decider.temperature}")
    shown: list[tuple[int, dict[str, Any]]] = []
    with open_output(target if mesh.is_main else None, identity, overwrite=overwrite) as output:
        done = mesh.from_main(output.num_done)
        if done and mesh.is_main:
            say(f"{target}: going on behind the {done:,} answers that are there")
        answered = show_progress(decider.answered(rows.read(done)), "decide", len(rows) - done)
        for number, (row, own) in enumerate(answered, start=done + 1):
            if len(shown) < _SHOWN_ROWS:
                shown += [(number, answer) for answer in own]
            if mesh.is_main and not shows_table:
                output.write({**row.row, DECISIONS: own})
        if mesh.is_main and not shows_table:
            output.finish(len(rows))
    if mesh.is_main and sys.stdout.isatty():
        _show(shown, len(rows))
    return 0


def _show(shown: list[tuple[int, dict[str, Any]]], total: int) -> None:
    from rich.table import Table
    from rich.text import Text

    from hanlin.core.terminal import screen

    table = Table("row", "question", "answer", "probabilities")
    for number, answer in shown:
        table.add_row(*map(Text, (str(number), answer["name"] or answer["type"], *_told(answer))))
    console = screen()
    console.print(table)
    if shown and shown[-1][0] < total:
        console.print(f"... and {total - shown[-1][0]:,} more rows", highlight=False)


def _told(answer: Mapping[str, Any]) -> tuple[str, str]:
    """The answer, and how probable each option is."""
    if "probability" in answer:
        return f"{answer['probability']:.3f}", ""
    chances = ", ".join(f"{one.get('label', one['value'])} {one['probability']:.3f}" for one in answer["probabilities"])
    return str(answer["choice"]) if "choice" in answer else f"{answer['score']:.2f}", chances
