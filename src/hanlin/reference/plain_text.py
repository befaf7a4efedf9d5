"""Settings as a terminal shows them: one of them in full, or a section with a line for each."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Sequence

from hanlin.core.language import Language
from hanlin.reference.chinese import said_in
from hanlin.reference.settings import REQUIRED, Setting
from hanlin.reference.words import belongs_words, default_words, depends_words, kind_words, since_words

__all__ = ["section_text", "setting_text"]

_WIDTH = 110
_WORDS = {
    "en": {"type": "type", "default": "default", "recipe": "in a recipe", "line": "on a command line"},
    "zh": {"type": "类型", "default": "默认值", "recipe": "写在配置里", "line": "写在命令行上"},
}


def setting_text(setting: Setting, language: Language) -> str:
    """Everything that is known of a setting."""
    words, colon = _WORDS[language], {"en": ": ", "zh": "："}[language]
    about = [belongs_words(setting, language), depends_words(setting, language), since_words(setting, language)]
    effect = [said_in(language, setting.effect), *about]
    default = default_words(setting, language)
    value = "..." if setting.default is REQUIRED else default
    facts = [
        (words["type"], kind_words(setting, language)),
        (words["default"], default),
        (words["recipe"], _in_a_recipe(setting.key.split("."), value)),
        (words["line"], shlex.quote(f"{setting.key}={value}")),
    ]
    lines = [line for text in effect if text for line in _wrapped(text, language)]
    return _bare("\n".join([setting.key, *(f"  {line}" for line in [*lines, *map(colon.join, facts)])]))


def section_text(settings: Sequence[Setting], language: Language) -> str:
    """A line for each: key, default, the first sentence of what it does."""
    width = max(len(setting.key) for setting in settings)
    defaults = [default_words(setting, language) for setting in settings]
    room = min(max(map(len, defaults)), 16)
    return "\n".join(
        f"{setting.key:{width}}  {default:{room}}  {_first_sentence(_bare(said_in(language, setting.effect)))}"
        f"{_of_values(setting)}"
        for setting, default in zip(settings, defaults, strict=True)
    )


def _in_a_recipe(keys: Sequence[str], value: str) -> str:
    first, *rest = keys
    return f"{first}: {{{_in_a_recipe(rest, value)}}}" if rest else f"{first}: {value}"


def _of_values(setting: Setting) -> str:
    return f" [{', '.join(setting.values)}]" if setting.values else ""


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.])\s+(?=[A-Z])|(?<=。)", text, maxsplit=1)[0]


def _wrapped(text: str, language: Language) -> list[str]:
    """A terminal breaks Chinese lines well by itself."""
    return [text] if language == "zh" else textwrap.wrap(text, _WIDTH, break_long_words=False)


def _bare(text: str) -> str:
    return text.replace("`", "")
