"""Where a CPM-Bee record's answers and options stand."""

from __future__ import annotations

import pytest

from hanlin.core.errors import DataError
from hanlin.models.cpm_bee.answers import candidates, gold

RECORD = {"input": "x", "options": {"<option_0>": "好", "<option_1>": "坏"}, "<ans>": "<option_1>"}


def test_candidates_are_the_options_names() -> None:
    assert [record["<ans>"] for record in candidates(RECORD)] == ["<option_0>", "<option_1>"]


def test_candidates_are_texts_where_the_answer_is_one() -> None:
    assert [record["<ans>"] for record in candidates({**RECORD, "<ans>": "坏"})] == ["好", "坏"]


def test_candidates_need_options_and_one_answer() -> None:
    with pytest.raises(DataError, match="no options"):
        candidates({"input": "x", "<ans>": "y"})
    with pytest.raises(DataError, match="one answer only"):
        candidates({**RECORD, "<ans>": {"a": "b"}})


def test_gold_answers_keep_their_order() -> None:
    assert gold({"<ans>": {"b": "1", "a": {"c": "2", "d": None}}}) == ["1", "2", None]
