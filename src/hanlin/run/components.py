"""What all uses of a recipe share: family, configuration, tokenizer and samples; no weights, no torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hanlin.core.errors import ConfigError
from hanlin.core.files import check_regular
from hanlin.core.manifest import check_manifest
from hanlin.core.tokenizer import Tokenizer
from hanlin.data.prepare import hash_tokenizer
from hanlin.formats.source import Source, open_source, read_config
from hanlin.models.family import Family, ModelConfig, Processor, load_family, make_options
from hanlin.recipe.settings import Recipe

if TYPE_CHECKING:
    from hanlin.adapters.adapter import Adapter


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
    adapter = find_adapter(recipe, family)
    config = model_config(recipe, family, tokenizer.vocab_size, source, adapter)
    processor = make_processor(recipe, family, tokenizer, config, adapter)
    return Components(recipe, family, config, tokenizer, processor, source, adapter)


def find_adapter(recipe: Recipe, family: Family) -> Adapter | None:
    """The recipe's adapter, if it has one.

    Raises: CheckpointError.
    """
    if recipe.model.adapter is None:
        return None
    from hanlin.adapters.opening import open_adapter

    return open_adapter(recipe.model.adapter, family)


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
    start = family.config() if recipe.model.size is None else family.sizes[recipe.model.size]
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    return replace(start, **{"vocab_size": tokens, **values})


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
