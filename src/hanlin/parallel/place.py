"""A model on its device(s), behind the one face that the step and the loop know: `Worker`.

Trained weights are fp32, frozen ones are stored in the precision of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import nn

from hanlin.core.batch import Batch
from hanlin.core.errors import ConfigError
from hanlin.core.ranks import read_ranks

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Worker(Protocol):
    """This process's share of the model. All ranks call the same methods in the same order."""

    model: nn.Module
    device: torch.device
    parameters: dict[str, nn.Parameter]
    """The trained ones that this rank holds, by name."""
    data_ranks: int
    """Among how many ranks the rows of a batch are divided."""

    def forward_backward(self, batch: Batch, loss_tokens: float, scale: float = 1.0) -> torch.Tensor:
        """Add the gradient of scale x summed loss / loss_tokens; return the loss of this rank's rows, not scaled."""
        ...

    def losses(self, batch: Batch) -> torch.Tensor:
        """The weighted loss of each position `[batch, length]`; no gradient, no dropout."""
        ...

    def grad_norm(self) -> torch.Tensor:
        """The length of all gradients as one vector, over all ranks; not finite if any of them is not."""
        ...

    def scale_grads(self, factor: float) -> None: ...

    def drop_grads(self) -> None: ...

    def sum_over_data(self, values: Sequence[float]) -> list[float]:
        """The sums over the data ranks; every rank must call it."""
        ...


def place(
    model: nn.Module, device: torch.device, precision: Precision = "fp32", *, checkpoint_activations: bool = False
) -> Worker:
    """Bring the model to the device in the dtypes of `precision`; what requires a gradient is trained.

    Raises: ConfigError when a launcher started several processes.
    """
    world = read_ranks().world
    if world > 1:
        raise ConfigError(f"{world} processes were started, but training runs in one; start it without a launcher")
    if checkpoint_activations:
        assert hasattr(model, "checkpoint_activations"), f"{type(model).__name__} cannot checkpoint activations"
        model.checkpoint_activations = True  # pyright: ignore[reportArgumentType]  # a plain attribute of ours
    for parameter in model.parameters():
        # Changing the data and not the parameter keeps tied weights tied.
        if parameter.is_floating_point():  # quantised weights stay as they are packed
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else DTYPES[precision])
    return LocalWorker(model.to(device), device, DTYPES[precision])


class LocalWorker:
    """The whole model in this process."""

    data_ranks = 1

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.device, self.dtype = model, device, dtype
        self.parameters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    def forward_backward(self, batch: Batch, loss_tokens: float, scale: float = 1.0) -> torch.Tensor:
        self._set_mode(training=True)
        loss = self._forward(batch, reduction="sum") / loss_tokens
        (loss * scale).backward()
        return loss.detach()

    @torch.no_grad()
    def losses(self, batch: Batch) -> torch.Tensor:
        self._set_mode(training=False)
        return self._forward(batch, reduction="none")

    @torch.no_grad()
    def grad_norm(self) -> torch.Tensor:
        return nn.utils.get_total_norm(self._grads())

    @torch.no_grad()
    def scale_grads(self, factor: float) -> None:
        for grad in self._grads():
            grad.mul_(factor)

    def drop_grads(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def sum_over_data(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def _forward(self, batch: Batch, reduction: Literal["sum", "none"]) -> torch.Tensor:
        batch = batch.to(self.device)
        is_mixed = self.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(self.device.type, self.dtype if is_mixed else None, enabled=is_mixed):
            return self.model(**batch.inputs, labels=batch.labels, weights=batch.weights, reduction=reduction)

    def _grads(self) -> list[torch.Tensor]:
        return [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]

    def _set_mode(self, *, training: bool) -> None:
        if self.model.training != training:
            self.model.train(training)
