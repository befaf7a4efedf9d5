"""A rank's share of a model, behind the one face that the step and the loop know: `ParallelModel`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import nn

from hanlin.core.batch import Batch
from hanlin.layers.attention_kernels import AttentionKernel, attention_kernels
from hanlin.parallel.gradients import Gradients
from hanlin.parallel.mesh import Mesh, Reduction
from hanlin.parallel.parameter_statistics import ParameterStatistics, parameter_statistics
from hanlin.parallel.sharded_parameters import ShardedParameters
from hanlin.recipe.settings import ParallelSettings


@dataclass(frozen=True)
class BackwardResult:
    """losses: of this rank's micro-batches, each by its denominator; loss: their sum over the data ranks;
    grad_norm: the length of all gradients as one vector, over all ranks, not finite if any of them is not; told: what
    the ranks told each other besides.
    """

    losses: list[float]
    loss: float
    grad_norm: float
    told: list[list[float]] = field(default_factory=list)


Around = Callable[[], AbstractContextManager[None]]
"""Makes what is open while the model reads a micro-batch, forwards."""


class StageRunner(Protocol):
    """How a rank runs its share of the model on its share of the rows."""

    def forward_backward(
        self, parts: Sequence[Batch], factors: Sequence[float], around: Sequence[Around] = ()
    ) -> torch.Tensor:
        """Add the gradients of the sum of factor x summed loss over the parts; the losses `[parts]`, without factor.

        around: of each part, or of none.
        """
        ...

    def __call__(self, **inputs: Any) -> torch.Tensor:
        """The model's result for one batch, on all ranks; no gradient."""
        ...


class SingleStage:
    """All blocks on this rank."""

    def __init__(
        self,
        model: nn.Module,
        shard: Literal["none", "gradients", "parameters"],
        before_last: Callable[[], None] = lambda: None,
    ) -> None:
        """before_last: called before the backward pass with which all gradients are there."""
        self.model, self.shard, self.before_last = model, shard, before_last

    def forward_backward(
        self, parts: Sequence[Batch], factors: Sequence[float], around: Sequence[Around] = ()
    ) -> torch.Tensor:
        losses = []
        each = around or [nullcontext] * len(parts)
        for number, (part, factor, opened) in enumerate(zip(parts, factors, each, strict=True)):
            if self.shard != "none":
                from hanlin.parallel.shard import reduce_gradients

                # Whole gradients are kept from pass to pass only where the whole weights are.
                reduce_gradients(self.model, now=self.shard == "parameters" or number == len(parts) - 1)
            with opened():
                loss = self.model(**part.inputs, labels=part.labels, weights=part.weights, reduction="sum")
            if number == len(parts) - 1:
                self.before_last()
            (loss * factor).backward()
            losses.append(loss.detach())
        return torch.stack(losses)

    @torch.no_grad()
    def __call__(self, **inputs: Any) -> torch.Tensor:
        return self.model(**inputs)


