from hanlin.recipe.settings import TrainSettings
from hanlin.training.scale import LossScale


def test_halves_on_overflow_but_not_below_one():
    scale = LossScale(3.0, patience=2).after(False)
    assert scale.value == 1.5
    assert scale.after(False).after(False).value == 1.0


def test_doubles_after_good_steps_in_a_row():
    scale = LossScale(4.0, patience=3)
    interrupted = scale.after(True).after(True).after(False).after(True).after(True)
    assert interrupted.value == 2.0
    assert interrupted.after(True) == LossScale(4.0, 3, 0)


def test_only_fp16_scales():
    assert LossScale.of(TrainSettings(precision="bf16")).after(False) == LossScale(1.0)
    assert LossScale.of(TrainSettings(precision="fp16", loss_scale=8)).value == 8


def test_hysteresis_bears_overflows_until_it_has_doubled_again():
    scale = LossScale(8.0, patience=2, hysteresis=2)
    once = scale.after(False)
    assert (once.value, once.after(False).value) == (8.0, 4.0)
    # Good steps alone give no new credit, a doubling does.
    assert once.after(True).after(False).value == 4.0
    assert once.after(True).after(True).after(False).value == 16.0


def test_a_good_step_refills_the_hysteresis_where_overflows_count_in_a_row():
    settings = TrainSettings(
        precision="fp16", loss_scale=8, loss_scale_steps=5, loss_scale_hysteresis=2, loss_scale_consecutive=True
    )
    scale = LossScale.of(settings)
    assert scale.after(False).after(True).after(False).value == 8
    assert scale.after(False).after(False).value == 4
    # Once it is spent it stays so, until a good step.
    assert scale.after(False).after(False).after(False).value == 2
    assert scale.after(False).after(False).after(True).after(False).value == 4


def test_a_scale_without_steps_never_changes():
    scale = LossScale.of(TrainSettings(precision="fp16", loss_scale=128, loss_scale_steps=None))
    assert scale.after(False).after(True) == scale
    assert scale.value == 128


def test_the_least_scale_may_be_set():
    assert LossScale(2.0, patience=1, least=2.0).after(False).value == 2.0
