"""A lack of memory is told with its step, the most that was in use, and the settings that need less."""

from __future__ import annotations

import pytest
import torch

from hanlin.core.errors import ConfigError, noting
from hanlin.core.memory import DeviceError, OutOfMemoryError
from hanlin.recipe.reading import make_recipe
from hanlin.run.memory import answering_memory, training_memory

RECIPE = make_recipe({"model": {"family": "cpm1"}, "run": {"folder": "x", "device": "cpu"}, "train": {"batch_size": 6}})


def ask_for_too_much() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def ask_python_for_too_much() -> None:
    bytearray(1 << 62)


def fail_as_an_accelerator() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB free")


@pytest.mark.parametrize("work", [ask_for_too_much, ask_python_for_too_much, fail_as_an_accelerator])
def test_training_tells_the_step_and_three_settings(work) -> None:
    with pytest.raises(OutOfMemoryError) as caught, training_memory(RECIPE), noting(lambda: "step=12"):
        work()
    told = str(caught.value)
    assert told.startswith("step=12: out of memory: ")
    assert "GiB at most were in use on cpu" in told
    for setting in ("train.micro_batch_size (now 6 rows)", "data.max_length", "parallel.checkpoint_activations"):
        assert setting in told
    assert "\n" not in told


def test_answers_have_settings_of_their_own() -> None:
    says = r"generate.batch_size \(now 8 records\).*train.precision: bf16"
    with pytest.raises(OutOfMemoryError, match=says), answering_memory(RECIPE):
        ask_for_too_much()


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="ours"), training_memory(RECIPE):
        raise RuntimeError("ours")


def test_free_memory_in_small_pieces_is_told_with_what_joins_them() -> None:
    text = "CUDA out of memory. Tried to allocate 1 GiB. {} GiB is reserved by PyTorch but unallocated. If reserved but"
    with (
        pytest.raises(OutOfMemoryError, match=r"expandable_segments:True.* 7\.25 GiB are free in pieces"),
        training_memory(RECIPE),
    ):
        raise torch.OutOfMemoryError(text.format(7.25))
    with pytest.raises(OutOfMemoryError) as caught, training_memory(RECIPE):
        raise torch.OutOfMemoryError(text.format(0.5))
    assert "expandable" not in str(caught.value)


def test_libraries_of_cuda_lack_memory_in_words_of_their_own() -> None:
    with pytest.raises(OutOfMemoryError), training_memory(RECIPE):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def test_a_card_that_torch_was_built_without_is_a_matter_of_the_build() -> None:
    with (
        pytest.raises(ConfigError, match=r"built without code for this card; install .*whl/cu126"),
        training_memory(RECIPE),
    ):
        raise torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device")


def test_a_device_that_failed_is_told_and_may_be_tried_again() -> None:
    says = r"step=12: the device failed: CUDA error: device-side assert triggered\. .*CUDA_LAUNCH_BLOCKING=1"
    with pytest.raises(DeviceError, match=says) as caught, training_memory(RECIPE), noting(lambda: "step=12"):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`")
    assert caught.value.exit_code == 1  # no mistake of the user's: a launcher begins anew
    with pytest.raises(OutOfMemoryError), training_memory(RECIPE):
        raise torch.AcceleratorError("CUDA error: out of memory")
