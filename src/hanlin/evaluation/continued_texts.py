"""What a model writes behind contexts, up to a text that ends it: `continuations` with the model's own words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hanlin.core.batch import Prompt
from hanlin.core.errors import DataError
from hanlin.data.forms.content import Conversation
from hanlin.data.processor import ContinuesTexts
from hanlin.generate.answer_text import follow_text
from hanlin.generate.engine import Engine, batches_of, naming, record_stream
from hanlin.generate.running_batch import AnswerRequest
from hanlin.recipe.settings import GenerateSettings

from .continuations import Context, asked_record, fitted_ids

__all__ = ["OpenText", "continue_texts"]


@dataclass(frozen=True)
class OpenText:
    """A context that is gone on with. stops: texts that end what is written, and are not part of it."""

    context: Context
    options: GenerateSettings
    stops: tuple[str, ...] = ()


def continue_texts(
    engine: Engine, texts: Sequence[OpenText], batch_size: int, seed: int = 0
) -> Iterator[tuple[int, str]]:
    """Yield (number, what is written behind it), long contexts first; one that leaves no room loses its beginning.

    Raises: ConfigError for a family that reads no texts; DataError.
    """
    prompts = []
    for number, one in enumerate(texts):
        with naming(number):
            prompts.append((number, one, _prompt(engine, one)))
    prompts.sort(key=lambda found: -found[2].size)
    for written in engine.shared(batches_of(prompts, batch_size), lambda batch: _written(engine, batch, seed)):
        yield from written


def until(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text up to the first of these, and whether one is there."""
    places = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def _prompt(engine: Engine, one: OpenText) -> Prompt:
    processor, limit = engine.processor, engine.max_length
    if isinstance(one.context, Conversation) or not isinstance(processor, ContinuesTexts):
        return engine.prompt(asked_record(processor, one.context), one.options)
    room = None if limit is None else limit - one.options.max_new_tokens
    if room is not None and room < 1:
        raise DataError(
            f"{one.options.max_new_tokens} tokens of an answer leave no room for a context: the model reads at most "
            f"{limit} together; ask for fewer"
        )
    return processor.prompt(processor.continuation(fitted_ids(processor, processor.text_ids(one.context), room)))


def _written(engine: Engine, batch: Sequence[tuple[int, OpenText, Prompt]], seed: int) -> list[tuple[int, str]]:
    running = engine.run_together()
    read = {number: follow_text(engine.processor, prompt, is_plain=True) for number, _, prompt in batch}
    stops = {number: one.stops for number, one, _ in batch}
    asked = [AnswerRequest(prompt, one.options, record_stream(seed, number)) for number, one, prompt in batch]
    found: dict[int, str] = {}
    with engine.inference():
        running.add([number for number, _, _ in batch], asked)
    while not running.is_empty:
        with engine.inference():
            step = running.step()
        for number, search in step.items():
            tokens = search.best.tokens if search.is_done else (search.found or search.beams)[0].tokens
            text, has_stopped = until(read[number](tokens), stops[number])
            if search.is_done or has_stopped:
                found[number] = text
                running.drop(number)
    return list(found.items())
