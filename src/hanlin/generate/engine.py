"""Records in, records with their answers out, a batch of them after the other, each in a `RunningBatch`.

An answer depends neither on the batch size nor on the other records (up to floating-point rounding): each record draws
from its own stream of random numbers. Records are never changed.

On several ranks all read all records and make the same batches; a data rank computes some of the batches and hears
the results of the others. So the numbers are those of one process to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from hanlin.core.batch import Prompt
from hanlin.core.errors import DataError, HanlinError
from hanlin.core.plan import Plan
from hanlin.core.progress import counted
from hanlin.layers.attention_kernels import AttentionKernel, attention_kernels
from hanlin.layers.linear import store_as_half, store_by_columns, store_in_blocks
from hanlin.layers.lora import AdapterRows
from hanlin.layers.precision import DTYPES, Precision
from hanlin.models.family import BeamVariant, Family, Processor
from hanlin.parallel.inference_model import ShardedInferenceModel
from hanlin.parallel.mesh import Degrees, Mesh
from hanlin.recipe.settings import GenerateSettings
from hanlin.tokens.stream import stream_pieces

from .answer_text import follow_text
from .beam import Search
from .method import find_method
from .prompts import make_prompt
from .running_batch import AnswerRequest, BatchLimits, RunningBatch

Item = TypeVar("Item")
Result = TypeVar("Result")

# Batches that are encoded ahead and sorted by length together.
_BATCHES_AHEAD = 64
# Batches of a data rank before it tells the others: some take longer than others, but what was told is not lost.
_BATCHES_ALONE = 4


class Engine:
    """Writes answers with a model that lies on `device`; on a CPU frozen ones get another order in memory.

    max_length: the most tokens of prompt and answer together that the model can read; None: no limit.
    family: the model's, for the rules of its beam search and whether it is causal; None: the usual rules, and it may
    not be.
    mesh: the ranks that answer together; all call the same methods in the same order, and get the same.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Processor,
        device: str | torch.device = "cpu",
        precision: Precision = "fp32",
        *,
        max_length: int | None = None,
        family: Family | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.device = torch.device(device)
        self.precision: Precision = precision
        self.attention: AttentionKernel = "auto"
        self.max_length = max_length
        self.beam_variant = BeamVariant() if family is None else family.beam_variant
        self.is_causal = family is not None and family.is_causal
        self.adapters: AdapterRows | None = None  # of a model whose rows may have different ones
        self.mesh = mesh or Mesh(Degrees(), self.device)
        self._is_frozen = not any(weight.requires_grad for weight in model.parameters())
        if self.device.type == "cpu" and self._is_frozen:
            store_by_columns(model)

    def prepack_weights(self, *, is_alone: bool = False) -> None:
        """Let a CPU answer faster; the model is for answers alone then.

        is_alone: one answer at a time, to which what lets several at once be answered faster does harm.
        """
        is_plain = self.precision == "fp32" and not isinstance(self.model, ShardedInferenceModel)
        if not (self.device.type == "cpu" and self._is_frozen and is_plain):
            return
        plan: Plan | None = getattr(self.model, "plan", None)
        store_as_half(self.model, () if plan is None else set(plan.first) & set(plan.last))
        if not is_alone:
            store_in_blocks(self.model)

    def generate(self, records: Sequence[Any], options: GenerateSettings, seed: int = 0) -> list[Any]:
        """Copies of the records with their answers, in their order; a bar shows the progress on a terminal.

        Raises: DataError for a record that cannot be a prompt; HanlinError when the model yields no numbers.
        """
        answered = dict(show_progress(self.answers(enumerate(records), options, seed), "generate", len(records)))
        return [answered[number] for number in range(len(records))]

    def answers(
        self,
        numbered: Iterable[tuple[int, Any]],
        options: GenerateSettings,
        seed: int = 0,
        *,
        batches_ahead: int = _BATCHES_AHEAD,
    ) -> Iterator[tuple[int, Any]]:
        """Yield (number, copy of the record with its answer) as soon as it is known, longest prompts first.

        The number names the record in messages and, with `seed`, fixes its random numbers. batches_ahead: so many are
        encoded and sorted by length together; with fewer the answers come more in order, and somewhat slower.
        """
        numbered = iter(numbered)
        while ahead := list(islice(numbered, batches_ahead * options.batch_size)):
            prompts = [(number, self.prompt(record, options, number)) for number, record in ahead]
            prompts.sort(key=lambda pair: -pair[1].size)
            batches = batches_of(prompts, options.batch_size)
            for answered in self.shared(batches, lambda batch: self._answer_batch(batch, options, seed)):
                yield from answered

    def stream(
        self,
        record: Any,
        options: GenerateSettings,
        seed: int = 0,
        memory: RunningBatch | None = None,
        *,
        is_plain: bool = False,
    ) -> Iterator[str]:
        """The answer's text in pieces while it is written; a newline stands between several answers.

        is_plain: as people read it, not as the family's records have it.
        memory: an empty batch that remembers what the record begins with (`BatchLimits.kept`).
        Raises: HanlinError for a method whose text is not known before its end (beam search).
        """
        if not find_method(options).can_stream:
            raise HanlinError(
                f"generate.method: the text of a {options.method} search is not known before its end; "
                "choose generate.method=greedy or sample to see it while it is written"
            )
        prompt = self.prompt(record, options)
        steps = self.search([prompt], options, [record_stream(seed, 0)], memory)
        tokens = ((search.found or search.beams)[0].tokens for [search] in steps)
        return stream_pieces(map(follow_text(self.processor, prompt, is_plain=is_plain), tokens))

    def prompt(self, record: Any, options: GenerateSettings, number: int = 0) -> Prompt:
        """Encode a record and see that it leaves room for the answer.

        Raises: DataError.
        """
        with naming(number):
            return make_prompt(self.processor, record, options, self.max_length)

    def search(
        self,
        prompts: Sequence[Prompt],
        options: GenerateSettings,
        streams: Sequence[np.random.Generator] = (),
        running: RunningBatch | None = None,
    ) -> Iterator[list[Search]]:
        """After each step, how far the search for each prompt's answer is; all are done at the end.

        streams: one per prompt, read by sampling only; running: an empty batch; None: a new one.
        """
        asked = [
            AnswerRequest(prompt, options, stream)
            for prompt, stream in zip(prompts, streams or [None] * len(prompts), strict=True)
        ]
        running = running or self.run_together()
        with self.inference():
            searches = running.add(range(len(asked)), asked)
        assert searches is not None, "a batch of its own has no bounds"
        try:
            while not running.is_empty:
                with self.inference():
                    step = running.step()
                for failure in (search.failure for search in step.values() if search.failure is not None):
                    raise failure
                searches |= step
                yield list(searches.values())
        finally:  # also where the answer is not read to its end
            for number in range(len(asked)):
                running.drop(number)

    def run_together(self, limits: BatchLimits | None = None) -> RunningBatch:
        """An empty batch of questions that may join and leave it after any step; call it within `inference`."""
        how = {"is_causal": self.is_causal, "limits": limits, "adapters": self.adapters}
        return RunningBatch(self.model, self.processor, self.device, self.beam_variant, **how)

    def shared(self, batches: Iterable[Item], compute: Callable[[Item], Result]) -> Iterator[Result]:
        """What is computed of each batch, in their order, on all ranks; the data ranks share the work."""
        ranks, own = self.mesh.size("data"), self.mesh.rank("data")
        if ranks == 1:
            yield from map(compute, batches)
            return
        batches = iter(batches)
        while some := list(islice(batches, ranks * _BATCHES_ALONE)):
            told = self.mesh.gather("data", [compute(batch) for batch in some[own::ranks]])
            yield from (told[number % ranks][number // ranks] for number in range(len(some)))

    def weights(self) -> Iterable[tuple[str, torch.Tensor]]:
        """The whole weights by name, on the main rank; every rank must go through them."""
        return self.model.weights() if isinstance(self.model, ShardedInferenceModel) else self.model.named_parameters()

    def _answer_batch(
        self, numbered: Sequence[tuple[int, Prompt]], options: GenerateSettings, seed: int
    ) -> list[tuple[int, Any]]:
        streams = [record_stream(seed, number) for number, _ in numbered]
        *_, searches = self.search([prompt for _, prompt in numbered], options, streams)
        pairs = zip(numbered, searches, strict=True)
        return [(number, self.processor.answer(prompt, search.best.tokens)) for (number, prompt), search in pairs]

    @contextmanager
    def inference(self) -> Iterator[None]:
        was_training = self.model.training
        if was_training:
            self.model.eval()
        try:
            # What inference mode leaves in a model (gathered weights) cannot be trained on afterwards.
            with torch.inference_mode() if self._is_frozen else torch.no_grad(), self._arithmetic():
                yield
        finally:
            if was_training:
                self.model.train()

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        is_mixed = self.precision != "fp32"
        casting = torch.autocast(self.device.type, DTYPES[self.precision]) if is_mixed else nullcontext()
        with casting, attention_kernels(self.device, self.attention):
            yield


def batches_of(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Runs of `size` items, the last one of what is left."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def show_progress(items: Iterable[Item], title: str, total: int) -> Iterable[Item]:
    """The items, with what shows how many of them are done."""
    return counted(items, title, total)


@contextmanager
def naming(number: int) -> Iterator[None]:
    """Let a DataError say which record it is about."""
    try:
        yield
    except DataError as error:
        raise type(error)(f"record {number + 1}: {error}") from None


def record_stream(seed: int, number: int) -> np.random.Generator:
    """The random numbers of one record: the same for any batch size and on any device."""
    return np.random.default_rng([seed, number])
