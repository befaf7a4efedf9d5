"""`hanlin.load`: a model from whatever holds one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hanlin.api.model import Model
from hanlin.api.process import called, named_by, with_threads
from hanlin.core.errors import ConfigError
from hanlin.core.extensions import import_file
from hanlin.core.files import expanded, path_of
from hanlin.recipe.reading import Change, Overrides, Problem, RecipeSource, is_recipe, read_changes
from hanlin.recipe.settings import Recipe

if TYPE_CHECKING:
    from hanlin.layers.precision import Precision

__all__ = ["load"]


def load(  # noqa: PLR0913 what is loaded, from where, and how
    source: RecipeSource,
    overrides: Overrides = (),
    *,
    weights: Literal["best", "last", "base"] | str | Path | None = None,
    adapter: str | Path | None = None,
    vocab: str | Path | None = None,
    family: str | None = None,
    tuning: str | Path | None = None,
    device: str | None = None,
    precision: Precision | None = None,
    trust_code: bool = False,
) -> Model:
    """A model that answers.

    source: a folder or file of weights in any known layout; a run folder, which stands for what it has trained; a
    recipe (a file, a dict, settings), which stands for what its run has trained or, before there is a run, for what it
    starts from. overrides: other settings, a dict or words: {"generate.beams": 5}.

    weights: of a run: best (default; where there is none, last), last, base, or a path; adapter: what a tuning method
    trained, on top of a base; vocab, family, tuning: of weights that do not tell them (tuning: your own method, a
    Python file). device: as `run.device`, auto by default. precision: of weights and arithmetic, fp32, bf16 or fp16
    (None: the recipe's; for weights alone what the device computes best in). trust_code: run Python files that a
    recipe's file names.

    Raises: ConfigError that lists all problems, CheckpointError, before anything heavy starts.
    """
    settings = {"run.device": device, "train.precision": precision}
    changes, named = named_by(source, overrides)
    changes += read_changes({key: value for key, value in settings.items() if value is not None})
    with called(named, [family, tuning], trust_code=trust_code):
        if tuning is not None:
            import_file(Path(tuning))
        if is_recipe(source):
            if given := [name for name, value in (("vocab", vocab), ("family", family)) if value is not None]:
                raise ConfigError(f"{given[0]}: only for weights; a recipe says it with model.{given[0]}")
            recipe = _of_recipe(source, changes, weights, adapter)
        else:
            recipe = _of_weights(Path(str(source)), changes, weights, adapter, vocab, family)
        return _load(recipe)


def _load(recipe: Recipe) -> Model:
    from hanlin.run.components import build_components
    from hanlin.run.memory import answering_memory

    components = build_components(recipe)
    import torch

    from hanlin.run.weights import load_engine

    with answering_memory(recipe), with_threads(torch.get_num_threads()):  # loading sets those of the recipe
        return Model(components, load_engine(recipe, components, is_alone=True))


def _of_recipe(
    source: RecipeSource,
    changes: list[Change | Problem],
    weights: str | Path | None,
    adapter: str | Path | None,
) -> Recipe:
    from hanlin.api.recipes import with_run_weights

    if adapter is not None and weights not in (None, "base"):
        raise ConfigError("weights: an adapter lies on the recipe's base; give weights or adapter, not both")
    if adapter is not None:
        changes, weights = [*changes, *read_changes({"model.adapter": str(adapter)})], "base"
    return with_run_weights(source, changes, None if weights is None else str(weights), "generate")


def _of_weights(
    base: Path,
    changes: list[Change | Problem],
    weights: str | Path | None,
    adapter: str | Path | None,
    vocab: str | Path | None,
    family: str | None,
) -> Recipe:
    from hanlin.adapters.opening import is_adapter
    from hanlin.api.recipes import recipe_of_base

    base = expanded(base)
    if weights is not None:
        raise ConfigError(f"weights: only of a recipe or a run folder; {base} is neither")
    if is_adapter(base):
        raise ConfigError(
            f"{base} is an adapter; load its run folder, or the base that it was trained on: "
            f'hanlin.load(BASE, adapter="{base}")'
        )
    others: dict[str, Any] = {"adapter": adapter, "vocab": vocab}
    paths = {name: None if path is None else path_of(path, name) for name, path in others.items()}
    return recipe_of_base(base, changes, family=family, **paths)
