"""Which settings of generation somebody chose: what shows a text while it is written, or talks, has own defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import ConfigError

if TYPE_CHECKING:
    from hanlin.recipe.settings import GenerateSettings, Recipe

__all__ = ["chatting", "chosen_settings", "generate_settings", "streaming"]


def generate_settings(recipe: Recipe, changes: Mapping[str, Any]) -> GenerateSettings:
    """Those of a recipe with other values: `max_new_tokens`, `method`, ...

    Raises: ConfigError that lists all mistakes.
    """
    from hanlin.checking.model import search_problems
    from hanlin.models.family import load_family
    from hanlin.recipe.reading import load_recipe

    if not changes:
        return recipe.generate
    changed = load_recipe(recipe, {"generate": dict(changes)})
    if problems := list(search_problems(changed, load_family(recipe.model.family))):
        raise ConfigError("; ".join(f"{key}: {text}" for key, text in problems))
    return changed.generate


def streaming(options: GenerateSettings, named: Iterable[str]) -> GenerateSettings:
    """Greedy in place of the default beam search, whose text is known at its end only."""
    from hanlin.recipe.settings import GENERATE_METHODS

    return GENERATE_METHODS.make({"method": "greedy", **chosen_settings(options, named)})


def chatting(options: GenerateSettings, named: Iterable[str]) -> GenerateSettings:
    """The settings chosen, over those with which the original of ChatGLM2 chats."""
    from hanlin.recipe.settings import GENERATE_METHODS

    chosen = chosen_settings(options, named)
    draws = {"method": "sample", "top_p": 0.8, "temperature": 0.8} if "method" not in chosen else {}
    return GENERATE_METHODS.make({**draws, "max_new_tokens": 1024, **chosen})


def chosen_settings(options: GenerateSettings, named: Iterable[str]) -> dict[str, Any]:
    """The settings that differ from their defaults, and those that were named just now (`generate.top_p`, `generate`).

    Whether a recipe spells a default out says nothing: the config.yaml of a run spells all of them out. A method is
    chosen too where one of its own settings is.
    """
    from hanlin.recipe.settings import GENERATE_METHODS, GenerateSettings

    typed = {word.partition("=")[0] for word in named}
    default = GENERATE_METHODS.make_default()
    chosen = {
        name: value
        for name, value in options
        if typed & {"generate", f"generate.{name}"} or value != getattr(default, name, None)
    }
    if chosen.keys() - GenerateSettings.model_fields:
        chosen["method"] = options.method
    return chosen
