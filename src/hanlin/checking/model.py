"""The model of a recipe: its family and configuration, its tokens, its weights, how a layout divides it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from hanlin.checking.files import Purpose, read_json
from hanlin.checking.rows import record_problems
from hanlin.core.errors import ConfigError, HanlinError
from hanlin.formats.load import open_ours
from hanlin.formats.source import implausible_values, is_base, likely_families, open_any, open_source
from hanlin.generate.method import find_method
from hanlin.models.family import Family, ModelConfig, family_names, load_family
from hanlin.recipe.reading import Found, nearest
from hanlin.recipe.settings import Recipe
from hanlin.run.components import (
    Components,
    answers_in_row,
    blaming,
    find_adapter,
    make_processor,
    model_config,
    reach_problems,
    vocab_path,
)
from hanlin.run.teacher import TEACHER, teacher_components

_PADDING_ROWS = 1024  # embedding rows that a base may have beyond its tokens


def find_family(recipe: Recipe, found: list[tuple[str, str]]) -> Family | None:
    name = recipe.model.family
    if name not in family_names() and not name.endswith(".py"):
        found.append(
            ("model.family", f"there is no family {name!r}{nearest(name, family_names())}; or give a .py file")
        )
        return None
    try:
        return load_family(name)
    except ConfigError as error:
        found.append(("model.family", str(error).removeprefix("model.family: ")))
        return None


def size_problems(recipe: Recipe, family: Family) -> Found:
    size = recipe.model.size
    if size is not None and size not in family.sizes:
        yield "model.size", f"{family.name} has no size {size!r}{nearest(size, family.sizes)}"


def value_problems(recipe: Recipe, family: Family) -> Found:
    values = recipe.model.config
    known = [field.name for field in dataclasses.fields(family.config)]
    for name in values:
        if name not in known:
            yield f"model.config.{name}", f"{family.name} has no such value{nearest(name, known)}"
    given = {name: value for name, value in values.items() if name in known}
    try:
        TypeAdapter(family.config).validate_python(given)
    except ValidationError as error:
        for detail in error.errors():
            if detail["loc"] and detail["loc"][0] in given:
                yield f"model.config.{detail['loc'][0]}", f"{detail['msg']}; found {detail['input']!r}"
    for name, text in implausible_values(given, dataclasses.asdict(family.config())).items():
        yield f"model.config.{name}", text


def search_problems(recipe: Recipe, family: Family) -> Found:
    if find_method(recipe.generate).counts_padding(recipe.generate) and not family.beam_variant.length_includes_prompt:
        yield "generate.count_padding", f"has no effect with {family.name}, whose scores count the answer alone"
    if find_method(recipe.generate).lookup(recipe.generate) and not family.is_causal:
        yield (
            "generate.lookup",
            f"has no effect with {family.name}, which does not read several positions of an answer at once; remove it",
        )


def token_and_row_problems(recipe: Recipe, family: Family, purpose: Purpose) -> Found:
    key = "model.vocab" if recipe.model.vocab else "model.base"
    try:
        path = vocab_path(recipe)
        tokenizer = family.tokenizer(path)
    except HanlinError as error:
        other = _other_family(recipe, family)
        yield (
            ("model.family", f"{recipe.model.base} holds a {other}, not a {family.name}")
            if other
            else (key, str(error))
        )
        return
    if _is_original(recipe):
        return  # its configuration may have to be read from the weights: weight_problems does that
    try:
        source = None if recipe.model.base is None else open_source(recipe.model.base, family)
        adapter = find_adapter(recipe, family, source)
        config = model_config(recipe, family, tokenizer.vocab_size, source, adapter)
    except HanlinError as error:
        yield _with_key(error, "model.base")
        return
    if problems := [*_vocabulary(recipe, config.vocab_size, tokenizer.vocab_size, path), *_reach(recipe, config)]:
        yield from problems
        return
    try:
        processor = make_processor(recipe, family, tokenizer, config, adapter)
    except ConfigError as error:
        key, colon, text = str(error).partition(": ")
        if not colon or not key.startswith(("tuning.", "model.")):
            key, text = "data.options", str(error)
        yield key, f"{path}: {text}" if key == "model.vocab" else text
        return
    yield from record_problems(Components(recipe, family, config, tokenizer, processor, source, adapter), purpose)


def _other_family(recipe: Recipe, family: Family) -> str | None:
    """The family of the base, where it is certainly another one."""
    base = recipe.model.base
    if base is None:
        return None
    if is_base(base):
        found = read_json(base / "config.json")["family"]
        return found if found != family.name else None
    try:
        families = [load_family(name) for name in family_names()]
        known = [one.name for one in likely_families(open_any(base, families), families)]
    except HanlinError:
        return None
    return known[0] if known and family.name not in known else None


def _vocabulary(recipe: Recipe, rows: int, tokens: int, path: Path) -> Found:
    key = "model.vocab" if recipe.model.vocab else "model.base"
    if tokens > rows:
        yield key, f"{path} has {tokens:,} tokens, but the model has {rows:,} rows in its embedding (vocab_size)"
    elif recipe.model.base is not None and rows - tokens >= _PADDING_ROWS:
        yield key, f"{path} has {tokens:,} tokens, but {recipe.model.base} was made for {rows:,}; use its vocabulary"


def _reach(recipe: Recipe, config: ModelConfig) -> Found:
    if recipe.data.trained:
        yield from reach_problems(recipe.data.max_length, config, answers_in_row(recipe))


# --- what needs torch ---


def device_problems(recipe: Recipe, purpose: Purpose) -> Found:
    asked, precision = recipe.run.device, recipe.train.precision
    keeps_half = purpose == "train" and recipe.train.weight_dtype != "fp32"
    if not keeps_half and (asked == "cpu" or (asked == "auto" and precision != "bf16")):
        return
    from hanlin.core.device import best_precision, pick_device, precision_problem
    from hanlin.run.precision import weight_dtype_problem

    try:
        device = pick_device(asked)
    except HanlinError as error:
        yield "run.device", str(error).removeprefix("run.device: ")
        return
    if problem := precision_problem(precision, device):
        yield "train.precision", problem
    elif keeps_half and (
        problem := weight_dtype_problem(recipe, best_precision(device) if precision == "auto" else precision)
    ):
        yield "train.weight_dtype", problem


def weight_problems(recipe: Recipe, build: Callable[[], Components], purpose: Purpose) -> Found:
    if not _is_original(recipe):
        return
    try:
        components = build()
    except HanlinError as error:
        yield _with_key(error, "model.base")
        return
    path = recipe.model.vocab or recipe.model.base
    assert path is not None, recipe
    rows, tokens = components.config.vocab_size, components.tokenizer.vocab_size
    problems = [*_vocabulary(recipe, rows, tokens, path), *_reach(recipe, components.config)]
    yield from problems or record_problems(components, purpose)


def fit_problems(
    recipe: Recipe, build: Callable[[], Components], purpose: Purpose, *, is_loaded_next: bool = False
) -> Found:
    """Tensors of the base that are missing, surplus, of another shape than its configuration says, or no numbers.

    What answers at once looks at the numbers while it loads them: that comes next, and before it nothing is computed.
    """
    from hanlin.run.weights import refuse_unsound

    if recipe.model.base is None:
        return
    try:
        components = build()
        assert components.source is not None, recipe
        open_ours(components.source, components.family, config=components.base_config)
        if purpose != "generate":
            refuse_unsound(components, is_trained=purpose == "train", is_loaded_next=is_loaded_next)
    except HanlinError as error:
        yield _with_key(error, "model.base")


def tuning_and_layout_problems(recipe: Recipe, build: Callable[[], Components]) -> Found:
    """What the model, made and tuned without memory, says to the recipe's tuning and layout."""
    from hanlin.parallel.layout_checks import compile_problems, model_problems
    from hanlin.run.weights import empty_tuned_model
    from hanlin.training.optimizer import layout_problems

    try:
        model = empty_tuned_model(build())
    except HanlinError as error:
        yield _with_key(error, "model.adapter" if recipe.model.adapter else "tuning")
        return
    yield from model_problems(model, recipe.parallel)
    if recipe.train.compile == "blocks":
        yield from compile_problems(model, recipe.parallel)
    if recipe.parallel.tensor > 1:
        from hanlin.parallel.tensor import part_shapes

        yield from layout_problems(recipe.train.optimizer, part_shapes(model, recipe.parallel.tensor))


