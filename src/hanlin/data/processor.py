"""What the data room asks of a family: what turns records into samples and batches.

`models.family.Processor` adds what prompts and answers need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from hanlin.core.batch import Sample
from hanlin.core.errors import DamagedFileError, DataError

if TYPE_CHECKING:
    from hanlin.core.batch import Batch
    from hanlin.data.forms.content import Content, MultipleChoice
    from hanlin.data.pretraining.span_corruption import Marks


Made = TypeVar("Made")


class SampleProcessor(Protocol):
    """How a family turns records into samples and batches."""

    def check(self, record: Any) -> None:
        """Raises: DataError with what is wrong with the record (the caller adds file and line)."""
        ...

    def sample(self, record: Any, rng: np.random.Generator | None = None) -> Sample:
        """Encode a training record; `rng` draws what the family draws anew each epoch (None: draw nothing)."""
        ...

    def varies(self, record: Any) -> bool:
        """Whether `sample` depends on `rng`, so that the record must be encoded anew each epoch (length stays)."""
        ...

    def fit(self, record: Any, max_length: int, policy: str) -> list[Any]:
        """Records no longer than `max_length` tokens in place of a longer one; `policy` is truncate or split.

        Raises: DataError when it cannot be done without losing the answer.
        """
        ...

    def collate(self, rows: Sequence[Sequence[Sample]], length: int) -> Batch:
        """Rows of packed samples -> tensors `[len(rows), length]`, padded on the right."""
        ...

    def show(self, sample: Sample) -> list[tuple[str, bool]]:
        """The sample as (text, carries loss) pieces for the data report."""
        ...


class SoftPrompts(Protocol):
    """What a family that writes soft prompts into its rows is told of them.

    length: their number; ratios: their shares at the places of a template (empty: the template's own); sees_tokens,
    is_seen: whether prompts look at tokens, and tokens at prompts.
    """

    @property
    def length(self) -> int: ...
    @property
    def ratios(self) -> tuple[float, ...]: ...
    @property
    def sees_tokens(self) -> bool: ...
    @property
    def is_seen(self) -> bool: ...

    def borders(self, default: Sequence[float]) -> list[int]:
        """The numbers of the first prompt after each place of a template with these default shares."""
        ...


@runtime_checkable
class HasFingerprint(Protocol):
    """A family whose samples depend on more than record and tokenizer: on its options, on its configuration."""

    @property
    def fingerprint(self) -> str: ...


@runtime_checkable
class NotesRecords(Protocol):
    """A family that can tell of a record that it is read otherwise than was probably meant."""

    def notes(self, record: Any) -> Sequence[str]:
        """What is to be said of a record that can be used; equal notes are counted together."""
        ...


@runtime_checkable
class ProcessesMany(Protocol):
    """A family that encodes many records faster than one by one."""

    def process_many(self, records: Sequence[Any]) -> list[Sample | DataError]:
        """What `check` and `sample` make of each record: its sample, or the error of one that cannot be used."""
        ...


@runtime_checkable
class TakesForms(Protocol):
    """A family that makes records of what rows of other forms say (data/forms).

    learns_all_turns: whether all answers of a dialogue are learned, or the last one alone.
    """

    @property
    def learns_all_turns(self) -> bool: ...

    def owns(self, row: Mapping[str, Any], *, whole: bool) -> bool:
        """Whether a row is a record of the family's own, by its keys; whole: with what is learned, else as a
        question.
        """
        ...

    def record_of(self, content: Content) -> Any:
        """The record that says the same; a dialogue or a text that waits for an answer becomes such a record.

        Raises: DataError for what the family has no place for.
        """
        ...

    def answer_of(self, record: Any) -> str:
        """The answer in a record of `record_of`, as it is read by people."""
        ...


@runtime_checkable
class EscapesTexts(Protocol):
    """A family whose records have some characters of texts in another form."""

    def plain_text(self, text: str) -> str:
        """What an answer's text is as people read it, and as `record_of` takes it."""
        ...


def plain_text(processor: SampleProcessor, text: str) -> str:
    """The same of any family."""
    return processor.plain_text(text) if isinstance(processor, EscapesTexts) else text


@runtime_checkable
class TakesChoices(Protocol):
    """A family that can be asked which of some answers is right (evaluation/decisions)."""

    def choice_record(self, choice: MultipleChoice) -> Any:
        """The record whose `candidates` are the options, in their order.

        Raises: DataError for what the family, or the model, cannot be asked.
        """
        ...


@runtime_checkable
class ContinuesTexts(Protocol):
    """Processor of a family that goes on with any text: prompt and answer are one row of ids."""

    @property
    def first_token(self) -> tuple[str, int] | None:
        """Name and id of the token behind which a text begins, if there is one."""
        ...

    @property
    def end_token(self) -> tuple[str, int]:
        """Name and id of the token that ends a text."""
        ...

    def text_ids(self, text: str) -> list[int]:
        """What is read of a text, with what stands before every row."""
        ...

    def continuation(self, ids: Sequence[int]) -> Any:
        """The record of a prompt of these ids; what stands before every row, and is missing, is put before them.

        Raises: DataError.
        """
        ...


@runtime_checkable
class StoresRows(Protocol):
    """A family whose original keeps records as rows of ids (data/sources/arrow_writing.py)."""

    def stored_row(self, record: Any) -> dict[str, list[int]]:
        """The columns of a record's row; read again, it makes the sample of the record.

        Raises: DataError.
        """
        ...


@runtime_checkable
class JoinsExamples(Protocol):
    """A family that can show other samples as worked examples before one."""

    def join(self, main: Sample, examples: Sequence[Sample]) -> Sample:
        """One sample of length `main.length + sum(example lengths)`; only `main` carries loss."""
        ...


@runtime_checkable
class SharesTable(Protocol):
    """A family whose rows hold something of all rows of their batch, however the rows are divided among ranks."""

    shares_table: bool


@runtime_checkable
class ReadsTokens(Protocol):
    """A family that is pretrained on windows of a token corpus (data/pretraining/windows.py)."""

    def window_tokens(self, max_length: int) -> int:
        """How many tokens are cut out of the corpus for one sample; neighbours share one token."""
        ...

    def window(self, tokens: np.ndarray, rng: np.random.Generator) -> Sample:
        """The sample of a window, int64 `[window_tokens]`, no longer than `max_length`.

        rng: for what is drawn anew for each window.
        """
        ...


@runtime_checkable
class ReadsSpans(Protocol):
    """A family that is also pretrained on documents whose spans were taken out beforehand
    (data/pretraining/span_corruption.py).
    """

    @property
    def marks(self) -> Marks: ...

    def pair(self, context: np.ndarray, target: np.ndarray) -> Sample:
        """The sample of what is read, int64 `[max_length]`, and all that is wanted, neither cut nor padded.

        Spans stand as the tokens that mark them, in the context and before each span of the target, which ends with
        the next such token. The sample is no longer than `max_length`.
        """
        ...


def tried(make: Callable[..., Made], *given: Any) -> Made | DataError:
    """What `make(*given)` returns, or the DataError that it raises.

    Raises: DamagedFileError, which is no matter of what is given.
    """
    try:
        return make(*given)
    except DamagedFileError:
        raise
    except DataError as error:
        return error
