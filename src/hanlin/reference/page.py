"""docs/settings.md and docs/settings.zh-CN.md: every setting in tables, made from the settings themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hanlin.core.language import Language
from hanlin.models.family import family_names, load_family
from hanlin.recipe.settings import Recipe
from hanlin.reference.chinese import said_in
from hanlin.reference.settings import FAMILY, REQUIRED, Setting, family_settings, recipe_settings, section_texts
from hanlin.reference.since import first_version
from hanlin.reference.words import belongs_words, default_words, depends_words, kind_words, since_words

__all__ = ["PAGES", "settings_page"]

PAGES: dict[Language, str] = {"en": "docs/settings.md", "zh": "docs/settings.zh-CN.md"}

_HEADS = {
    "en": """\
# Settings of a recipe

English | [简体中文](settings.zh-CN.md)

<!-- Made from the settings' source by `make reference`; change the comments there, not this page. -->

Every setting with its type, default and effect. `hanlin help train.lr` says the same of one of them, `hanlin help
tuning` of a section; a name that is not quite right finds the nearest. How recipes are written:
[recipes.md](recipes.md). What means nothing beside the others is an error, and `hanlin check` says so.
All are there since version {version}, but where a later one is named.

Editors complete, explain and check recipes by a JSON schema. `hanlin init` and `hanlin recipes copy` put it beside what
they write, and name it in the first line; for other recipes `hanlin help --schema` writes it:
""",
    "zh": """\
# 配置的全部设置

[English](settings.md) | 简体中文

<!-- 由 `make reference` 根据设置的源码生成；请修改源码中的注释和 src/hanlin/reference/chinese.yaml，不要修改本页。 -->

每个设置的类型、默认值和作用。`hanlin help train.lr` 显示其中一个，`hanlin help tuning` 显示一个小节；
名称不完全正确时会找到最接近的。配置怎样写：[recipes.zh-CN.md](recipes.zh-CN.md)。
与其他设置放在一起没有意义的设置是错误，`hanlin check` 会指出。没有注明更晚版本的，都自 {version} 版起就有。

编辑器可以用 JSON schema 补全、解释和检查配置。`hanlin init` 和 `hanlin recipes copy` 把它放在写出的配置旁边，
并在第一行指明；其他配置用 `hanlin help --schema` 写出它：
""",
}
_EDITOR = """
```bash
hanlin help --schema > recipe.schema.json
sed -i '1i # yaml-language-server: $schema=recipe.schema.json' recipe.yaml
```
"""
_WORDS = {
    "en": {
        "columns": "| setting | type | default | what it does |",
        "options": "What may be chosen about the samples, family by family.",
        "config": "The shape of a model, family by family. `model.size` names a set of them; what is not said has the "
        "default.",
        "sizes": "Sizes: {}.",
    },
    "zh": {
        "columns": "| 设置 | 类型 | 默认值 | 作用 |",
        "options": "各模型系列的样本可以选择什么。",
        "config": "各模型系列的模型形状。`model.size` 是一整组取值的名称；没有写明的，以下面的默认值为准。",
        "sizes": "规模：{}。",
    },
}  # fmt: skip


def settings_page(language: Language) -> str:
    """The whole page as Markdown."""
    words, texts = _WORDS[language], section_texts()
    parts = [_HEADS[language].format(version=first_version()) + _EDITOR]
    for section in Recipe.model_fields:
        rows = [setting for setting in recipe_settings() if setting.key.partition(".")[0] == section]
        parts.append(f"## `{section}`\n{said_in(language, texts[section])}\n\n{_table(rows, language)}")
    families = [load_family(name) for name in family_names()]
    for section, text in (("data.options", words["options"]), ("model.config", words["config"])):
        parts.append(f"## `{section}`\n{text}\n")
        for family in families:
            rows = [setting for setting in family_settings(family) if setting.key.startswith(f"{section}.")]
            sizes = words["sizes"].format(", ".join(f"`{size}`" for size in family.sizes))
            head = f"### `{section}`: {family.name}\n" + (f"{sizes}\n\n" if section == "model.config" else "")
            parts += [head + _table(rows, language)] if rows else []
    return "\n".join(parts)


def _table(settings: Iterable[Setting], language: Language) -> str:
    head = _WORDS[language]["columns"]
    return "\n".join([head, "|---" * head.count(" |") + "|", *(_row(setting, language) for setting in settings), ""])


def _row(setting: Setting, language: Language) -> str:
    belongs = "" if setting.chosen_by == FAMILY else belongs_words(setting, language)
    effect = [
        said_in(language, setting.effect),
        belongs,
        depends_words(setting, language),
        since_words(setting, language),
    ]
    default = default_words(setting, language)
    cells = [
        f"`{setting.key}`",
        kind_words(setting, language),
        default if setting.default is REQUIRED else f"`{default}`",
        (" " if language == "en" else "").join(filter(None, effect)),
    ]
    return f"| {' | '.join(map(_in_a_cell, cells))} |"


def _in_a_cell(text: str) -> str:
    """Text that Markdown leaves as it is in a table."""
    pieces = re.split(r"(`[^`]*`)", text)
    outside = [re.sub(r"([<*|])", r"\\\1", piece) for piece in pieces[::2]]
    inside = [piece.replace("|", r"\|") for piece in pieces[1::2]]
    return "".join(piece for pair in zip(outside, [*inside, ""], strict=True) for piece in pair)
