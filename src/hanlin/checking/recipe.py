"""The problems of a recipe: what is looked at, in which order.

Files and arithmetic are checked without torch; only an original checkpoint, a named device and the model itself, which
is made on the meta device, need it, and they are looked at last, when all else is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from hanlin.checking.files import Purpose, damaged_weights, data_file_problems, model_file_problems
from hanlin.checking.model import (
    answering_problems,
    device_problems,
    find_family,
    fit_problems,
    search_problems,
    size_problems,
    teacher_problems,
    token_and_row_problems,
    tuning_and_layout_problems,
    value_problems,
    weight_problems,
)
from hanlin.checking.run_folder import folder_problems
from hanlin.checking.settings import (
    batch_problems,
    idle_problems,
    length_problems,
    objective_problems,
    tracker_problems,
)
from hanlin.core.errors import ConfigError
from hanlin.models.family import option_problems
from hanlin.parallel.layout_checks import settings_problems
from hanlin.recipe.reading import Draft, Overrides, Problem, RecipeSource, listing, name_of, read_recipe
from hanlin.recipe.settings import Recipe
from hanlin.recipe.unused_settings import unused_settings
from hanlin.run.components import build_components, warm_start
from hanlin.run.folder import Start, with_run_precision
from hanlin.run.teacher import teacher_setting_problems


@dataclass(frozen=True)
class Checked:
    """What was found of a recipe. recipe: None where a section cannot stand; it can be run if there are no problems."""

    recipe: Recipe | None
    problems: list[Problem]


def check_source(
    source: RecipeSource,
    overrides: Overrides = (),
    purpose: Purpose | None = None,
    *,
    start: Start = "resume",
    is_loaded_next: bool = False,
) -> Checked:
    """Read and check a recipe; purpose None: train when the recipe has a section `train` or training data,
    else evaluate; start: how training would begin where the run folder holds a run; is_loaded_next: as of `check`.

    Raises: ConfigError when its file cannot be read.
    """
    draft = read_recipe(source, overrides)
    problems, recipe = list(draft.problems), draft.recipe
    if recipe is not None:
        purpose = purpose or _purpose(recipe)
        recipe, contrary = warm_start(recipe) if purpose == "train" and not problems else (recipe, [])
        problems += [Problem(key, text, _place(key, draft.places)) for key, text in contrary]
        with_torch = not problems
        found = check(recipe, draft.places, purpose, with_torch=with_torch, start=start, is_loaded_next=is_loaded_next)
        problems += [problem for problem in found if not draft.problems or not _follows(problem, draft, recipe)]
    return Checked(recipe, problems)


def check_file(
    source: RecipeSource,
    overrides: Overrides = (),
    purpose: Purpose | None = None,
    *,
    start: Start = "resume",
    is_loaded_next: bool = False,
) -> Recipe:
    """`check_source` of a recipe that is to be run.

    Raises: ConfigError that lists all problems.
    """
    checked = check_source(source, overrides, purpose, start=start, is_loaded_next=is_loaded_next)
    if checked.problems or checked.recipe is None:
        raise ConfigError(listing(checked.problems, name_of(source)))
    return checked.recipe


def check(
    recipe: Recipe,
    places: Mapping[str, str] | None = None,
    purpose: Purpose | None = None,
    *,
    with_torch: bool = True,
    start: Start = "resume",
    is_loaded_next: bool = False,
) -> list[Problem]:
    """All problems of a recipe whose values are right one by one.

    places: where each key stands; with_torch: look at the device and at original weights too, which takes seconds;
    is_loaded_next: the numbers and bytes of a large base are left to who loads it, which reads it anyway.
    """
    places, purpose = places or {}, purpose or _purpose(recipe)
    found = [*idle_problems(recipe, places), *model_file_problems(recipe), *data_file_problems(recipe, purpose)]
    if purpose == "train":
        found += [
            *length_problems(recipe),
            *batch_problems(recipe),
            *objective_problems(recipe),
            *teacher_setting_problems(recipe),
            *settings_problems(recipe),
            *folder_problems(recipe, start),
            *tracker_problems(recipe),
        ]
    family = find_family(recipe, found)
    if family is not None:
        found += [*size_problems(recipe, family), *value_problems(recipe, family)]
        found += [*search_problems(recipe, family), *option_problems(family, recipe.data.options)]
        if not any(key.startswith(("model.", "data.options", "data.transform")) for key, _ in found):
            found += [*token_and_row_problems(recipe, family, purpose)]
    if with_torch and (damaged := [*damaged_weights(recipe, purpose, is_loaded_next=is_loaded_next)]):
        found = [*damaged, *found]  # first, as others may follow from it
    components = cache(lambda: build_components(recipe))
    if not found and with_torch:
        asked = with_run_precision(recipe, start) if purpose == "train" else recipe
        found += [*device_problems(asked, purpose), *weight_problems(recipe, components, purpose)]
    if not found and with_torch:
        found += fit_problems(recipe, components, purpose, is_loaded_next=is_loaded_next)
        if purpose == "train" and not found:
            found += teacher_problems(recipe, components, is_loaded_next=is_loaded_next)
    if not found and with_torch:
        found += (tuning_and_layout_problems if purpose == "train" else answering_problems)(recipe, components)
    return [Problem(key, text, _place(key, places)) for key, text in found]


def _purpose(recipe: Recipe) -> Purpose:
    return "train" if recipe.data.trained or "train" in recipe.model_fields_set else "evaluate"


def _place(key: str, places: Mapping[str, str]) -> str:
    return places.get(key) or places.get(key.rpartition(".")[0], "")


def _follows(problem: Problem, draft: Draft, recipe: Recipe) -> bool:
    """Whether a problem may only be there because a wrong setting was left out of the draft."""
    wrong = {other.key for other in draft.problems}
    idle = unused_settings(recipe).get(problem.key)
    if any(key.startswith("train.objective") for key in wrong) and problem.key in ("data.train", "data.eval"):
        return True  # it decides what rows are read
    # The run of a folder is compared with all settings. What is missing may stand there under a wrong name.
    return (
        problem.key in (*wrong, "run.folder")
        or problem.key not in draft.places
        or (idle is not None and idle.cause in wrong)
    )
