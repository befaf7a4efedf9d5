"""How likely a model finds texts that follow others, whatever its family: what benchmarks compare answers by.

A family that goes on with any text reads context and continuation as one row of ids, and those of the continuation
count. Any other one is asked the context and told the continuation as its answer, of which all counts that the family
learns, its end included. A dialogue as the context stands in the family's own template.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from hanlin.core.batch import IGNORED, Prompt, Sample
from hanlin.core.errors import ConfigError, DataError
from hanlin.core.transfer import to_device
from hanlin.data.forms.content import ChatMessage, Conversation
from hanlin.data.processor import ContinuesTexts, TakesForms
from hanlin.generate.engine import Engine, naming
from hanlin.generate.sampling import ban_ids, check_numbers
from hanlin.layers.kv_cache import KVCache
from hanlin.layers.precision import at_least_fp32
from hanlin.models.family import PredictsLabels, Processor, ScoresTexts

from .tasks.loss import by_batches

__all__ = [
    "Context",
    "Continuation",
    "LearnedIds",
    "TextReader",
    "asked_record",
    "fitted_ids",
    "head_ids",
    "learned_ids",
    "score_continuations",
    "score_ids",
    "split_ids",
]

Context = str | Conversation
"""A text that goes on, or a dialogue that waits for its next answer."""

Read = TypeVar("Read")

_POSITIONS_AT_ONCE = 1024
"""Whose logits, one for each id of the vocabulary, are in memory together, of a causal model."""


@dataclass(frozen=True)
class Continuation:
    """log_likelihood: natural logarithm of the probability of all its tokens behind the context; tokens: how many;
    is_greedy: whether greedy search would have written it.
    """

    log_likelihood: float
    tokens: int
    is_greedy: bool


class TextReader(Processor, ContinuesTexts, Protocol):
    """Of a family that goes on with any text."""


class LearnedIds(NamedTuple):
    """What is read, of a family that goes on with texts, and the ids behind it that count."""

    prompt: Prompt
    learned: Sequence[int]

    @property
    def read(self) -> tuple[int, ...]:
        """All positions of the row: the last id is told, not read."""
        return tuple([*self.prompt.ids, *self.learned][:-1])


def score_continuations(
    engine: Engine, pairs: Sequence[tuple[Context, str]], batch_size: int
) -> Iterator[tuple[int, Continuation]]:
    """Yield (number, what the model says of it) of pairs of a context and a continuation, long ones first.

    A context that is too long loses its beginning.
    Raises: ConfigError for a family that reads no texts; DataError for a pair that cannot be read.
    """
    processor, limit = engine.processor, engine.max_length
    if isinstance(processor, PredictsLabels):
        raise ConfigError("this model says labels, no texts; `hanlin evaluate` scores it (evaluate.tasks: classify)")
    if isinstance(processor, ContinuesTexts):
        return score_ids(
            engine, _read_all(pairs, lambda one, other: split_ids(processor, one, other, limit)), batch_size
        )
    samples = _read_all(pairs, lambda one, other: _told_sample(processor, one, other, limit))
    return by_batches(engine, enumerate(samples), batch_size, _of_samples)


def _read_all(pairs: Sequence[tuple[Context, str]], read: Callable[[Context, str], Read]) -> list[Read]:
    """Raises: DataError naming the pair."""
    made = []
    for number, (context, continuation) in enumerate(pairs):
        with naming(number):
            if not continuation:
                raise DataError("the continuation is empty, so nothing of it can be told")
            made.append(read(context, continuation))
    return made


# --- families that go on with texts ---


def head_ids(processor: ContinuesTexts) -> list[int]:
    """What stands before every text of the family, or (of others) before one that nothing else stands before."""
    return list(processor.text_ids(""))


def split_ids(processor: TextReader, context: Context, continuation: str, max_length: int | None) -> LearnedIds:
    """Context and continuation as ids: encoded together, as a text is that goes on, and parted where the context's own
    ids end; blanks at the end of the context belong to the continuation. Behind a dialogue it is encoded by itself,
    without blanks around it.

    Raises: DataError.
    """
    head = head_ids(processor)
    if isinstance(context, Conversation):
        prompt = processor.prompt(asked_record(processor, context))
        return LearnedIds(prompt, _without(head, processor.text_ids(continuation.strip() or continuation)))
    kept = context.rstrip()
    whole = processor.text_ids(context + continuation)
    before = processor.text_ids(kept) if kept else head
    if whole[: len(head)] != head and not kept:
        whole = [*head, *whole]
    count = max(1, len(whole) - len(before))
    return learned_ids(processor, whole[:-count], whole[-count:], max_length)


def learned_ids(
    processor: TextReader, before: Sequence[int], learned: Sequence[int], max_length: int | None
) -> LearnedIds:
    """Ids behind others, which lose what is too much of their beginning.

    Raises: DataError.
    """
    room = None if max_length is None else min(max_length + 1 - len(learned), max_length - 1)
    if room is not None and room < 1:
        raise DataError(f"the continuation has {len(learned)} tokens, the model reads at most {max_length}")
    return LearnedIds(processor.prompt(processor.continuation(fitted_ids(processor, before, room))), list(learned))


def fitted_ids(processor: ContinuesTexts, ids: Sequence[int], room: int | None) -> list[int]:
    """The last ids of a text that there is room for, behind those with which every row begins."""
    if room is None or len(ids) <= room:
        return list(ids)
    head = head_ids(processor) if processor.first_token is not None else []
    return [*head, *ids[len(head) :][-max(1, room - len(head)) :]]


def _without(head: Sequence[int], ids: Sequence[int]) -> list[int]:
    return list(ids[len(head) :] if list(ids[: len(head)]) == list(head) else ids)


def score_ids(engine: Engine, read: Iterable[LearnedIds], batch_size: int) -> Iterator[tuple[int, Continuation]]:
    """Yield (number, what the model says of it); rows that differ in their last id alone are read once."""
    rows: dict[tuple[int, ...], list[tuple[int, LearnedIds]]] = defaultdict(list)
    for number, one in enumerate(read):
        rows[one.read].append((number, one))
    longest_first = sorted(rows, key=lambda row: -len(row))
    batches = [longest_first[start : start + batch_size] for start in range(0, len(longest_first), batch_size)]
    for found in engine.shared(batches, lambda batch: _of_rows(engine, batch, [rows[row] for row in batch])):
        yield from found


def _of_rows(
    engine: Engine, rows: Sequence[tuple[int, ...]], told: Sequence[Sequence[tuple[int, LearnedIds]]]
) -> list[tuple[int, Continuation]]:
    keep = max(len(one.learned) for own in told for _, one in own)
    prompts = [
        replace(own[0][1].prompt, inputs={**own[0][1].prompt.inputs, "tokens": np.array(row, np.int32)})
        for row, own in zip(rows, told, strict=True)
    ]
    batch = engine.processor.collate_prompts(prompts)
    # What each position is followed by; the last one by 0, for that differs within a row.
    targets = to_device({"ids": _padded([[*row[1:], 0][-keep:] for row in rows])}, engine.device)["ids"]
    own_scores, own_best = [], []
    last = torch.empty(0)
    for place, scores in _last_scores(engine, to_device(batch.inputs, engine.device), keep):
        some = targets[:, place : place + scores.shape[1]]
        own_scores.append(scores.gather(-1, some[..., None])[..., 0])
        allowed = ban_ids(scores.flatten(0, 1), [ids for ids in batch.banned for _ in range(scores.shape[1])])
        own_best.append(allowed.argmax(-1).unflatten(0, scores.shape[:2]))
        last = scores[:, -1]
    scored, best = torch.cat(own_scores, 1).tolist(), torch.cat(own_best, 1).tolist()
    return [
        (number, _told(one.learned, scored[row], best[row], last[row, one.learned[-1]].item()))
        for row, own in enumerate(told)
        for number, one in own
    ]


def _told(learned: Sequence[int], scored: Sequence[float], best: Sequence[int], last: float) -> Continuation:
    """scored, best: of the last positions of a row, whose very last one tells the id that `last` is of."""
    count = len(learned)
    likelihood = sum(scored[len(scored) - count : -1]) + last
    return Continuation(likelihood, count, list(best[-count:]) == list(learned))


def _padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """`[rows, longest]`, padded on the left."""
    longest = max(map(len, rows))
    return torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])


def _last_scores(engine: Engine, inputs: dict[str, torch.Tensor], keep: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (place, log probabilities `[rows, some, vocab]`) of the last `keep` positions, in pieces."""
    rows, length = inputs["tokens"].shape
    keep = min(keep, length)
    step = max(1, _POSITIONS_AT_ONCE // rows) if engine.is_causal else keep
    cache = KVCache() if step < keep else None
    begin = 0
    for place in range(0, keep, step):
        end = length - keep + min(place + step, keep)
        part = {name: tensor[:, begin:end] for name, tensor in inputs.items()}
        with engine.inference():
            kept = min(step, keep - place)
            logits = engine.model(**part, kv_cache=cache, logits_to_keep=kept)
            yield place, check_numbers(at_least_fp32(logits).log_softmax(-1))
        begin = end


# --- families that answer records ---


def asked_record(processor: Processor, context: Context) -> Any:
    """The record that asks for what follows.

    Raises: ConfigError for a family that reads no texts; DataError.
    """
    return _taking_forms(processor).record_of(_dialogue(context))


def _taking_forms(processor: Processor) -> TakesForms:
    if not isinstance(processor, TakesForms):
        raise ConfigError("models of this family read records of their own form alone; `hanlin evaluate` scores them")
    return processor


def _dialogue(context: Context) -> Conversation:
    return context if isinstance(context, Conversation) else Conversation((ChatMessage("user", context),))


def _told_sample(processor: Processor, context: Context, continuation: str, max_length: int | None) -> Sample:
    """The sample in which the continuation is the answer to the context, without blanks around it; behind nothing it
    is a text of its own, where the family has such.
    """
    continuation = continuation.strip() or continuation
    if context == "":
        if not isinstance(processor, ScoresTexts):
            raise DataError("models of this family answer a text, and cannot tell one that follows nothing")
        return processor.text_sample(continuation)
    asks = _taking_forms(processor)

    def sample(start: int) -> Sample:
        kept = context[start:] if isinstance(context, str) else context
        dialogue = _dialogue(kept)
        told = replace(dialogue, messages=(*dialogue.messages, ChatMessage("assistant", continuation)))
        return processor.sample(asks.record_of(told))

    found = sample(0)
    if max_length is None or found.length <= max_length:
        return found
    low, high = 0, len(context) if isinstance(context, str) else 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if sample(middle).length <= max_length else (middle, high)
    found = sample(high)
    if found.length > max_length:
        raise DataError(f"it has {found.length} tokens, the model reads at most {max_length}; shorten it")
    return found


def _of_samples(engine: Engine, numbered: Sequence[tuple[Any, Sample]]) -> list[tuple[Any, Continuation]]:
    """Each learned token counts once, whatever its weight in training."""
    batch = engine.processor.collate([[sample] for _, sample in numbered], numbered[0][1].length).to(engine.device)
    counted = (batch.labels != IGNORED) & (batch.weights > 0)
    first = int(counted.any(0).nonzero()[0])
    labels, counted = batch.labels[:, first:], counted[:, first:]
    with engine.inference():
        logits = engine.model(**batch.inputs, logits_to_keep=labels.shape[1])
        scores = at_least_fp32(logits).log_softmax(-1)
    own = scores.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    sums = check_numbers(torch.where(counted, own, 0.0).sum(-1)).tolist()
    is_best = ((scores.argmax(-1) == labels) | ~counted).all(-1).tolist()
    return [
        (number, Continuation(total, tokens, greedy))
        for (number, _), total, tokens, greedy in zip(numbered, sums, counted.sum(-1).tolist(), is_best, strict=True)
    ]
