"""Shapes of hidden states told from those of a batch; and how many schedules a pipeline keeps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from cases import CASES, make_batch, make_model
from ranks import run_ranks

from hanlin.parallel.parallelize import parallelize
from hanlin.parallel.pipeline import KEPT_SCHEDULES, Pipeline
from hanlin.parallel.state_shapes import States, StateShapes
from hanlin.recipe.settings import ParallelSettings

WIDTH = 16


def observed(shapes: StateShapes, rows: int, length: int, read: int) -> None:
    shapes.learn(inputs(rows, length, read), states(rows, length, read))


def inputs(rows: int, length: int, read: int) -> dict[str, torch.Tensor]:
    return {"tokens": torch.zeros(rows, length), "encoder_tokens": torch.zeros(rows, read)}


def states(rows: int, length: int, read: int) -> list[list[torch.Tensor]]:
    return [[], [torch.zeros(rows, read, WIDTH), torch.zeros(rows, length, WIDTH, requires_grad=True)]]


def told(shapes: StateShapes, *sizes: int) -> list[tuple[int, ...]] | None:
    found = shapes.tell(inputs(*sizes))
    return None if found is None else [tuple(state.shape) for group in found for state in group]


def test_what_no_input_explains_is_looked_at_for_ever_and_not_kept_for_ever() -> None:
    shapes = StateShapes()
    for length in range(200):
        shapes.learn(inputs(2, length, length), [[torch.zeros(2, length // 3)]])
        shapes.learn(inputs(2, 7, 7), [[torch.zeros(2, 2)]])
        assert length < 3 or told(shapes, 2, 9, 9) is None
    assert [len(seen) for seen in shapes._seen.values()] == [32]


def test_nothing_is_told_of_what_was_never_seen() -> None:
    shapes = StateShapes()
    assert told(shapes, 2, 5, 7) is None
    observed(shapes, 2, 5, 7)
    assert shapes.tell({"tokens": torch.zeros(2, 5)}) is None


def test_a_batch_of_known_shapes_is_told() -> None:
    shapes = StateShapes()
    observed(shapes, 2, 5, 7)
    assert told(shapes, 2, 5, 7) == [(2, 7, WIDTH), (2, 5, WIDTH)]
    found = shapes.tell(inputs(2, 5, 7))
    assert found is not None
    assert [(state.device.type, state.requires_grad) for state in found[1]] == [("meta", False), ("meta", True)]


def test_another_length_is_told_once_a_second_was_seen() -> None:
    shapes = StateShapes()
    observed(shapes, 2, 5, 7)
    assert told(shapes, 2, 6, 7) is None  # 5 might be always so
    observed(shapes, 2, 6, 9)
    assert told(shapes, 2, 8, 11) == [(2, 11, WIDTH), (2, 8, WIDTH)]
    assert told(shapes, 3, 8, 11) is None  # and so might 2 rows


def test_sides_of_one_length_are_told_apart_by_another_batch() -> None:
    shapes = StateShapes()
    observed(shapes, 2, 5, 5)
    observed(shapes, 2, 6, 6)
    assert told(shapes, 2, 7, 8) is None
    observed(shapes, 2, 7, 8)
    assert told(shapes, 2, 9, 6) == [(2, 6, WIDTH), (2, 9, WIDTH)]


def test_few_passes_look_at_shapes_and_few_schedules_are_kept() -> None:
    looked, kept = run_ranks(2, train_all_lengths(range(2, 16)))[0]
    assert looked == 2
    assert kept == KEPT_SCHEDULES


def train_all_lengths(lengths: range) -> Callable[[], tuple[int, int]]:
    def run() -> tuple[int, int]:
        case, settings = CASES["chatglm2"], ParallelSettings(pipe=2, micro_batches=2)
        parallel_model = parallelize(make_model(case, "full"), torch.device("cpu"), "fp32", settings)
        pipeline = parallel_model._runner
        assert isinstance(pipeline, Pipeline)
        batch, looked = make_batch(case), []
        learn = pipeline._shapes.learn

        def counted(inputs: dict[str, torch.Tensor], states: list[list[torch.Tensor]]) -> States:
            looked.append(inputs)
            return learn(inputs, states)

        pipeline._shapes.learn = counted  # pyright: ignore[reportAttributeAccessIssue]
        for length in lengths:
            pieces = {name: tensor.repeat(1, 3)[:, :length] for name, tensor in batch.inputs.items()}
            labels, weights = batch.labels.repeat(1, 3)[:, :length], batch.weights.double().repeat(1, 3)[:, :length]
            parts = type(batch)(pieces, labels, weights, batch.rows).split(2)
            parallel_model.forward_backward(parts, [1.0, 1.0])
        return len(looked), len(pipeline._made)

    return run