def answering_problems(recipe: Recipe, build: Callable[[], Components]) -> Found:
    """What the model, made without memory, says to the recipe's adapter."""
    from hanlin.run.weights import empty_frozen_model

    try:
        empty_frozen_model(build())
    except HanlinError as error:
        yield _with_key(error, "model.adapter")


def teacher_problems(recipe: Recipe, build: Callable[[], Components], *, is_loaded_next: bool = False) -> Found:
    """What keeps the model that the objective imitates from being read beside the student."""
    from hanlin.parallel.layout_checks import model_problems
    from hanlin.run.weights import empty_frozen_model, refuse_unsound

    try:
        found = teacher_components(build())
        if found is None:
            return
        with blaming(TEACHER):
            assert found.source is not None, found.recipe
            open_ours(found.source, found.family, config=found.base_config)
            model = empty_frozen_model(found)
            refuse_unsound(found, is_trained=False, is_loaded_next=is_loaded_next)
    except HanlinError as error:
        yield _with_key(error, TEACHER)
        return
    for key, text in model_problems(model, found.recipe.parallel):
        yield key, f"for {TEACHER}: {text}"


def _with_key(error: HanlinError, key: str) -> tuple[str, str]:
    """The setting that an error is about, by its own word if it says so, and the rest of it."""
    named, colon, text = str(error).partition(": ")
    is_key = bool(colon) and named.partition(".")[0] in Recipe.model_fields and "." in named and " " not in named
    return (named, text) if is_key else (key, str(error))


def _is_original(recipe: Recipe) -> bool:
    """Whether the base is in another layout than our own."""
    return recipe.model.base is not None and not is_base(recipe.model.base)
