import math
import random
from typing import Any

import pytest
import torch
from torch import nn

from hanlin.recipe.settings import TrainSettings
from hanlin.training.optimizers.adamw import AdamW, AdamWSettings
from hanlin.training.schedules import learning_rate


def rates(total: int = 4, **settings) -> list[float]:
    return [learning_rate(TrainSettings(lr=1.0, **settings), step, total) for step in range(1, total + 1)]


def test_no_step_of_a_run_has_rate_zero():
    assert rates(schedule="linear") == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert rates(schedule="linear", warmup_steps=2) == pytest.approx([1 / 2, 1, 2 / 3, 1 / 3])
    assert all(rate > 0 for rate in rates(1, schedule="cosine"))


def test_first_step_at_zero_has_rate_zero():
    assert rates(schedule="linear", warmup_steps=2, first_step_at_zero=True) == pytest.approx([0, 1 / 2, 1, 1 / 2])
    assert rates(schedule="noam", first_step_at_zero=True)[0] == 0


def test_decay_steps_is_the_step_at_rate_zero():
    assert rates(5, schedule="linear", decay_steps=3) == pytest.approx([2 / 3, 1 / 3, 0, 0, 0])
    assert rates(3, schedule="cosine", decay_steps=3)[2] == pytest.approx(0)


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("form", ["standard", "floored", "endless"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "exponential", "constant"])
def test_behind_decay_steps_no_rate_rises_or_falls_below_zero(schedule: str, form: str, warmup: int):
    later = rates(60, schedule=schedule, schedule_form=form, warmup_steps=warmup, decay_steps=10)[9:]
    assert later == sorted(later, reverse=True)
    assert min(later) >= 0


def random_curve(draw: random.Random) -> dict[str, Any]:
    form = draw.choice(["standard", "floored", "endless"])
    names = ["linear", "cosine", "exponential", "constant", *(["noam"] if form == "standard" else [])]
    settings = {"schedule": draw.choice(names), "schedule_form": form, "first_step_at_zero": draw.random() < 0.5}
    if draw.random() < 0.5:
        settings["decay_steps"] = draw.randint(1, 40)
    if form != "standard" and draw.random() < 0.5:
        settings["warmup_share"] = draw.random()
    else:
        settings["warmup_steps"] = draw.randint(0, 40)
    if form == "floored":
        settings["min_lr"] = draw.choice([0, 0.1, 0.5])
    return settings


def test_every_curve_rises_once_falls_once_and_keeps_above_its_floor():
    draw = random.Random(0)
    for _ in range(1000):
        settings, total = random_curve(draw), draw.randint(1, 40)
        made = TrainSettings(lr=1.0, **settings)
        found = [learning_rate(made, step, total) for step in range(1, 100)]  # also behind its end
        top = found.index(max(found))
        assert found[: top + 1] == sorted(found[: top + 1]), settings
        assert found[top:] == sorted(found[top:], reverse=True), settings
        assert min(found) >= 0, settings
        assert min(found[top:]) >= made.min_lr, settings
        assert max(found) <= 1 + 1e-12, settings


@pytest.mark.parametrize("schedule", ["linear", "cosine", "exponential", "constant"])
def test_a_warm_up_longer_than_a_run_only_rises(schedule: str):
    form = {} if schedule in ("exponential", "constant") else {"decay_steps": 8}
    assert rates(5, schedule=schedule, schedule_form="floored", warmup_steps=10, **form) == [0, 0.1, 0.2, 0.3, 0.4]


def test_noam_peaks_at_lr_over_sqrt_warmup():
    assert max(rates(20, schedule="noam", warmup_steps=4)) == rates(20, schedule="noam", warmup_steps=4)[3] == 1 / 2


def test_exponential_and_constant():
    assert rates(3, schedule="exponential", warmup_steps=1) == pytest.approx([1, 0.95, 0.95**2])
    assert rates(3, schedule="constant") == [1, 1, 1]


@pytest.mark.parametrize("decay_all", [False, True])
def test_adamw_equals_torch_with_groups(decay_all: bool):
    torch.manual_seed(0)
    settings = AdamWSettings(weight_decay=0.1, decay_all=decay_all, betas=(0.8, 0.9), eps=1e-6)
    ours = {"matrix": nn.Parameter(torch.randn(3, 4)), "vector": nn.Parameter(torch.randn(4))}
    theirs = {name: nn.Parameter(weight.detach().clone()) for name, weight in ours.items()}
    groups = [
        {"params": [theirs["matrix"]], "weight_decay": 0.1},
        {"params": [theirs["vector"]], "weight_decay": 0.1 if decay_all else 0.0},
    ]
    optimizer, reference = AdamW(ours, settings), torch.optim.AdamW(groups, betas=(0.8, 0.9), eps=1e-6)
    for step in range(5):
        for name, weight in ours.items():
            weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
            theirs[name].grad = weight.grad.clone()
        for group in reference.param_groups:
            group["lr"] = 0.01 * (step + 1)
        optimizer.step(0.01 * (step + 1))
        reference.step()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-6, atol=1e-7)  # fused and plain kernels round apart


def test_decay_is_decoupled():
    weight = nn.Parameter(torch.ones(1, 1))
    weight.grad = torch.zeros(1, 1)
    AdamW({"w": weight}, AdamWSettings(weight_decay=0.5)).step(0.1)
    assert math.isclose(weight.item(), 1 - 0.1 * 0.5, rel_tol=1e-6)


def test_huggingface_s_adamw_adds_eps_to_the_uncorrected_root():
    settings = AdamWSettings(eps_before_correction=True, betas=(0.8, 0.9), eps=1e-2, weight_decay=0)
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer, expected, mean, square = AdamW({"w": weight}, settings), weight.detach().clone(), 0.0, 0.0
    for step in range(1, 4):
        weight.grad = torch.tensor([0.003, -0.1]) * step
        mean, square = 0.8 * mean + 0.2 * weight.grad, 0.9 * square + 0.1 * weight.grad**2
        expected -= 0.05 * math.sqrt(1 - 0.9**step) / (1 - 0.8**step) * mean / (square**0.5 + 1e-2)
        optimizer.step(0.05)
    torch.testing.assert_close(weight.detach(), expected)
