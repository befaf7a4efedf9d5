"""The chunked loss of an imitating model against torch's own divergences of whole logits."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional

from hanlin.layers import loss as loss_module
from hanlin.layers.distillation import Imitation, Teacher, TeacherRows
from hanlin.layers.loss import HeadPart, comparing, head_loss

ROWS, WIDTH, TEACHER_WIDTH = 7, 6, 9


def make_head(width: int, seed: int) -> tuple[torch.Tensor, list[HeadPart]]:
    draw = torch.Generator().manual_seed(seed)
    tables = [torch.randn(size, width, generator=draw, dtype=torch.float64, requires_grad=True) for size in (13, 4)]
    hidden = torch.randn(2, ROWS, width, generator=draw, dtype=torch.float64, requires_grad=True)
    return hidden, [(tables[0], 0.3), (tables[1], 1.0)]


def make_labels() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    labels = torch.randint(0, 17, (2, ROWS), generator=draw)
    labels[0, ::2] = -100
    return labels, torch.rand(2, ROWS, generator=draw, dtype=torch.float64)


def logits_of(hidden: torch.Tensor, pieces: list[HeadPart]) -> torch.Tensor:
    return torch.cat([hidden @ table.t() * factor for table, factor in pieces], -1)


def plain_losses(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, how: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """From whole logits: the mixture, the cross entropy and the divergence of each position."""
    heat = how["temperature"]
    own, wanted = functional.log_softmax(student / heat, -1), functional.log_softmax(teacher / heat, -1)
    pair = (own, wanted) if how["divergence"] == "forward" else (wanted, own)
    divergence = functional.kl_div(*pair, reduction="none", log_target=True).sum(-1) * heat**2
    entropy = functional.cross_entropy(student.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    return how["share"] * divergence + (1 - how["share"]) * entropy, entropy, divergence


HOW = [
    {"divergence": "forward", "temperature": 1.0, "share": 1.0},
    {"divergence": "forward", "temperature": 2.5, "share": 0.3},
    {"divergence": "reverse", "temperature": 1.0, "share": 0.6},
    {"divergence": "reverse", "temperature": 0.7, "share": 1.0},
]


@pytest.mark.parametrize("how", HOW, ids=lambda how: f"{how['divergence']} {how['temperature']} {how['share']}")
@pytest.mark.parametrize("rows", [2, 100])
def test_chunks_equal_full_logits_with_gradients(
    how: dict[str, Any], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ROWS", rows)
    hidden, pieces = make_head(WIDTH, 1)
    other, other_pieces = make_head(TEACHER_WIDTH, 2)
    labels, weights = make_labels()
    teacher = Teacher()
    with comparing(teacher), torch.no_grad():
        assert head_loss(other, other_pieces, labels, weights, "none").abs().sum() == 0
    assert teacher.rows is not None
    assert teacher.rows.hidden.shape == (int((labels != -100).sum()), TEACHER_WIDTH)
    measured = torch.zeros(3, dtype=torch.float64)
    imitation = partial(Imitation, teacher=teacher.rows, measured=measured, **how)
    with comparing(imitation):
        ours = head_loss(hidden, pieces, labels, weights)
        each = head_loss(hidden, pieces, labels, weights, "none")
    expected = plain_losses(logits_of(hidden, pieces), logits_of(other, other_pieces).detach(), labels, how)
    there = (labels != -100) * weights
    sums = torch.stack([(one * there).sum() for one in expected])
    torch.testing.assert_close(ours, sums[0], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(each, (expected[0] * there).detach(), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(measured, 2 * sums.detach(), atol=1e-12, rtol=1e-12)  # both calls are measured
    leaves = [hidden, *(table for table, _ in pieces)]
    found, wanted = torch.autograd.grad(ours * 7, leaves), torch.autograd.grad(sums[0] * 7, leaves)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)


def test_a_model_that_is_its_own_teacher_is_nowhere_from_it() -> None:
    hidden, pieces = make_head(WIDTH, 1)
    labels, weights = make_labels()
    rows = TeacherRows(hidden.detach().flatten(0, 1)[(labels != -100).flatten()], pieces, torch.float64)
    measured = torch.zeros(3, dtype=torch.float64)
    how = {"divergence": "reverse", "temperature": 2.0, "share": 1.0}
    with comparing(partial(Imitation, teacher=rows, measured=measured, **how)):
        (gradient,) = torch.autograd.grad(head_loss(hidden, pieces, labels, weights), hidden)
    assert measured[2].item() == pytest.approx(0, abs=1e-12)
    assert measured[1] > 1
    assert gradient.abs().max() < 1e-12


def test_the_loss_is_the_cross_entropy_again_afterwards() -> None:
    hidden, pieces = make_head(WIDTH, 1)
    labels, weights = make_labels()
    before = head_loss(hidden, pieces, labels, weights)
    with comparing(Teacher()):
        head_loss(hidden, pieces, labels, weights)
    torch.testing.assert_close(head_loss(hidden, pieces, labels, weights), before, atol=0, rtol=0)


def test_a_teacher_of_whole_precision_keeps_it_under_autocast() -> None:
    draw = torch.Generator().manual_seed(0)
    table, hidden = torch.randn(50, 16, generator=draw), torch.randn(1, 4, 16, generator=draw)
    labels, weights = torch.tensor([[3, 1, -100, 7]]), torch.ones(1, 4)
    teacher = Teacher()
    with comparing(teacher):
        head_loss(hidden, [(table, 1.0)], labels, weights)
    measured = torch.zeros(3)
    assert teacher.rows is not None
    how = {"divergence": "forward", "temperature": 1.0, "share": 1.0}
    with (
        comparing(partial(Imitation, teacher=teacher.rows, measured=measured, **how)),
        torch.autocast("cpu", torch.bfloat16),
    ):
        head_loss(hidden, [(table, 1.0)], labels, weights)
    rows = hidden[0, [0, 1, 3]]
    own = functional.log_softmax((rows.bfloat16() @ table.bfloat16().t()).float(), -1)
    wanted = functional.log_softmax(rows @ table.t(), -1)
    expected = functional.kl_div(own, wanted, reduction="sum", log_target=True)
    torch.testing.assert_close(measured[2], expected, rtol=1e-4, atol=1e-6)
