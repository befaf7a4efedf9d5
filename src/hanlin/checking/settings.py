"""Settings against each other: without effect, contradicting, not adding up."""

from __future__ import annotations

from collections.abc import Mapping

from hanlin.core.errors import ConfigError
from hanlin.recipe.reading import COMMAND_LINE, Found
from hanlin.recipe.settings import Recipe
from hanlin.recipe.unused_settings import unused_settings
from hanlin.training.objective import find_objective
from hanlin.training.trackers import check_trackers


def idle_problems(recipe: Recipe, places: Mapping[str, str]) -> Found:
    for key, idle in unused_settings(recipe).items():
        section, name = key.split(".")
        is_switched = places.get(idle.cause) == COMMAND_LINE != places.get(key)
        settings = getattr(recipe, section)
        if name in settings.model_fields_set and getattr(settings, name) is not None and not is_switched:
            yield key, f"has no effect {idle.reason}"


def length_problems(recipe: Recipe) -> Found:
    train = recipe.train
    if train.steps is None and train.epochs is None:
        yield "train.steps", "say how long to train: train.steps (optimizer steps) or train.epochs (passes)"
    if train.steps is not None and train.epochs is not None:
        yield "train.epochs", f"both steps ({train.steps}) and epochs ({train.epochs:g}) are given; remove one of them"
    end = train.decay_steps or train.steps
    if train.schedule in ("linear", "cosine") and end is not None and train.warmup_steps >= end:
        yield (
            "train.warmup_steps",
            f"the rate rises for {train.warmup_steps} steps and has to be back at 0 at step {end}; "
            "lower train.warmup_steps, or use train.schedule constant or noam",
        )
    if train.min_lr > train.lr:
        yield "train.min_lr", f"{train.min_lr:g} is above train.lr ({train.lr:g}), from which the rate falls; lower it"
    yield from _decay_problems(recipe)
    if train.schedule == "noam" and train.schedule_form != "standard":
        yield "train.schedule", f"{train.schedule_form} has no noam; use linear, cosine, exponential or constant"


def _decay_problems(recipe: Recipe) -> Found:
    """Steps at the end of a run in which nothing would be learnt."""
    train = recipe.train
    if train.steps is None or train.decay_steps is None or train.steps <= train.decay_steps:
        return
    from hanlin.training.schedules import learning_rate

    if train.schedule != "noam" and learning_rate(train, train.steps, train.steps) == 0:
        yield (
            "train.decay_steps",
            f"{train.decay_steps}, but the run has {train.steps} steps, and the rate of those behind it is 0; raise "
            "train.decay_steps or lower train.steps",
        )


def batch_problems(recipe: Recipe) -> Found:
    rows, micro = recipe.train.batch_size, recipe.train.micro_batch_size
    if micro is not None and rows % micro:
        near = sorted({max(rows // micro, 1) * micro, (rows // micro + 1) * micro})
        yield (
            "train.batch_size",
            f"{rows} is not a multiple of train.micro_batch_size {micro} "
            f"(batch_size = micro_batch_size x forward passes per step); use {' or '.join(map(str, near))}",
        )


def objective_problems(recipe: Recipe) -> Found:
    """What an objective that compares answers cannot learn from."""
    data, name = recipe.data, recipe.train.objective.name
    answers = find_objective(recipe.train.objective).answers
    if not answers:
        return
    why = f"train.objective={name} learns from preference rows"
    if data.split is not None:
        yield "data.split", f"{why}, and corpora have none; remove it"
    if data.mixture is not None:
        yield "data.mixture", f"{why}; name their files in data.train"
    if any(data.in_context[1:]):
        yield "data.in_context", f"{why}, before which no worked examples stand; leave it at [1.0]"
    if data.overlong == "split":
        yield "data.overlong", f"{why}, and parts of an answer cannot be compared; use error, drop or truncate"
    if data.max_length < len(answers):
        yield "data.max_length", f"{data.max_length} has no room for {len(answers)} answers"
    if recipe.train.loss_mean != "token":
        yield "train.loss_mean", f"{why}, of which the loss is the mean; leave it at token"


def tracker_problems(recipe: Recipe) -> Found:
    try:
        check_trackers(recipe.run.trackers)
    except ConfigError as error:
        yield "run.trackers", str(error).removeprefix("run.trackers: ")
