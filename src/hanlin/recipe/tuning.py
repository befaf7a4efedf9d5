"""What a tuning method is: the section `tuning` of a recipe (recipe/union.py), and what is done with a model.

One file holds all of a method: its settings and what it does to a model. `method` in that file is a `TuningMethod`.
Recipes are read without torch, so a method of ours imports it inside its functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from hanlin.core.errors import CheckpointError
from hanlin.core.plan import Along
from hanlin.recipe.section import Settings
from hanlin.recipe.union import OneOf

if TYPE_CHECKING:
    import torch


class IdleRule(NamedTuple):
    """names: of settings, parted by spaces; cause: the setting that makes them idle; reason: the rest of the sentence
    "has no effect ..."; is_idle: whether they are.
    """

    names: str
    cause: str
    reason: str
    is_idle: bool


class TuningMethod(Settings):
    """A tuning method with its settings, which a subclass states as fields.

    The base is frozen before `add_to` is called, unless the method trains it. A module of the model names in its
    attribute `added` the parameters that were added to it; the base's own names stay as they are.
    """

    # What is trained: a tuning method of hanlin's, or the path of a Python file that defines `method`.
    method: str

    along: ClassVar[Mapping[str, Along]] = {}
    """How the parameters that it adds to linears are divided over tensor ranks, by the last part of their names. Others
    are whole on every rank."""

    fixed: ClassVar[tuple[str, ...]] = ()
    """The settings without which what was trained means something else: who goes on from it must have the same."""

    reads_base: ClassVar[tuple[str, ...]] = ()
    """The parameters of the base whose values the first values of what is added come from. A module with additions that
    come from its own weight says so itself: see `init_from_base`."""

    @property
    def trains_base(self) -> bool:
        """Whether a run changes the weights that it starts from."""
        return False

    @property
    def idle_rules(self) -> Sequence[IdleRule]:
        """Which of its settings do nothing because of another one."""
        return ()

    @property
    def rate_factors(self) -> Mapping[str, float]:
        """By what the learning rate of a trained parameter is multiplied, by the last part of its name; others: 1."""
        return {}

    def add_to(self, model: Any, family: Any) -> None:
        """Add what is trained, without values yet; the model may be on the meta device.

        family: a `models.family.Family`.
        Raises: ConfigError, beginning with the key, for a model that does not take it.
        """
        raise NotImplementedError

    def init_additions(self, model: Any, generator: torch.Generator | None) -> None:
        """Give what was added its first values, which are drawn; here each module does so that can `init_addition`."""
        for module in model.modules():
            if hasattr(module, "init_addition"):
                module.init_addition(generator)

    def init_from_base(self, model: Any) -> None:
        """Give what was added the first values that come from the weights of the base, which are there; here each
        module does so, from its own, that has `init_from_base` and says that it `reads_base`.
        """
        for module in model.modules():
            if getattr(module, "reads_base", False):
                module.init_from_base()

    def init_from_settings(self, model: Any, tokenizer: Any, family: Any, base: Path | None) -> None:
        """Give it the first values that the settings ask for in place of drawn ones; base: the weights' path."""

    def adapt_processor(self, processor: Any, family: Any) -> Any:
        """The family's processor as the method needs the rows.

        Raises: ConfigError, beginning with the key.
        """
        return processor

    def resolved(self, added: Iterable[str]) -> Self:
        """The settings as an adapter folder states them; added: the names of its tensors."""
        return self

    def completed(self, recipe: TuningMethod) -> TuningMethod:
        """The settings of an adapter; what its files do not tell is taken from a recipe's."""
        return self

    def merge(self, model: Any) -> None:
        """Work what was added into the base's weights; the model is as if it had never been tuned this way.

        Raises: CheckpointError where that cannot be done.
        """
        raise CheckpointError(f"a {self.method} cannot be worked into weights; use it as model.adapter")

    @classmethod
    def formats(cls) -> Mapping[str, Any]:
        """The layouts besides our adapter folder in which it is found and written, by the word for `convert --to`: each
        an `adapters.adapter.AdapterFormat`."""
        return {}


TUNING_METHODS = OneOf("hanlin.tuning", key="method", exports="method", default="full", others=("apply",))
