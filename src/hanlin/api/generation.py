"""Which settings of generation somebody chose: commands that show a text while it is written have own defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hanlin.recipe.settings import GenerateSettings


def chosen_settings(options: GenerateSettings, words: Sequence[str]) -> dict[str, Any]:
    """The settings that differ from their defaults, and those that stand on the command line (`words`).

    Whether a recipe spells a default out says nothing: the config.yaml of a run spells all of them out. A method is
    chosen too where one of its own settings is.
    """
    from hanlin.recipe.settings import GENERATE_METHODS, GenerateSettings

    typed = {word.partition("=")[0] for word in words}
    default = GENERATE_METHODS.make_default()
    chosen = {
        name: value
        for name, value in options
        if typed & {"generate", f"generate.{name}"} or value != getattr(default, name, None)
    }
    if chosen.keys() - GenerateSettings.model_fields:
        chosen["method"] = options.method
    return chosen
