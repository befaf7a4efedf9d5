import logging
import math
import subprocess
import sys

import pytest
import torch
from tiny_model import break_batch, make_batch, tiny_model

from hanlin.core.errors import HanlinError
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import TrainSettings
from hanlin.training.objectives.likelihood import mean_loss
from hanlin.training.optimizer import build_optimizer
from hanlin.training.schedules import learning_rate
from hanlin.training.step import Step

CPU = torch.device("cpu")


def make_step(model=None, *, total_steps: int = 20, dtype=torch.float32, **settings) -> Step:
    made = TrainSettings(**{"lr": 0.01, "steps": total_steps, **settings})
    parallel_model = parallelize((model or tiny_model()).to(dtype), CPU, made.precision)
    return Step(parallel_model, build_optimizer(parallel_model.parameters, made.optimizer), made, total_steps)


def weights_of(step: Step) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in step.parallel_model.model.named_parameters()}


@pytest.mark.parametrize("micro_batch_size", [2, 1, 3])
def test_micro_batches_change_nothing(micro_batch_size: int):
    whole, cut = (make_step(dtype=torch.float64, micro_batch_size=rows) for rows in (None, micro_batch_size))
    for number in range(3):
        reports = [step.run(make_batch(number)) for step in (whole, cut)]
        assert reports[0].loss == pytest.approx(reports[1].loss, rel=1e-13)
        assert reports[0].grad_norm == pytest.approx(reports[1].grad_norm, rel=1e-12)
    for name, weight in weights_of(whole).items():
        torch.testing.assert_close(weight, weights_of(cut)[name], rtol=1e-10, atol=1e-12)


def test_token_mean_divides_by_the_weights_of_all_rows():
    step, batch = make_step(micro_batch_size=1), make_batch(0)
    losses = step.parallel_model.losses(batch)
    assert step.run(batch).loss == pytest.approx(losses.sum().item() / batch.loss_tokens, rel=1e-6)


def test_batch_mean_is_the_mean_of_the_means_of_the_forward_passes():
    step, batch = make_step(micro_batch_size=2, loss_mean="batch"), make_batch(0)
    means = [step.parallel_model.losses(part).sum().item() / part.loss_tokens for part in batch.split(2)]
    assert step.run(batch).loss == pytest.approx(sum(means) / 2, rel=1e-6)


def test_clipping_bounds_the_gradient():
    norms = []
    for clip in (None, 1e-3):
        step = make_step(clip=clip)
        step.optimizer.step = lambda rate, step=step: norms.append(step.parallel_model.grad_norm())  # type: ignore[method-assign]
        report = step.run(make_batch(0))
        norms.append(report.grad_norm)
    assert norms[0] == pytest.approx(norms[1])
    assert norms[2] == pytest.approx(1e-3, rel=0.01)  # 1e-6 in the divisor
    assert norms[3] == norms[1]


@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_clipping_shortens_a_long_gradient_and_leaves_a_short_one_as_it_is(clip: float):
    """Looks at what the optimizer gets: the changes of AdamW are the same for any factor."""
    given: list[dict[str, torch.Tensor]] = []
    for limit in (None, clip):
        step = make_step(clip=limit)
        weights = step.parallel_model.parameters
        step.optimizer.step = lambda rate, weights=weights: given.append(  # type: ignore[method-assign]
            {name: weight.grad.clone() for name, weight in weights.items() if weight.grad is not None}
        )
        norm = step.run(make_batch(0)).grad_norm
    assert 1e-3 < norm < 1e3
    factor = min(1.0, clip / (norm + 1e-6))
    for name, plain in given[0].items():
        torch.testing.assert_close(given[1][name], plain * factor, rtol=1e-6 if factor < 1 else 0, atol=0)


def test_the_optimizer_gets_gradients_without_the_loss_scale():
    given: list[torch.Tensor] = []
    for scale in (1, 1024):
        step = make_step(precision="fp16", loss_scale=scale, clip=None)
        weight = step.parallel_model.parameters["head.weight"]
        step.optimizer.step = lambda rate, weight=weight: given.append(weight.grad.clone())  # type: ignore[method-assign]
        step.run(make_batch(0))
    torch.testing.assert_close(given[0], given[1], rtol=2e-2, atol=1e-4)  # fp16 rounds small gradients


def test_every_update_has_the_rate_of_its_number():
    step = make_step(total_steps=3, schedule="linear", warmup_steps=2)
    found = [step.run(make_batch(number)).lr for number in range(3)]
    assert found == [learning_rate(step.settings, number, 3) for number in (1, 2, 3)]
    assert len(set(found)) == 2  # up, and down again


