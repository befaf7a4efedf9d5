"""What is counted of operations, and the seconds that follow, against cases by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from measure import tiny_recipe
from torch._subclasses.fake_tensor import FakeTensorMode

from hanlin.core.cards import DEVICES
from hanlin.planner.estimate import estimate
from hanlin.planner.job import PlannedModel, SequenceLengths
from hanlin.planner.layout import Layout
from hanlin.planner.work import BANDWIDTH_SHARE, PRODUCT_SHARE, START_SECONDS, WorkCounter, seconds_on

DEVICE = DEVICES["A100-80"]


def counted(run: object, *tensors: torch.Tensor) -> dict[tuple[str, int, int], int]:
    with WorkCounter(weights=tensors[:1]) as counter:
        run(*tensors)  # pyright: ignore[reportCallIssue]
    return dict(counter.work[""])


def test_operations_are_counted_with_what_they_move() -> None:
    with FakeTensorMode():
        left, right = torch.empty(8, 16, dtype=torch.bfloat16), torch.empty(16, 4, dtype=torch.bfloat16)
        assert counted(lambda a, b: a @ b, left, right) == {("product", 2 * 8 * 16 * 4, 2 * (128 + 64 + 32)): 1}
        assert counted(lambda a: a.t().view(16, 8), left.t().contiguous().t()) == {}
        assert counted(lambda a: a.float(), left) == {("cast", 0, 128 * 2 + 128 * 4): 1}
        assert counted(lambda a, b: b * 2, left, right) == {("other", 0, 2 * 2 * 64): 1}
        table, ids = torch.empty(1000, 16), torch.zeros(3, dtype=torch.int64)
        assert counted(torch.nn.functional.embedding, ids, table) == {("other", 0, 2 * 3 * 16 * 4): 1}


def test_an_operation_takes_the_longer_of_arithmetic_and_traffic() -> None:
    big, small = 10**15, 10**9
    work = {("product", big, small): 2, ("product_fp32", big, 0): 1, ("other", 0, big): 1, ("cast", 0, small): 1}
    found = seconds_on(work, DEVICE)
    assert found.products == pytest.approx(big / PRODUCT_SHARE * (2 / 312e12 + 1 / 19.5e12))
    assert found.memory == pytest.approx((big + small) / (2039e9 * BANDWIDTH_SHARE))
    assert found.casts == pytest.approx(small / (2039e9 * BANDWIDTH_SHARE))
    assert found.starts == pytest.approx(5 * START_SECONDS)
    assert seconds_on({("other", 0, 8): 1000}, DEVICE).total == pytest.approx(1000 * START_SECONDS)


def step(layout: Layout, *changes: str, device: str = "A100-80") -> dict[str, float]:
    recipe = tiny_recipe("cpm1", "model.config.hidden_size=1024", "model.config.num_heads=8", *changes)
    job = PlannedModel(recipe, SequenceLengths(1024), device=DEVICES[device])
    found = estimate(job, layout).step_seconds(DEVICES[device], per_node=8)
    return {**vars(found), "total": found.total}


def test_a_step_is_the_sum_of_its_parts() -> None:
    plain = Layout(micro_batch_size=8)
    once, twice = step(plain), step(replace(plain, micro_batches=2))
    assert sum(once.values()) == pytest.approx(2 * once["total"])
    assert twice["products"] == pytest.approx(2 * once["products"])
    assert twice["optimizer"] == once["optimizer"]
    again = step(replace(plain, checkpoint_activations="full"))
    assert once["products"] < again["products"] < once["products"] * 4 / 3 + 1e-9  # a third pass, but not of the head
    assert step(plain, "train.precision=bf16")["products"] < once["products"] / 4  # half precision has faster products


def test_layouts_send_and_wait() -> None:
    alone, data = step(Layout()), step(Layout(data=4))
    assert alone["sending"] == alone["waiting"] == 0 < data["sending"]
    piped = step(Layout(pipe=2, micro_batches=4))
    assert piped["waiting"] > 0
    offloaded = step(Layout(shard="parameters", offload=True))
    assert offloaded["optimizer"] > alone["optimizer"]
    assert offloaded["sending"] > 0
