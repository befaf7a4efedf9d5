"""A recipe checked, its data prepared, its run trained and scored: what the commands of these names do, as functions.

Each takes a recipe (a path, a run folder, a dict, settings) and changes to it (a dict, or words as on the command
line). Relative paths count from the current folder. Python files that a recipe's file names are run with trust_code
only; those that the caller names are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hanlin.api.process import alone, called, guest, joined, named_by
from hanlin.recipe.reading import Overrides, Problem, RecipeSource

if TYPE_CHECKING:
    from hanlin.checking import Purpose
    from hanlin.data.report import DataReport
    from hanlin.evaluation.run import Metrics
    from hanlin.recipe.settings import Recipe
    from hanlin.run.folder import Start

__all__ = ["TrainResult", "check", "evaluate", "first_start", "load_recipe", "prepare", "prepare_recipe", "train"]


@dataclass(frozen=True)
class TrainResult:
    """How training ended.

    folder: of the run; end: steps (all were done), patience (the evaluation stopped improving), signal (interrupted
    and saved: the same call goes on); steps: done so far; best_loss, best_step: of the evaluations, None without any.
    """

    folder: Path
    end: Literal["steps", "patience", "signal"]
    steps: int
    best_loss: float | None
    best_step: int | None

    @property
    def weights(self) -> Path:
        """What was trained: the folder of the best evaluation, or else of the last step."""
        from hanlin.adapters.opening import weights_of_run

        return weights_of_run(self.folder)


def load_recipe(recipe: RecipeSource, overrides: Overrides = (), *, trust_code: bool = False) -> Recipe:
    """The settings of a recipe, or of the recipe in a run folder.

    Raises: ConfigError that lists every unknown key, wrong type and wrong value with its line.
    """
    from hanlin.recipe import reading

    changes, named = named_by(recipe, overrides)
    with called(named, trust_code=trust_code):
        return reading.load_recipe(recipe, changes)


def check(
    recipe: RecipeSource,
    overrides: Overrides = (),
    *,
    purpose: Purpose | None = None,
    start: Start = "resume",
    trust_code: bool = False,
) -> list[Problem]:
    """Every problem that would keep a recipe from running, the first rows of each data file tried; none: it can run.

    purpose: train, evaluate or generate (None: what the recipe has settings for); start: as of `train`.
    Raises: ConfigError when its file cannot be read.
    """
    from hanlin.checking import check_source

    changes, named = named_by(recipe, overrides)
    with called(named, trust_code=trust_code):
        return check_source(recipe, changes, purpose, start=start).problems


def train(
    recipe: RecipeSource,
    overrides: Overrides = (),
    *,
    start: Start = "resume",
    trust_code: bool = False,
    quiet: bool = False,
) -> TrainResult:
    """Train as a recipe says, in this process; called again it goes on where the run stopped.

    start: resume; restart (what is there is kept in FOLDER/former); change (go on although settings of train are
    others). quiet: log lines go to log.txt alone. Under torchrun, srun or Kubernetes all ranks call it; it starts none,
    and when the launcher restarts them, a run that began anew goes on.
    Ctrl-C finishes the step, saves and returns, in the main thread; elsewhere nothing interrupts it.

    Raises: ConfigError that lists all problems, before anything heavy starts; DataError, CheckpointError.
    """
    from hanlin.checking import check_file

    changes, named = named_by(recipe, overrides)
    with called(named, trust_code=trust_code):
        start = first_start(start)
        checked = check_file(recipe, changes, "train", start=start, is_loaded_next=True)
        from hanlin.run.assemble import assemble

        with guest(checked.run.device, quiet=quiet), joined(checked.run.device):
            outcome = assemble(checked, start).train()
    progress = outcome.progress
    return TrainResult(checked.run.folder, outcome.end, progress.step, progress.best_loss, progress.best_step)


def first_start(start: Start) -> Start:
    """How a run begins: `restart` counts for the first start alone, not when a launcher starts its ranks once more."""
    from hanlin.core.ranks import num_restarts

    return "resume" if start == "restart" and num_restarts() else start


def evaluate(
    recipe: RecipeSource,
    overrides: Overrides = (),
    *,
    weights: str | Path | None = None,
    trust_code: bool = False,
    quiet: bool = False,
) -> Metrics:
    """Score a model on the recipe's evaluation data: task -> metric -> number; what is scored already is not again.

    weights: best (default; where there is none, last) or last of the recipe's run, base (what it starts from), or the
    path of an adapter or a model. Predictions lie in `evaluation/` of the run folder.

    Raises: ConfigError that lists all problems; DataError, CheckpointError.
    """
    from hanlin.api.recipes import with_run_weights

    changes, named = named_by(recipe, overrides)
    with called(named, trust_code=trust_code):
        checked = with_run_weights(recipe, changes, None if weights is None else str(weights), "evaluate")
        from hanlin.run.assemble import assemble

        with guest(checked.run.device, quiet=quiet), joined(checked.run.device):
            return assemble(checked).evaluate()


def prepare(
    recipe: RecipeSource, overrides: Overrides = (), *, trust_code: bool = False, quiet: bool = False
) -> dict[Literal["train", "eval"], DataReport]:
    """Tokenise a recipe's data into its cache, so that training starts at once; what they look like, by part.

    Raises: ConfigError that lists all problems; DataError that lists the rows that cannot be used.
    """
    from hanlin.checking import check_file

    changes, named = named_by(recipe, overrides)
    with called(named, trust_code=trust_code), alone(quiet=quiet):
        return prepare_recipe(check_file(recipe, changes))


def prepare_recipe(recipe: Recipe) -> dict[Literal["train", "eval"], DataReport]:
    """`prepare` of a checked recipe."""
    from hanlin.run.assemble import load_data
    from hanlin.run.components import build_components

    components = build_components(recipe)
    trained, watched = load_data(recipe, components, "train"), load_data(recipe, components, "valid")
    reports: dict[Literal["train", "eval"], DataReport] = {}
    if trained is not None:
        reports["train"] = trained.report
    if watched is not None:
        reports["eval"] = watched.report
    return reports
