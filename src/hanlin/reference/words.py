"""Types, limits and defaults of settings in words, English and Chinese."""

from __future__ import annotations

import json
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from hanlin.core.language import Language
from hanlin.reference.settings import REQUIRED, NameOrFile, Setting, plain
from hanlin.reference.since import first_version, since

__all__ = ["belongs_words", "default_words", "depends_words", "kind_words", "since_words"]

_WORDS = {
    "en": {
        bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path", dict: "section",
        Any: "any value", "list": "list of {}", "or": " or ", "file": "a Python file", "required": "required",
        "belongs": "Only with `{}`: {}.", "depends": "Whether it has an effect depends on {}.", "and": ", ",
        "since": "Since {}.", "next": "Since the next version.",
    },
    "zh": {
        bool: "true 或 false", int: "整数", float: "数", str: "文本", Path: "路径", dict: "键值表",
        Any: "任意值", "list": "列表，每项为 {}", "or": " 或 ", "file": "Python 文件", "required": "必填",
        "belongs": "只用于 `{}` 为 {} 时。", "depends": "是否起作用取决于 {}。", "and": "、", "since": "自 {} 版起。",
        "next": "自下一版起。",
    },
}  # fmt: skip


def kind_words(setting: Setting, language: Language) -> str:
    """Its type and its limits: `whole number > 0 or null`."""
    return _kind(setting.kind, setting.limits, _WORDS[language])


def default_words(setting: Setting, language: Language) -> str:
    """As it is written in a recipe."""
    if setting.default is REQUIRED:
        return _WORDS[language]["required"]
    return _value(plain(setting.default))


def belongs_words(setting: Setting, language: Language) -> str:
    """Which value of another setting it goes with; empty: with all."""
    words = _WORDS[language]
    values = words["and"].join(f"`{value}`" for value in setting.values)
    return words["belongs"].format(setting.chosen_by, values) if values else ""


def depends_words(setting: Setting, language: Language) -> str:
    """Which settings can make it idle; empty: none."""
    words = _WORDS[language]
    causes = words["and"].join(f"`{key}`" for key in setting.depends_on)
    return words["depends"].format(causes) if causes else ""


def since_words(setting: Setting, language: Language) -> str:
    """The version that brought it; empty: the first."""
    version, words = since(setting), _WORDS[language]
    if version is None:
        return words["next"]
    return "" if version == first_version() else words["since"].format(version)


def _kind(kind: Any, limits: Iterable[Any], words: dict[Any, str]) -> str:
    if isinstance(kind, NameOrFile):
        return words["or"].join([*(f"`{name}`" for name in kind.names), words["file"]])
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _kind(inner[0], [*inner[1:], *limits], words)
    if origin is Literal:
        return words["or"].join(f"`{_value(value)}`" for value in inner)
    if origin in (Union, types.UnionType):
        parts = [_kind(part, limits, words) for part in inner if part is not type(None)]
        return words["or"].join([*parts, *(["null"] if type(None) in inner else [])])
    if origin is tuple:
        return words["list"].format(_kind(inner[0], (), words)) + _length(inner, words)
    return " ".join([words.get(origin or kind, str(kind)), *_bounds(limits)])


def _length(inner: tuple[Any, ...], words: dict[Any, str]) -> str:
    return "" if inner[-1] is Ellipsis else f" (x {len(inner)})"


def _bounds(limits: Iterable[Any]) -> list[str]:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}  # the fields of annotated_types.Gt and its kin
    flat = [one for limit in limits for one in (limit.metadata if isinstance(limit, FieldInfo) else [limit])]
    found = [
        f"{sign} {_value(getattr(one, name))}" for one in flat for name, sign in signs.items() if hasattr(one, name)
    ]
    return [", ".join(found)] if found else []


def _value(value: Any) -> str:
    """A value as YAML has it, in one line."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):
        return value or '""'
    return json.dumps(value, ensure_ascii=False)
