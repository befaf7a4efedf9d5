"""What a family's folder exports, and how it is found: by its name, or by the path of one Python file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, get_type_hints, runtime_checkable

from pydantic import TypeAdapter, ValidationError

from hanlin.core.batch import Prompt, PromptBatch, Sample
from hanlin.core.errors import ConfigError
from hanlin.core.extensions import import_file
from hanlin.core.tokenizer import Tokenizer
from hanlin.data.convert import MadeRow
from hanlin.data.forms.content import ToolCall
from hanlin.data.processor import SampleProcessor, SoftPrompts
from hanlin.formats.format import Format
from hanlin.models.common.label_processor import LabelKind
from hanlin.recipe.reading import nearest


class ModelConfig(Protocol):
    """A frozen dataclass of plain values; a model whose reach is limited has `max_length`, one with a head for labels
    `labels`.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        ...


class Processor(SampleProcessor, Protocol):
    """How a family turns records into arrays and answers into records."""

    def batch_key(self, sample: Sample) -> Hashable:
        """Samples with equal keys leave each other's loss alone when they share a batch; None where all do."""
        ...

    def prompt(self, record: Any) -> Prompt:
        """Encode a record whose answer is wanted.

        Raises: DataError.
        """
        ...

    def collate_prompts(self, prompts: Sequence[Prompt]) -> PromptBatch: ...

    def answer(self, prompt: Prompt, tokens: Sequence[int]) -> Any:
        """A copy of the prompt's record with the answer written in; `tokens` are the ids chosen, ends included."""
        ...

    def answer_texts(self, prompt: Prompt, tokens: Sequence[int]) -> Sequence[str]:
        """The text of each answer that was begun; `tokens` are the ids chosen so far."""
        ...

    def gold(self, record: Any) -> Sequence[str | None]:
        """The texts of a record's answers, in their order; None for one that was not reached."""
        ...

    def candidates(self, record: Any) -> Sequence[Any]:
        """Copies of the record, one with each of its options as the answer.

        Raises: DataError when it has none.
        """
        ...


@runtime_checkable
class Converses(Protocol):
    """Processor of a family that can be talked with: its positions never see a later one (see
    generate/dialogue_cache.py).
    """

    @property
    def remembers(self) -> bool:
        """Whether the history has an effect."""
        ...

    def ask(self, question: str, history: Sequence[tuple[str, str]]) -> Any:
        """The record of a dialogue's next round; history: the earlier questions and their answers."""
        ...


@dataclass(frozen=True)
class Blanks:
    """answer: the key under which answers stand, a text or a dict of texts; options: the key of a dict of texts to
    choose from, and what each of them is called there, by its number.
    """

    answer: str
    options: str
    option: str


@runtime_checkable
class FillsBlanks(Protocol):
    """Processor of a family whose records are dicts of any keys."""

    @property
    def blanks(self) -> Blanks: ...


@runtime_checkable
class CallsTools(Protocol):
    """Processor of a family whose answers may be calls of tools that the dialogue describes.

    calls_tools: whether they may with the model's own template.
    """

    @property
    def calls_tools(self) -> bool: ...

    def tool_names(self, tools: Iterable[Any]) -> list[str]:
        """The names in descriptions of tools.

        Raises: DataError.
        """
        ...

    def read_call(self, text: str, names: Sequence[str]) -> ToolCall | None:
        """The call that an answer is; None where it is a text."""
        ...

    def may_become_call(self, text: str, names: Sequence[str]) -> bool:
        """Whether an answer that goes on may still be a call of one of these tools."""
        ...


@runtime_checkable
class FollowsAnswers(Protocol):
    """Processor of a family that need not decode an answer from its beginning again when it has become longer."""

    def follow_answer(self, prompt: Prompt) -> Callable[[Sequence[int]], Sequence[str]]:
        """What `answer_texts` says of ids that grow from call to call."""
        ...


@runtime_checkable
class ScoresTexts(Protocol):
    """Processor of a family that can say how likely a bare text is."""

    def text_sample(self, text: str) -> Sample:
        """The sample in which every token of a text is to be told.

        Raises: DataError.
        """
        ...


@runtime_checkable
class TakesPrompts(Protocol):
    """Processor of a family whose rows have places for soft prompts (ids below 0, see layers/soft_prompt.py)."""

    def with_prompts(self, prompts: SoftPrompts) -> Processor:
        """The same processor with soft prompts in its rows.

        Raises: ConfigError when the chosen template has no place for them.
        """
        ...


@dataclass(frozen=True)
class RankedExample:
    """Names and samples of what a record lets compete for one label; best: who should win, None where that is open."""

    names: Sequence[str]
    samples: Sequence[Sample]
    best: str | None = None


@runtime_checkable
class RanksCandidates(Protocol):
    """Processor of a family some of whose records are competitors to be ranked.

    learns_ranks: whether its samples are pairs of them, whose loss compares the two and is none over the vocabulary.
    """

    @property
    def learns_ranks(self) -> bool: ...
    def ranked_example(self, record: Any) -> RankedExample:
        """A competitor's score is the logit of the one label of its sample.

        Raises: DataError when the records are of another kind.
        """
        ...


