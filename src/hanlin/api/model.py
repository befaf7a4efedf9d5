"""A model that answers, in a Python program: `hanlin.load(...)`, then generate, chat, score, save."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from hanlin.api.conversion import ConvertSettings, Written, convert_held, convert_weights
from hanlin.api.dialogue import Messages, fitting_record, one_or_several, question, text_sample, whole_record
from hanlin.api.generation import chatting, generate_settings, streaming
from hanlin.api.process import called, with_threads
from hanlin.core.errors import ConfigError, DataError
from hanlin.core.files import path_of
from hanlin.evaluation.scorable import encode
from hanlin.run.memory import answering_memory

if TYPE_CHECKING:
    import torch

    from hanlin.api.decisions import Decider
    from hanlin.core.batch import Sample
    from hanlin.core.tokenizer import Tokenizer
    from hanlin.evaluation.decisions.calibration import Calibration
    from hanlin.evaluation.likelihoods import Likelihood
    from hanlin.generate.engine import Engine
    from hanlin.generate.running_batch import RunningBatch
    from hanlin.models.family import ModelConfig, Processor
    from hanlin.recipe.settings import GenerateSettings, Recipe
    from hanlin.run.components import Components

__all__ = ["Model"]

Result = TypeVar("Result")

Record = Mapping[str, Any]
"""A record as the family reads it (docs/data.md), without its answer or with one that is not looked at."""


class Model:
    """A model with its tokenizer and what its family knows of records; `hanlin.load` makes it.

    Its methods may be called from several threads, and beside other models. Settings of generation have their names in
    a recipe's section `generate` (`max_new_tokens`, `method`, `beams`, `top_p`, ...); those that are not given are the
    recipe's. What a mistake is and how it is told is as with the commands: `hanlin.HanlinError`.
    """

    def __init__(self, components: Components, engine: Engine) -> None:
        self._components, self._engine = components, engine
        self._temperature: float | None = None  # of decisions; None: nobody has looked yet
        self._memories: deque[RunningBatch] = deque(maxlen=1)
        # Experts that are read when they are needed take the place of others: one answer at a time.
        has_places = components.recipe.generate.expert_memory is not None
        self._turn = threading.RLock() if has_places else nullcontext()

    @property
    def recipe(self) -> Recipe:
        """The settings that it was loaded with."""
        return self._components.recipe

    @property
    def family(self) -> str:
        return self._components.family.name

    @property
    def config(self) -> ModelConfig:
        """Its sizes."""
        return self._components.config

    @property
    def tokenizer(self) -> Tokenizer:
        """Text <-> ids: `encode`, `decode`, `vocab_size`."""
        return self._components.tokenizer

    @property
    def network(self) -> torch.nn.Module:
        """The network itself, frozen, an adapter in it."""
        return self._engine.model

    @property
    def device(self) -> torch.device:
        return self._engine.device

    def __repr__(self) -> str:
        where = self.recipe.model.adapter or self.recipe.model.base or "fresh weights"
        return f"<hanlin.Model {self.family}, {where}, {self._engine.precision} on {self.device}>"

    @overload
    def generate(self, records: str, *, stream: Literal[False] = ..., **settings: Any) -> str: ...
    @overload
    def generate(self, records: Record, *, stream: Literal[False] = ..., **settings: Any) -> dict[str, Any]: ...
    @overload
    def generate(self, records: Iterable[str], *, stream: Literal[False] = ..., **settings: Any) -> list[str]: ...
    @overload
    def generate(
        self, records: Iterable[Record], *, stream: Literal[False] = ..., **settings: Any
    ) -> list[dict[str, Any]]: ...
    @overload
    def generate(self, records: str | Record, *, stream: Literal[True], **settings: Any) -> Iterator[str]: ...

    def generate(
        self,
        records: str | Record | Iterable[str] | Iterable[Record],
        *,
        stream: bool = False,
        seed: int | None = None,
        progress: bool = True,
        **settings: Any,
    ) -> Any:
        """Answer one text or record, or several.

        Of a text the answer alone is returned, of a record a copy of it with the answer written in. Several are
        answered in batches (`batch_size`), with a bar on a terminal or in a notebook (progress); an answer depends
        neither on the others nor on their number. seed: of what is drawn; None: the recipe's `run.seed`.

        stream: give the answer's text in pieces while it is written; one text or record at a time, and no beam search.

        Raises: ConfigError for a setting that does not exist; DataError for a record that cannot be asked.
        """
        given, is_one = one_or_several(records)
        options = generate_settings(self.recipe, settings)
        questions = [self._named(number, question, one) for number, one in enumerate(given)]
        if stream:
            if not is_one:
                raise DataError("stream: one text or record at a time; give it alone, not in a list")
            options = streaming(options, [f"generate.{name}" for name in settings])
            return self._stream(questions[0].record, options, seed, is_plain=questions[0].is_plain)
        with self._computing(options):
            answers = self._answers([one.record for one in questions], options, seed, progress)
        processor = self._engine.processor
        found = [one.answered(record, processor) for one, record in zip(questions, answers, strict=True)]
        return found[0] if is_one else found

    @overload
    def chat(self, messages: Messages, *, stream: Literal[False] = ..., **settings: Any) -> str: ...
    @overload
    def chat(self, messages: Messages, *, stream: Literal[True], **settings: Any) -> Iterator[str]: ...

    def chat(
        self, messages: Messages, *, stream: bool = False, seed: int | None = None, **settings: Any
    ) -> str | Iterator[str]:
        """The next message of a dialogue, by the assistant; only of families that can be talked with.

        messages: `[{"role": "user", "content": "..."}, ...]`, the last one by the user; or a question. Where they leave
        no room for an answer, the oldest rounds are left out. What was read of the last dialogue is not read again.
        Tokens are drawn (top_p 0.8, temperature 0.8, at most 1,024, fewer where fewer fit) unless the recipe or the
        settings say otherwise.

        stream: give the message in pieces while it is written.
        Raises: ConfigError, DataError.
        """
        named = [f"generate.{name}" for name in settings]
        pieces = self.reply(messages, chatting(generate_settings(self.recipe, settings), named), seed)
        return pieces if stream else "".join(pieces)

    def reply(self, messages: Messages, options: GenerateSettings, seed: int | None = None) -> Iterator[str]:
        """`chat` in pieces, with settings that stand as they are (`api.generation.chatting`)."""
        from hanlin.generate.running_batch import BatchLimits

        record, options = fitting_record(self._engine, messages, options)
        try:
            memory = self._memories.pop()
        except IndexError:  # none yet, or another thread has it
            memory = self._engine.run_together(BatchLimits(kept=1))
        return self._remembered(self._stream(record, options, seed, memory), memory)

    @overload
    def score(self, records: str | Record, *, batch_size: int | None = ..., progress: bool = ...) -> Likelihood: ...
    @overload
    def score(
        self, records: Iterable[str] | Iterable[Record], *, batch_size: int | None = ..., progress: bool = ...
    ) -> list[Likelihood]: ...

    def score(
        self,
        records: str | Record | Iterable[str] | Iterable[Record],
        *,
        batch_size: int | None = None,
        progress: bool = True,
    ) -> Likelihood | list[Likelihood]:
        """How likely the model finds a text, or the answer that a record has: log likelihood and number of tokens.

        Of a text all tokens count, the first one as the beginning of a text; of a record those of its answer, with the
        end that the family learns. batch_size: None: the recipe's `generate.batch_size`.

        Raises: DataError for a record without an answer; ConfigError for a family that scores no bare texts.
        """
        from hanlin.evaluation.likelihoods import sample_likelihoods
        from hanlin.generate.engine import show_progress

        given, is_one = one_or_several(records)
        size = self._batch_size(batch_size)
        samples = [(number, self._named(number, self._sample, one)) for number, one in enumerate(given)]
        with self._computing(self.recipe.generate):
            found = sample_likelihoods(self._engine, samples, size)
            by_number = dict(show_progress(found, "score", len(given)) if progress else found)
        scores = [by_number[number] for number in range(len(given))]
        return scores[0] if is_one else scores

    def decide(
        self,
        records: str | Record | Iterable[str] | Iterable[Record],
        questions: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        *,
        batch_size: int | None = None,
    ) -> Any:
        """How probable each answer to questions about a text or row is, or about several (docs/decisions.md).

        questions: one or several, as OpenAI's clients write them: predicates, choices, scores; None: each row has its
        own under "questions", or is a record of the family with options, or one for the model's labels. A row has what
        is asked about under "input". Of one question the answer is returned, of several a list, each as OpenAI's
        clients read it. The temperature is the one that was calibrated for these weights, if any was.

        Raises: DataError for what the model cannot be asked.
        """
        from hanlin.evaluation.decisions.questions import read_questions
        from hanlin.evaluation.decisions.rows import read_row

        (rows, is_one), is_single = one_or_several(records), isinstance(questions, Mapping)
        asked = None if questions is None else read_questions([questions] if is_single else questions)
        if asked is None and any(isinstance(row, str) for row in rows):
            raise DataError("questions: a text asks nothing by itself; say what is to be decided about it")
        if asked is not None:
            rows = [{"input": row} if isinstance(row, str) else row for row in rows]
        limit = self._engine.max_length
        read = [
            self._named(number, lambda processor, row: read_row(processor, row, limit, asked), row)
            for number, row in enumerate(rows)
        ]
        with self._computing(self.recipe.generate):
            found = list(self._decider(batch_size).answered(read))
        answers = [own[0] if is_single or row.questions is None else own for row, own in found]
        return answers[0] if is_one else answers

    def calibrate(
        self, rows: Iterable[Record], questions: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> Calibration:
        """Fit the temperature of `decide` on held-out rows with their right answers, and use it from now on.

        rows: as `decide` takes them, with the right answer in the record, or (of questions) under "gold". What was
        found is written beside the weights: `calibration.json` and a diagram; `decide` and `hanlin serve` use it.

        Raises: DataError for a row without its right answer, and for too few.
        """
        from hanlin.evaluation.decisions.questions import read_questions
        from hanlin.evaluation.decisions.rows import golds_of, read_row

        asked = None
        if questions is not None:
            asked = read_questions([questions] if isinstance(questions, Mapping) else questions)
        limit, read = self._engine.max_length, []
        for number, row in enumerate(one_or_several(rows)[0]):
            read.append(self._named(number, lambda processor, one: read_row(processor, one, limit, asked), row))
            self._named(number, golds_of, read[-1])
        with self._computing(self.recipe.generate):
            found = self._decider(None).calibrate(read, self._components, ())
        self._temperature = found.temperature
        return found

    def save(self, folder: str | Path, *, to: str = "base", overwrite: bool = False) -> Written:
        """Write the whole model with its tokenizer as a folder that stands alone, in any layout of its family.

        Weights are written as they are in memory now; with an adapter, its base as it lies on disk with the adapter
        worked in, as `hanlin convert --merge` does.

        to: base, or a layout of the family (huggingface, original, ...).
        Raises: CheckpointError when the folder is there (overwrite replaces it), or has no such layout; ConfigError
        for a model without an adapter whose weights `model.quantise` has packed.
        """
        model, target = self.recipe.model, path_of(folder, "folder")
        how = ConvertSettings(to=to, family=model.family, options=self.recipe.data.options, overwrite=overwrite)
        if model.quantise is not None and model.adapter is None:
            raise ConfigError(
                f"model.quantise: the weights in memory are packed as {model.quantise}, which no layout of files has; "
                f"hanlin convert {model.base} {target} --to {to} writes those that they were made from"
            )
        with called(trust_code=True):
            if model.base is not None and model.adapter is not None:
                return convert_weights(model.base, target, replace(how, vocab=model.vocab, merge=model.adapter))
            return self._save_from_memory(target, how)

    # --- inside ---

    def _decider(self, batch_size: int | None) -> Decider:
        from hanlin.api.decisions import Decider, calibrated_by

        if self._temperature is None:
            found = calibrated_by(self._components)
            self._temperature = 1.0 if found is None else found.temperature
        return Decider(self._engine, self._batch_size(batch_size), self._temperature)

    def _batch_size(self, given: int | None) -> int:
        size = self.recipe.generate.batch_size if given is None else given
        if type(size) is not int or size < 1:
            raise ConfigError(f"batch_size: expected a whole number above 0, found {size!r:.80}")
        return size

    def _save_from_memory(self, target: Path, how: ConvertSettings) -> Written:
        from hanlin.formats.convert import held_source
        from hanlin.formats.load import base_parameters

        of = self._components
        tensors = {name: weight.detach().cpu() for name, weight in base_parameters(self.network).items()}
        source = held_source(of.source.path if of.source else target, of.family, of.config, tensors)
        return convert_held(source, of.family, of.tokenizer, target, how)

    def _named(self, number: int, make: Callable[[Processor, Any], Result], given: Any) -> Result:
        """What is made of one of the texts or rows, which an error names."""
        from hanlin.generate.engine import naming

        with naming(number):
            return make(self._engine.processor, given)

    def _sample(self, processor: Processor, given: Any) -> Sample:
        limit = self._engine.max_length
        if not isinstance(given, str):
            record = whole_record(processor, given)
            processor.check(record)
            return encode(processor, record, limit)
        sample = text_sample(processor, given)
        if limit is not None and sample.length > limit:
            raise DataError(f"it has {sample.length} tokens, the model reads at most {limit}; shorten it")
        return sample

    def _answers(
        self, records: Sequence[Any], options: GenerateSettings, seed: int | None, progress: bool
    ) -> list[Any]:
        from hanlin.generate.engine import show_progress

        found = self._engine.answers(enumerate(records), options, self._seed(seed))
        answered = dict(show_progress(found, "generate", len(records)) if progress else found)
        return [answered[number] for number in range(len(records))]

    def _stream(
        self,
        record: Any,
        options: GenerateSettings,
        seed: int | None,
        memory: RunningBatch | None = None,
        *,
        is_plain: bool = True,
    ) -> Generator[str]:
        """The record is encoded now, the text written when it is asked for."""
        pieces = self._engine.stream(record, options, self._seed(seed), memory, is_plain=is_plain)
        return self._pieces(iter(pieces), options)

    def _pieces(self, pieces: Iterator[str], options: GenerateSettings) -> Generator[str]:
        """Between two pieces the program is as it was."""
        while True:
            with self._computing(options):
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def _remembered(self, pieces: Generator[str], memory: RunningBatch) -> Iterator[str]:
        """Keep the memory for the next turn, also where the text is not read to its end; after an error it is not
        whole.
        """
        try:
            yield from pieces
        except GeneratorExit:
            pieces.close()
            self._memories.append(memory)
            raise
        self._memories.append(memory)

    def _seed(self, seed: int | None) -> int:
        if seed is None:
            return self.recipe.run.seed
        if type(seed) is not int or seed < 0:
            raise ConfigError(f"seed: expected a whole number, 0 or above, found {seed!r:.80}")
        return seed

    @contextmanager
    def _computing(self, options: GenerateSettings) -> Iterator[None]:
        recipe = self.recipe.model_copy(update={"generate": options})
        with self._turn, answering_memory(recipe), with_threads(recipe.run.threads):
            yield
