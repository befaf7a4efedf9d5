"""What the stages of a pipeline exchange, told from the shapes of a batch once a few batches were looked at.

Torch's schedules want the shapes of all hidden states before they run. What these are is known for sure only after a
pass, which costs time; but each of their dimensions is the same for all batches or that of some input, and batches of
different shapes soon leave one explanation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

Dimension = tuple[str, int]
"""A dimension of an input, by the input's name."""
States = tuple[tuple[torch.Tensor, ...], ...]
"""Of each stage of a rank what goes in, then what comes out; on the meta device."""
_Observation = tuple[dict[Dimension, int], States]

_KEPT = 32
"""Batches of different shapes; what so many do not explain is looked at in every step. The first ones stay, so that an
explanation that one of them has ruled out does not come back."""


class StateShapes:
    """Observes batches with their states, and tells the states of other batches of the same inputs."""

    def __init__(self) -> None:
        self._seen: dict[frozenset[Dimension], list[_Observation]] = {}

    def learn(self, inputs: Mapping[str, torch.Tensor], states: Sequence[Sequence[torch.Tensor]]) -> States:
        """Remember what a batch led to; return it on the meta device."""
        dimensions = _dimensions(inputs)
        made = tuple(tuple(_like(state, state.shape) for state in group) for group in states)
        seen = self._seen.setdefault(frozenset(dimensions), [])
        if len(seen) < _KEPT and all(known != dimensions for known, _ in seen):
            seen.append((dimensions, made))
        return made

    def tell(self, inputs: Mapping[str, torch.Tensor]) -> States | None:
        """The states of a batch; None: what was seen leaves several explanations, so it has to be looked at."""
        dimensions = _dimensions(inputs)
        seen = self._seen.get(frozenset(dimensions))
        if seen is None:
            return None
        told = []
        for place, group in enumerate(seen[0][1]):
            made = []
            for number, state in enumerate(group):
                shape = _shape((place, number), dimensions, seen)
                if shape is None:
                    return None
                made.append(_like(state, shape))
            told.append(tuple(made))
        return tuple(told)


def _shape(
    place: tuple[int, int], dimensions: Mapping[Dimension, int], seen: Sequence[_Observation]
) -> list[int] | None:
    """Of one state; None: not known."""
    found = [states[place[0]][place[1]].shape for _, states in seen]
    shape = []
    for sizes in zip(*found, strict=True):
        told = {sizes[0]} if len(set(sizes)) == 1 else set[int]()
        told |= {
            size
            for name, size in dimensions.items()
            if all(known[name] == one for (known, _), one in zip(seen, sizes, strict=True))
        }
        if len(told) != 1:
            return None
        shape.append(told.pop())
    return shape


def _dimensions(inputs: Mapping[str, torch.Tensor]) -> dict[Dimension, int]:
    return {(name, axis): size for name, tensor in inputs.items() for axis, size in enumerate(tensor.shape)}


def _like(state: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return torch.empty(tuple(shape), dtype=state.dtype, device="meta").requires_grad_(state.requires_grad)
