"""What a data set of CPM-2's fine-tuning is: its template, and where its records hold their answers; records are never
changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hanlin.core.errors import DataError
from hanlin.data.processor import SoftPrompts

from ..pieces import Item, Mark

MakeItems = Callable[[Any, SoftPrompts | None], list[Item]]


@dataclass(frozen=True)
class TextAnswer:
    """A text under `key`; `before` stands at the beginning of each and is not said.

    options: the key of the texts that a record lets choose from, if it has any: a list, or an object of named texts.
    """

    key: str
    before: str = ""
    options: str | None = None

    def blank(self, record: Any) -> Any:
        """The record with some answer, for a record that waits for its own."""
        return {**record, self.key: self.before}

    def read(self, record: Any) -> str | None:
        """The answer as the model says it."""
        text = record.get(self.key)
        return None if text is None else text[len(self.before) :]

    def write(self, record: Any, text: str) -> Any:
        """The record with what the model said as its answer."""
        return {**record, self.key: self.before + text}

    def check(self, record: Any) -> None:
        """Whether the answer is one of the record's options, if it has any.

        Raises: DataError.
        """
        if self.options is None or not isinstance(record.get(self.options), list | dict):
            return
        texts = [self.read(one) for one in self.candidates(record)]
        if self.read(record) not in texts:
            raise DataError(f"{self.key!r}: {self.read(record)!r:.40} is none of the options in {self.options!r}")

    def candidates(self, record: Any) -> list[Any]:
        """One copy of the record for each text that it lets choose from.

        Raises: DataError when there are none.
        """
        if self.options is None:
            raise DataError("records of this data set have no options to choose from; take the task generate or loss")
        options = record.get(self.options)
        texts = list(options.values()) if isinstance(options, dict) else options
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise DataError(
                f"{self.options!r} must list the texts that likelihood chooses from; or take the task generate or loss"
            )
        return [{**record, self.key: text} for text in texts]


@dataclass(frozen=True)
class WordAnswer:
    """One of few values under `key`, each said as one word; options: the values of a record, in the words' order.

    What is none of the words is written as it was said.
    """

    key: str
    words: Sequence[Mark]
    options: Callable[[Any], Sequence[Any]]

    def blank(self, record: Any) -> Any:
        return {**record, self.key: next(iter(self.options(record)), None)}

    def read(self, record: Any) -> str | None:
        value, options = record.get(self.key), self.options(record)
        return self.words[options.index(value)].token if value in options else value

    def write(self, record: Any, text: str) -> Any:
        said = {word.token: option for word, option in zip(self.words, self.options(record), strict=False)}
        return {**record, self.key: said.get(text, text)}

    def candidates(self, record: Any) -> list[Any]:
        return [{**record, self.key: option} for option in self.options(record)]


def one_record(record: Any) -> list[Any]:
    return [record]


@dataclass(frozen=True)
class RawDataset:
    """answer: None where there is none, but a ranking; long_text: the text that may be shortened;
    records: those that a row of its files holds; max_length: ids of the encoder above which a row is left out.
    """

    make_items: MakeItems
    answer: TextAnswer | WordAnswer | None
    long_text: str | None
    records: Callable[[Any], list[Any]] = one_record
    max_length: int | None = None

    def item(self, record: Any, prompts: SoftPrompts | None) -> Item:
        """Raises: DataError."""
        items = self.make_items(record, prompts)
        if len(items) != 1:
            raise DataError("it describes nothing" if not items else f"it holds {len(items)} records")
        return items[0]
