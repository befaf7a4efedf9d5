"""bf16 weights that are rounded by chance; under layouts: tests/parallel/test_optimizers.py."""

from __future__ import annotations

import pytest
import torch
from tiny_model import make_batch, tiny_model

from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import TrainSettings
from hanlin.training import rounding
from hanlin.training.optimizer import build_optimizer
from hanlin.training.rounding import key_of, round_by_chance
from hanlin.training.step import Step

ROWS, COLUMNS = 300, 70


def rounded(numbers: torch.Tensor, key: int = 5) -> torch.Tensor:
    found = torch.empty(numbers.shape, dtype=torch.bfloat16)
    round_by_chance(numbers.clone(), found, found, key)
    return found.float()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.97])
@pytest.mark.parametrize("low", [1.0, -0.015625])
def test_a_number_becomes_its_farther_neighbour_as_seldom_as_it_is_far(share: float, low: float) -> None:
    step = low * 2**-7
    found = rounded(torch.full((ROWS, COLUMNS), low + share * step))
    assert set(found.unique().tolist()) <= {low, low + step}
    assert ((found != low).float().mean() - share).abs() < 4 * (0.25 / found.numel()) ** 0.5


def test_rows_columns_and_steps_are_rounded_independently() -> None:
    ups = {step: rounded(torch.full((ROWS, COLUMNS), 1 + 2**-8), key_of(0, step, "a")) > 1 for step in range(4)}
    for one in ups.values():
        assert (one.float().mean(0) - 0.5).abs().max() < 0.15  # 5 deviations of 300
        assert (one.float().mean(1) - 0.5).abs().max() < 0.3
        assert ((one[:, 1:] == one[:, :-1]).float().mean() - 0.5).abs() < 0.02
    assert ((ups[0] == ups[1]).float().mean() - 0.5).abs() < 0.02
    assert len({key_of(*words) for words in [(0, 1, "a"), (1, 0, "a"), (0, 1, "b"), (1, 1, "a")]}) == 4


def test_pieces_round_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.randn(ROWS, 3, 10)
    whole = rounded(numbers)
    monkeypatch.setattr(rounding, "_PIECE", 100)
    assert rounded(numbers).equal(whole)
    assert rounded(torch.tensor(1.001)).shape == ()
    assert rounded(torch.empty(0, 4)).shape == (0, 4)


def test_changes_that_are_small_beside_a_weight_add_up() -> None:
    """Steps of 3e-5, beside weights of about 0.3, whose neighbours are 1e-3 or 2e-3 away."""
    settings = TrainSettings(lr=3e-5, steps=99, schedule="constant")
    torch.manual_seed(0)
    start = tiny_model().bfloat16().float()
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model()
        model.load_state_dict(start.state_dict())
        trained = parallelize(model, torch.device("cpu"), "bf16", trained=dtype)
        step = Step(trained, build_optimizer(trained.parameters, settings.optimizer), settings, 99)
        for _ in range(20):
            step.run(make_batch(0))
        found[dtype] = {name: weight.detach().float() for name, weight in trained.parameters.items()}
    for name, weight in start.named_parameters():
        way, by_chance = (found[dtype][name] - weight.detach() for dtype in found)
        if weight.ndim > 1:
            # Each number is a step too far or too near; on average they are right.
            share = (way * by_chance).sum() / way.square().sum()
            assert share == pytest.approx(1, abs=0.2), name
