from __future__ import annotations

import pytest
from measure import tiny_recipe

from hanlin.core.errors import ConfigError
from hanlin.planner.layout import Layout, layout_of


def test_the_bubble_of_known_pipelines() -> None:
    assert Layout(pipe=4, micro_batches=8).bubble() == pytest.approx(3 / 11)
    assert Layout(pipe=4, micro_batches=8, schedule="gpipe").bubble() == pytest.approx(3 / 11)
    assert Layout(pipe=4, micro_batches=8, schedule="interleaved").bubble() == pytest.approx(3 / 19)
    assert Layout(data=4, micro_batches=8).bubble() == 0


def test_micro_batches_in_flight() -> None:
    ranks = range(4)
    assert [Layout(pipe=4, micro_batches=8).in_flight(rank) for rank in ranks] == [4, 3, 2, 1]
    assert [Layout(pipe=4, micro_batches=2).in_flight(rank) for rank in ranks] == [2, 2, 2, 2]  # too few: gpipe
    assert [Layout(pipe=4, micro_batches=8, schedule="gpipe").in_flight(rank) for rank in ranks] == [8] * 4
    # (2 (p - rank - 1) + (v - 1) p + 1) / v
    interleaved = Layout(pipe=4, micro_batches=8, schedule="interleaved")
    assert [interleaved.in_flight(rank) for rank in ranks] == [5.5, 4.5, 3.5, 2.5]


def test_a_recipe_takes_the_data_ranks_that_are_left() -> None:
    layout = layout_of(tiny_recipe("cpm1", "parallel.tensor=2", "train.batch_size=32"), 8)
    assert (layout.data, layout.tensor, layout.pipe, layout.world) == (4, 2, 1, 8)
    assert (layout.micro_batch_size, layout.micro_batches, layout.batch_size) == (2, 4, 32)


def test_micro_batches_stand_in_for_micro_batch_size() -> None:
    layout = layout_of(tiny_recipe("cpm1", "parallel.micro_batches=8", "train.batch_size=32"), 2)
    assert (layout.micro_batch_size, layout.micro_batches) == (2, 8)


def test_degrees_that_do_not_multiply_are_told_with_the_formula() -> None:
    recipe = tiny_recipe("cpm1", "parallel.data=3", "parallel.tensor=2")
    with pytest.raises(ConfigError, match=r"data 3 x tensor 2 x pipe 1 .* 8.*batch_size = rows per forward pass x"):
        layout_of(recipe, 8)


def test_ranks_without_rows_are_told_with_the_formula() -> None:
    with pytest.raises(ConfigError, match=r"train.batch_size: 2 rows .* 4 data ranks.* the global batch is"):
        layout_of(tiny_recipe("cpm1"), 4)
