import pytest
import torch
from tiny_model import make_batch, tiny_model

from hanlin.core.errors import ConfigError
from hanlin.parallel.place import place

CPU = torch.device("cpu")


def test_trained_weights_are_fp32_and_frozen_ones_as_the_arithmetic():
    model = tiny_model().half()
    model.embedding.requires_grad_(False)
    worker = place(model, CPU, "bf16")
    assert model.embedding.weight.dtype == torch.bfloat16
    assert {weight.dtype for weight in worker.parameters.values()} == {torch.float32}
    assert "embedding.weight" not in worker.parameters


def test_tied_weights_stay_tied():
    model = tiny_model()
    model.head.weight = model.embedding.weight
    place(model.half(), CPU, "fp32")
    assert model.head.weight is model.embedding.weight


def test_gradients_add_up_and_are_scaled():
    worker, batch = place(tiny_model(), CPU), make_batch(0)
    loss = worker.forward_backward(batch, batch.loss_tokens)
    first = {name: weight.grad.clone() for name, weight in worker.parameters.items() if weight.grad is not None}
    assert worker.forward_backward(batch, batch.loss_tokens, 4.0) == loss
    for name, weight in worker.parameters.items():
        torch.testing.assert_close(weight.grad, first[name] * 5)
    worker.scale_grads(0.2)
    norm = torch.cat([grad.flatten() for grad in first.values()]).norm()
    torch.testing.assert_close(worker.grad_norm(), norm)


def test_losses_are_without_dropout_and_gradient():
    worker, batch = place(tiny_model(dropout=0.5), CPU), make_batch(0)
    worker.forward_backward(batch, 1.0)
    first, second = worker.losses(batch), worker.losses(batch)
    assert first.equal(second)
    assert not first.requires_grad
    assert first.shape == batch.labels.shape
    assert worker.forward_backward(batch, 1.0) != worker.forward_backward(batch, 1.0)  # dropout is back


def test_several_processes_are_refused(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="2 processes"):
        place(tiny_model(), CPU)
