"""Several adapters of one base beside each other: each a model of its own whose base weights are the same tensors."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from hanlin.core.errors import ConfigError
from hanlin.run.weights import with_adapter

if TYPE_CHECKING:
    from hanlin.generate.engine import Engine
    from hanlin.run.components import Components

__all__ = ["adapted_engine", "check_same_base"]


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

    shared = {id(tensor): tensor for tensor in (*base.model.parameters(), *base.model.buffers())}
    model = with_adapter(copy.deepcopy(base.model, shared), components)
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
