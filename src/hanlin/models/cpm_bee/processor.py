"""CPM-Bee's records -> arrays, and answers -> records.

Each segment is written <s> text </s>; an answer has no </s> in the row, the position before its end predicts it.
Strings that are not in the vocabulary are renamed: <option_3> becomes <option>, an unknown run <unk>, each with the
running number ("sub") of that string within its kind, in the order of first appearance.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from hanlin.core.batch import IGNORED, Batch, Prompt, PromptBatch, Sample
from hanlin.core.errors import ConfigError, DataError
from hanlin.data.forms.content import Content, MultipleChoice, PlainText
from hanlin.data.processor import SoftPrompts, tried
from hanlin.models.common.answers import check_answer
from hanlin.models.common.soft_prompts import NO_PROMPTS, place_prompts
from hanlin.models.common.spoken import answer_text, map_texts, question_text, refuse_preference, system_text
from hanlin.tokens.stream import Decode, Growing

from . import answers
from .answers import ANSWER, OPTION_KEYS
from .config import CpmBeeConfig
from .marks import check_answers, check_blanks, check_control_marks, misspelt_marks
from .packing import PackedRow, join_samples, make_batch, tensors
from .prompts import Entry, PromptState, Slots, first_cursor, split_answers, strings_by_id
from .record import Path, Segment, Shuffler, answer_paths, relation_table, segments, with_value
from .tokenizer import CpmBeeTokenizer, escape, unescape

_PER_TOKEN = ("tokens", "subs", "positions", "is_context", "segments", "num_segments", "sample_ids", "relation_offsets")


@dataclass(frozen=True)
class Encoded:
    """A record as arrays.

    table: id -> string of what is not in the vocabulary; renamed: the same ids -> (token, sub); strings: flat pairs of
    the place of each of them and a hash of its string.
    answers: numbers of the answers' segments, in the order of the record.
    """

    tokens: np.ndarray
    subs: np.ndarray
    is_context: np.ndarray
    segments: np.ndarray
    relations: np.ndarray
    num_segments: int
    answers: tuple[int, ...]
    table: dict[int, str]
    renamed: dict[int, Entry]
    strings: np.ndarray


@dataclass(frozen=True)
class CpmBeeOptions:
    """What may be chosen about the samples."""

    # Steps between segments are counted up to this (8 in all released models).
    max_depth: int = 8
    # True: refuse <name> that is neither a mark of the vocabulary nor a numbered one, as the original does; else it is
    # taken literally.
    strict: bool = False
    # True: <s>, </s>, <root>, <ans>, <pad>, <unk> and <eod>, bare or numbered, may stand in texts and keys, where they
    # act as the program's own; else such a record is a bad one.
    control_marks: bool = False
    # True: an answer need be none of the record's options, and blanks need no answers of their own.
    free_answers: bool = False
    # True: "<" in answers is written as it is; else as "<<", the form that records have.
    unescape_answers: bool = False

    def __post_init__(self) -> None:
        if self.max_depth < 1:
            raise ConfigError(f"max_depth is {self.max_depth}, expected at least 1")


class CpmBeeProcessor:
    """`hanlin.models.family.Processor` of CPM-Bee."""

    shares_table = True
    """The ext table of a batch holds the marks of all its rows, and each of them is a class of the softmax."""

    def __init__(
        self,
        tokenizer: CpmBeeTokenizer,
        config: CpmBeeConfig,
        options: CpmBeeOptions | None = None,
    ) -> None:
        """Raises: ConfigError."""
        if tokenizer.vocab_size > config.vocab_size:
            raise ConfigError(
                f"the vocabulary has {tokenizer.vocab_size} tokens, the model only {config.vocab_size} (vocab_size); "
                "take the vocabulary that belongs to the model, or set model.config.vocab_size for fresh weights"
            )
        self.tokenizer = tokenizer
        self.prompts = NO_PROMPTS
        self.config = config
        self.options = options or CpmBeeOptions()
        self._start, self._end, self._unknown = (tokenizer.marks[mark] for mark in ("<s>", "</s>", "<unk>"))

    def with_prompts(self, prompts: SoftPrompts) -> CpmBeeProcessor:
        """The same samples with soft prompts as the first positions of the first text of the context.

        Raises: ConfigError.
        """
        other = copy.copy(self)
        other.prompts = place_prompts(prompts, has_masks=False, has_back=False)
        return other

    @property
    def fingerprint(self) -> str:
        """What, besides the data and the vocabulary, decides the arrays."""
        return f"{self.options} {self.prompts}" if len(self.prompts) else str(self.options)

    learns_all_turns = False
    blanks = answers.BLANKS

    def owns(self, row: Mapping[str, Any], *, whole: bool) -> bool:
        """Whether a row has a place for an answer."""
        return ANSWER in row

    def record_of(self, content: Content) -> dict[str, Any]:
        """A question as "input", what the system says as "prompt", a text as an answer to nothing.

        Texts of other forms have no marks: each "<" of them is escaped.
        Raises: DataError.
        """
        content = refuse_preference(content)
        if isinstance(content, PlainText):
            return {ANSWER: escape(content.text)}
        escaped = map_texts(content, escape)
        said = {"input": question_text(escaped, between="\n<sep>")}
        if before := system_text(escaped):
            said["prompt"] = before
        return {**said, ANSWER: answer_text(escaped) or ""}

    def choice_record(self, choice: MultipleChoice) -> dict[str, Any]:
        """The record of the question, with its options by their names."""
        options = {f"<option_{number}>": escape(text) for number, text in enumerate(choice.options)}
        asked = {key: value for key, value in self.record_of(choice.question).items() if key != ANSWER}
        return {**asked, OPTION_KEYS[0]: options, ANSWER: ""}

    def answer_of(self, record: Any) -> str:
        """The answer in a record, without its escapes."""
        return self.plain_text(str(record[ANSWER] or ""))

    def plain_text(self, text: str) -> str:
        """An answer without its escapes, if it has them."""
        return text if self.options.unescape_answers else unescape(text)

    def check(self, record: Any) -> None:
        """Whether a record can be trained on. An empty text in a dict of answers is one (nothing was found).

        Raises: DataError with the key and what is wrong there.
        """
        self._checked(record)

    def process_many(self, records: Sequence[Any]) -> list[Sample | DataError]:
        """What `check` and `sample` make of each record, which is encoded once."""
        return [tried(lambda given: self.labelled(self._checked(given)), record) for record in records]

    def _checked(self, record: Any) -> Encoded:
        paths = answer_paths(record)
        encoded = self.encode(record)
        self._check_marks(record, paths)
        if paths == [(ANSWER,)]:
            check_answer(record[ANSWER], ANSWER)
        return encoded

    def _check_marks(self, record: Any, paths: Sequence[Path], *, is_prompt: bool = False) -> None:
        """Raises: DataError for marks that no record may hold, for answers that fit neither options nor blanks."""
        parts = segments(record)
        if not self.options.control_marks:
            check_control_marks(parts, self.tokenizer)
        if not self.options.free_answers:
            check_blanks(parts, paths, self.tokenizer)
            if not is_prompt:
                check_answers(record, parts, self.tokenizer)

    def notes(self, record: Any) -> list[str]:
        """What is probably not meant as it is read: misspelt marks."""
        return misspelt_marks(segments(record), self.tokenizer)

    def sample(self, record: Any, rng: Shuffler | None = None) -> Sample:
        """Encode a training record; `rng` shuffles the dicts of answers.

        Raises: DataError.
        """
        answer_paths(record)
        return self.labelled(self.encode(record, rng))

    def varies(self, record: Any) -> bool:
        return _has_choice(record[ANSWER])

    def fit(self, record: Any, max_length: int, policy: str) -> list[Any]:
        """Make a record short enough.

        truncate: the longest texts outside the answer lose tokens at their ends; marks stay, and at least one token.
        split: the longest text of all is cut into parts, one record for each; the others are repeated.

        Raises: DataError when that is not enough.
        """
        assert policy in ("truncate", "split"), policy
        excess = self.encode(record).tokens.size - max_length
        if excess <= 0:
            return [record]
        texts = [segment for segment in segments(record) if segment.role != "key"]
        return [self._truncate(record, texts, excess)] if policy == "truncate" else self._split(record, texts, excess)

    def collate(self, rows: Sequence[PackedRow], length: int) -> Batch:
        return make_batch(rows, length, vocab_size=self.config.vocab_size, start=self._start)

    def join(self, main: Sample, examples: Sequence[Sample]) -> Sample:
        """`main` with worked examples that it sees (in-context samples)."""
        return join_samples(main, examples)

    def batch_key(self, sample: Sample) -> frozenset[Entry]:
        """The sample's own entries of the ext table: all entries of a batch are ids of each row's logits."""
        tokens, subs = sample.inputs["tokens"], sample.inputs["subs"]
        return frozenset((int(tokens[place]), int(subs[place])) for place in np.flatnonzero(subs))

    def show(self, sample: Sample) -> list[tuple[str, bool]]:
        pieces: list[tuple[str, bool]] = []
        labels = np.concatenate([[IGNORED], sample.labels])  # what the position before each token predicts
        for token, sub, label in zip(sample.inputs["tokens"], sample.inputs["subs"], labels[:-1], strict=True):
            if token < 0:
                continue
            if label == self._end:
                _append(pieces, "</s>", True)
            is_learnt = label not in (IGNORED, self._end)
            _append(pieces, self.tokenizer.decode([int(token)]) + (f"#{sub}" if sub else ""), is_learnt)
        if labels[-1] == self._end:
            _append(pieces, "</s>", True)
        return pieces

    def prompt(self, record: Any) -> Prompt:
        """Encode a record whose answers are wanted; what stands under "<ans>" is not looked at.

        Raises: DataError.
        """
        paths = answer_paths(record)
        marked = record
        for path in paths:
            marked = with_value(marked, path, "")
        self._check_marks(marked, paths, is_prompt=True)
        for number, path in enumerate(paths, start=1):
            # kept: the places count as <ans_1>, ... in the numbering of the record's own marks (golden bee_encode).
            marked = with_value(marked, path, f"<ans_{number}>")
        encoded = self.encode(marked)
        strings = self._strings(encoded)
        entries = tuple(entry for entry in strings if entry[1])
        slots = Slots(encoded.answers, encoded.num_segments, self.config.vocab_size, self._start, self._end, entries)
        by_id = strings_by_id(strings, entries, self.config.vocab_size)
        return Prompt(record, _prompt_inputs(encoded), first_cursor(slots), PromptState(slots, tuple(paths), by_id))

    def collate_prompts(self, prompts: Sequence[Prompt]) -> PromptBatch:
        """Pad prompts on the left; each has a table of its own of the (token, sub) that its answer may quote."""
        # differs: the original makes one table of a batch; an answer could quote the other records' strings.
        length = max(prompt.length for prompt in prompts)
        tables = [np.array(prompt.state.slots.entries, dtype=np.int64).reshape(-1, 2) for prompt in prompts]
        inputs = {name: np.stack([_pad(p.inputs[name], length, "left") for p in prompts]) for name in _PER_TOKEN}
        longest = max(prompt.inputs["relations"].size for prompt in prompts)
        inputs["relations"] = np.stack([_pad(p.inputs["relations"], longest, "right") for p in prompts])
        most = max(map(len, tables))
        inputs["ext_tokens"], inputs["ext_subs"] = (
            np.stack([_pad(table[:, part], most, "right") for table in tables]) for part in (0, 1)
        )
        return PromptBatch(tensors(inputs), [prompt.cursor for prompt in prompts], list(map(self._banned, prompts)))

    def answer(self, prompt: Prompt, tokens: Sequence[int]) -> Any:
        """A copy of the prompt's record with its answers; None for those that were not begun."""
        texts = self.answer_texts(prompt, tokens)
        record = copy.deepcopy(prompt.record)
        for number, path in enumerate(prompt.state.paths):
            record = with_value(record, path, texts[number] if number < len(texts) else None)
        return record

    def answer_texts(self, prompt: Prompt, tokens: Sequence[int], *, decode: Decode | None = None) -> list[str]:
        """The text of each answer that was begun; `tokens` are the ids chosen so far."""
        decode = decode or partial(self.tokenizer.decode, table=prompt.state.by_id)
        return [self._shown(decode(answer)) for answer in split_answers(tokens, self._end)]

    def follow_answer(self, prompt: Prompt) -> Callable[[Sequence[int]], list[str]]:
        return partial(
            self.answer_texts, prompt, decode=Growing(partial(self.tokenizer.decode, table=prompt.state.by_id))
        )

    def gold(self, record: Any) -> list[str | None]:
        """The texts of a record's answers, in the form in which `answer` writes them."""
        texts = answers.gold(record)
        return [None if text is None else self._shown(self.tokenizer.escape_unknown_marks(text)) for text in texts]

    def candidates(self, record: Any) -> list[Any]:
        return answers.candidates(record)

    def text_sample(self, text: str) -> Sample:
        """A text as the answer to nothing, with the answer's end.

        Raises: DataError.
        """
        record = {ANSWER: escape(text)}
        self.check(record)
        return self.sample(record)

    def encode(self, record: Any, rng: Shuffler | None = None) -> Encoded:
        """Encode any record, with an answer or without.

        Raises: DataError.
        """
        parts = segments(record, rng)
        table: dict[int, str] = {}
        ids = [self._encode_segment(part, table) for part in parts]
        first = next((number for number, part in enumerate(parts) if part.role != "answer"), 0)
        ids[first] = [*self.prompts.front, *ids[first]]
        renamed = self._rename(table)
        tokens = np.fromiter((token for part in ids for token in part), dtype=np.int32)
        subs = np.zeros_like(tokens)
        strings = []
        for place in np.flatnonzero(tokens >= self.tokenizer.vocab_size).tolist():
            id = int(tokens[place])
            tokens[place], subs[place] = renamed[id]
            strings += [place, zlib.crc32(table[id].encode())]
        lengths = [len(part) for part in ids]
        is_context = np.array([part.role != "answer" for part in parts])
        return Encoded(
            tokens=tokens,
            subs=subs,
            is_context=np.repeat(is_context, lengths),
            segments=np.repeat(np.arange(len(parts), dtype=np.int32), lengths),
            relations=self._relations(parts),
            num_segments=len(parts),
            answers=tuple(np.flatnonzero(~is_context).tolist()),
            table=table,
            renamed=renamed,
            strings=np.array(strings, np.int64),
        )

    def labelled(self, encoded: Encoded) -> Sample:
        """The training sample of an encoded record: each answer token predicts the next one, its last one </s>."""
        following = np.append(encoded.tokens[1:], self._start)
        following = np.where(following == self._start, self._end, following)
        labels = np.where(encoded.is_context, IGNORED, following).astype(np.int32)
        inputs = {**_inputs(encoded), "strings": encoded.strings}
        return Sample(inputs, labels, (labels != IGNORED).astype(np.float32))

    def _encode_segment(self, segment: Segment, table: dict[int, str]) -> list[int]:
        try:
            self.tokenizer.check(segment.text)  # here, so that the place is that of the text as it was given
            ids = self.tokenizer.encode(self._source(segment), table)
        except DataError as error:
            raise DataError(f"{'.'.join(segment.path)}: {error}") from None
        return [self._start, *ids] if segment.role == "answer" else [self._start, *ids, self._end]

    def _rename(self, table: dict[int, str]) -> dict[int, Entry]:
        counts: dict[int, int] = {}
        renamed = {}
        for token, text in table.items():
            kind = self.tokenizer.mark_id(self.tokenizer.kind(text))
            if kind is None:
                raise DataError(f'{text}: no mark of the vocabulary begins so; write "<<{text[1:]}" for literal text')
            renamed[token] = kind, counts.setdefault(kind, 0)
            counts[kind] += 1
        return renamed

    def _relations(self, parts: Sequence[Segment]) -> np.ndarray:
        relations = relation_table(tuple(part.depth for part in parts), self.options.max_depth)
        most = self.config.num_relation_buckets
        if relations.size and relations.max() > most:
            raise DataError(
                f"the record is nested too deeply: relation {relations.max()} of its keys, but the model has "
                f"only {most} (num_relation_buckets)"
            )
        return relations

    def _strings(self, encoded: Encoded) -> dict[Entry, str]:
        """What an answer may quote by (token, sub), kind by kind."""
        found = [(encoded.renamed[token], text) for token, text in encoded.table.items()]
        kinds = list(dict.fromkeys(kind for (kind, _), _ in found))
        found.sort(key=lambda item: kinds.index(item[0][0]))
        return {entry: text for entry, text in found if entry[0] != self.tokenizer.mark_id(ANSWER)}

    def _banned(self, prompt: Prompt) -> list[int]:
        own = prompt.state.by_id
        known, end = self.tokenizer.vocab_size, self.config.vocab_size + len(prompt.state.slots.entries)
        return [id_ for id_ in (self._unknown, *range(known, end)) if id_ not in own]

    def _truncate(self, record: Any, texts: Sequence[Segment], excess: int) -> Any:
        cuttable = [(text, self.tokenizer.tokenize(self._source(text))) for text in texts if text.role == "text"]
        cuttable.sort(key=lambda item: len(item[1]), reverse=True)
        for segment, tokens in cuttable:
            plain = [place for place, token in enumerate(tokens) if not token.is_mark]
            dropped = set(plain[max(1, len(plain) - excess) :])
            kept = "".join(token.source for place, token in enumerate(tokens) if place not in dropped)
            record = with_value(record, segment.path, kept)
            excess -= len(dropped)
            if not excess:
                return record
        raise DataError(f"{excess} tokens too long even with each text outside the answer cut to one token")

    def _split(self, record: Any, texts: Sequence[Segment], excess: int) -> list[Any]:
        cut = [(text, self.tokenizer.tokenize(self._source(text))) for text in texts]
        segment, tokens = max(cut, key=lambda item: len(item[1]), default=(None, []))
        room = len(tokens) - excess
        if segment is None or room < 1:
            raise DataError(f"too long to split: without its longest text it has {1 - room} tokens too many")
        parts = np.array_split(np.arange(len(tokens)), -(-len(tokens) // room))
        pieces = ["".join(tokens[place].source for place in part) for part in parts]
        return [with_value(record, segment.path, piece) for piece in pieces]

    def _source(self, segment: Segment) -> str:
        return segment.text if self.options.strict else self.tokenizer.escape_unknown_marks(segment.text)

    def _shown(self, answer: str) -> str:
        return unescape(answer) if self.options.unescape_answers else answer


def _inputs(encoded: Encoded) -> dict[str, np.ndarray]:
    size = encoded.tokens.size
    return {
        "tokens": encoded.tokens,
        "subs": encoded.subs,
        "is_context": encoded.is_context,
        "segments": encoded.segments,
        "relations": encoded.relations,
        "num_segments": np.full(size, encoded.num_segments, dtype=np.int32),
        "sample_ids": np.zeros(size, dtype=np.int32),
        "relation_offsets": np.zeros(size, dtype=np.int32),
    }


def _prompt_inputs(encoded: Encoded) -> dict[str, np.ndarray]:
    """The context alone; the relations keep the segments of the answers."""
    context = encoded.is_context
    inputs = {name: a if name == "relations" else a[context] for name, a in _inputs(encoded).items()}
    return {**inputs, "positions": np.arange(context.sum(), dtype=np.int32)}


def _pad(array: np.ndarray, length: int, side: str) -> np.ndarray:
    missing = length - array.size
    return np.pad(array, (missing, 0) if side == "left" else (0, missing))


def _has_choice(value: Any) -> bool:
    return isinstance(value, dict) and (len(value) > 1 or any(map(_has_choice, value.values())))


def _append(pieces: list[tuple[str, bool]], text: str, is_learnt: bool) -> None:
    if pieces and pieces[-1][1] == is_learnt:
        pieces[-1] = (pieces[-1][0] + text, is_learnt)
    else:
        pieces.append((text, is_learnt))
