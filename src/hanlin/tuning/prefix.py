"""Trained keys and values before those of every attention (P-Tuning v2, Liu et al. 2021) of a model with a `prefix`.

The attentions that get one are those that the model names in `prefix_places`; a decoder's are its blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from hanlin.core.errors import ConfigError
from hanlin.recipe.tuning import TuningMethod

if TYPE_CHECKING:
    from hanlin.adapters.adapter import AdapterFormat

__all__ = ["PrefixTuning", "method"]

_NAME = "prefix"


class PrefixTuning(TuningMethod):
    method: Literal["prefix"] = "prefix"
    # Keys and values of a prefix, per attention.
    length: int = Field(default=128, gt=0, le=2**16)
    # True: the prefix comes out of two trained linears, which the base's width makes large.
    projection: bool = False
    # Share of the prefix that is dropped in training (the original ChatGLM2: 0.1).
    dropout: float = Field(default=0.0, ge=0, lt=1)

    fixed: ClassVar = ("length", "projection")

    def add_to(self, model: Any, family: Any) -> None:
        """Every pipeline stage keeps the whole prefix, and every tensor rank, which uses the part of its heads."""
        if not hasattr(model, _NAME):
            raise ConfigError("tuning.method: the attention of this family takes no prefix; choose lora or full")
        import torch

        from hanlin.layers.prefix import PrefixEncoder

        config = model.config
        with torch.device(next(model.parameters()).device):
            encoder = PrefixEncoder(
                self.length,
                getattr(model, "prefix_places", None) or [str(number) for number in range(config.num_layers)],
                getattr(config, "num_kv_heads", config.num_heads),
                config.head_dim,
                hidden_size=config.hidden_size if self.projection else None,
                dropout=self.dropout,
            )
        model.prefix = encoder.train(model.training)
        model.plan = replace(model.plan, shared=(*model.plan.shared, _NAME))

    @classmethod
    def formats(cls) -> Mapping[str, AdapterFormat]:
        from hanlin.adapters.chatglm2_prefix import PREFIX
        from hanlin.adapters.peft_prefix import PEFT_PREFIX_TUNING

        return {"peft": PEFT_PREFIX_TUNING, "delta": PREFIX, "original": PREFIX}


method = PrefixTuning
