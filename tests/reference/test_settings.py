"""Every setting is explained, and what is said of it comes from where it stands."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest
import yaml

from hanlin.core.extensions import import_file
from hanlin.recipe.settings import Recipe
from hanlin.recipe.shipped import shipped_files
from hanlin.reference.chinese import chinese, recipe_titles
from hanlin.reference.comments import field_comments
from hanlin.reference.lookup import find_settings
from hanlin.reference.page import PAGES, settings_page
from hanlin.reference.plain_text import setting_text
from hanlin.reference.settings import Setting, all_settings, section_texts
from hanlin.reference.since import add_version

ROOT = Path(__file__).parents[2]
CATALOGUE = "src/hanlin/reference/chinese.yaml"


def test_a_setting_says_which_later_version_brought_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "since.yaml"
    told.write_text("# a comment\n{}\n", "utf-8")
    add_version(told, "0.1.0")
    released = yaml.safe_load(told.read_text("utf-8"))
    released["0.1.0"].remove("train.lr")
    released["0.1.0"].remove("cpm_bee data.options.strict")
    monkeypatch.setattr("hanlin.reference.since._released", lambda: released)
    monkeypatch.setattr("hanlin.__version__", "0.2.0")
    [rate] = find_settings("train.lr").settings
    assert "Since 0.2.0." in setting_text(rate, "en")
    assert "自 0.2.0 版起。" in setting_text(rate, "zh")
    lines = [line for line in settings_page("en").splitlines() if "Since" in line]
    assert [line.split("`")[1] for line in lines] == ["train.lr", "data.options.strict"]
    assert "since version 0.1.0" in settings_page("en")
    monkeypatch.setattr("hanlin.__version__", "0.1.0")  # which is out, and has neither
    assert "Since the next version." in setting_text(rate, "en")
    assert "自下一版起。" in setting_text(rate, "zh")

    told.write_text("# a comment\n" + yaml.safe_dump(released), "utf-8")
    add_version(told, "0.2.0")
    assert yaml.safe_load(told.read_text("utf-8"))["0.2.0"] == ["cpm_bee data.options.strict", "train.lr"]
    assert told.read_text("utf-8").startswith("# a comment\n")


def test_every_recipe_that_comes_with_hanlin_has_a_chinese_title() -> None:
    assert list(recipe_titles()) == [file.stem for file in shipped_files("recipes")]
    assert [title for title in recipe_titles().values() if not re.search("[\u4e00-\u9fff]", title)] == []


def _name(setting: Setting) -> str:
    return " ".join([setting.key, *setting.values])


def test_every_setting_is_explained_by_the_comment_above_it() -> None:
    missing = [_name(one) for one in all_settings() if not re.fullmatch(r".+[.)]", one.effect)]
    assert not missing, f"write a comment of whole sentences above these fields, one for each: {missing}"
    assert set(section_texts()) == set(Recipe.model_fields)


def test_every_sentence_has_a_chinese_one_and_no_other_has() -> None:
    said = {one.effect: _name(one) for one in all_settings()} | {text: name for name, text in section_texts().items()}
    missing = "".join(f"\n- en: {_quoted(text)}   # {said[text]}\n  zh: ..." for text in said if text not in chinese())
    assert not missing, f"add to {CATALOGUE}, with the Chinese sentence, and run `make reference`:{missing}"
    unused = "\n".join(text for text in chinese() if text not in said)
    assert not unused, f"no setting says this any more; take it out of {CATALOGUE}, and run `make reference`:\n{unused}"
    bare = [text for text in chinese().values() if not re.search("[\u4e00-\u9fff]", text)]
    assert not bare, f"no Chinese in {CATALOGUE}: {bare}"


def test_a_translation_keeps_names_and_numbers() -> None:
    """Settings, values and files are called as in English; a figure that is another is a mistake."""
    lost = {
        english: sorted(words)
        for english, text in chinese().items()
        if (
            words := {
                word for word in re.findall(r"[a-z0-9]+[_.][a-z0-9_.]*[a-z0-9]|\d{2,}", english) if word not in text
            }
        )
    }
    assert not lost


@pytest.mark.parametrize("language", PAGES)
def test_the_page_is_up_to_date(language: str) -> None:
    written = (ROOT / PAGES[language]).read_text(encoding="utf-8")
    assert written == settings_page(language), f"run `make reference`; {PAGES[language]} is made from the settings"


def test_what_two_methods_say_alike_is_said_once() -> None:
    betas = [one for one in all_settings() if one.key == "train.optimizer.betas"]
    assert len(betas) == 1
    assert {"adamw", "adamw_8bit"} <= set(betas[0].values)
    assert betas[0].chosen_by == "train.optimizer.name"


def test_what_can_make_a_setting_idle_is_said() -> None:
    found = {one.key: one.depends_on for one in all_settings()}
    assert found["train.patience"] == ("train.eval_every", "data.eval")
    assert found["train.lr"] == ()


def test_comments_are_read_from_a_file_of_the_users_own_too(tmp_path: Path) -> None:
    own = tmp_path / "own_settings.py"
    lines = [
        "class Own:",
        "    # Rows that are",
        "    # read. None: all.",
        "    rows: int | None = None",
        "    bare: int = 0",
    ]
    own.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert field_comments(import_file(own).Own) == {"rows": "Rows that are read. null: all."}


def test_comments_of_a_base_class_are_those_of_its_kin() -> None:
    settings = importlib.import_module("hanlin.generate.methods.greedy").method.settings
    assert field_comments(settings)["max_new_tokens"] == "Tokens of all answers of a record together."


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
