"""Low-rank additions to linears (LoRA, Hu et al. 2021); the linear with its addition is `layers.lora.LoraLinear`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from hanlin.core.errors import ConfigError
from hanlin.core.plan import Along
from hanlin.recipe.tuning import TuningMethod

if TYPE_CHECKING:
    from torch import nn

    from hanlin.adapters.adapter import AdapterFormat

__all__ = ["LoraTuning", "lora_names", "method"]


class LoraTuning(TuningMethod):
    method: Literal["lora"] = "lora"
    # Inner size of the addition.
    rank: int = Field(default=8, gt=0, le=2**16)
    # The addition is multiplied by alpha / rank.
    alpha: float = Field(default=16.0, gt=0)
    # Share of the addition's input that is dropped in training.
    dropout: float = Field(default=0.0, ge=0, lt=1)
    # Last parts of the names of the linears that get an addition. Empty: the family's own choice.
    targets: tuple[str, ...] = ()
    # original: the addition bypasses the family's scaled linear (CPM-Bee's quirk); scaled: it is scaled like it.
    form: Literal["original", "scaled"] = "original"

    fixed: ClassVar = ("rank", "alpha", "targets", "form")
    along: ClassVar = {"lora_A": Along(inputs=1), "lora_B": Along(outputs=0)}

    def add_to(self, model: Any, family: Any) -> None:
        from hanlin.layers.lora import add_lora

        names = lora_names(model, self.targets or family.lora_targets)
        add_lora(model, names, rank=self.rank, alpha=self.alpha, dropout=self.dropout, form=self.form)

    def resolved(self, added: Iterable[str]) -> Self:
        """With the targets that the family chose."""
        targets = {name.split(".")[-2] for name in added if name.rpartition(".")[2] in self.along}
        return self.model_copy(update={"targets": tuple(sorted(targets))})

    def merge(self, model: Any) -> None:
        from hanlin.layers.lora import merge_lora

        merge_lora(model)

    @classmethod
    def formats(cls) -> Mapping[str, AdapterFormat]:
        from hanlin.adapters.cpm_bee_delta import DELTA
        from hanlin.adapters.peft import PEFT

        # PEFT's folder states what is assumed of a delta, so it is asked first.
        return {"peft": PEFT, "delta": DELTA, "original": DELTA}


method = LoraTuning


def lora_names(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """The linears whose names end with a target, in the model's order.

    Raises: ConfigError.
    """
    from torch import nn

    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    available = ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
    if not targets:
        raise ConfigError(f"tuning.targets: this family has no default; choose among the linears {available}")
    idle = [target for target in targets if not any(_ends_with(name, target) for name in linears)]
    if idle:
        raise ConfigError(f"tuning.targets: no linear is called {', '.join(idle)}; the model has {available}")
    return [name for name in linears if any(_ends_with(name, target) for target in targets)]


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
