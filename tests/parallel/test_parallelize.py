import pytest
import torch
from cases import CASES, METHODS, SHAPE, make_model
from ranks import run_ranks
from tiny_model import make_batch, tiny_model

from hanlin.core.errors import ConfigError
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.model import ChatGlm2
from hanlin.parallel.parallelize import parallelize
from hanlin.parallel.tensor import division_problems
from hanlin.recipe.settings import ParallelSettings
from hanlin.tuning.apply import apply_tuning

CPU = torch.device("cpu")


def test_trained_weights_are_fp32_and_frozen_ones_as_the_arithmetic():
    model = tiny_model().half()
    model.embedding.requires_grad_(False)
    parallel_model = parallelize(model, CPU, "bf16")
    assert model.embedding.weight.dtype == torch.bfloat16
    assert {weight.dtype for weight in parallel_model.parameters.values()} == {torch.float32}
    assert "embedding.weight" not in parallel_model.parameters


def test_tied_weights_stay_tied():
    model = tiny_model()
    model.head.weight = model.embedding.weight
    parallelize(model.half(), CPU, "fp32")
    assert model.head.weight is model.embedding.weight


def test_gradients_add_up_and_are_scaled():
    parallel_model, batch = parallelize(tiny_model(), CPU), make_batch(0)
    loss = parallel_model.forward_backward([batch], [batch.loss_tokens]).losses
    first = {name: weight.grad.clone() for name, weight in parallel_model.parameters.items() if weight.grad is not None}
    assert parallel_model.forward_backward([batch], [batch.loss_tokens], 4.0).losses == loss
    for name, weight in parallel_model.parameters.items():
        torch.testing.assert_close(weight.grad, first[name] * 5)
    parallel_model.scale_grads(0.2)
    norm = torch.cat([grad.flatten() for grad in first.values()]).norm()
    assert parallel_model.grad_norm() == pytest.approx(norm.item(), rel=1e-6)


def test_losses_are_without_dropout_and_gradient():
    parallel_model, batch = parallelize(tiny_model(dropout=0.5), CPU), make_batch(0)
    parallel_model.forward_backward([batch], [1.0])
    first, second = parallel_model.losses(batch), parallel_model.losses(batch)
    assert first.equal(second)
    assert not first.requires_grad
    assert first.shape == batch.labels.shape
    again = [parallel_model.forward_backward([batch], [1.0]).losses for _ in range(2)]
    assert again[0] != again[1]  # dropout is back


@pytest.mark.parametrize("settings", [{"data": 2}, {"tensor": 2}, {"pipe": 3, "data": 1}])
def test_degrees_that_are_not_the_processes_are_refused(settings):
    with pytest.raises(ConfigError, match=r"parallel: .* number of processes, which is 1"):
        parallelize(tiny_model(), CPU, "fp32", ParallelSettings(**settings))


@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_packed_weights_are_not_divided(method: str):
    config = ChatGlm2Config(**SHAPE, num_kv_heads=2, ffn_size=24, bits=8)
    with torch.device("meta"):
        model = ChatGlm2(config)
    apply_tuning(model, METHODS[method], CASES["chatglm2"])
    problems = list(division_problems(model, 2))
    assert [key for key, _ in problems] == ["parallel.tensor"]
    assert problems[0][1].startswith("packed weights cannot be divided; use 1, or take the base as plain numbers")


def test_a_rank_without_enough_rows_gets_some_without_loss():
    batch = make_batch(0, rows=3)
    filled = batch.fill_rows(5)
    assert filled.size == 5
    assert filled.loss_tokens == batch.loss_tokens
    assert batch.fill_rows(2) is batch


def test_one_process_counts_micro_batches_too():
    parallel_model, batch = (
        parallelize(tiny_model(), CPU, "fp32", ParallelSettings(micro_batches=2)),
        make_batch(0, rows=4),
    )
    assert [part.size for part in parallel_model.split(batch, None)] == [2, 2]


def test_whole_weights_come_to_the_main_rank_through_plain_memory():
    """What is offloaded is sent from there, so it may not be waited for on a device."""

    def gathered():
        parallel_model = parallelize(make_model(CASES["cpm1"], "full"), CPU, "fp32", ParallelSettings(pipe=2))
        parallel_model.mesh.device = torch.device("meta")  # where nothing can arrive
        return {name: weight.clone() for name, weight in parallel_model.gather()}

    model = make_model(CASES["cpm1"], "full")
    main, other = run_ranks(2, gathered)
    assert set(main) == set(other) == {name for name, _ in model.named_parameters()}
    assert all(weight.equal(model.get_parameter(name).float()) for name, weight in main.items())
    assert not any(weight.numel() for weight in other.values())
