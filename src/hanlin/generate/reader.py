"""A model with what it has read: of several prompts and their answers, one row of a batch for each open beam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from hanlin.core.batch import PromptBatch
from hanlin.layers.kv_cache import KVCache, pad_right

from .beam import Beam
from .dialogue_cache import DialogueCache, positions_of


class BeamRow(NamedTuple):
    """A row of a step's batch: the number of its prompt, and the beam that it feeds."""

    record: int
    beam: Beam


class Reader:
    """Reads prompts at once, and then a position of each open beam at each step; readers may be joined."""

    def __init__(
        self,
        model: nn.Module,
        batch: PromptBatch,
        numbers: Sequence[int],
        device: torch.device,
        memory: DialogueCache | None = None,
    ) -> None:
        """numbers: of the prompts, other ones than those of a reader that is to be joined; memory: of the dialogue of
        a single prompt.
        """
        assert memory is None or len(numbers) == 1, "a memory is that of one row"
        self._model = model
        self._memory = memory
        self._device = device
        self._rows = [
            BeamRow(number, Beam.first(cursor)) for number, cursor in zip(numbers, batch.cursors, strict=True)
        ]
        prompt = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.inputs.items()}
        self._dtypes = {name: tensor.dtype for name, tensor in prompt.items()}
        # What belongs to the whole record (a relation table) goes along with every step; the rest is in the KV cache.
        inputs = batch.cursors[0].inputs()
        self._constant = {name: tensor for name, tensor in prompt.items() if name not in inputs}
        self._kv_cache = self._read_prompt(prompt)
        # Positions in the cache that each prompt needs, its padding on the left not counted.
        self._widths = dict.fromkeys(numbers, self._kv_cache.length)

    @property
    def numbers(self) -> list[int]:
        """Of the prompts whose answers are open."""
        return list(dict.fromkeys(row.record for row in self._rows))

    @property
    def size(self) -> tuple[int, int]:
        """Rows and positions in the KV cache."""
        return len(self._rows), self._kv_cache.length

    def read(self, rows: list[BeamRow]) -> torch.Tensor:
        """Feed the next position of every row; logits `[batch, vocab]`, at least fp32.

        rows: in the order of the rows of the step before, those of a prompt together; which beam each goes on from is
        said by its `parent`. Prompts that have none are forgotten.
        """
        self._reorder(rows)
        inputs = self._inputs_of(rows)
        logits = self._model(**inputs, **self._constant, kv_cache=self._kv_cache, logits_to_keep=1)[:, -1]
        if self._memory is not None:
            self._memory.positions += positions_of(inputs)
        self._widths = {number: self._widths[number] + 1 for number in self.numbers}
        return logits if logits.dtype == torch.float64 else logits.float()

    def join(self, other: Reader) -> None:
        """Take in the rows of another reader of the same model, behind the own ones; the other one is used up.

        Where memory runs out, this one is as before.
        """
        assert self._memory is None, "a memory is that of one row"
        self._kv_cache.forget_first(self._kv_cache.length - max(self._widths.values()))
        constant = {name: _stack(tensor, other._constant[name], name) for name, tensor in self._constant.items()}
        self._kv_cache.join(other._kv_cache)
        self._constant = constant
        self._rows = [*self._rows, *other._rows]
        self._widths |= other._widths

    def _read_prompt(self, prompt: Mapping[str, torch.Tensor]) -> KVCache:
        """Feed the prompt, or what the memory does not know of it."""
        if self._memory is None:
            kv_cache = KVCache()
            self._model(**prompt, kv_cache=kv_cache, logits_to_keep=1)
            return kv_cache
        wanted = positions_of(prompt)
        known = self._memory.crop_to(wanted)
        if known < len(wanted):
            rest = {name: tensor[:, known:] for name, tensor in prompt.items()}
            self._model(**rest, kv_cache=self._memory.kv_cache, logits_to_keep=1)
            self._memory.positions += wanted[known:]
        return self._memory.kv_cache

    def _reorder(self, rows: list[BeamRow]) -> None:
        """Give each row the KV cache of the row that it goes on from."""
        first: dict[int, int] = {}
        for number, row in enumerate(self._rows):
            first.setdefault(row.record, number)
        parents = [first[row.record] + row.beam.parent for row in rows]
        if parents != list(range(len(self._rows))):
            chosen = torch.tensor(parents, device=self._device)
            self._kv_cache.reorder(chosen)
            self._constant = {name: tensor[chosen] for name, tensor in self._constant.items()}
        self._rows = rows

    def _inputs_of(self, rows: list[BeamRow]) -> dict[str, torch.Tensor]:
        inputs = [row.beam.cursor.inputs() for row in rows]
        return {
            name: torch.tensor([[one[name]] for one in inputs], dtype=self._dtypes.get(name, torch.int64)).to(
                self._device
            )
            for name in inputs[0]
        }


def _stack(above: torch.Tensor, below: torch.Tensor, name: str) -> torch.Tensor:
    """`[rows, length]` both, the shorter one padded on the right."""
    length = max(above.shape[1], below.shape[1])
    return torch.cat([pad_right(part, length, dim=1, name=name) for part in (above, below)])
