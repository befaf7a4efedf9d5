"""What all uses of a recipe share: family, configuration, tokenizer and samples; no weights, no torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hanlin.core.errors import ConfigError, HanlinError
from hanlin.core.files import check_regular
from hanlin.core.manifest import check_manifest
from hanlin.core.tokenizer import Tokenizer
from hanlin.data.prepare import hash_tokenizer
from hanlin.formats.source import Source, open_source, read_config
from hanlin.models.family import Family, ModelConfig, Processor, load_family, make_options
from hanlin.recipe.reading import nearest
from hanlin.recipe.settings import Recipe
from hanlin.training.objective import find_objective

if TYPE_CHECKING:
    from hanlin.adapters.adapter import Adapter

_REPLACED = ("tuning.", "model.base")
"""What `blaming` takes another setting for."""

_BESIDE = re.compile(r"manifest\.json|calibration\.(json|png)|README(\..*)?|\..*", re.IGNORECASE)
"""What may lie in an adapter's folder and decides nothing."""


@dataclass(frozen=True)
class Components:
    """What training, evaluation and generation share; source, adapter: the weights that the recipe starts from and the
    adapter on them, opened once.
    """

    recipe: Recipe
    family: Family
    config: ModelConfig
    tokenizer: Tokenizer
    processor: Processor
    source: Source | None = None
    adapter: Adapter | None = None

    @cached_property
    def base_config(self) -> ModelConfig:
        """The configuration of the weights that the recipe starts from: without labels where they are those of a
        language model.

        Raises: CheckpointError.
        """
        if self.source is None or not getattr(self.config, "labels", ()):
            return self.config
        given = self.recipe.model.config
        has_labels = bool(
            self.source.config({name: given[name] for name in given if not name.startswith("label")}).labels
        )
        return self.config if has_labels else replace(self.config, labels=())

    def weight_files(self) -> list[Path]:
        """Those of the base and of the adapter, with its settings; what else lies beside them (manifest, calibration,
        model card) decides nothing.
        """
        base, adapter = () if self.source is None else self.source.weights.files, self.recipe.model.adapter
        if adapter is None or adapter.is_file():
            return [*base, *([] if adapter is None else [adapter])]
        own = [file for file in sorted(adapter.rglob("*")) if file.is_file() and not _BESIDE.fullmatch(file.name)]
        return [*base, *own]

    def identity(self) -> str:
        """Hash of all that decides the model's answers besides its tensors: configuration, tokenizer, how records are
        read, the adapter's settings; and which files experts are read from while it answers.
        """
        recipe, adapter = self.recipe, self.adapter
        streamed = self.source.weights.files if self.source and recipe.generate.expert_memory is not None else ()
        facts = [
            asdict(self.config),
            hash_tokenizer(self.tokenizer),
            recipe.data.options,
            None if adapter is None else adapter.settings.model_dump(mode="json"),
            [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in streamed],
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def build_components(recipe: Recipe) -> Components:
    """Family, configuration, tokenizer and samples of a recipe.

    Raises: ConfigError, CheckpointError.
    """
    family = load_family(recipe.model.family)
    tokenizer = family.tokenizer(vocab_path(recipe))
    source = None if recipe.model.base is None else open_source(recipe.model.base, family)
    adapter = find_adapter(recipe, family, source)
    config = model_config(recipe, family, tokenizer.vocab_size, source, adapter)
    processor = make_processor(recipe, family, tokenizer, config, adapter)
    return Components(recipe, family, config, tokenizer, processor, source, adapter)


def find_adapter(recipe: Recipe, family: Family, source: Source | None = None) -> Adapter | None:
    """The recipe's adapter, if it has one; source: its base, where that is open.

    Raises: CheckpointError.
    """
    if recipe.model.adapter is None:
        return None
    from hanlin.adapters.opening import open_adapter

    config = None if source is None else source.config()
    with blaming("model.adapter"):
        return open_adapter(recipe.model.adapter, family, config)


@contextmanager
def blaming(key: str) -> Iterator[None]:
    """Let an error name the setting that it is about, in place of one of the recipe's tuning or its base."""
    try:
        yield
    except HanlinError as error:
        named, colon, text = str(error).partition(": ")
        raise type(error)(f"{key}: {text if colon and named.startswith(_REPLACED) else error}") from error


def warm_start(recipe: Recipe) -> tuple[Recipe, list[tuple[str, str]]]:
    """A recipe that trains an adapter on, with those of its settings that the adapter fixes; and key and text of what
    the recipe says otherwise. What is wrong with the adapter itself is found where it is opened.
    """
    if recipe.model.adapter is None:
        return recipe, []
    try:
        family = load_family(recipe.model.family)
        source = None if recipe.model.base is None else open_source(recipe.model.base, family)
        adapter = find_adapter(recipe, family, source)
    except HanlinError:
        return recipe, []
    if adapter is None:
        return recipe, []
    here, there = recipe.tuning, adapter.settings
    if type(here) is not type(there):
        text = (
            f"{here.method}, but model.adapter is a {there.method}; go on with that method, or work it into the base "
            "first: hanlin convert BASE MERGED --merge ADAPTER"
        )
        return recipe, [("tuning.method", text)]
    fixed = {name: getattr(there, name) for name in there.fixed if name in there.model_fields_set}
    stated = {name: getattr(here, name) for name in fixed if name in here.model_fields_set}
    problems = [
        (f"tuning.{name}", f"{_shown(value)}, but model.adapter was trained with {_shown(fixed[name])}; leave it out")
        for name, value in stated.items()
        if not _is_same(value, fixed[name])
    ]
    return recipe.model_copy(update={"tuning": here.model_copy(update=fixed)}), problems


def _is_same(here: object, there: object) -> bool:
    if isinstance(here, tuple) and isinstance(there, tuple):
        return not here or sorted(map(str, here)) == sorted(map(str, there))  # nothing: the family's own choice
    return here == there


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def make_processor(
    recipe: Recipe, family: Family, tokenizer: Tokenizer, config: ModelConfig, adapter: Adapter | None = None
) -> Processor:
    """The family's samples, as the recipe's tuning method and that of its adapter need them.

    Raises: ConfigError.
    """
    processor = family.processor(tokenizer, config, make_options(family, recipe.data.options))
    processor = recipe.tuning.adapt_processor(processor, family)
    if adapter is None or adapter.settings.method == recipe.tuning.method:
        return processor
    with blaming("model.adapter"):
        return adapter.settings.adapt_processor(processor, family)


def model_config(
    recipe: Recipe, family: Family, tokens: int, source: Source | None = None, adapter: Adapter | None = None
) -> ModelConfig:
    """The base's configuration or the named size, with the adapter's and the recipe's single values over it.

    source: the base, where it is open already. A fresh model without a stated vocab_size gets one row per token of the
    tokenizer.
    """
    changes = {**(adapter.config if adapter is not None else {}), **recipe.model.config}
    if recipe.model.base is not None:
        return read_config(source or recipe.model.base, family, changes)
    size = recipe.model.size
    if size is not None and size not in family.sizes:
        raise ConfigError(f"model.size: {family.name} has no size {size!r}{nearest(size, family.sizes)}")
    start = family.config() if size is None else family.sizes[size]
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    return replace(start, **{"vocab_size": tokens, **values})


def answers_in_row(recipe: Recipe) -> int:
    """How many answers, each with its question and positions of its own, share the room of a row."""
    return max(len(find_objective(recipe.train.objective).answers), 1)


def reach_problems(max_length: int, config: ModelConfig, answers: int = 1) -> Iterator[tuple[str, str]]:
    """Key and text of what keeps rows of so many tokens, of so many answers, from a model."""
    limit, length = getattr(config, "max_length", None), max_length // answers
    if limit is not None and length > limit:
        each = f" for each of {answers} answers" if answers > 1 else ""
        yield (
            "data.max_length",
            f"{length} tokens{each}, but the model reads at most {limit} (max_length); lower it, or set "
            "model.config.max_length for a fresh model",
        )


def vocab_path(recipe: Recipe) -> Path:
    """Where the tokenizer's files lie.

    Raises: ConfigError, CheckpointError when they are not as they were written.
    """
    path = recipe.model.vocab or recipe.model.base
    if path is None:
        raise ConfigError("model.vocab: name the vocabulary file (there is no model.base folder to take it from)")
    check_regular(path, ConfigError)
    if recipe.model.vocab is not None:
        check_manifest(path)
    return path
