"""Score a model on a benchmark of the field, from the files that its authors publish: C-Eval, CMMLU, MMLU,
FewCLUE, CLUE.

Of each question the model takes the option that it finds likeliest. Printed are the subjects and the means of their
categories; kept are all answers, and for C-Eval's test the file to be sent in (docs/suites.md).

hanlin suite ceval --base models/chatglm2 --data ceval-exam --shots 5
hanlin suite cmmlu runs/mine --data cmmlu --subjects anatomy,arts
hanlin suite fewclue --base models/cpm-bee-10b --data FewCLUE/datasets
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hanlin.cli._launch import add_launch, on_all_ranks
from hanlin.cli._numbers import whole
from hanlin.cli._recipe import add_model, recipe_of_model, say_remark
from hanlin.cli._say import say
from hanlin.cli._targets import add_overwrite

if TYPE_CHECKING:
    from hanlin.recipe.settings import Recipe

HELP = "score a model on C-Eval, CMMLU, MMLU, FewCLUE or CLUE"

_NAMES = ("ceval", "cmmlu", "mmlu", "fewclue", "clue")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=_NAMES, help="which benchmark")
    add_model(parser)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="its files, as its authors name them"
    )
    parser.add_argument(
        "--split", metavar="NAME", help="which part is scored (default: the one whose answers are public)"
    )
    parser.add_argument("--shots", type=whole(0), default=0, metavar="N", help="examples before each question")
    parser.add_argument(
        "--prompt",
        choices=("text", "chat", "reasoned"),
        default="text",
        help="text (default): as the authors write it; chat: as a user's message in the model's template; "
        "reasoned: the model writes what it thinks first",
    )
    parser.add_argument("--subjects", default="", metavar="A,B,...", help="only these subjects or tasks")
    parser.add_argument("--limit", type=whole(1), metavar="N", help="only the first questions of each")
    parser.add_argument("--folder", type=Path, help="what is written (default: runs/suites/NAME)")
    add_overwrite(parser)
    add_launch(parser, is_alone=True)


def run(args: argparse.Namespace) -> int:
    recipe = recipe_of_model(args)
    return on_all_ranks(args, recipe, lambda: _score(args, recipe))


def _score(args: argparse.Namespace, recipe: Recipe) -> int:
    from hanlin.core.terminal import screen
    from hanlin.evaluation.suites.run import AskedHow, read_suite, run_suite, scores_table
    from hanlin.run.components import build_components
    from hanlin.run.memory import answering_memory
    from hanlin.run.weights import load_engine

    names = [name.strip() for name in args.subjects.split(",") if name.strip()]
    subjects = read_suite(args.name, args.data, args.split, names, args.limit)
    components = build_components(recipe)
    say_remark(recipe)
    folder = args.folder or Path("runs/suites") / args.name
    how = AskedHow(args.shots, args.prompt, recipe.generate.batch_size)
    with answering_memory(recipe):
        engine = load_engine(recipe, components)
        network = components.identity()
        scores = run_suite(engine, args.name, subjects, how, folder, network=network, overwrite=args.overwrite)
    if engine.mesh.is_main:
        screen().print(scores_table(scores))
        say(f"{folder}: the answers to all questions (predictions), metrics.json")
    return 0
