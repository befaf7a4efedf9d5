"""What the docs name exists: links, commands and their options, recipes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from hanlin.cli.main import _parser, command_names
from hanlin.recipe.reading import load_recipe
from hanlin.recipe.settings import EvaluateSettings
from hanlin.reference.settings import all_settings

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
RECIPES = sorted(ROOT.glob("recipes/*.yaml"))
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(#[^)\s]+)?\)")
HEADING = re.compile(r"^(#+) +(.*)$", re.MULTILINE)
BLOCK = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
CHINESE = ".zh-CN.md"
ONE_PAGE_FOR_BOTH = {"glossary.md"}
TRANSLATED = [page for page in PAGES if page.name.endswith(CHINESE)]
COMMAND = re.compile(r"^(?:\$ |#  +)?(hanlin [a-z].*?)(?:\s+#.*)?$", re.MULTILINE)
OPTION = re.compile(r"(?<!\S)--[a-z][a-z-]*")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    for link, anchor in _links(page):
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or target.suffix != ".md" or anchor in _anchors(target), link + anchor


def test_users_pages_are_there_in_both_languages() -> None:
    english = [page for page in ROOT.glob("docs/*.md") if not page.name.endswith(CHINESE)]
    lacking = [page.name for page in english if not page.with_suffix(CHINESE).exists()]
    assert set(lacking) <= ONE_PAGE_FOR_BOTH


@pytest.mark.parametrize("page", TRANSLATED, ids=_name)
def test_both_languages_of_a_page_say_the_same(page: Path) -> None:
    """Headings by number and level, code blocks but for their comments, and links."""
    english = _english(page)
    assert [level for level, _ in _headings(page)] == [level for level, _ in _headings(english)]
    assert [_without_comments(block) for block in _blocks(page)] == [
        _without_comments(block) for block in _blocks(english)
    ]
    assert sorted(_pages_linked(page)) == sorted(_pages_linked(english))


@pytest.mark.parametrize("page", TRANSLATED, ids=_name)
def test_pages_name_their_other_language_and_stay_in_one(page: Path) -> None:
    english = _english(page)
    assert f"\n[English]({english.name}) | 简体中文\n" in page.read_text(encoding="utf-8")
    assert f"\nEnglish | [简体中文]({page.name})\n" in english.read_text(encoding="utf-8")
    for link, _ in _links(page):
        if link.endswith(".md") and link != english.name:
            assert not (page.parent / link).with_suffix(CHINESE).exists(), f"{link} is there in Chinese"
    assert [link for link, _ in _links(english) if link.endswith(CHINESE)] == [page.name]


@pytest.mark.parametrize("page", [*PAGES, *RECIPES], ids=_name)
def test_commands_exist_with_their_options(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    quoted = re.findall(r"`(hanlin [a-z][^`]*)`", text)
    for command in [*COMMAND.findall(text), *quoted]:
        name = command.split()[1]
        if name == "--help" or not name.isalpha():
            continue
        assert name in command_names(), command
        help_text = _help(name)
        assert all(option in help_text for option in OPTION.findall(command)), command


@pytest.mark.parametrize("page", TRANSLATED, ids=_name)
def test_chinese_pages_use_the_words_of_the_field(page: Path) -> None:
    """docs/glossary.md: 模型系列, 配置, 词元, 检查点."""
    assert not re.findall("家族|配方|食谱|令牌|检查站", page.read_text(encoding="utf-8"))


def test_the_page_on_evaluation_names_every_task_and_metric() -> None:
    page = (ROOT / "docs/evaluating.md").read_text(encoding="utf-8")
    names = [*get_args(get_args(EvaluateSettings.model_fields["tasks"].annotation)[0])]
    names += get_args(get_args(EvaluateSettings.model_fields["metrics"].annotation)[0])
    assert {"loss", "rouge"} <= set(names)
    assert not [name for name in names if f"| `{name}`" not in page]


SECTIONS = "model|data|tuning|train|generate|evaluate|run|parallel"
SETTING = re.compile(rf"(?<![\w./-])((?:{SECTIONS})(?:\.[a-z_0-9]+)+)(?=[\s=:,)\]`]|$)")
"""A dotted setting in code: at its end, or before a value."""
TODAY = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""The CHANGELOG says what settings were called as well."""
NO_SETTINGS = {
    *("model.chat", "model.decide", "model.device", "model.generate", "model.network", "model.save", "model.score"),
    *("model.tokenizer.vocab_size", "parallel.parallelize"),  # all of these are of Python
    *("evaluate.sh", "model.gguf", "model.py", "model.safetensors", "train.jsonl", "train.sh"),  # files
    "train.learning_rate",  # a mistake that is shown
}


@pytest.mark.parametrize("page", [*TODAY, *RECIPES], ids=_name)
def test_settings_that_are_named_exist(page: Path) -> None:
    known = {setting.key for setting in all_settings()}
    codes = [*re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")), *_blocks(page)]
    named = {name for code in codes for name in SETTING.findall(code)} - NO_SETTINGS
    sections = {key.rpartition(".")[0] for key in known}
    assert not {name for name in named if name not in known | sections}


@pytest.mark.parametrize("recipe", RECIPES, ids=_name)
def test_recipes_are_right(recipe: Path) -> None:
    load_recipe(recipe)


def _english(page: Path) -> Path:
    return page.with_name(page.name.removesuffix(CHINESE) + ".md")


def _blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def _prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def _headings(page: Path) -> list[tuple[str, str]]:
    return HEADING.findall(_prose(page))


def _anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    titles = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for _, title in _headings(page))
    return {"#" + re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _links(page: Path) -> list[tuple[str, str]]:
    return LINK.findall(_prose(page))


def _pages_linked(page: Path) -> list[str]:
    return [(link or page.name).replace(".zh-CN.", ".") for link, _ in _links(page)]


def _without_comments(block: str) -> list[str]:
    return [re.sub(r"(^|\s)(#|//)(\s.*)?$", "", line).rstrip() for line in block.split("\n")]


def _help(name: str) -> str:
    parser = _parser([name])
    action = next(action for action in parser._actions if hasattr(action, "choices") and action.choices)
    found = action.choices[name].format_help()
    nested = [inner for inner in action.choices[name]._actions if isinstance(inner.choices, dict)]
    return found + "".join(parser.format_help() for inner in nested for parser in inner.choices.values())
