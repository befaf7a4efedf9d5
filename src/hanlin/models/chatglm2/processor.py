"""ChatGLM2's records -> arrays, and answers -> records.

A record is a question with its answer and the rounds before them, of which only answers carry loss, or a plain text.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

import numpy as np

from hanlin.core.batch import IGNORED, Batch, Prompt, PromptBatch, Sample
from hanlin.core.errors import ConfigError, DataError
from hanlin.data.forms.content import ChatMessage, Content, Conversation, MultipleChoice, PlainText
from hanlin.data.processor import SoftPrompts, tried
from hanlin.models.common import decoder_batch
from hanlin.models.common.answers import check_answer
from hanlin.models.common.decoder_batch import TextCursor
from hanlin.models.common.multi_turn import LearnedTurn, sample_of_turns, shown_ids
from hanlin.models.common.rounds import longest_that_fits
from hanlin.models.common.soft_prompts import NO_PROMPTS, behind_prompts, place_prompts
from hanlin.models.common.spoken import refuse_preference
from hanlin.models.common.text_record import OPTIONS, names_columns, unread_columns
from hanlin.tokens.stream import Decode, Growing

from .config import ChatGlm2Config
from .dialogue import (
    Turn,
    answered,
    dialogue_record,
    is_dialogue,
    last_answer,
    question_of,
    turns_in,
    turns_of,
    with_date,
    without_learned,
    without_oldest_round,
)
from .original import INPUT_IDS, LABELS, is_row, make_sample, read_row, reference_ids, train_row
from .plain_text import ENDS, TEXT, fit_text, is_text, text_behind, text_of, text_sample, told_sample
from .record import (
    TOOLS,
    ChatGlm2Options,
    check_choice,
    read_choices,
    read_dialogue,
    read_text,
    template_of,
    with_system,
)
from .templates import ASSISTANT, SYSTEM, Dialogue, Message, RoleTemplate, TextTemplate, drop_oldest
from .tokenizer import ChatGlm2Tokenizer, TextOrId
from .tool_calls import may_become_call, read_call, tool_names


class ChatGlm2Processor:
    """`hanlin.models.family.Processor` of ChatGLM2 and ChatGLM3."""

    def __init__(
        self, tokenizer: ChatGlm2Tokenizer, config: ChatGlm2Config, options: ChatGlm2Options | None = None
    ) -> None:
        """Raises: ConfigError."""
        self.config = config
        self.prompts = NO_PROMPTS
        self.options = options = options or ChatGlm2Options()
        self.template = template_of(options, config.generation)
        self.calls_tools = has_roles = isinstance(self.template, RoleTemplate)
        self.tokenizer = tokenizer.with_roles() if has_roles else tokenizer
        if self.tokenizer.vocab_size > config.vocab_size:
            raise ConfigError(
                f"the vocabulary has {self.tokenizer.vocab_size} tokens, the model only {config.vocab_size} "
                "(vocab_size); take the vocabulary that belongs to the model, or set model.config.vocab_size for a "
                "fresh one"
            )
        if options.compatible and has_roles:
            raise ConfigError(
                "compatible: the original has no template roles; take rounds, plain or a text of your own"
            )

    def with_prompts(self, prompts: SoftPrompts) -> ChatGlm2Processor:
        """The same samples with soft prompts before each, and between prompt and answer.

        Raises: ConfigError.
        """
        if self.options.compatible:
            raise ConfigError("tuning.method: the original's rows (compatible) have no place for soft prompts")
        other = copy.copy(self)
        other.prompts = place_prompts(prompts, has_masks=False)
        return other

    @property
    def fingerprint(self) -> str:
        """What, besides the data, decides the arrays."""
        facts = f"{self.tokenizer.fingerprint} {self.config.generation} {sorted(asdict(self.options).items())}"
        return f"{facts} {self.prompts}" if len(self.prompts) else facts

    def check(self, record: Any) -> None:
        """Whether a record can be trained on.

        Raises: DataError.
        """
        self.sample(record)

    def sample(self, record: Any, rng: np.random.Generator | None = None) -> Sample:
        """Encode a training record, or take the ids of a pre-tokenised one.

        Raises: DataError.
        """
        if is_row(record):
            if len(self.prompts):
                raise DataError("a row of ids has no place for soft prompts; give its texts")
            return make_sample(read_row(record, self.config.vocab_size))
        turns, parts = self._draft_of(record)
        return self._sample_of(record, turns, self.tokenizer.encode_parts(parts))

    def process_many(self, records: Sequence[Any]) -> list[Sample | DataError]:
        """`sample` of many records, their texts encoded at once by all cores; of one that cannot be used, its error."""
        drafts = [tried(self._draft, record) for record in records]
        texts = [parts for _, all_parts in (one for one in drafts if isinstance(one, tuple)) for parts in all_parts]
        ids = iter(self.tokenizer.encode_parts(texts, threads=-1))
        return [
            tried(self._sample_of, record, draft[0], list(islice(ids, len(draft[1]))))
            if isinstance(draft, tuple)
            else draft
            for record, draft in zip(records, drafts, strict=True)
        ]

    def _draft(self, record: Any) -> Sample | tuple[list[Turn], list[list[TextOrId]]]:
        return self.sample(record) if is_row(record) else self._draft_of(record)

    def _draft_of(self, record: Any) -> tuple[list[Turn], list[list[TextOrId]]]:
        """The turns of a record, none of a text, and what is encoded.

        Raises: DataError.
        """
        if self._is_text(record):
            return [], [text_of(record, self.config.vocab_size)]
        if isinstance(record, Mapping) and not self.options.compatible:
            check_choice(record, self.options.response_column)
        turns = self._turns(record)
        return turns, self._parts_of(turns)

    def _is_text(self, record: Any) -> bool:
        return not self.options.compatible and is_text(record, self.options.prompt_column)

    def _parts_of(self, turns: Sequence[Turn]) -> list[list[TextOrId]]:
        """Prompt and answer of each turn before they are encoded."""
        tokenizer, template = self.tokenizer, self.template
        return [
            parts
            for turn in turns
            for parts in (template.prompt(tokenizer, turn.question), template.answer(tokenizer, turn.answer))
        ]

    def _turns(self, record: Any) -> list[Turn]:
        """The turns that are learned, the last one with all that stands before them.

        Raises: DataError.
        """
        if not (learned := self._learned_turns(record)):
            raise DataError("no answer of the dialogue is learned: there is none, or all have the weight 0")
        return learned

    def _learned_turns(self, record: Any) -> list[Turn]:
        """The same, none where no answer of a dialogue is learned.

        Raises: DataError.
        """
        if not self._holds_dialogue(record):
            answer = read_text(record, self.options.response_column)
            check_answer(answer, self.options.response_column)
            dialogue = self._dialogue(record)
            newest = Turn(dialogue, (Message(ASSISTANT, answer),))
            return [*turns_in(dialogue), newest] if self.options.loss_turns == "all" else [newest]
        turns = turns_of(record)
        if self.options.loss_turns == "last":
            turns = turns[-1:]
        return [turn for turn in turns if turn.is_learned]

    def _sample_of(self, record: Any, turns: Sequence[Turn], ids: Sequence[list[int]]) -> Sample:
        """The sample of a record; ids: prompt and answer of each turn in turn, or those of a text."""
        if not turns:
            return behind_prompts(text_sample(record, ids[0], self.tokenizer), self.prompts)
        if self.options.compatible:
            [prompt, answer] = ids
            return make_sample(self._original_row(prompt, answer))
        shorter, _ = self._shortened(record, ids[-2], self.options.prompt_length)
        if shorter is not record:
            return self.sample(shorter)
        return sample_of_turns(
            [
                self._learned(turn, prompt, answer)
                for turn, prompt, answer in zip(turns, ids[::2], ids[1::2], strict=True)
            ]
        )

    def _learned(self, turn: Turn, prompt: list[int], answer: list[int]) -> LearnedTurn:
        # differs: an answer that is cut does not teach to stop there.
        limit = self.options.answer_length
        is_whole = limit is None or len(answer) <= limit
        end = self.template.end(self.tokenizer, turn.answer) if is_whole else None
        return LearnedTurn(self.prompts.around(prompt), answer if is_whole else answer[:limit], end)

    def original_row(self, record: Any, row_length: int | None = None) -> tuple[list[int], list[int]]:
        """The `input_ids` and `labels` that the original's training script makes of a record.

        row_length: see `original.train_row`.
        Raises: DataError.
        """
        parts = self._parts_of(self._turns(record))
        prompt, answer = self.tokenizer.encode_parts(parts)
        return self._original_row(prompt, answer, row_length=row_length)

    def stored_row(self, record: Any) -> dict[str, list[int]]:
        """A record as a row of the Ascend version's preprocessed data sets: padded in compatible mode alone.

        Raises: DataError.
        """
        if self.options.compatible and not is_row(record):
            # kept: preprocess.py pads to one token less than a row that was cut on both sides has.
            length = self.options.source_length + self.options.target_length
            tokens, labels = self.original_row(record, length)
        else:
            sample = self.sample(record)
            if "branches" in sample.inputs:
                raise DataError("a row of ids has no place for several answers; set data.options.loss_turns to last")
            tokens, labels = sample.inputs["tokens"].tolist(), [IGNORED, *sample.labels[:-1].tolist()]
        return {INPUT_IDS: tokens, LABELS: labels}

    def _original_row(
        self, prompt: list[int], answer: list[int], row_length: int | None = None
    ) -> tuple[list[int], list[int]]:
        return train_row(
            prompt,
            answer,
            source_length=self.options.source_length,
            target_length=self.options.target_length,
            row_length=row_length,
            learn_padding=self.options.learn_padding,
        )

    @property
    def _columns(self) -> set[str]:
        """The columns that the options name."""
        options = self.options
        named = self.template.columns if isinstance(self.template, TextTemplate) else frozenset()
        return {options.prompt_column, options.response_column, options.history_column, *named}

    def notes(self, record: Any) -> list[str]:
        """The columns of a record that nothing reads."""
        if is_row(record) or self._holds_dialogue(record):
            return []
        if self._is_text(record):
            return unread_columns(record, {TEXT, ENDS})
        known = self._columns | (set() if self.options.compatible else {SYSTEM, TOOLS, OPTIONS})
        return unread_columns(record, known)

    def varies(self, record: Any) -> bool:
        return False

    def fit(self, record: Any, max_length: int, policy: str) -> list[Any]:
        """Make a record short enough: the oldest rounds of its history are dropped; a text is cut or split.

        Raises: DataError when question and answer alone are too long, and for other policies.
        """
        if self._is_text(record):
            [ids] = self.tokenizer.encode_parts([text_of(record, self.config.vocab_size)])
            return fit_text(record, ids, self.tokenizer, max_length - len(self.prompts), policy)
        if policy != "truncate":
            raise DataError(
                "a dialogue cannot be split; choose data.overlong truncate (drops its oldest rounds) or drop"
            )
        if is_row(record):
            raise DataError(
                "too long, and its ids cannot be shortened; raise data.max_length or tokenise the texts anew"
            )
        shorter = longest_that_fits(
            record,
            self._without_oldest,
            lambda one: not self._learned_turns(one) or self.sample(one).length <= max_length,
        )
        if shorter is None:
            raise DataError(
                f"the newest question and its answer alone have more than {max_length} tokens (data.max_length); raise "
                "it, or let the answer be cut (answer_length)"
            )
        self.sample(shorter)  # which says it where nothing that is left is learned
        return [shorter]

    def collate(self, rows: Sequence[Sequence[Sample]], length: int) -> Batch:
        """Pack samples into tensors; see `decoder_batch.collate`."""
        return decoder_batch.collate(rows, length, self.config.pad_id)

    def batch_key(self, sample: Sample) -> None:
        """All samples leave each other's loss alone."""

    def show(self, sample: Sample) -> list[tuple[str, bool]]:
        ids = [
            one for one in shown_ids(sample, {self.tokenizer.end, *self.template.ends(self.tokenizer)}) if one[0] >= 0
        ]
        pieces = []
        for is_learnt, group in groupby(ids, key=itemgetter(1)):
            tokens = [id for id, _ in group]
            text = self.tokenizer.decode(tokens, show_specials=True)
            is_end = tokens[-1] == self.tokenizer.end and not self.tokenizer.is_glm4  # which shows its own
            pieces.append((text + ("</s>" if is_end else ""), is_learnt))
        return pieces

    def prompt(self, record: Any) -> Prompt:
        """Encode a record whose answer is wanted; the response column is not looked at.

        Its last token is the first column that the cursor feeds.
        Raises: DataError.
        """
        ids = self.encode_prompt(record)
        if self.options.compatible:
            ids = ids[: self.options.asked_length or self.options.source_length]
        else:
            limit = self.options.asked_length or self.config.max_length - 1 - len(self.prompts)
            _, ids = self._shortened(record, ids, limit)
            ids = self.prompts.around(ids)
        ends = frozenset((*self.config.end_ids, *self.template.ends(self.tokenizer)))
        cursor = TextCursor(ids[-1], len(ids) - 1, ends)
        return Prompt(record, {"tokens": np.array(ids[:-1], dtype=np.int32)}, cursor)

    def collate_prompts(self, prompts: Sequence[Prompt]) -> PromptBatch:
        """Pad prompts on the left."""
        surplus = range(self.tokenizer.vocab_size, self.config.vocab_size)
        return decoder_batch.collate_prompts(prompts, self.config.pad_id, surplus)

    def answer(self, prompt: Prompt, tokens: Sequence[int]) -> Any:
        """A copy of the prompt's record with the answer in its response column."""
        text = self.answer_texts(prompt, tokens)[0]
        text = text if self.options.compatible else with_date(text)
        if self._holds_dialogue(prompt.record):
            return answered(prompt.record, text)
        return {**prompt.record, self.options.response_column: text}

    def answer_texts(self, prompt: Prompt, tokens: Sequence[int], *, decode: Decode | None = None) -> list[str]:
        text = (decode or self.tokenizer.decode)(tokens)
        return [text if self.options.compatible else self.template.read_answer(text)]

    def follow_answer(self, prompt: Prompt) -> Callable[[Sequence[int]], list[str]]:
        return partial(self.answer_texts, prompt, decode=Growing(self.tokenizer.decode))

    def gold(self, record: Any) -> list[str | None]:
        """The record's answer; in compatible mode as the original compares it, cut to reference_length."""
        if self._holds_dialogue(record):
            return [last_answer(record)]
        text = record.get(self.options.response_column)
        if text is None or not self.options.compatible:
            return [text]
        [answer] = self.tokenizer.encode_parts([self.template.answer(self.tokenizer, [Message(ASSISTANT, text)])])
        ids = reference_ids(self.tokenizer.prefix, answer, self.options.reference_length)
        return [self.tokenizer.decode(ids)]

    def candidates(self, record: Any) -> list[Any]:
        """The record with each of its options as the answer; of a dialogue the last answer alone counts.

        Raises: DataError when it has none.
        """
        texts = read_choices(record)
        if self._holds_dialogue(record):
            return [answered(without_learned(record), text) for text in texts]
        return [{**record, self.options.response_column: text} for text in texts]

    def choice_record(self, choice: MultipleChoice) -> dict[str, Any]:
        """The record of the question, with its options as answers; where the template knows no system, the
        instructions stand before the text, in lines of their own.

        Raises: DataError.
        """
        question = choice.question
        if isinstance(self.template, TextTemplate) and not self.template.joins_system:
            asked = "\n".join(message.text for message in question.messages)
            question = Conversation((ChatMessage("user", asked),))
        return {**self.record_of(question), OPTIONS: list(choice.options)}

    remembers = True

    def ask(self, question: str, history: Sequence[tuple[str, str]]) -> dict[str, Any]:
        earlier = [list(round_) for round_ in history]
        return {self.options.prompt_column: question, self.options.history_column: earlier}

    @property
    def first_token(self) -> tuple[str, int]:
        """The last of those with which every row begins."""
        id = self.tokenizer.prefix[-1]
        return next(name for name, one in self.tokenizer.specials.items() if one == id), id

    @property
    def end_token(self) -> tuple[str, int]:
        return "<|endoftext|>" if self.tokenizer.is_glm4 else "</s>", self.tokenizer.end

    def text_ids(self, text: str) -> list[int]:
        return self.tokenizer.encode_prompt(text)

    def continuation(self, ids: Sequence[int]) -> dict[str, Any]:
        """The record of a prompt of these ids, behind [gMASK] sop or what of them is not there.

        Raises: DataError.
        """
        self._refuse_compatible()
        return {TEXT: text_behind(self.tokenizer.prefix, ids, self.config.vocab_size)}

    def text_sample(self, text: str) -> Sample:
        """All of a text behind the tokens with which every row begins, as in pretraining: no template.

        Raises: DataError.
        """
        return behind_prompts(told_sample(text, self.tokenizer), self.prompts)

    learns_all_turns = True

    def owns(self, row: Mapping[str, Any], *, whole: bool) -> bool:
        """Whether a row is a prompt (whole: with its response), or ids; all are with named columns or compatible."""
        options = self.options
        if options.compatible or names_columns(options) or is_row(row):
            return True
        return options.prompt_column in row and (not whole or options.response_column in row)

    def record_of(self, content: Content) -> dict[str, Any]:
        """A dialogue, whole, or a text.

        Raises: DataError.
        """
        self._refuse_compatible()
        content = refuse_preference(content)
        if isinstance(content, PlainText):
            return {TEXT: content.text}
        return dialogue_record(content, is_glm4=self.tokenizer.is_glm4)

    tool_names = staticmethod(tool_names)
    read_call = staticmethod(read_call)
    may_become_call = staticmethod(may_become_call)

    def _refuse_compatible(self) -> None:
        if self.options.compatible:
            raise DataError("compatible: the original reads its own columns alone; remove data.format or compatible")

    def answer_of(self, record: Any) -> str:
        """The answer in a record."""
        return self.gold(record)[0] or ""

    def _holds_dialogue(self, record: Any) -> bool:
        return is_dialogue(record) and self.options.prompt_column not in record

    def _dialogue(self, record: Any) -> Dialogue:
        """What stands before a record's answer.

        Raises: DataError.
        """
        if self._holds_dialogue(record):
            return question_of(record)
        dialogue = read_dialogue(record, self.options)
        # kept (chatglm2_preprocess): the original's scripts look at their three columns alone.
        if not self.options.compatible and not {SYSTEM, TOOLS} & self._columns:
            dialogue = with_system(dialogue)
        return dialogue

    def encode_prompt(self, record: Any) -> list[int]:
        """The tokens of a record without its answer, however many they are.

        Raises: DataError.
        """
        if self._is_text(record):
            return [*self.tokenizer.prefix, *self.tokenizer.encode_parts([text_of(record, self.config.vocab_size)])[0]]
        [ids] = self.tokenizer.encode_parts([self.template.prompt(self.tokenizer, self._dialogue(record))])
        return ids

    def _shortened(self, record: Any, ids: list[int], limit: int | None) -> tuple[Any, list[int]]:
        """A record without the oldest rounds that exceed the limit, and its prompt; ids: the whole prompt.

        Raises: DataError.
        """
        if limit is None or len(ids) <= limit:
            return record, ids
        shorter = longest_that_fits(record, self._without_oldest, lambda one: len(self.encode_prompt(one)) <= limit)
        if shorter is None:
            where = "prompt_length" if self.options.asked_length else "the model's max_length"
            newest = record
            while (fewer := self._without_oldest(newest)) is not None:
                newest = fewer
            count = len(self.encode_prompt(newest))
            raise DataError(f"the newest question alone makes {count} tokens, {where} allows {limit}; shorten it")
        return shorter, self.encode_prompt(shorter)

    def _without_oldest(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
        if self._holds_dialogue(record):
            return without_oldest_round(record)
        column = self.options.history_column
        history = drop_oldest(record.get(column) or [])
        return None if history is None else {**record, column: history}
