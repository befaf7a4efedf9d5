"""What a file of optimizers/ exports, and how a run gets its optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hanlin.core.errors import ConfigError
from hanlin.recipe.reading import Found
from hanlin.recipe.settings import OPTIMIZERS, OptimizerSettings

if TYPE_CHECKING:
    import torch
    from torch import nn


class Optimizer(Protocol):
    """Changes weights by their gradients."""

    def step(self, rate: float) -> None:
        """Change the weights that have a gradient; rate: the learning rate of this step."""
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """The whole state by flat names; to be saved, or loaded into. Under a layout those of weights are DTensors like
        them, so that any other layout can read them.
        """
        ...


class WeightByWeight:
    """An `Optimizer` that changes one weight after the other: what is left to its subclasses is `update`.

    state: by kind and by the name of the weight; steps: how many each weight has made.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], kinds: Sequence[str]) -> None:
        import torch

        self.parameters = dict(parameters)
        self.state: dict[str, dict[str, torch.Tensor]] = {kind: {} for kind in kinds}
        # On the weights' devices: nothing waits for them.
        self.steps = {
            name: torch.zeros((), dtype=torch.float32, device=weight.device) for name, weight in parameters.items()
        }

    def step(self, rate: float) -> None:
        """Change the weights that have a gradient."""
        import torch

        with torch.no_grad():
            for name, weight in self.parameters.items():
                if weight.grad is not None:
                    self.steps[name].add_(1)
                    self.update(name, weight, weight.grad, rate)

    def update(self, name: str, weight: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        """Change a weight, of which a layout may leave this rank a part, in place; its step is counted already."""
        raise NotImplementedError

    def tensors(self) -> dict[str, torch.Tensor]:
        """The whole state by flat names; to be saved, or loaded into."""
        kinds = {**self.state, "steps": self.steps}
        return {f"{kind}.{name}": tensor for kind, named in kinds.items() for name, tensor in named.items()}


@dataclass(frozen=True)
class WeightShape:
    """What is known of a weight without its values.

    part: the shape of what a rank holds of it; whole: that of all of it; is_in_block: whether it is one of a repeated
    block, as linears are, and not an embedding's or the head's.
    """

    part: Sequence[int]
    whole: Sequence[int]
    is_in_block: bool = True


@dataclass(frozen=True)
class OptimizerSpec:
    """What a file exports as `optimizer`.

    settings: the class of its settings, without torch; build: makes the optimizer of named weights by such settings;
    state_bytes: what it keeps on a rank for one weight, for the planner; part_problem: what keeps it from a weight of
    which a rank holds a part ("" if nothing does; None: it takes all); step_bytes: most that it holds besides while it
    changes one fp32 weight, for the planner (None: nothing).
    """

    settings: type[OptimizerSettings]
    build: Callable[[Mapping[str, nn.Parameter], Any], Optimizer]
    state_bytes: Callable[[Any, WeightShape], int]
    part_problem: Callable[[WeightShape], str] | None = None
    step_bytes: Callable[[Any, WeightShape], int] | None = None


def is_in_block(name: str) -> bool:
    """Whether a weight is one of a repeated block: their names have its number."""
    return any(part.isdecimal() for part in name.split("."))


def find_optimizer(settings: OptimizerSettings) -> OptimizerSpec:
    """The optimizer that is meant. Raises: ConfigError."""
    return OPTIMIZERS.load(settings.name)


def layout_problems(settings: OptimizerSettings, parts: Iterable[tuple[str, Sequence[int], Sequence[int]]]) -> Found:
    """Key and text of what keeps the optimizer from a layout: of the first weight that it does not take.

    parts: of trained weights name, shape, and the shape of what the rank that has most of it holds.
    """
    part_problem = find_optimizer(settings).part_problem
    if part_problem is None:
        return
    for name, whole, part in parts:
        if text := part_problem(WeightShape(part, whole, is_in_block(name))):
            yield "train.optimizer", f"{settings.name} {text} ({name}); use another parallel.tensor, or adamw"
            return


class AtRates:
    """Optimizers of one kind, each of which has weights of its own and multiplies the learning rate by a factor."""

    def __init__(self, by_factor: Mapping[float, Optimizer]) -> None:
        self.by_factor = dict(by_factor)

    def step(self, rate: float) -> None:
        """Change the weights that have a gradient."""
        for factor, optimizer in self.by_factor.items():
            optimizer.step(rate * factor)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The whole state by flat names, which are those of one optimizer of all weights."""
        return {name: tensor for one in self.by_factor.values() for name, tensor in one.tensors().items()}


def build_optimizer(
    parameters: Mapping[str, nn.Parameter],
    settings: OptimizerSettings,
    rate_factors: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Optimizer:
    """The optimizer of these weights, with a state that knows of no step yet. bf16 ones are rounded by chance, from the
    seed.

    rate_factors: by what the learning rate of weights is multiplied, by the last part of their names; others: 1.
    Raises: ConfigError for a layout that it does not take.
    """
    import torch

    from hanlin.parallel.mesh import local

    shapes = ((name, one.shape, local(one).shape) for name, one in parameters.items())
    for key, text in layout_problems(settings, shapes):
        raise ConfigError(f"{key}: {text}")
    if not any(weight.dtype == torch.bfloat16 for weight in parameters.values()):
        return _build(parameters, settings, rate_factors or {})
    from hanlin.training.rounding import RoundedOptimizer

    return RoundedOptimizer(parameters, lambda wide: _build(wide, settings, rate_factors or {}), seed)


def _build(
    parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings, rate_factors: Mapping[str, float]
) -> Optimizer:
    build = find_optimizer(settings).build
    groups: dict[float, dict[str, nn.Parameter]] = {}
    for name, weight in parameters.items():
        groups.setdefault(rate_factors.get(name.rpartition(".")[2], 1.0), {})[name] = weight
    if groups.keys() <= {1.0}:
        return build(parameters, settings)
    return AtRates({factor: build(own, settings) for factor, own in groups.items()})
