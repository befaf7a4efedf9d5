"""How many steps a run has, where few rows tell it at once."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hanlin.checking.rows import is_tried_whole
from hanlin.recipe.settings import Recipe
from hanlin.run.components import build_components
from hanlin.run.short_runs import short_run
from hanlin.training.objective import find_objective


def short_run_remark(recipe: Recipe) -> str | None:
    """What training would say of a checked recipe whose rate only rises; None also where its rows are too many to be
    counted here.
    """
    train = recipe.train
    if not (recipe.data.trained and train.warmup_steps):
        return None
    if train.steps is not None:
        return short_run(train, train.steps)
    # An epoch is a step at least; whoever asks for many has not to be counted.
    if train.epochs is None or train.epochs >= train.warmup_steps + 1 or recipe.data.split or recipe.data.mixture:
        return None
    components = build_components(recipe)
    side = next(iter(find_objective(train.objective).answers), None)
    if not all(is_tried_whole(path, recipe.data, components.processor, side) for path in recipe.data.train):
        return None

    from hanlin.run.assemble import load_data, make_loader
    from hanlin.training.loop import count_steps

    with TemporaryDirectory() as scratch:  # the cache is the run's
        data = recipe.data.model_copy(update={"cache": Path(scratch)})
        prepared = load_data(recipe.model_copy(update={"data": data}), components, "train")
        assert prepared is not None, recipe.data.train
        return short_run(train, count_steps(train, make_loader(components, prepared, is_training=True)))
