"""Soft prompts (Lester et al. 2021) for any model that embeds through a `soft_prompt`.

Where they stand is the family's matter: its processor writes them as ids below 0 (layers/soft_prompt.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import Field, field_validator, model_validator

from hanlin.core.errors import ConfigError
from hanlin.recipe.cpm2_prompts import read_prompt_file
from hanlin.recipe.section import mistake
from hanlin.recipe.tuning import IdleRule, TuningMethod

if TYPE_CHECKING:
    import torch

    from hanlin.adapters.adapter import AdapterFormat
    from hanlin.models.family import Processor

__all__ = ["PromptTuning", "first_tokens", "init_from_tokens", "init_random", "method"]

_NAME = "soft_prompt"
_ROUNDING = 1e-6  # of shares in fp64
_COUNTED_ROWS = 4096  # of the embedding; enough to tell its spread


class PromptTuning(TuningMethod):
    method: Literal["prompt"] = "prompt"
    # One of CPM-2's JSON files, from which the settings are read; those that stand beside it win.
    file: Path | None = Field(default=None, exclude=True)
    # Number of prompts.
    length: int = Field(default=100, gt=0, le=2**16)
    # Shares of them at the places of the data set's template (before, between, after its pieces): [0.33, 0.34, 0.33],
    # or as in the names of the original's files: 33_34_33. Empty: the template's own.
    ratios: tuple[Annotated[float, Field(ge=0)], ...] = ()
    # text: the prompts begin as embeddings of the tokens of init_text, over and over; vocabulary: as embeddings of
    # tokens; random: as numbers of the embedding's spread; checkpoint: as the prompts that lie in model.base, or at
    # random where there are none.
    init: Literal["text", "vocabulary", "random", "checkpoint"] = "random"
    # With init text and vocabulary: a text whose tokens the first prompts begin as.
    init_text: str = ""
    # With init vocabulary: the token that all other prompts begin as.
    init_token: str = "<mask>"
    # With init vocabulary: the other prompts begin as the tokens 100, 200, 300, ... in place of init_token.
    init_spread: bool = False
    # True: the base is trained along.
    trains_model: bool = False
    # False: the prompts stay as they begin, only the base is trained.
    trains_prompts: bool = True
    # Whether prompts look at tokens.
    sees_tokens: bool = True
    # Whether tokens look at prompts.
    is_seen: bool = True

    fixed: ClassVar = ("length", "ratios", "sees_tokens", "is_seen")
    reads_base: ClassVar = ("embedding.weight",)

    @property
    def trains_base(self) -> bool:
        return self.trains_model

    @property
    def idle_rules(self) -> Sequence[IdleRule]:
        takes_text, takes_tokens = self.init in ("text", "vocabulary"), self.init == "vocabulary"
        no_text = f"with tuning.init {self.init}; set that to text or vocabulary"
        no_tokens = f"with tuning.init {self.init}; set that to vocabulary"
        hidden = "with tuning.is_seen false, which wins; remove one of them"
        return [
            IdleRule("init_token", "init_spread", "with tuning.init_spread; remove one of them", self.init_spread),
            IdleRule("init_text", "init", no_text, not takes_text),
            IdleRule("init_token init_spread", "init", no_tokens, not takes_tokens),
            IdleRule("sees_tokens", "is_seen", hidden, not self.is_seen),
        ]

    def add_to(self, model: Any, family: Any) -> None:
        """They are on every pipeline stage: the masks, which each makes for itself, depend on them."""
        if not hasattr(model, _NAME):
            raise ConfigError("tuning.method: this model takes no soft prompts; choose lora, prefix or full")
        import torch

        from hanlin.layers.soft_prompt import SoftPrompt

        size = model.config.hidden_size
        with torch.device(next(model.parameters()).device):
            prompt = SoftPrompt(self.length, size, sees_tokens=self.sees_tokens, is_seen=self.is_seen)
        model.soft_prompt = prompt.requires_grad_(self.trains_prompts)
        model.plan = replace(model.plan, shared=(*model.plan.shared, _NAME))

    def init_additions(self, model: Any, generator: torch.Generator | None) -> None:
        init_random(model, generator)

    def init_from_settings(self, model: Any, tokenizer: PromptTokenizer, family: Any, base: Path | None) -> None:
        from hanlin.adapters.cpm2_prompts import find_prompts, set_prompts

        if self.init in ("text", "vocabulary"):
            init_from_tokens(model, first_tokens(self, tokenizer))
        elif self.init == "checkpoint" and base is not None and (found := find_prompts(base, family)) is not None:
            set_prompts(model, found, base)

    def adapt_processor(self, processor: Processor, family: Any) -> Processor:
        """With places for the prompts in its rows."""
        from hanlin.models.family import TakesPrompts

        if not isinstance(processor, TakesPrompts):
            raise ConfigError(f"tuning.method: the rows of {family.name} have no place for soft prompts; choose lora")
        return processor.with_prompts(self)

    def completed(self, recipe: TuningMethod) -> TuningMethod:
        """An original's file tells their number alone; places and masks are those of the recipe."""
        return recipe if isinstance(recipe, PromptTuning) else self

    @classmethod
    def formats(cls) -> Mapping[str, AdapterFormat]:
        from hanlin.adapters.cpm2_prompts import AMONG_BASE, PROMPTS
        from hanlin.adapters.peft_prompt import PEFT_PROMPT_TUNING

        return {"peft": PEFT_PROMPT_TUNING, "delta": PROMPTS, "original": AMONG_BASE}

    def borders(self, default: Sequence[float]) -> list[int]:
        """The numbers of the first prompt after each place of a template with these default shares."""
        ratios = self.ratios or tuple(default)
        # kept (cpm2_prompt): sums of floats, cut off and not rounded.
        return [int(sum(ratios[: place + 1]) * self.length) for place in range(len(ratios))]

    @model_validator(mode="before")
    @classmethod
    def _read_file(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("file") is None:
            return values
        try:
            stated = read_prompt_file(Path(values["file"]))
        except ConfigError as error:
            raise mistake("file", str(error), values["file"]) from error
        own = {name: value for name, value in values.items() if name != "file"}
        rules = cls.model_construct(**{**stated, **own}).idle_rules
        # A file states all settings: only those beside it can be meant for something that they do not do.
        for name in (name for rule in rules if rule.is_idle for name in rule.names.split()):
            stated.pop(name, None)
        return {**stated, **own}

    @field_validator("ratios", mode="before", json_schema_input_type=tuple[float, ...] | str)
    @classmethod
    def _read_shares(cls, value: Any) -> Any:
        return _shares(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _trains_something(self) -> Self:
        if not (self.trains_model or self.trains_prompts):
            raise ValueError("neither prompts nor model would be trained; set trains_prompts or trains_model")
        if self.ratios and len(self.ratios) not in (3, 4):
            raise ValueError(f"ratios {list(self.ratios)}: three or four numbers are expected, such as 33_34_33")
        if (total := sum(self.ratios)) > 1 + _ROUNDING:
            raise ValueError(
                f"ratios {list(self.ratios)}: shares add up to 1, these to {total:g}; write them as 33_34_33"
            )
        return self


method = PromptTuning


class PromptTokenizer(Protocol):
    def encode(self, text: str) -> list[int]: ...
    def find(self, token: str) -> int | None: ...


def init_random(model: Any, generator: torch.Generator | None = None) -> None:
    """Draw the prompts with the spread of the embedding, so that they are neither lost beside tokens nor drown them."""
    # differs: the original draws with a spread of 1, or copies one embedding that is not loaded yet (init_scratch).
    import torch

    with torch.no_grad():
        # CPM-Bee's embedding divides what it has by a number.
        spread = model.embedding.weight[:_COUNTED_ROWS].float().std() * getattr(model.embedding, "scale", 1.0)
        model.soft_prompt.weight.normal_(generator=generator).mul_(spread)


def init_from_tokens(model: Any, tokens: Sequence[int]) -> None:
    """Let each soft prompt begin as the embedding of a token.

    Raises: ConfigError for a token that the model does not have.
    """
    import torch
    from torch.nn import functional

    weight, size = model.soft_prompt.weight, model.config.vocab_size
    if surplus := [token for token in tokens if token >= size]:
        raise ConfigError(
            f"tuning.length: none can begin as token {surplus[0]}, the model has {size}; use fewer prompts"
        )
    assert len(tokens) == len(weight), (len(tokens), len(weight))
    with torch.no_grad():
        rows = functional.embedding(torch.tensor(tokens, device=weight.device), model.embedding.weight)
        weight.copy_(rows * getattr(model.embedding, "scale", 1.0))


def first_tokens(settings: PromptTuning, tokenizer: PromptTokenizer) -> list[int]:
    """For each prompt the token whose embedding it begins with.

    Raises: ConfigError for a token that the vocabulary lacks.
    """
    ids = tokenizer.encode(settings.init_text)[: settings.length]
    rest = range(settings.length - len(ids))
    if settings.init == "text":
        if not ids:
            raise ConfigError("tuning.init_text: has no tokens, and the prompts are to begin as these; give a text")
        return [ids[number % len(ids)] for number in range(settings.length)]
    if settings.init_spread:
        ids += [100 * (number + 1) for number in rest]
    elif not rest:
        return ids
    elif (default := tokenizer.find(settings.init_token)) is not None:
        ids += [default for _ in rest]
    else:
        raise ConfigError(f"tuning.init_token: {settings.init_token!r} is not in the vocabulary")
    return ids


def _shares(name: str) -> tuple[float, ...]:
    """33_34_33, 5_5_0 -> shares of their sum."""
    numbers = name.split("_")
    if len(numbers) not in (3, 4) or not all(number.isdecimal() for number in numbers) or not any(map(int, numbers)):
        raise ValueError(f"ratios {name!r}: three or four numbers are expected, such as 33_34_33")
    return tuple(int(number) / sum(map(int, numbers)) for number in numbers)
