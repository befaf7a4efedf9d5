"""Full tuning: the weights of the base are trained, all or some of them; nothing is added."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Literal

from hanlin.core.errors import ConfigError
from hanlin.recipe.tuning import TuningMethod

__all__ = ["FullTuning", "method"]

_RUN = re.compile(r"(?P<name>.+)\.(?P<first>\d+)-(?P<last>\d+)")


class FullTuning(TuningMethod):
    method: Literal["full"] = "full"
    # Modules of the base that stay as they are, by name: embedding, blocks.3, or blocks.0-11 for a run of blocks.
    # Empty: all of it is trained.
    frozen: tuple[str, ...] = ()

    @property
    def trains_base(self) -> bool:
        return True

    def add_to(self, model: Any, family: Any) -> None:
        for given in self.frozen:
            modules = _modules(given, dict(model.named_modules()))
            found = [weight for name, weight in model.named_parameters() if _lies_in(name, modules)]
            if not found:
                raise ConfigError(f"tuning.frozen: nothing is called {given}; the model has {_parts_of(model)}")
            for weight in found:
                weight.requires_grad_(False)
        if self.frozen and not any(weight.requires_grad for weight in model.parameters()):
            raise ConfigError("tuning.frozen: nothing is left to be trained; name less")


method = FullTuning


def _modules(given: str, known: Collection[str]) -> list[str]:
    """`blocks.0-2` -> `blocks.0`, `blocks.1`, `blocks.2`; none where one of them is not there."""
    if (run := _RUN.fullmatch(given)) is None:
        return [given]
    first, last = int(run["first"]), int(run["last"])
    if not {f"{run['name']}.{first}", f"{run['name']}.{last}"} <= set(known):
        return []
    return [f"{run['name']}.{number}" for number in range(first, last + 1)]


def _lies_in(name: str, modules: list[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _parts_of(model: Any) -> str:
    """What can be named, runs of blocks together."""
    blocks = model.plan.blocks
    parts = [f"{name}.0-{len(part) - 1}" if name in blocks else name for name, part in model.named_children()]
    return ", ".join(parts)
