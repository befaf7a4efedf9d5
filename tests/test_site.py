"""The site of `make site`: its pages, links and pictures, without Sphinx (which `make site` runs strictly)."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
LANGUAGES = ("en", "zh")


def _load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site() -> ModuleType:
    return _load("tools/site/build.py")


@pytest.fixture(scope="module")
def sources(site: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("site")
    for language in LANGUAGES:
        site.write_sources(folder / language, language)
    return {language: folder / language for language in LANGUAGES}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_page_is_in_the_sidebar_once(site: ModuleType, language: str) -> None:
    listed = [line for line in site.navigation(language).splitlines() if line and line[0] not in "`:"]
    assert sorted(listed) == sorted({name for _, name in site.pages(language)} - {"index"})


def test_a_page_that_the_sidebar_does_not_know_stands_in_the_reference(site: ModuleType, monkeypatch) -> None:
    known = list(site.pages("en"))
    monkeypatch.setattr(site, "pages", lambda language: [*known, (ROOT / "docs/new.md", "new")])
    assert "\nnew\n" in site.navigation("en").partition("Under the hood")[0]


@pytest.mark.parametrize("language", LANGUAGES)
def test_links_of_the_site_lead_somewhere(site: ModuleType, sources: dict[str, Path], language: str) -> None:
    names = {name for _, name in site.pages(language)}
    for page in sources[language].glob("*.md"):
        for _, target, _ in site.LINK.findall(site.FENCE.sub("", page.read_text("utf-8"))):
            kind, _, rest = target.rpartition(":")
            if kind == "repository":
                assert (ROOT / rest).exists(), (page.name, target)
            elif kind == "other":
                assert rest.split("/")[0] != language
                assert Path(rest).stem in names
            else:
                assert (page.parent / target).exists(), (page.name, target)


def test_a_link_named_by_its_file_gets_the_title_and_code_stays(site: ModuleType, sources: dict[str, Path]) -> None:
    text = (sources["zh"] / "layouts.md").read_text("utf-8")
    assert "[](launching.md)" in text
    for path, name in site.pages("zh"):
        blocks = site.FENCE.findall((sources["zh"] / f"{name}.md").read_text("utf-8"))
        assert site.FENCE.findall(path.read_text("utf-8")) == [block for block in blocks if "{toctree}" not in block]


def test_lines_of_chinese_are_joined_without_a_blank_but_headings_are_not(site: ModuleType) -> None:
    text = "# 数据\n每行一个对象，\n值是文本。\n- 第一行\n  第二行\nword\n词\n"
    assert site.BROKEN_LINE.sub(r"\1", text) == "# 数据\n每行一个对象，值是文本。\n- 第一行第二行\nword\n词\n"


def test_pictures_are_those_that_the_script_draws() -> None:
    drawn = _load("docs/pictures/draw.py").draw_all()
    assert {path.name: path.read_text("utf-8") for path in (ROOT / "docs/pictures").glob("*.svg")} == drawn
    for name in (name for name in drawn if name.endswith(".zh-CN.svg")):
        here, there = (ElementTree.fromstring(drawn[one]) for one in (name, name.replace(".zh-CN", "")))
        assert [part.tag for part in here.iter()] == [part.tag for part in there.iter()]
        assert re.search("[一-龥]", drawn[name])
        assert not re.search("[一-龥|]", drawn[name.replace(".zh-CN", "")])
