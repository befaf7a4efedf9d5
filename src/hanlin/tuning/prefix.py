"""Trained keys and values before those of every block (P-Tuning v2, Liu et al. 2021), for any model with a `prefix`.

Parameters have the shapes and the order of ChatGLM2's original, so its checkpoints fit. The prefix is kept in fp32.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from hanlin.core.errors import ConfigError
from hanlin.layers.prefix import Prefix, PrefixSource

_NAME = "prefix"


class PrefixEncoder(PrefixSource):
    """A table of `length` entries, each the keys and values of all blocks; or, with `projection`, their reduced form.

    With `projection` a table row goes through two linears with a tanh between them: width -> hidden_size -> width.
    """

    def __init__(
        self,
        length: int,
        num_layers: int,
        num_heads: int,
        head_dim: int,
        *,
        hidden_size: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        """hidden_size: that of the projection, None = no projection; num_heads: of keys and values."""
        super().__init__()
        self.length = length
        self.dropout = dropout
        self.head_dim = head_dim
        self.num_layers = num_layers
        width = 2 * num_layers * num_heads * head_dim
        self.embedding = nn.Embedding(length, width)
        self.trans = None
        if hidden_size is not None:
            self.trans = nn.Sequential(nn.Linear(width, hidden_size), nn.Tanh(), nn.Linear(hidden_size, width))
        self.added = tuple(name for name, _ in self.named_parameters())

    def forward(self) -> dict[str, Prefix]:
        """The prefix of each block by its name ("0", "1", ...)."""
        with torch.autocast(self.embedding.weight.device.type, enabled=False):
            table = self.embedding.weight if self.trans is None else self.trans(self.embedding.weight)
        slots = table.unflatten(-1, (2 * self.num_layers, -1, self.head_dim)).permute(1, 2, 0, 3)
        dropout = self.dropout if self.training else 0.0
        return {str(layer): Prefix(slots[2 * layer], slots[2 * layer + 1], dropout) for layer in range(self.num_layers)}

    def init_addition(self, generator: torch.Generator | None = None) -> None:
        """As torch initialises these modules, which the original leaves as it is."""
        with torch.no_grad():
            self.embedding.weight.normal_(generator=generator)
            for module in self.trans or ():
                if isinstance(module, nn.Linear):
                    bound = module.in_features**-0.5
                    module.weight.uniform_(-bound, bound, generator=generator)
                    module.bias.uniform_(-bound, bound, generator=generator)


def add_prefix(model: Any, length: int, *, projection: bool = False, dropout: float = 0.0) -> None:
    """Put an (uninitialised) prefix before all blocks of a model; every pipeline stage keeps the whole of it.

    Raises: ConfigError for a model whose attention takes no prefix.
    """
    if not hasattr(model, _NAME):
        raise ConfigError("tuning.method: the attention of this family takes no prefix; choose lora or full")
    config = model.config
    like = next(model.parameters())
    with torch.device(like.device):
        encoder = PrefixEncoder(
            length,
            config.num_layers,
            getattr(config, "num_kv_heads", config.num_heads),
            config.head_dim,
            hidden_size=config.hidden_size if projection else None,
            dropout=dropout,
        )
    model.prefix = encoder.train(model.training)
    model.plan = replace(model.plan, shared=(*model.plan.shared, _NAME))
