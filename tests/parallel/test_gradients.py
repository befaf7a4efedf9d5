"""Gradients over data ranks: on their way during the backward pass, one exchange of host numbers a step."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from cases import CASES, make_batch, make_model
from ranks import run_ranks
from tiny_model import TinyModel
from tiny_model import make_batch as tiny_batch
from torch import distributed, nn

from hanlin.core.batch import Batch
from hanlin.parallel import buckets
from hanlin.parallel.parallel_model import ParallelModel
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import ParallelSettings, TrainSettings
from hanlin.training.objectives.likelihood import mean_loss
from hanlin.training.optimizer import build_optimizer
from hanlin.training.step import NextStep, Step

CPU, ROWS = torch.device("cpu"), 4
SUMS = ("all_reduce", "all_gather", "broadcast", "all_gather_object", "broadcast_object_list", "barrier")


class OddModel(TinyModel):
    """Has weights that no row uses, or only those of the second half of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.nobodys = nn.Parameter(torch.ones(3))
        self.some_rows = nn.Parameter(torch.ones(3))

    def forward(self, *, tokens, noise=None, **others):
        found = super().forward(tokens=tokens, **others)
        return found if noise is None or not noise.any() else found + self.some_rows.sum() * noise.sum()


def odd_model() -> OddModel:
    torch.manual_seed(0)
    return OddModel()


def odd_batch(seed: int) -> Batch:
    batch = tiny_batch(seed, ROWS)
    noise = torch.tensor([0.0, 0.0, 0.25, 0.5])
    return Batch({**batch.inputs, "noise": noise}, batch.labels, batch.weights, batch.rows)


def own(batch: Batch, parallel_model: ParallelModel) -> Batch:
    return batch.split(parallel_model.data_ranks)[parallel_model.mesh.rank("data")]


def gradients(layout: ParallelSettings, rows: int, seed: int = 0) -> dict[str, torch.Tensor | None]:
    parallel_model = parallelize(odd_model(), CPU, "fp32", layout)
    batch = odd_batch(seed)
    parts = parallel_model.split(own(batch, parallel_model), rows)
    parallel_model.forward_backward(parts, [batch.loss_tokens] * len(parts))
    return {name: None if one.grad is None else one.grad.clone() for name, one in parallel_model.parameters.items()}


@pytest.mark.parametrize("rows", [1, 2])
def test_sums_in_buckets_are_those_of_one_tensor_at_a_time(rows: int, monkeypatch: pytest.MonkeyPatch):
    alone = gradients(ParallelSettings(), rows)
    whole = run_ranks(2, gradients, ParallelSettings(data=2), rows)
    monkeypatch.setattr(buckets, "BUCKET_BYTES", 1)
    single = run_ranks(2, gradients, ParallelSettings(data=2), rows)
    for found in (*whole, *single):
        assert {name for name, grad in found.items() if grad is None} == {"nobodys"}, "an optimizer must leave it alone"
        for name, grad in found.items():
            assert grad is None or torch.equal(grad, single[0][name]), name  # two numbers have one sum
            assert grad is None or torch.allclose(grad, alone[name], rtol=1e-5, atol=1e-7), name


def test_buckets_set_out_before_the_backward_pass_ends(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(buckets, "BUCKET_BYTES", 300)

    def order() -> list[str]:
        parallel_model, events = parallelize(odd_model(), CPU, "fp32", ParallelSettings(data=2)), []
        reduce = distributed.all_reduce
        monkeypatch.setattr(distributed, "all_reduce", lambda *a, **k: (events.append("sent"), reduce(*a, **k))[1])
        for name, weight in parallel_model.parameters.items():
            weight.register_post_accumulate_grad_hook(lambda _, name=name: events.append(name))
        batch = odd_batch(0)
        parts = own(batch, parallel_model).split(2)
        parallel_model.forward_backward(parts, [1.0, 1.0])
        return events

    for events in run_ranks(2, order):
        first, last = (place for place, event in enumerate(events) if event == "embedding.weight")
        assert "sent" not in events[: first + 1], "the first micro-batch is not the last"
        assert events[:last].count("sent") >= 3, events
        assert events[last:].count("sent") >= 1, "the embedding's own, and those that some rank has no gradient for"


def counted_steps(layout: ParallelSettings, monkeypatch: Any) -> list[Counter[str]]:
    """The collectives of each of three steps, as they follow each other in a run, and those of an evaluation."""
    make = partial(make_model, CASES["cpm1"], "full", torch.float32)
    parallel_model = parallelize(make(), CPU, "fp32", layout, copy=make)
    settings = TrainSettings(steps=4, micro_batch_size=2)
    step = Step(parallel_model, build_optimizer(parallel_model.parameters, settings.optimizer), settings, 4)
    calls: Counter[str] = Counter()
    for name in SUMS:
        called = getattr(distributed, name)
        note = lambda *a, _called=called, _name=name, **k: (calls.update([_name]), _called(*a, **k))[1]  # noqa: E731
        monkeypatch.setattr(distributed, name, note)
    whole = [make_batch(CASES["cpm1"], seed=number) for number in range(4)]
    batches = [own(batch, parallel_model) for batch in whole]
    found = []
    for batch, upcoming in pairwise(batches):
        calls.clear()
        report = step.run(batch, following=NextStep(lambda batch=upcoming: batch, lambda: distributed.get_rank() == 1))
        assert step.is_end_wanted, "rank 1 wants to end"
        assert report.loss_tokens == pytest.approx(whole[len(found)].loss_tokens, rel=1e-6)
        found.append(Counter(calls))
    calls.clear()
    mean_loss(parallel_model, [replace(batch, most_rows=batch.size) for batch in batches], 1)
    return [*found, calls]


BUDGETS = {
    "data": ({"data": 2}, 1),
    "sharded": ({"data": 2, "shard": "parameters"}, 1),
    "tensor": ({"tensor": 2}, 1),
    "pipe": ({"pipe": 2}, 2),  # whether all ranks know the shapes of what travels
}


@pytest.mark.parametrize("layout", BUDGETS)
def test_host_numbers_travel_once_a_step(layout: str, monkeypatch: pytest.MonkeyPatch):
    """A budget: it only goes down."""
    settings, most = BUDGETS[layout]
    for first, *others, evaluation in run_ranks(2, counted_steps, ParallelSettings(**settings), monkeypatch):
        assert "data" not in settings or evaluation["all_gather"] == 1, "the sums at its end"
        assert first["all_gather"] == most + ("data" in settings), "no data rank knows of the others' first batch"
        for calls in others:
            assert calls["all_gather"] == most
            if layout == "data":
                assert calls == {"all_gather": 1, "all_reduce": 1}, "all gradients fit into one bucket"


def test_gradients_are_scaled_by_one_kernel_as_one_by_one(monkeypatch: pytest.MonkeyPatch):
    scaled = []
    for is_at_once in (False, True):
        monkeypatch.setattr("hanlin.parallel.gradients.has_foreach", lambda device, answer=is_at_once: answer)
        trained = parallelize(OddModel(), CPU)
        for number, weight in enumerate(trained.parameters.values()):
            weight.grad = torch.full_like(weight, number) if number else None
        trained.scale_grads(0.3)
        scaled.append([weight.grad for weight in trained.parameters.values()])
    assert all(one is other is None or one.equal(other) for one, other in zip(*scaled, strict=True))
    assert any(one is not None and one.any() for one in scaled[0])
