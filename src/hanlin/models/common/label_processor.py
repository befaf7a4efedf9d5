"""Records that bear a label -> arrays, for any decoder whose model has a head for labels (layers/label_head.py).

The text is the family's own prompt, template included. The label stands at its last token, wherever padding is: our
batches pad on the right, those of `hanlin generate` on the left.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from hanlin.core.batch import IGNORED, Batch, Cursor, Prompt, PromptBatch, Sample
from hanlin.core.errors import ConfigError, DataError
from hanlin.data.forms.content import MultipleChoice

_LARGEST = float(np.finfo(np.float32).max)

LabelKind = Literal["one", "several", "number"]
"""One of the labels is right; any number of them are; each has a value."""


class EncodesPrompts(Protocol):
    """What a family's own samples do with the text of a record."""

    @property
    def fingerprint(self) -> str: ...

    def encode_prompt(self, record: Any) -> list[int]:
        """The tokens of a record without its answer, however many they are.

        Raises: DataError.
        """
        ...

    def prompt(self, record: Any) -> Prompt: ...

    def collate(self, rows: Sequence[Sequence[Sample]], length: int, /) -> Batch: ...

    def collate_prompts(self, prompts: Sequence[Prompt]) -> PromptBatch: ...

    def show(self, sample: Sample) -> list[tuple[str, bool]]: ...


@dataclass(frozen=True)
class LabelKeys:
    """Keys of a record: of the text that is cut where the tokens are too many, and of its label."""

    text: str
    label: str


@dataclass(frozen=True)
class LabelCursor:
    """The next column to feed; the answer is whatever is chosen first, a label."""

    column: Cursor
    is_done: bool = False

    def inputs(self) -> dict[str, int]:
        return self.column.inputs()

    def advance(self, token: int) -> LabelCursor:
        del token
        return LabelCursor(self.column, is_done=True)