def test_report_counts_tokens_and_uses_the_schedule():
    report = make_step(schedule="constant").run(make_batch(0, rows=3))
    assert (report.tokens, report.lr, report.skipped) == (18, 0.01, False)
    assert report.loss_tokens == make_batch(0, rows=3).loss_tokens


def test_a_broken_step_leaves_the_weights_as_they_are_and_names_the_rows(caplog):
    step = make_step(micro_batch_size=2)
    step.run(make_batch(0))
    before, moments = weights_of(step), {name: t.clone() for name, t in step.optimizer.tensors().items()}
    with caplog.at_level(logging.WARNING, "hanlin"):
        report = step.run(break_batch(make_batch(1), row=1))
    assert report.skipped
    assert math.isnan(report.loss)
    assert step.updates == 1
    assert all(weight.equal(before[name]) for name, weight in weights_of(step).items())
    assert all(tensor.equal(moments[name]) for name, tensor in step.optimizer.tensors().items())
    assert "[row 4, row 5]" in caplog.text  # the micro-batch with the broken row, and not the other one


def test_infinite_gradient_with_finite_loss_is_skipped():
    step = make_step()
    step.parallel_model.model.head.weight.register_hook(lambda grad: grad * math.inf)
    before = weights_of(step)
    assert step.run(make_batch(0)).skipped
    assert all(weight.equal(before[name]) for name, weight in weights_of(step).items())


def test_infinite_loss_with_finite_gradient_is_skipped():
    step = make_step()
    step.parallel_model.model.register_forward_hook(lambda model, given, loss: loss + math.inf)
    before = weights_of(step)
    report = step.run(make_batch(0))
    assert report.skipped
    assert math.isfinite(report.grad_norm)
    assert all(weight.equal(before[name]) for name, weight in weights_of(step).items())


def test_training_stops_after_too_many_broken_steps_in_a_row():
    step = make_step(max_skipped=2)
    step.run(break_batch(make_batch(0)))
    step.run(make_batch(0))
    step.run(break_batch(make_batch(0)))
    with pytest.raises(HanlinError, match=r"2 steps in a row .* row 1"):
        step.run(break_batch(make_batch(0)))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_learns_and_keeps_fp32_weights(precision):
    step = make_step(precision=precision, lr=0.05, schedule="constant", loss_scale=1024)
    losses = [step.run(make_batch(0)).loss for _ in range(15)]
    assert losses[-1] < 0.7 * losses[0]
    assert {weight.dtype for weight in weights_of(step).values()} == {torch.float32}
    exact = make_step(lr=0.05, schedule="constant").run(make_batch(0))
    assert losses[0] == pytest.approx(exact.loss, rel=0.02)


def test_fp16_norm_and_update_do_not_depend_on_the_scale():
    steps = [make_step(precision="fp16", loss_scale=scale, clip=0.1) for scale in (1, 1024)]
    reports = [step.run(make_batch(0)) for step in steps]
    assert reports[0].grad_norm == pytest.approx(reports[1].grad_norm, rel=1e-2)  # fp16 rounds small gradients
    assert [report.scale for report in reports] == [1, 1024]


def test_fp16_overflow_lowers_the_scale_without_being_counted():
    step = make_step(precision="fp16", loss_scale=2.0**40, max_skipped=1)
    reports = [step.run(make_batch(0)) for _ in range(30)]
    assert reports[0].skipped
    assert not reports[-1].skipped
    assert step.updates == sum(not report.skipped for report in reports)
    assert reports[1].scale == 2.0**39


def test_frozen_weights_stay_bitwise_equal_and_have_no_gradient():
    model = tiny_model()
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    step = make_step(model)
    before = weights_of(step)
    step.run(make_batch(0))
    changed = [name for name, weight in weights_of(step).items() if not weight.equal(before[name])]
    assert changed == ["head.weight"]
    assert list(step.optimizer.parameters) == ["head.weight"]


def test_mean_loss_is_per_token_whatever_the_batches():
    parallel_model = make_step().parallel_model
    batches = [make_batch(number) for number in range(3)]
    total = sum(parallel_model.losses(batch).sum().item() for batch in batches)
    expected = total / sum(batch.loss_tokens for batch in batches)
    assert mean_loss(parallel_model, batches) == pytest.approx(expected, rel=1e-6)
    assert mean_loss(parallel_model, [part for batch in batches for part in batch.split(4)]) == pytest.approx(
        expected, rel=1e-6
    )


def test_first_step_does_not_load_the_compiler():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_step import make_step, make_batch\n"
        "make_step().run(make_batch(0))\n"
        "print('torch._dynamo' in sys.modules)"
    )
    here = __file__.rpartition("/")[0]
    run = subprocess.run([sys.executable, "-c", code, here], check=True, capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == "False"
