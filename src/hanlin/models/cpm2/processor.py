"""CPM-2's records -> arrays, and answers -> records.

The encoder reads what the data set's template makes of a record, the decoder says the answer: <s>, <s_0>, answer, and
<s_1> where its length is open. Only the decoder carries loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, pairwise
from typing import Any

import numpy as np

from hanlin.core.batch import IGNORED, NO_SPAN, Batch, Prompt, PromptBatch, Sample
from hanlin.core.errors import ConfigError, DataError
from hanlin.data.forms.content import Content, MultipleChoice, PlainText
from hanlin.data.pretraining.span_corruption import Marks
from hanlin.data.processor import SoftPrompts, tried
from hanlin.data.sources.records import LeftOutError
from hanlin.models.common.answers import check_answer
from hanlin.models.common.encoder_decoder_batch import make_sample
from hanlin.models.common.span_corruption import Corruption, span_tokens
from hanlin.models.common.spoken import question_record, refuse_preference
from hanlin.models.common.text_record import OPTIONS, names_columns
from hanlin.models.family import RankedExample
from hanlin.tokens.stream import Decode, Growing

from . import batch
from .config import Cpm2Config
from .datasets import RawDataset, sogou
from .datasets.dataset import TextAnswer, WordAnswer, one_record
from .pieces import START_ID, Item, ids_of, source_of, target_of
from .record import Cpm2Options
from .tokenizer import Cpm2Tokenizer


@dataclass(frozen=True)
class AnswerCursor:
    """The next position to feed; left: tokens until the answer ends by itself, None: until <s_1>."""

    token: int
    end: int
    left: int | None
    is_done: bool = False

    def inputs(self) -> dict[str, int]:
        return {"tokens": self.token}

    def advance(self, token: int) -> AnswerCursor:
        left = None if self.left is None else self.left - 1
        return AnswerCursor(token, self.end, left, left == 0 or (left is None and token == self.end))


class Cpm2Processor:
    """`hanlin.models.family.Processor` of CPM-2."""

    def __init__(self, tokenizer: Cpm2Tokenizer, config: Cpm2Config, options: Cpm2Options | None = None) -> None:
        """Raises: ConfigError."""
        self.config, self.options = config, options or Cpm2Options()
        self.tokenizer = tokenizer if self.options.doubles_lone else tokenizer.without_doubling()
        self.data_set: RawDataset = self.options.data_set
        self.prompts: SoftPrompts | None = None
        # Experts share out all positions of a batch, padding too, so all ranks pad to the same lengths.
        self.shares_table = config.num_experts > 0
        first, count = span_tokens(tokenizer)
        self.marks = Marks(first, tokenizer.end_id, tokenizer.pad_id, tokenizer.vocab_size)
        self.corruption = Corruption(self.options.density, self.options.mean_span, count)
        if tokenizer.vocab_size > config.vocab_size:
            raise ConfigError(
                f"the vocabulary has {tokenizer.vocab_size} tokens, the model only {config.vocab_size} (vocab_size); "
                "take the vocabulary that belongs to the model, or set model.config.vocab_size for a fresh one"
            )

    def with_prompts(self, prompts: SoftPrompts) -> Cpm2Processor:
        """The same samples with soft prompts at the places of the data set's template."""
        other = copy.copy(self)
        other.prompts = prompts
        return other

    @property
    def fingerprint(self) -> str:
        """What, besides the data, decides the arrays."""
        prompts = None if self.prompts is None else (self.prompts.length, self.prompts.ratios)
        return f"{sorted(asdict(self.options).items())} {prompts}"

    @property
    def records(self) -> Callable[[Any], Sequence[Any]] | None:
        """What finds the records in a row of the files; None where each row is one."""
        return None if self.data_set.records is one_record else self._records

    learns_all_turns = False

    def owns(self, row: Mapping[str, Any], *, whole: bool) -> bool:
        """Whether a row is a source (whole: with its target); all are where columns or a data set are named."""
        options = self.options
        if options.dataset != "text" or names_columns(options):
            return True
        return options.source_column in row and (not whole or options.target_column in row)

    def record_of(self, content: Content) -> dict[str, Any]:
        """A source with its target; what the system says stands before the question.

        Raises: DataError.
        """
        options, content = self.options, refuse_preference(content)
        if options.dataset != "text":
            raise DataError(f"data.options.dataset {options.dataset} has rows of its own; set it to text for others")
        if isinstance(content, PlainText):
            raise DataError("a text alone is learned in pretraining, from token corpora (data.split); nothing is asked")
        return question_record(content, options.source_column, options.target_column)

    def choice_record(self, choice: MultipleChoice) -> dict[str, Any]:
        """The record of the question, with its options as targets.

        Raises: DataError.
        """
        return {**self.record_of(choice.question), OPTIONS: list(choice.options)}

    def answer_of(self, record: Any) -> str:
        """The answer in a record."""
        return str(self.gold(record)[0] or "")

    def check(self, record: Any) -> None:
        """Whether a record, or all of a row, can be trained on or ranked.

        Raises: DataError.
        """
        for one in self.data_set.records(record):
            if self._is_ranking(one):
                self.ranked_example(one)
            else:
                self.sample(one)

    def sample(self, record: Any, rng: np.random.Generator | None = None) -> Sample:
        """Encode a training record.

        Raises: DataError.
        """
        del rng  # nothing is drawn
        if self.data_set.answer is None:
            return self._pair(record)
        item = self.data_set.item(record, self.prompts)
        if all(isinstance(piece, str) for piece in item.answer):
            check_answer("".join(map(str, item.answer)), self.data_set.answer.key)
        if isinstance(self.data_set.answer, TextAnswer):
            self.data_set.answer.check(record)
        target = self._target(item)
        weight = self._weight(len(target) - 1)
        return make_sample(_inputs(self._source(item), target[:-1]), target[1:], weight=weight)

    def process_many(self, records: Sequence[Any]) -> list[Sample | DataError]:
        """The sample of each record, or what is wrong with it; their texts are encoded together."""
        items = [items for record in records if not isinstance(items := tried(self._items, record), DataError)]
        pieces = chain.from_iterable((*item.pieces, *item.answer) for item in chain.from_iterable(items))
        other = copy.copy(self)
        other.tokenizer = self.tokenizer.knowing({piece for piece in pieces if isinstance(piece, str)})
        return [tried(other.sample, record) for record in records]

    def varies(self, record: Any) -> bool:
        return False

    def window_tokens(self, max_length: int) -> int:
        """How many ids of a token stream the encoder reads in `max_length` positions, once spans are taken out.

        Raises: ConfigError.
        """
        if self.prompts is not None:
            raise ConfigError("tuning.method: pieces of a token stream have no place for soft prompts; choose lora")
        return self.corruption.tokens_for(max_length)

    def window(self, tokens: np.ndarray, rng: np.random.Generator | None = None) -> Sample:
        """A piece of a token stream with spans taken out, which the decoder gives back.

        tokens: int `[window_tokens]`, of one document or several.
        """
        return self.pair(*self.corruption.run(tokens, self.corruption.length_of(len(tokens)), self.marks, rng))

    def pair(self, context: np.ndarray, target: np.ndarray) -> Sample:
        """What is read, and all that is wanted as far as it fits beside it; see `data.processor.ReadsSpans`."""
        target = np.concatenate(([START_ID], target))[: len(context) + 1]
        tokens, labels = target[:-1], target[1:]
        # What follows the end of a document belongs to another one.
        labels = np.where(tokens == self.marks.end, IGNORED, labels)
        weight = self._weight(int((labels != IGNORED).sum()))
        return make_sample(_inputs(context, tokens), labels, weight=weight)

    def fit(self, record: Any, max_length: int, policy: str) -> list[Any]:
        """Shorten a record's longest text from its end.

        Raises: DataError when there is none or that does not help, and for other policies.
        """
        key = self.data_set.long_text
        if policy != "truncate" or key is None:
            raise DataError(
                "records of this data set cannot be shortened or split; set data.options.source_length, which cuts "
                "ids, or data.overlong drop"
            )
        text = record[key]
        low, high = 0, len(text)
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.sample({**record, key: text[:middle]}).length <= max_length
            low, high = (middle, high) if fits else (low, middle)
        if low == 0:
            raise DataError(
                f"too long even with {key!r} cut to nothing: its other texts, its answer (data.options.answer_length "
                "cuts it) or the prompts have more ids than data.max_length"
            )
        return [{**record, key: text[:low]}]

    def collate(self, rows: Sequence[Sequence[Sample]], length: int) -> Batch:
        """Pack samples into tensors; see `batch.collate`."""
        return batch.collate(rows, length, self.tokenizer.pad_id)

    def batch_key(self, sample: Sample) -> None:
        """All samples leave each other's loss alone."""

    def show(self, sample: Sample) -> list[tuple[str, bool]]:
        labels = sample.labels[sample.labels != IGNORED]
        return [(self._shown(sample.inputs["encoder_tokens"]), False), (self._shown(labels), True)]

    def prompt(self, record: Any) -> Prompt:
        """Encode a record whose answer is wanted; the one that it may have is not looked at.

        Raises: DataError.
        """
        answer = self._answer_form()
        if not isinstance(record, dict):
            raise DataError("one record is expected, an object; the rows of this file hold several")
        source = self._source(self.data_set.item(answer.blank(record), self.prompts))
        start, end = self.tokenizer.sentinel(0), self.tokenizer.sentinel(1)
        if isinstance(answer, WordAnswer):
            # As the original predicts a label: the token after <s_0>, whatever the model would say in its place.
            return Prompt(record, _inputs(source, [START_ID]), AnswerCursor(start, end, left=1))
        return Prompt(record, _inputs(source, []), AnswerCursor(START_ID, end, left=None))

    def collate_prompts(self, prompts: Sequence[Prompt]) -> PromptBatch:
        inputs = batch.pad_prompts([prompt.inputs for prompt in prompts], self.tokenizer.pad_id)
        surplus = range(self.tokenizer.vocab_size, self.config.vocab_size)
        return PromptBatch(inputs, [prompt.cursor for prompt in prompts], [surplus for _ in prompts])

    def answer(self, prompt: Prompt, tokens: Sequence[int]) -> Any:
        """A copy of the prompt's record with the answer written in."""
        return self._answer_form().write(prompt.record, self.answer_texts(prompt, tokens)[0])

    def answer_texts(self, prompt: Prompt, tokens: Sequence[int], *, decode: Decode | None = None) -> list[str]:
        decode = decode or self.tokenizer.decode
        tokens, pad = list(tokens), self.tokenizer.pad_id
        tokens = tokens[: tokens.index(pad)] if pad in tokens else tokens
        if isinstance(self.data_set.answer, WordAnswer):
            return [decode(tokens)]
        start, end = self.tokenizer.sentinel(0), self.tokenizer.sentinel(1)
        if self.options.compatible:
            # kept: of an answer that was cut off or began otherwise the original drops a real token.
            return [decode(tokens[1:-1])]
        first, last = tokens[:1] == [start], len(tokens) - (tokens[-1:] == [end])
        return [decode(tokens[first:last])]

    def follow_answer(self, prompt: Prompt) -> Callable[[Sequence[int]], list[str]]:
        return partial(self.answer_texts, prompt, decode=Growing(self.tokenizer.decode, self.tokenizer.begins_word))

    def gold(self, record: Any) -> list[str | None]:
        """The record's answer as the model says it; in compatible mode as it comes back from the tokenizer."""
        answer = self._answer_form()
        text = answer.read(record)
        if text is None or not self.options.compatible or isinstance(answer, WordAnswer):
            return [text]
        return [self.tokenizer.decode(self.tokenizer.encode(text))]

    def candidates(self, record: Any) -> list[Any]:
        """One copy of the record for each answer that it lets choose from.

        Raises: DataError when there are none.
        """
        return self._answer_form().candidates(record)

    @property
    def learns_ranks(self) -> bool:
        return self.data_set.answer is None

    def ranked_example(self, record: Any) -> RankedExample:
        """The titles that a record lets compete, the better one first where it says so.

        Raises: DataError when the data set ranks nothing.
        """
        if self.data_set.answer is not None:
            raise DataError("records of this data set have nothing to rank; take the task generate or likelihood")
        if self._is_ranking(record):
            named = [(str(number), item) for number, item in sogou.make_candidates(record, self.prompts)]
            best = None
        else:
            named = list(zip(sogou.PAIR, sogou.make_pair(record, self.prompts), strict=True))
            best = sogou.PAIR[0]
        return RankedExample([name for name, _ in named], [self._scored(item) for _, item in named], best)

    def _records(self, row: Any) -> list[Any]:
        """Raises: LeftOutError for a row of none, DataError for one that cannot be read."""
        found, limit = self.data_set.records(row), self.data_set.max_length
        if limit is None or any(map(self._is_ranking, found)):
            return found
        if kept := [record for record in found if self._longest_source(record) <= limit]:
            return kept
        raise LeftOutError(f"query and title have more than {limit} tokens")

    def _items(self, record: Any) -> list[Item]:
        return self.data_set.make_items(record, self.prompts)

    def _longest_source(self, record: Any) -> int:
        return max(len(source_of(item, self.tokenizer)) for item in self.data_set.make_items(record, None))

    def _is_ranking(self, record: Any) -> bool:
        return self.learns_ranks and sogou.is_ranking(record)

    def _weight(self, num_labels: int) -> float:
        """Of each label of a sample."""
        return 1 / num_labels if self.options.loss == "sample" else 1.0

    def _pair(self, record: Any) -> Sample:
        """Two titles in one sample, in spans of their own: the better one's score must beat that of the negative."""
        if self._is_ranking(record):
            raise DataError("titles without a better one can be ranked, but not learned from; take the task rank")
        sources, targets = zip(*map(self._sides, sogou.make_pair(record, self.prompts)), strict=True)
        length = len(targets[0])
        labels = np.full(2 * length, IGNORED)
        labels[length - 1] = self._scored_id
        negatives = np.full(2 * length, NO_SPAN, dtype=np.int32)
        negatives[length - 1] = 2 * length - 1
        inputs = {
            **_inputs(list(chain(*sources)), list(chain(*targets))),
            "spans": np.repeat(np.arange(2, dtype=np.int32), length),
            "encoder_spans": np.repeat(np.arange(2, dtype=np.int32), list(map(len, sources))),
            "negatives": negatives,
        }
        return make_sample(inputs, labels)

    def _scored(self, item: Item) -> Sample:
        source, target = self._sides(item)
        labels = [IGNORED] * (len(target) - 1) + [self._scored_id]
        return make_sample(_inputs(source, target), labels)

    @property
    def _scored_id(self) -> int:
        return ids_of([sogou.SCORED], self.tokenizer)[0]

    def _sides(self, item: Item) -> tuple[list[int], list[int]]:
        return self._source(item), target_of(item, self.tokenizer)

    def _source(self, item: Item) -> list[int]:
        """Raises: DataError when there is nothing to read."""
        source = source_of(item, self.tokenizer)[: self.options.source_length]
        if not source:
            raise DataError("its text is empty; the encoder would read nothing")
        return source

    def _target(self, item: Item) -> list[int]:
        target, limit = target_of(item, self.tokenizer), self.options.answer_length
        around = 2 + item.is_closed  # <s>, <s_0>, and <s_1>
        return target if limit is None or len(target) - around <= limit else target[: 2 + limit]

    def _answer_form(self) -> TextAnswer | WordAnswer:
        if self.data_set.answer is None:
            raise DataError("records of this data set have no answer, only titles to rank; take the task rank")
        return self.data_set.answer

    def _shown(self, ids: Sequence[int] | np.ndarray) -> str:
        """A run of soft prompts is shown as its numbers."""
        ids = [int(id) for id in ids]
        bounds = [0, *(at for at in range(1, len(ids)) if not _goes_on(ids[at - 1], ids[at])), len(ids)]
        return "".join(self._piece(ids[start:end]) for start, end in pairwise(bounds))

    def _piece(self, ids: Sequence[int]) -> str:
        return f"[{-ids[0]}..{-ids[-1]}]" if ids and ids[0] < 0 else self.tokenizer.decode(ids)


def _inputs(source: Sequence[int] | np.ndarray, target: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    return {"tokens": np.array(target, dtype=np.int32), "encoder_tokens": np.array(source, dtype=np.int32)}


def _goes_on(before: int, id: int) -> bool:
    return id == before - 1 if id < 0 else before >= 0
