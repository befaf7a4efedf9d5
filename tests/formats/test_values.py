"""NaN, inf, zeros alone and numbers that a dtype cannot hold are found, told or refused."""

from __future__ import annotations

import pytest
import torch

from hanlin.core.errors import CheckpointError
from hanlin.formats.values import Cast, Sound, cast, count_values, stored_dtype

GOOD = torch.arange(6.0).view(2, 3)
TENSORS = {
    "good": GOOD,
    "nan": GOOD.where(GOOD != 2, torch.nan),
    "inf": GOOD.where(GOOD < 4, -torch.inf).half(),
    "both": torch.tensor([torch.nan, torch.inf, 1.0]).bfloat16(),
    "zeros": torch.zeros(2, 2),
    "packed": torch.zeros(3, dtype=torch.int8),
    "empty": torch.empty(0, 3),
}


def test_what_is_no_number_is_counted() -> None:
    report = count_values(TENSORS)
    assert report.broken == {"nan": (1, 0, 6), "inf": (0, 2, 6), "both": (1, 1, 3)}
    assert report.zeros == {"zeros"}
    assert str(report).startswith("3 of 7 tensors hold no numbers: nan: 1 NaN, 0 inf of 6 numbers; inf: 0 NaN, 2 inf")
    assert not str(count_values({"good": GOOD}))


@pytest.mark.parametrize("name", ["nan", "inf", "both"])
def test_it_is_refused_where_it_would_be_computed_with(name: str) -> None:
    weights = Sound("base", TENSORS)
    assert weights["good"] is GOOD
    assert not weights["zeros"].any()
    with pytest.raises(CheckpointError, match=rf"base: holds something else than numbers \({name}: .* --values base"):
        weights[name]
    with pytest.raises(CheckpointError, match="something else than numbers"):
        cast("base", name, TENSORS[name], None)


def test_numbers_that_a_dtype_cannot_hold_are_refused() -> None:
    large = torch.tensor([1.0, 70000.0])
    assert cast("base", "large", large, torch.bfloat16).dtype == torch.bfloat16
    assert cast("base", "packed", TENSORS["packed"], torch.float16).dtype == torch.int8
    with pytest.raises(CheckpointError, match=r"base: large has numbers up to 7e\+04, which float16 cannot hold"):
        cast("base", "large", large, torch.float16)


def test_what_passes_is_noted_and_its_dtype_changed() -> None:
    passing = Cast("base", TENSORS, torch.float16)
    assert [passing[name].dtype for name in TENSORS] == [passing.meta(name).dtype for name in TENSORS]
    assert passing["nan"].isnan().sum() == 1
    assert set(passing.report.broken) == {"nan", "inf", "both"}
    assert stored_dtype(passing) == "float16"
    assert stored_dtype({"packed": TENSORS["packed"]}) == ""
