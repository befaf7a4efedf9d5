"""`data.bad_rows` where records are scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hanlin.core.errors import DataError
from hanlin.recipe.reading import make_recipe
from hanlin.recipe.settings import Recipe
from hanlin.run.assemble import assemble

MARKS = ["<pad>", "<unk>", "<mask>", "<sep>", "</n>", "</_>", "<s>", "</s>", "<root>", "<ans>", "<option>"]
ROWS = ['{"input": "床", "<ans>": "月"}', '{"input": "床", "<ans>": ""}', "no JSON", '{"input": "前", "<ans>": "光"}']


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "vocab.txt").write_text("\n".join([*MARKS, *"床前明月光"]) + "\n", "utf-8")
    (tmp_path / "rows.jsonl").write_text("\n".join(ROWS) + "\n", "utf-8")
    sizes = {"hidden_size": 8, "num_layers": 1, "num_heads": 1, "head_dim": 8, "ffn_size": 8}
    return make_recipe(
        {
            "model": {"family": "cpm_bee", "vocab": str(tmp_path / "vocab.txt"), "config": sizes},
            "data": {"eval": [str(tmp_path / "rows.jsonl")]},
            "evaluate": {"tasks": ["loss"]},
            "run": {"folder": str(tmp_path / "run"), "device": "cpu"},
        }
    )


def test_all_bad_rows_are_listed_with_their_lines(recipe: Recipe) -> None:
    with pytest.raises(DataError) as caught:
        assemble(recipe).evaluate()
    head, second, third, advice = str(caught.value).splitlines()
    assert head == "2 of 4 rows cannot be used."
    assert "rows.jsonl:2: " in second
    assert "rows.jsonl:3: not JSON" in third
    assert "data.bad_rows=drop" in advice


def test_bad_rows_are_left_out_if_the_recipe_says_so(recipe: Recipe) -> None:
    dropping = recipe.model_copy(update={"data": recipe.data.model_copy(update={"bad_rows": "drop"})})
    assert assemble(dropping).evaluate()["loss"]["records"] == 2
    lines = (recipe.run.folder / "evaluation" / "predictions" / "loss.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["record"] for line in lines] == [1, 2]
