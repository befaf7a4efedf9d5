"""The teacher of a recipe whose objective imitates one: which model it is, and whether it reads what the student does.

It is a copy on each data rank, frozen, and divided by tensor ranks as the student is.
"""

from __future__ import annotations

from pathlib import Path

from hanlin.adapters.folder import ADAPTER_FOLDER
from hanlin.adapters.opening import is_adapter, weights_of_run
from hanlin.core.errors import ConfigError, HanlinError
from hanlin.core.hub import hint
from hanlin.data.prepare import hash_tokenizer
from hanlin.models.family import Family, RanksCandidates
from hanlin.recipe.reading import Found, load_recipe
from hanlin.recipe.settings import ModelSettings, ParallelSettings, Recipe
from hanlin.recipe.tuning import TUNING_METHODS, TuningMethod
from hanlin.run.components import Components, blaming, build_components, reach_problems, vocab_path
from hanlin.training.objective import TeacherSettings, teacher_settings

__all__ = ["TEACHER", "teacher_components", "teacher_recipe", "teacher_setting_problems"]

TEACHER = "train.objective.teacher"
"""The setting that names it."""


def teacher_setting_problems(recipe: Recipe) -> Found:
    """What keeps a recipe from having the teacher that its objective asks for, as far as its settings tell."""
    try:
        asked = teacher_settings(recipe.train.objective)
    except ConfigError as error:
        yield TEACHER, str(error).removeprefix(f"{TEACHER}: ")
        return
    if asked is None:
        return
    for key, path in ((TEACHER, asked.path), (f"{TEACHER}_adapter", asked.adapter)):
        if path is not None and not path.exists():
            yield key, f"there is no {path}{hint(path) or '; check the path'}"
    if recipe.parallel.pipe > 1:
        yield (
            "parallel.pipe",
            f"{recipe.parallel.pipe}, but the loss of train.objective={recipe.train.objective.name} is made of what "
            "student and teacher say at once, and the stages of a pipeline run by themselves; use parallel.data, "
            "parallel.tensor or parallel.shard",
        )
    if _adapts_rows(recipe.tuning):
        yield (
            "tuning.method",
            f"the rows of {recipe.tuning.method} have places for what it trains, which a teacher cannot read; choose "
            "full, lora, ia3 or prefix",
        )


def teacher_components(student: Components) -> Components | None:
    """What the teacher is made of; None where the objective has none.

    Raises: ConfigError, CheckpointError, naming the setting: for what is no model, and for one of another family, with
    other tokens or with fewer positions than the rows of the student have.
    """
    asked, recipe = teacher_settings(student.recipe.train.objective), student.recipe
    if asked is None:
        return None
    with blaming(TEACHER):
        found = build_components(teacher_recipe(asked, recipe, student.family))
        _refuse_others(found, student)
    return found


def teacher_recipe(asked: TeacherSettings, recipe: Recipe, family: Family) -> Recipe:
    """The recipe with the teacher as its model.

    Raises: ConfigError.
    """
    base, adapter, vocab = _located(asked)
    if not base.exists():
        raise ConfigError(f"there is no {base}, which {asked.path} was trained on")
    if vocab is None and not _has_tokenizer(base, family):
        vocab = vocab_path(recipe)
    train = recipe.train.model_copy(update={"precision": asked.precision or recipe.train.precision})
    model = ModelSettings(family=recipe.model.family, base=base, adapter=adapter, quantise=asked.quantise, vocab=vocab)
    plain = {
        "model": model,
        "train": train,
        "tuning": TUNING_METHODS.make_default(),
        "generate": recipe.generate.model_copy(update={"expert_memory": None}),
        "parallel": ParallelSettings(tensor=recipe.parallel.tensor),
    }
    return recipe.model_copy(update=plain)


def _located(asked: TeacherSettings) -> tuple[Path, Path | None, Path | None]:
    """Base, adapter and, where a run says it, vocabulary.

    Raises: ConfigError for an adapter without its base.
    """
    weights = weights_of_run(asked.path)
    if weights == asked.path:
        if is_adapter(weights):
            raise ConfigError(
                f"{weights} is an adapter; name its run folder, or its base here and {weights} as "
                "train.objective.teacher_adapter"
            )
        return weights, asked.adapter, None
    former = load_recipe(asked.path).model
    if not is_adapter(weights):
        own = weights / ADAPTER_FOLDER
        return weights, asked.adapter or (own if is_adapter(own) else None), None
    if former.base is None:
        raise ConfigError(f"{asked.path} has trained an adapter of weights that were drawn, and no base; name another")
    return former.base, asked.adapter or weights, former.vocab


def _has_tokenizer(base: Path, family: Family) -> bool:
    try:
        return base.is_dir() and family.tokenizer(base) is not None
    except HanlinError:
        return False  # a checkpoint of an original may have none; its rows of the embedding are compared


def _refuse_others(teacher: Components, student: Components) -> None:
    """Raises: ConfigError."""
    recipe, path = student.recipe, teacher.recipe.model.base
    here, there = student.config.vocab_size, teacher.config.vocab_size
    if hash_tokenizer(teacher.tokenizer) != hash_tokenizer(student.tokenizer):
        raise ConfigError(
            f"{path} has other tokens ({teacher.tokenizer.vocab_size:,}) than this model "
            f"({student.tokenizer.vocab_size:,}), so their probabilities cannot be compared; name a teacher with the "
            "same vocabulary, or train with its vocabulary (model.vocab)"
        )
    if here != there:
        raise ConfigError(
            f"{path} has {there:,} rows in its embedding (vocab_size), this model {here:,}; set "
            f"model.config.vocab_size: {there} for fresh weights, or name another teacher"
        )
    if any(getattr(one.config, "labels", ()) for one in (teacher, student)):
        raise ConfigError("a head for labels has no probabilities of tokens; use train.objective: likelihood")
    if isinstance(student.processor, RanksCandidates) and student.processor.learns_ranks:
        raise ConfigError("rows to be ranked (data.options) have no probabilities of tokens; use likelihood")
    if teacher.adapter is not None and _adapts_rows(teacher.adapter.settings):
        raise ConfigError(
            f"{teacher.adapter.path}: the rows of {teacher.adapter.settings.method} have places for what it has "
            "trained, which the student's rows lack; name a teacher that is tuned otherwise"
        )
    for _, text in reach_problems(recipe.data.max_length, teacher.config):
        raise ConfigError(f"{path}: data.max_length is {text}")


def _adapts_rows(tuning: TuningMethod) -> bool:
    return type(tuning).adapt_processor is not TuningMethod.adapt_processor
