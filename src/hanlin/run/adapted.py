"""Several adapters of one base beside each other: each a model of its own whose base weights are the same tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hanlin.core.errors import ConfigError
from hanlin.data.processor import HasFingerprint
from hanlin.layers.lora import additions_by_row, only_adds
from hanlin.run.weights import with_adapter

if TYPE_CHECKING:
    from torch import nn

    from hanlin.generate.engine import Engine
    from hanlin.models.family import Processor
    from hanlin.run.components import Components

__all__ = ["adapted_engine", "check_same_base", "joint_engine"]


def check_same_base(base: Components, adapted: Components) -> None:
    """Whether an adapter leaves the model the sizes that its base has.

    Raises: ConfigError.
    """
    assert adapted.adapter is not None, "no adapter"
    path = adapted.adapter.path
    if base.recipe.generate.expert_memory is not None:
        raise ConfigError("generate.expert_memory: experts read from disk are those of one model; serve one adapter")
    if base.config != adapted.config:
        raise ConfigError(f"--adapter {path}: it changes the base's configuration (a head for labels?); serve it alone")


def adapted_engine(base: Engine, components: Components) -> Engine:
    """An engine like another one with an adapter on top, which alone takes memory of its own.

    base: of the same recipe without an adapter; it stays as it is.
    Raises: CheckpointError, ConfigError.
    """
    from hanlin.generate.engine import Engine

    model = with_adapter(_sharing(base.model), components)
    engine = Engine(
        model.requires_grad_(False).eval().to(base.device),
        components.processor,
        base.device,
        base.precision,
        max_length=base.max_length,
        family=components.family,
    )
    engine.attention = base.attention
    return engine


def joint_engine(base: Engine, adapted: Mapping[str, Engine]) -> tuple[Engine, set[str]]:
    """An engine that answers for the base and for those of the engines whose adapters are additions to its linears,
    each row by its own (`AnswerRequest.adapter`); and their names. Where there is none, the base as it is.
    """
    alike = {}
    for name, engine in adapted.items():
        if _rows_of(engine.processor) == _rows_of(base.processor) and only_adds(base.model, engine.model):
            alike[name] = engine.model
    if not alike:
        return base, set()
    engine, joint = copy.copy(base), _sharing(base.model)
    engine.model, engine.adapters = joint, additions_by_row(joint, alike)
    return engine, set(alike)


def _rows_of(processor: Processor) -> tuple[type, str]:
    """What decides how records are read, as far as the processor tells it."""
    return type(processor), processor.fingerprint if isinstance(processor, HasFingerprint) else ""


def _sharing(model: nn.Module) -> nn.Module:
    """Modules of their own whose tensors are those of a model."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