class ParallelModel:
    """This process's share of the model. All ranks call the same methods in the same order."""

    def __init__(
        self,
        models: Sequence[nn.Module],
        mesh: Mesh,
        settings: ParallelSettings,
        dtype: torch.dtype = torch.float32,
        attention: AttentionKernel = "auto",
    ) -> None:
        self.mesh, self.device, self.dtype, self.settings = mesh, mesh.device, dtype, settings
        self.models = list(models)
        self._attention: AttentionKernel = attention
        experts = _names_of_experts(models)
        # Of experts that other data ranks do not have.
        self._own_names = set[str]() if mesh.size("expert") == 1 else experts
        self._runner = self._make_runner()
        self._bring()
        # Before a sharded model runs, which then has gathered weights under these names.
        self._made_of_base = {name: weight for model in self.models for name, weight in _made_of_base(model)}
        self._sharded_parameters = ShardedParameters(self.models, mesh)
        self._gradients = Gradients(
            self.models, mesh, is_sharded=self._is_sharded, own=self._own_names, has_experts=bool(experts)
        )

    @property
    def model(self) -> nn.Module:
        """The model where it is whole, else this rank's (first) stage."""
        return self.models[0]

    @property
    def data_ranks(self) -> int:
        """Among how many ranks the rows of a batch are divided."""
        return self.mesh.size("data")

    @property
    def is_whole(self) -> bool:
        """Whether `model` is the whole model, with plain tensors."""
        return self.mesh.size("all") == 1 and not self._is_sharded

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained ones that this rank holds, by name."""
        return self._gradients.weights

    @property
    def saved(self) -> dict[str, nn.Parameter]:
        """Those that a run needs to go on, by name: the trained ones, and what was made of the base beside them."""
        return {**self._made_of_base, **self.parameters}

    def split(self, batch: Batch, rows: int | None, most: int | None = None) -> list[Batch]:
        """The parts of this rank's rows that go through the model one after the other, `rows` each.

        All data ranks get equally many parts, in a pipeline all of one size: rows without loss fill them up.
        most: rows that any data rank has; None: what the batch says of it, else they are asked.
        """
        if self.mesh.size("all") == 1:
            return batch.split(self.settings.micro_batches or -(-batch.size // (rows or batch.size)))
        most = most or batch.most_rows or int(self.mesh.maximum("data", batch.size))
        parts = self.settings.micro_batches or -(-most // (rows or most))
        filled = batch.fill_rows(-(-most // parts) * parts if self.mesh.size("pipe") > 1 else parts)
        return filled.split(parts)

    def forward_backward(
        self,
        parts: Sequence[Batch],
        denominators: Sequence[float],
        scale: float = 1.0,
        tell: Callable[[], Sequence[Reduction]] = tuple,
        *,
        dropout: bool = True,
        around: Sequence[Around] = (),
    ) -> BackwardResult:
        """Add the gradient of scale x the sum of (summed loss / denominator) over the parts of this rank's rows.

        The device is waited for once, and numbers go from rank to rank once: those of the loss and the norm, together
        with what else is to be told, which is asked for when the device is done. around: of each part, or of none; not
        in a pipeline.
        """
        self._set_mode(training=dropout)
        self._gradients.refresh_copies()
        # Sharded gradients are averaged over the ranks that share, and they are to be added.
        repeats = self.data_ranks if self._is_sharded else 1
        factors = [scale / denominator * repeats for denominator in denominators]
        with self._arithmetic(keeps_casts=self._uses_casts_again):
            losses = self._runner.forward_backward([part.to(self.device) for part in parts], factors, around)
        num_lacking = self._gradients.add()
        norm = self._gradients.own_norm()
        *sums, length = torch.cat([losses, norm.to(losses.device, losses.dtype)[None]]).tolist()
        own = [loss / denominator for loss, denominator in zip(sums, denominators, strict=True)]
        (loss, lacking), (square,), *told = self.mesh.exchange(
            ("data", "sum", [math.fsum(own), num_lacking]), ("all", "sum", [length**2]), *tell()
        )
        if lacking:
            self._gradients.drop_unknown()
        return BackwardResult(own, loss, square**0.5, told)

    def __call__(self, **inputs: Any) -> torch.Tensor:
        """The model's result for rows of this data rank, on all its ranks; no gradient."""
        with self._arithmetic():
            return self._runner(**inputs)

    def losses(self, batch: Batch) -> torch.Tensor:
        """The weighted loss of each position `[batch, length]`; no gradient, no dropout."""
        self._set_mode(training=False)
        self._gradients.refresh_copies()
        batch = batch.to(self.device)
        return self(**batch.inputs, labels=batch.labels, weights=batch.weights, reduction="none")

    def grad_norm(self) -> float:
        """The length of all gradients as one vector, over all ranks; not finite if any of them is not."""
        return self.mesh.sum("all", [self._gradients.own_norm().item() ** 2])[0] ** 0.5

    def parameter_statistics(self, gradient_scale: float = 1.0) -> dict[str, ParameterStatistics]:
        """Of each trained weight and its gradient, `gradient_scale` times too large; every rank must call it."""
        return parameter_statistics(self._gradients.counted(), self.mesh, gradient_scale)

    def scale_grads(self, factor: float) -> None:
        self._gradients.scale(factor)

    def drop_grads(self) -> None:
        self._gradients.drop()

    def sum_over_data(self, values: Sequence[float]) -> list[float]:
        """The sums over the data ranks; every rank must call it."""
        return self.mesh.sum("data", values)

    # --- whole weights ---

    @property
    def names(self) -> list[str]:
        """Of all weights that this rank holds a part of."""
        return self._sharded_parameters.names

    @property
    def num_bytes(self) -> int:
        """Of this rank's parts of all weights."""
        return self._sharded_parameters.num_bytes

    def count_parameters(self) -> tuple[int, int]:
        """Of the whole model: trained ones, and all; packed ones as what they stand for."""
        return self._sharded_parameters.count()

    def fill(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Give the weights of these names their values; each rank keeps its part of what it holds."""
        self._sharded_parameters.fill(weights)

    def gather(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """The whole weights (None: all), in memory of the main rank's CPU and empty on the others; every rank must
        go through them."""
        return self._sharded_parameters.gather(names)

    # --- making ---

    @property
    def _is_mixed(self) -> bool:
        return self.dtype in (torch.bfloat16, torch.float16)

    @property
    def _is_sharded(self) -> bool:
        """A process alone shards only in order to offload."""
        return self.settings.shard != "none" and (self.mesh.size("all") > 1 or self.settings.offload)

    def _make_runner(self) -> StageRunner:
        if self.mesh.size("pipe") == 1:
            self._shard(self.models)
            shard = self.settings.shard if self._is_sharded else "none"
            return SingleStage(self.model, shard, self._expect_last_gradients)
        from hanlin.parallel.pipeline import Pipeline, Stage

        count = self.settings.num_stages
        numbers = range(self.mesh.rank("pipe"), count, self.mesh.size("pipe"))
        stages = [Stage(model, number, count, self.mesh) for model, number in zip(self.models, numbers, strict=True)]
        self._shard(stages)
        return Pipeline(stages, count, self.mesh, self.settings.schedule)

    def _expect_last_gradients(self) -> None:
        self._gradients.expect_last()

    def _shard(self, stages: Sequence[nn.Module]) -> None:
        if not self._is_sharded:
            return
        from hanlin.parallel.shard import shard

        frees, offload = self.settings.shard == "parameters", self.settings.offload
        gathered = self.dtype if self._is_mixed and not self.settings.gather_fp32 else None
        for stage, model in zip(stages, self.models, strict=True):
            own = {weight for name, weight in model.named_parameters() if name in self._own_names}
            shard(stage, model, self.mesh, frees_weights=frees, offload=offload, gathered=gathered, whole=own)

    def _bring(self) -> None:
        """Memory on the device for what is on the meta device; all else is moved there."""
        target = torch.device("cpu") if self.settings.offload else self.device
        for model in self.models:
            if any(parameter.is_meta for parameter in model.parameters()):
                model.to_empty(device=target)
            else:
                model.to(target)

    # --- arithmetic ---

    @property
    def _uses_casts_again(self) -> bool:
        """Whether weights that a micro-batch casts serve the next ones too. Not where they are there for a block only:
        with those of an earlier pass remembered, gradients would come after FSDP has collected them; and blocks that
        are computed again would keep them all, to save memory elsewhere.
        """
        return not self._is_sharded and self.settings.checkpoint_activations == "none"

    @contextmanager
    def _arithmetic(self, *, keeps_casts: bool = False) -> Iterator[None]:
        """keeps_casts: cast weights are remembered to its end; else they go with what reads them."""
        options: Any = {"enabled": self._is_mixed, "cache_enabled": keeps_casts}
        casting = torch.autocast(self.device.type, self.dtype if self._is_mixed else None, **options)
        with casting, attention_kernels(self.device, self._attention):
            yield

    def _set_mode(self, *, training: bool) -> None:
        for model in self.models:
            if model.training != training:
                model.train(training)


def _names_of_experts(models: Sequence[nn.Module]) -> set[str]:
    from hanlin.parallel.experts import expert_names

    return {name for model in models for name in expert_names(model)}


def _made_of_base(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What a tuning method added and does not train, whose values come from weights of the base."""
    for prefix, module in model.named_modules():
        for name in module.added if getattr(module, "reads_base", False) else ():  # pyright: ignore[reportGeneralTypeIssues]
            weight = module.get_parameter(name)  # pyright: ignore[reportArgumentType]
            if not weight.requires_grad:
                yield f"{prefix}.{name}", weight
