"""What all uses of a recipe share: family, configuration, tokenizer and samples; no weights, no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hanlin.adapters.files import read_adapter_config, read_adapter_settings
from hanlin.core.errors import ConfigError
from hanlin.core.tokenizer import Tokenizer
from hanlin.formats.source import read_config
from hanlin.models.family import Family, ModelConfig, Processor, TakesPrompts, load_family, make_options
from hanlin.recipe.settings import PromptSettings, Recipe


@dataclass(frozen=True)
class Components:
    """What training, evaluation and generation share; no weights yet."""

    recipe: Recipe
    family: Family
    config: ModelConfig
    tokenizer: Tokenizer
    processor: Processor

    @cached_property
    def base_config(self) -> ModelConfig:
        """The configuration of the weights that the recipe starts from: without labels where they are those of a
        language model.

        Raises: CheckpointError.
        """
        model = self.recipe.model
        if model.base is None or not getattr(self.config, "labels", ()):
            return self.config

        changes = {name: value for name, value in model.config.items() if not name.startswith("label")}
        has_labels = bool(read_config(model.base, self.family, changes).labels)
        return self.config if has_labels else replace(self.config, labels=())


def build_components(recipe: Recipe) -> Components:
    """Family, configuration, tokenizer and samples of a recipe.

    Raises: ConfigError, CheckpointError.
    """
    family = load_family(recipe.model.family)
    tokenizer = family.tokenizer(vocab_path(recipe))
    config = model_config(recipe, family, tokenizer.vocab_size)
    return Components(recipe, family, config, tokenizer, make_processor(recipe, family, tokenizer, config))


def make_processor(recipe: Recipe, family: Family, tokenizer: Tokenizer, config: ModelConfig) -> Processor:
    """The family's samples; with soft prompts in their rows if the recipe tunes, or its adapter holds, such.

    Raises: ConfigError.
    """
    processor = family.processor(tokenizer, config, make_options(family, recipe.data.options))
    prompts = _soft_prompts(recipe, family)
    if prompts is None:
        return processor
    if not isinstance(processor, TakesPrompts):
        raise ConfigError(f"tuning.method: the rows of {family.name} have no place for soft prompts; choose lora")
    return processor.with_prompts(prompts)


def _soft_prompts(recipe: Recipe, family: Family) -> PromptSettings | None:
    """What is known of the soft prompts: the recipe's word, else that of the adapter."""
    if recipe.tuning.method == "prompt":
        return recipe.tuning.prompt
    if recipe.model.adapter is None:
        return None

    settings = read_adapter_settings(recipe.model.adapter, family)
    return settings.prompt if settings.method == "prompt" else None


def model_config(recipe: Recipe, family: Family, tokens: int) -> ModelConfig:
    """The base's configuration or the named size, with the adapter's and the recipe's single values over it.

    A fresh model without a stated vocab_size gets one row per token of the tokenizer.
    """
    changes = {**_adapter_config(recipe, family), **recipe.model.config}
    if recipe.model.base is not None:
        return read_config(recipe.model.base, family, changes)
    start = family.config() if recipe.model.size is None else family.sizes[recipe.model.size]
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    return replace(start, **{"vocab_size": tokens, **values})


def _adapter_config(recipe: Recipe, family: Family) -> dict[str, Any]:
    if recipe.model.adapter is None:
        return {}

    return read_adapter_config(recipe.model.adapter, family)


def vocab_path(recipe: Recipe) -> Path:
    path = recipe.model.vocab or recipe.model.base
    if path is None:
        raise ConfigError("model.vocab: name the vocabulary file (there is no model.base folder to take it from)")
    return path
