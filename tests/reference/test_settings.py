"""Every setting is explained, and what is said of it comes from where it stands."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest

from hanlin.core.extensions import import_file
from hanlin.recipe.settings import Recipe
from hanlin.reference.chinese import chinese
from hanlin.reference.comments import field_comments
from hanlin.reference.page import PAGES, settings_page
from hanlin.reference.settings import Setting, all_settings, section_texts

ROOT = Path(__file__).parents[2]
CATALOGUE = "src/hanlin/reference/chinese.yaml"


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
