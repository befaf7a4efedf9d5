"""Questions about an input -> what a model reads of them: options that are told, or labels of its head.

A family makes the record (`data.processor.TakesChoices`), and its options are scored as the task likelihood scores
them. A model with a head for labels is bound to these: the options of a question are labels, a predicate names one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hanlin.core.batch import Sample
from hanlin.core.errors import DataError
from hanlin.data.forms.content import MultipleChoice
from hanlin.data.processor import TakesChoices
from hanlin.evaluation.scorable import options
from hanlin.models.family import PredictsLabels, Processor

from .questions import ChoiceQuestion, PredicateQuestion, Question, ScoreQuestion

__all__ = ["Poll", "poll_of_question", "poll_of_record", "spoken_options"]

_YES_NO = {True: ("是", "否"), False: ("yes", "no")}
"""How true and false are said, in Chinese and in other languages."""
_CHINESE = re.compile("[\u3400-\u9fff]")


@dataclass(frozen=True)
class Poll:
    """Options that compete, and what is read to compare them.

    samples: one for each option, in which it is the answer; or a single one for all of a head's labels.
    labels: then, the numbers of those that compete. A single label competes with its absence.
    """

    names: tuple[str, ...]
    samples: tuple[Sample, ...]
    labels: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        """That are read."""
        return sum(sample.length for sample in self.samples)


def poll_of_question(processor: Processor, question: Question, text: str, max_length: int | None) -> Poll:
    """What is compared to answer a question about a text; of a predicate the first name stands for true.

    Raises: DataError for what the model cannot be asked.
    """
    if not isinstance(processor, TakesChoices):
        raise DataError("models of this family are not asked questions; give their own records, with options")
    if isinstance(processor, PredictsLabels):
        names = _competing_labels(processor, question)
        asked = "" if isinstance(question, PredicateQuestion) else question.asked
        record = processor.choice_record(MultipleChoice(asked, text, names))
        return _of_labels(processor, record, names, max_length)
    shown = spoken_options(question)
    if twice := next((name for place, name in enumerate(shown) if name in shown[:place]), None):
        raise DataError(f"two options read {twice!r:.40}; the model cannot tell them apart")
    instructions = "\n".join(filter(str.strip, (question.asked, _described(question, shown))))
    if not (instructions.strip() or text.strip()):
        raise DataError("input and instructions are empty; nothing is asked")
    record = processor.choice_record(MultipleChoice(instructions, text, shown))
    named = zip(shown, options(processor, record, max_length), strict=True)
    return _of_options([(name, sample) for name, (_, sample) in named])


def poll_of_record(processor: Processor, record: Any, max_length: int | None) -> Poll:
    """What is compared to answer a record that has its own options, or whose label is wanted.

    Raises: DataError for a record without options.
    """
    if not isinstance(processor, PredictsLabels):
        found = options(processor, record, max_length)
        if len(found) < 2:
            raise DataError("a single option leaves nothing to choose")
        return _of_options(found)
    if processor.label_kind != "one":
        raise DataError(
            f"labels of the kind {processor.label_kind} are no options of one choice; "
            + ("ask a predicate for each label" if processor.label_kind == "several" else "take hanlin evaluate")
        )
    return _of_labels(processor, record, processor.labels, max_length)


def spoken_options(question: Question) -> tuple[str, ...]:
    """The options of a question as a model reads or tells them; true comes first.

    True and false are said in Chinese, unless the instructions have no Chinese character.
    """
    words = _YES_NO[bool(_CHINESE.search(question.asked)) or not question.asked.strip()]
    if isinstance(question, PredicateQuestion):
        return words
    if isinstance(question, ScoreQuestion):
        return tuple(level.label for level in question.levels)
    return tuple(words[not one.value] if isinstance(one.value, bool) else one.value for one in question.choices)


def _described(question: Question, shown: Sequence[str]) -> str:
    """The options that have a description, a line each."""
    if isinstance(question, PredicateQuestion):
        return ""
    told = question.choices if isinstance(question, ChoiceQuestion) else question.levels
    pairs = zip(shown, told, strict=True)
    return "\n".join(f"{name}：{one.description}" for name, one in pairs if one.description)


def _competing_labels(processor: PredictsLabels, question: Question) -> tuple[str, ...]:
    """The labels that a question is about; of a predicate the one that it names, first.

    Raises: DataError.
    """
    if processor.label_kind == "number":
        raise DataError("the model's head says quantities, which have no probabilities; take hanlin evaluate")
    if isinstance(question, PredicateQuestion):
        others = [name for name in processor.labels if name != question.asked]
        return (question.asked, *(others if processor.label_kind == "one" else ()))
    if processor.label_kind == "several":
        raise DataError("any number of this model's labels may be right; ask a predicate for each")
    shown = spoken_options(question)
    if _described(question, shown):
        raise DataError("description: a head for labels reads the input alone; leave descriptions out")
    return shown


def _of_labels(processor: PredictsLabels, record: Any, names: Sequence[str], max_length: int | None) -> Poll:
    sample = processor.unlabelled(record)
    if max_length is not None and sample.length > max_length:
        raise DataError(f"it has {sample.length} tokens, the model reads at most {max_length}; shorten it")
    return Poll(tuple(names), (sample,), tuple(map(list(processor.labels).index, names)))


def _of_options(named: Sequence[tuple[str, Sample]]) -> Poll:
    """Raises: DataError for options that are the same tokens, such as two that the vocabulary lacks."""
    seen: dict[bytes, str] = {}
    for name, sample in named:
        read = b"".join(array.tobytes() for array in (*sample.inputs.values(), sample.labels))
        if read in seen:
            raise DataError(
                f"the options {seen[read]!r:.40} and {name!r:.40} are the same tokens to this model; reword one"
            )
        seen[read] = name
    return Poll(tuple(name for name, _ in named), tuple(sample for _, sample in named))
