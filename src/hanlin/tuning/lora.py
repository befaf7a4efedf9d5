"""Low-rank additions to linears (LoRA, Hu et al. 2021), and what others made of them.

rsLoRA (Kalajdzievski 2023), LoRA+ (Hayou et al. 2024), DoRA (Liu et al. 2024) and PiSSA (Meng et al. 2024) are settings
here; the linear with its addition is `layers.lora.LoraLinear`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from hanlin.core.errors import ConfigError
from hanlin.core.plan import Along, Plan
from hanlin.recipe.tuning import TuningMethod

if TYPE_CHECKING:
    from torch import nn

    from hanlin.adapters.adapter import AdapterFormat

__all__ = ["LoraTuning", "linears_called", "lora_names", "method"]


ALL_LINEAR = "all-linear"


class LoraTuning(TuningMethod):
    method: Literal["lora"] = "lora"
    # Inner size of the addition.
    rank: int = Field(default=8, gt=0, le=2**16)
    # The addition is multiplied by alpha / rank.
    alpha: float = Field(default=16.0, gt=0)
    # The addition is multiplied by alpha / sqrt(rank), so that large ranks learn as fast as small ones (rsLoRA).
    rslora: bool = False
    # Share of the addition's input that is dropped in training.
    dropout: float = Field(default=0.0, ge=0, lt=1)
    # Last parts of the names of the linears that get an addition; all-linear: all of the blocks. Empty: the family's
    # own choice.
    targets: tuple[str, ...] = ()
    # original: the addition bypasses the family's scaled linear (CPM-Bee's quirk); scaled: it is scaled like it.
    form: Literal["original", "scaled"] = "original"
    # Learn the length of each row of weight and addition too (DoRA). Slower; see docs/tuning.md.
    dora: bool = False
    # default: A random, B zero. pissa: both as the principal part of the weight, which is then taken out of the base.
    init: Literal["default", "pissa"] = "default"
    # B learns so many times faster than train.lr (LoRA+, which takes 16).
    b_rate: float = Field(default=1.0, gt=0, le=10_000)

    fixed: ClassVar = ("rank", "alpha", "rslora", "targets", "form", "dora", "init")
    along: ClassVar = {
        "lora_A": Along(inputs=1),
        "lora_B": Along(outputs=0),
        "lora_A_start": Along(inputs=1),
        "lora_B_start": Along(outputs=0),
        "lora_magnitude": Along(outputs=0),
    }

    @property
    def factor(self) -> float:
        """By what the product B A is multiplied."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def rate_factors(self) -> Mapping[str, float]:
        return {} if self.b_rate == 1 else {"lora_B": self.b_rate}

    def add_to(self, model: Any, family: Any) -> None:
        from hanlin.layers.lora import Addition, add_lora

        addition = Addition(
            self.rank,
            self.factor,
            self.dropout,
            self.form,
            has_magnitude=self.dora,
            begins_as_weight=self.init == "pissa",
        )
        names = lora_names(model, self.targets or family.lora_targets)
        if self.init == "pissa":
            _check_rank(model, names, self.rank)
        add_lora(model, names, addition)

    def resolved(self, added: Iterable[str]) -> Self:
        """With the targets that the family chose."""
        if self.targets == (ALL_LINEAR,):
            return self
        targets = {name.split(".")[-2] for name in added if name.rpartition(".")[2] in self.along}
        return self.model_copy(update={"targets": tuple(sorted(targets))})

    def merge(self, model: Any) -> None:
        from hanlin.layers.lora import merge_lora

        merge_lora(model)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.dora and self.init == "pissa":
            raise ValueError("dora and init pissa are two answers to one question; choose one of them")
        return self

    @classmethod
    def formats(cls) -> Mapping[str, AdapterFormat]:
        from hanlin.adapters.cpm_bee_delta import DELTA
        from hanlin.adapters.peft import PEFT

        # PEFT's folder states what is assumed of a delta, so it is asked first.
        return {"peft": PEFT, "delta": DELTA, "original": DELTA}


method = LoraTuning


def lora_names(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """The linears whose names end with a target, in the model's order; all of its blocks for the word all-linear.

    Raises: ConfigError.
    """
    from torch import nn

    if ALL_LINEAR in targets:
        if len(targets) > 1:
            raise ConfigError(f"tuning.targets: {ALL_LINEAR} stands alone: it is all linears of the blocks")
        plan: Plan = model.plan  # pyright: ignore[reportAssignmentType]
        linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        return [name for name in linears if name.partition(".")[0] in plan.blocks]
    if not targets:
        raise ConfigError(f"tuning.targets: this family has no default; choose among the linears {_last_parts(model)}")
    return linears_called(model, targets, "tuning.targets")


def linears_called(model: nn.Module, endings: Sequence[str], key: str) -> list[str]:
    """The linears whose names end so, in the model's order.

    key: the setting that names them. Raises: ConfigError for an ending that no linear has.
    """
    from torch import nn

    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if idle := [ending for ending in endings if not any(_ends_with(name, ending) for name in linears)]:
        raise ConfigError(f"{key}: no linear is called {', '.join(idle)}; the model has {_last_parts(model)}")
    return [name for name in linears if any(_ends_with(name, ending) for ending in endings)]


def _last_parts(model: nn.Module) -> str:
    from torch import nn

    return ", ".join(
        sorted({name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)})
    )


def _check_rank(model: nn.Module, names: Sequence[str], rank: int) -> None:
    """Raises: ConfigError for a linear that has no principal part of this rank."""
    for name in names:
        linear: Any = model.get_submodule(name)
        if rank > (most := min(linear.in_features, linear.out_features)):
            raise ConfigError(
                f"tuning.rank: {rank}, but {name} has a rank of {most} at most, which init pissa begins as"
            )


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