class LabelProcessor:
    """`hanlin.models.family.Processor`, and `PredictsLabels`, of records with labels."""

    def __init__(
        self,
        texts: EncodesPrompts,
        labels: Sequence[str],
        kind: LabelKind,
        columns: LabelKeys,
        limit: int | None = None,
    ) -> None:
        """limit: tokens; a longer text loses its end. None: none.

        Raises: ConfigError.
        """
        if twice := [name for name in labels if list(labels).count(name) > 1]:
            raise ConfigError(
                f"model.config.labels: {twice[0]!r} stands there twice; give each label a name of its own"
            )
        if kind == "one" and len(labels) == 1:
            raise ConfigError(
                "model.config.labels: one label alone leaves nothing to choose; name two or more, or set "
                "model.config.label_kind to number (a value) or several (right or not)"
            )
        self.texts, self.labels, self.label_kind = texts, tuple(labels), kind
        self.columns, self.limit = columns, limit

    @property
    def fingerprint(self) -> str:
        """What, besides the data, decides the arrays."""
        return f"{self.texts.fingerprint} {self.labels} {self.label_kind} {self.columns} {self.limit}"

    def check(self, record: Any) -> None:
        """Raises: DataError."""
        self.sample(record)

    def sample(self, record: Any, rng: np.random.Generator | None = None) -> Sample:
        """Encode a record with its label.

        Raises: DataError.
        """
        targets = self.targets(record)
        tokens = np.array(self.texts.encode_prompt(self._within(record, self.limit)), dtype=np.int32)
        labels, weights = np.full(tokens.size, IGNORED, dtype=np.int32), np.zeros(tokens.size, dtype=np.float32)
        weights[-1] = 1
        if self.label_kind == "one":
            labels[-1] = targets.index(1)
            return Sample({"tokens": tokens}, labels, weights)
        labels[-1] = 0  # any: it says where the targets belong
        return Sample({"tokens": tokens, "targets": np.array(targets, dtype=np.float32)}, labels, weights)

    def targets(self, record: Any) -> list[float]:
        """What the head should say of a record, a number per label: 1 for a right label and 0 for others, or values.

        Raises: DataError.
        """
        value = self._label(record)
        if self.label_kind == "number":
            return self._numbers(value)
        names = value if self.label_kind == "several" else [value]
        if not isinstance(names, list):
            raise DataError(f'"{self.columns.label}": expected a list of labels, found {value!r:.40}')
        if unknown := [name for name in names if name not in self.labels]:
            known = ", ".join(self.labels)
            raise DataError(f'unknown label {unknown[0]!r:.40} in "{self.columns.label}"; known: {known}')
        return [float(name in names) for name in self.labels]

    def unlabelled(self, record: Any) -> Sample:
        """The sample of a record whose label is wanted; the one that it may have is not looked at.

        Raises: DataError.
        """
        nothing: Any = {"one": self.labels[0], "several": [], "number": [0.0] * len(self.labels)}[self.label_kind]
        return self.sample({**record, self.columns.label: nothing})

    def choice_record(self, choice: MultipleChoice) -> dict[str, Any]:
        """The record of a text that is to be given one of the labels; the head takes no instructions.

        Raises: DataError.
        """
        if choice.instructions:
            raise DataError(
                "a head for labels reads the input alone, and follows no instructions; leave them empty "
                f"(a predicate names a label: {', '.join(self.labels):.200})"
            )
        if unknown := [name for name in choice.options if name not in self.labels]:
            raise DataError(f"{unknown[0]!r:.40} is none of the model's labels {', '.join(self.labels):.200}")
        return {self.columns.text: choice.text}

    def varies(self, record: Any) -> bool:
        return False

    def fit(self, record: Any, max_length: int, policy: str) -> list[Any]:
        """Cut the end off a record's text; its label stays.

        Raises: DataError when that does not suffice, and for other policies.
        """
        if policy != "truncate":
            raise DataError("a text with a label cannot be split; choose data.overlong truncate or drop")
        return [self._within(record, max_length)]

    def collate(self, rows: Sequence[Sequence[Sample]], length: int) -> Batch:
        """Pack samples as the family does; `targets` stand where the labels do."""
        import torch

        batch = self.texts.collate(rows, length)
        if self.label_kind == "one":
            return batch
        targets = torch.zeros(*batch.labels.shape, len(self.labels))
        found = np.stack([sample.inputs["targets"] for row in rows for sample in row])
        targets[batch.labels != IGNORED] = torch.from_numpy(found)
        return replace(batch, inputs={**batch.inputs, "targets": targets})

    def batch_key(self, sample: Sample) -> None:
        """All samples leave each other's loss alone."""

    def show(self, sample: Sample) -> list[tuple[str, bool]]:
        text = "".join(piece for piece, _ in self.texts.show(sample))
        if self.label_kind == "one":
            return [(text, False), (f" {self.labels[sample.labels[-1]]}", True)]
        shown = zip(self.labels, sample.inputs["targets"].tolist(), strict=True)
        return [(text, False), (" " + ", ".join(f"{name}: {value:g}" for name, value in shown), True)]

    def prompt(self, record: Any) -> Prompt:
        """Encode a record whose label is wanted.

        Raises: DataError.
        """
        if self.label_kind != "one":
            raise DataError(
                f"what a head of the kind {self.label_kind} says is no answer to write; score the records with "
                "evaluate.tasks: [classify], its predictions hold the numbers"
            )
        prompt = self.texts.prompt(self._within(record, self.limit))
        return replace(prompt, record=record, cursor=LabelCursor(prompt.cursor))

    def collate_prompts(self, prompts: Sequence[Prompt]) -> PromptBatch:
        return replace(self.texts.collate_prompts(prompts), banned=[[] for _ in prompts])  # all labels may be said

    def answer(self, prompt: Prompt, tokens: Sequence[int]) -> Any:
        return {**prompt.record, self.columns.label: self.labels[tokens[0]]}

    def answer_texts(self, prompt: Prompt, tokens: Sequence[int]) -> list[str]:
        return [self.labels[token] for token in tokens]

    def gold(self, record: Any) -> list[str | None]:
        return [record.get(self.columns.label)]

    def candidates(self, record: Any) -> list[Any]:
        """Copies of the record, one with each label."""
        if self.label_kind != "one":
            raise DataError(f"labels of the kind {self.label_kind} are no options; take the task classify or loss")
        return [{**record, self.columns.label: label} for label in self.labels]

    def _label(self, record: Any) -> Any:
        column = self.columns.label
        if not isinstance(record, dict):
            raise DataError(f"expected an object, found {record!r:.40}")
        if column not in record:
            raise DataError(f'no column "{column}" (the row has: {", ".join(map(str, record)) or "none"})')
        return record[column]

    def _numbers(self, value: Any) -> list[float]:
        values = value if isinstance(value, list) else [value]
        are_numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
        if len(values) != len(self.labels) or not are_numbers or not all(map(_fits, values)):
            wanted = "a number" if len(self.labels) == 1 else f"{len(self.labels)} numbers, of {', '.join(self.labels)}"
            raise DataError(f'"{self.columns.label}": expected {wanted}, found {value!r:.40}')
        return [float(one) for one in values]

    def _within(self, record: Any, limit: int | None) -> Any:
        """The record, or a copy with as much of its text as makes no more than `limit` tokens.

        Raises: DataError when the rest alone makes more.
        """
        column = self.columns.text
        if limit is None or len(self.texts.encode_prompt(record)) <= limit:
            return record

        def length(size: int) -> int:
            return len(self.texts.encode_prompt({**record, column: record[column][:size]}))

        size = bisect_right(range(1, len(record[column])), limit, key=length)
        if not size:
            raise DataError(f'too long: all but its "{column}" makes more than {limit} tokens; shorten the rest')
        return {**record, column: record[column][:size]}


def _fits(value: float) -> bool:
    """Whether the model's numbers reach so far; NaN does not."""
    return abs(value) <= _LARGEST