@runtime_checkable
class PredictsLabels(Protocol):
    """Processor of a model whose head says a number of each label, not of each token
    (models/common/label_processor.py).
    """

    labels: Sequence[str]
    label_kind: LabelKind

    def targets(self, record: Any) -> list[float]:
        """What the head should say of a record, a number per label.

        Raises: DataError.
        """
        ...

    def unlabelled(self, record: Any) -> Sample:
        """The sample of a record whose label is wanted.

        Raises: DataError.
        """
        ...


@dataclass(frozen=True)
class BeamVariant:
    """What a family's original does in its own way when it searches with beams (generate/beam.py).

    length_includes_prompt: a score is divided by the length of prompt and answer without its end (else of the answer
    with it);
    end_needs_top_beams: an end counts only if it is among the best candidates, as many as there are beams;
    checks_done_after_ends: whether a better answer is possible is asked after the step's ends were taken (else before);
    ended_beams_leave: an end takes the place of a beam, and the search goes on until no beam is left;
    length_includes_start: a score is divided by the length of the answer with its end and its start.
    """

    length_includes_prompt: bool = False
    end_needs_top_beams: bool = False
    checks_done_after_ends: bool = False
    ended_beams_leave: bool = False
    length_includes_start: bool = False


@dataclass(frozen=True)
class Family:
    """Everything that is particular to one kind of model.

    config: frozen dataclass of plain values; model: returns the class (imports torch only when called),
    built as `model()(config)`; tokenizer: loads one from a file or a folder; processor: built as
    `processor(tokenizer, config, options)`; options: frozen dataclass of what may be chosen about it
    (`data.options` of a recipe); formats: file layouts by name; unwritable: layouts that other families have, and why
    this one has not;
    sizes: named configurations; lora_targets: names of the linears that low-rank tuning changes by default;
    beam_variant: the rules of its beam search; is_causal: no position of a prompt sees a later one, so that it may be
    read in pieces, and what was read of it serves others that begin alike; raw: data sets of its originals by name:
    what turns the rows of a raw file into records.
    """

    name: str
    title: str
    config: type[ModelConfig]
    model: Callable[[], type]
    tokenizer: Callable[[Path], Tokenizer]
    processor: Callable[..., Processor]
    options: type | None = None
    formats: Mapping[str, Format] = field(default_factory=dict)
    unwritable: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, ModelConfig] = field(default_factory=dict)
    lora_targets: tuple[str, ...] = ()
    beam_variant: BeamVariant = BeamVariant()
    is_causal: bool = False
    raw: Mapping[str, Callable[[Path], Iterable[MadeRow]]] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadTokenizer:
    """Loads the tokenizer of a family; may be sent to another process."""

    family: str
    vocab: Path

    def __call__(self) -> Tokenizer:
        return load_family(self.family).tokenizer(self.vocab)


def family_names() -> list[str]:
    """The families that live under `hanlin.models`."""
    package = importlib.import_module("hanlin.models")
    return sorted(
        found.name for found in pkgutil.iter_modules(package.__path__) if found.ispkg and found.name != "common"
    )


def load_family(name: str) -> Family:
    """The family of this name, or of the Python file at this path, which is run.

    Raises: ConfigError.
    """
    return _family_of_file(Path(name)) if name.endswith(".py") else built_in_family(name)


def built_in_family(name: object) -> Family:
    """The family of this name; what a file says goes through here, so that it cannot name code to be run.

    Raises: ConfigError.
    """
    if name not in family_names():
        known = ", ".join(family_names())
        raise ConfigError(f"model.family: no family {name!r}; known: {known}, or a path to a .py file")
    return importlib.import_module(f"hanlin.models.{name}").family


def make_options(family: Family, values: Mapping[str, Any]) -> Any:
    """The options of the family's samples; None for a family that has none.

    Raises: ConfigError.
    """
    if problems := option_problems(family, values):
        raise ConfigError("; ".join(f"{key}: {text}" for key, text in problems))
    return None if family.options is None else family.options(**values)


def option_problems(family: Family, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Key and text of everything that is wrong with `data.options`."""
    if family.options is None:
        return [("data.options", f"{family.name} has none; remove it")] if values else []
    kinds = get_type_hints(family.options)
    problems = [(f"data.options.{name}", _option_problem(name, value, kinds)) for name, value in values.items()]
    problems = [(key, text) for key, text in problems if text]
    if not problems:
        try:
            family.options(**values)
        except ConfigError as error:
            return [("data.options", str(error))]
    return problems


def _option_problem(name: str, value: Any, kinds: Mapping[str, Any]) -> str:
    if name not in kinds:
        return f"there is no such option{nearest(name, kinds)}"
    try:
        TypeAdapter(kinds[name]).validate_python(value, strict=True)
    except ValidationError as error:
        return f"{error.errors()[0]['msg']}; found {value!r}"
    return ""


def _family_of_file(path: Path) -> Family:
    try:
        module = import_file(path)
    except ConfigError as error:
        raise ConfigError(f"model.family: {error}") from None
    if not isinstance(getattr(module, "family", None), Family):
        raise ConfigError(f"{path}: it must define `family = Family(...)`; see docs/your_own_model.md")
    return module.family
