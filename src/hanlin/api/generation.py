"""Which settings of generation somebody chose: what shows a text while it is written, or talks, has own defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hanlin.core.errors import ConfigError

if TYPE_CHECKING:
    from hanlin.recipe.settings import GenerateSettings, Recipe

__all__ = [
    "chatting",
    "check_length",
    "chosen_settings",
    "generate_settings",
    "requested",
    "states_length",
    "streaming",
]


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
    """The settings chosen, over those with which the original of ChatGLM2 chats; how long an answer may be is then
    not stated, and less where less fits.
    """
    from hanlin.recipe.settings import GENERATE_METHODS

    chosen = chosen_settings(options, named)
    draws = {"method": "sample", "top_p": 0.8, "temperature": 0.8} if "method" not in chosen else {}
    settings = GENERATE_METHODS.make({**draws, "max_new_tokens": 1024, **chosen})
    if "max_new_tokens" not in chosen:
        settings.model_fields_set.discard("max_new_tokens")
    return settings


def requested(default: GenerateSettings, said: Mapping[str, Any], num_answers: int) -> GenerateSettings:
    """The settings of a request for so many answers: what it says, else the default. A temperature of 0 is greedy
    search; any other one, `top_p`, `top_k` or `min_p`, and several answers, are sampling.

    Raises: pydantic.ValidationError.
    """
    from hanlin.recipe.settings import GENERATE_METHODS

    of_sampling, said = {"temperature", "top_p", "top_k", "min_p"}, dict(said)
    method = default.method
    if said.get("temperature") == 0:
        method, said = "greedy", {name: value for name, value in said.items() if name not in of_sampling}
    elif of_sampling & said.keys() or num_answers > 1:
        method = "sample"
        if default.method != "sample":  # what a client does not say is then as its own documentation has it
            said = {"temperature": 1.0, "top_p": 1.0} | said
    settings = GENERATE_METHODS.load(method).settings
    base = {name: value for name, value in default if name in settings.model_fields and name != "method"}
    return settings(**base | said, method=method)


def states_length(options: GenerateSettings) -> bool:
    """Whether somebody chose how long an answer may be."""
    return "max_new_tokens" in options.model_fields_set


def check_length(options: GenerateSettings, max_length: int | None) -> None:
    """Whether an answer of the stated length leaves room for any prompt; max_length: of both together.

    Raises: ConfigError.
    """
    if max_length is not None and states_length(options) and options.max_new_tokens >= max_length:
        raise ConfigError(
            f"generate.max_new_tokens: {options.max_new_tokens:,}, but the model reads at most {max_length:,} tokens, "
            "prompt and answer together; lower it, or leave it out: then an answer has the room that is left"
        )


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
