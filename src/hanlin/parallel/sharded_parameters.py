"""The weights of a model as its ranks share them: filled from whole tensors, and gathered to whole ones again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import distributed, nn

from hanlin.layers.quantised import packed_sizes
from hanlin.parallel.mesh import Mesh, gathered, local, own_part

_HOST = torch.device("cpu")


class ShardedParameters:
    """This rank's parts of the weights. All ranks call the same methods in the same order."""

    def __init__(self, models: Sequence[nn.Module], mesh: Mesh) -> None:
        self._mesh = mesh
        # Looked up once: while a sharded model runs, it has gathered weights under these names. Where the first and the
        # last stage of a rank both have a weight, it has two places.
        self._places: dict[str, list[nn.Parameter]] = {}
        for model in models:
            for name, weight in model.named_parameters():
                self._places.setdefault(name, []).append(weight)
        self._packed = {name: count for model in models for name, count in packed_sizes(model).items()}

    @property
    def names(self) -> list[str]:
        """Of all weights that this rank holds a part of."""
        return list(self._places)

    @property
    def num_bytes(self) -> int:
        """Of this rank's parts."""
        return sum(local(weight).nbytes for weight, *_ in self._places.values())

    def count(self) -> tuple[int, int]:
        """Parameters of the whole model: trained ones, and all; packed ones as what they stand for."""
        mine = {
            name: (self._packed.get(name, weight.numel()), weight.requires_grad)
            for name, (weight, *_) in self._places.items()
        }
        every = {name: facts for held in self._of_all_parts(mine).values() for name, facts in held.items()}
        return sum(count for count, is_trained in every.values() if is_trained), sum(n for n, _ in every.values())

    @torch.no_grad()
    def fill(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Give the weights of these names their values; each rank keeps its part of what it holds."""
        for name, whole in weights:
            for place in self._places.get(name, ()):
                local(place).copy_(own_part(place, whole))

    @torch.no_grad()
    def gather(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """The whole weights (None: all), in memory of the main rank's CPU and empty on the others; every rank must
        go through them."""
        owners: dict[str, int] = {}
        for rank, held in self._of_all_parts(self.names).items():
            for name in held:
                owners.setdefault(name, rank)
        for name in owners if names is None else names:
            whole = gathered(self._places[name][0]) if name in self._places else None
            yield name, self._to_main(whole, owners[name])

    def _of_all_parts(self, value: Any) -> dict[int, Any]:
        """The values of the ranks that together hold the whole model, by their numbers."""
        found = enumerate(self._mesh.gather("pipe", self._mesh.gather("expert", value)))
        first_rank = self._mesh.degrees.first_rank
        return {first_rank(pipe, expert): part for pipe, parts in found for expert, part in enumerate(parts)}

    def _to_main(self, whole: torch.Tensor | None, owner: int) -> torch.Tensor:
        """Bring a tensor of the rank `owner` to the main one, through plain memory on both sides: what is offloaded
        lies there already, and to send from there to another's device would wait for ever.
        """
        empty, rank = torch.empty(0), self._mesh.rank("all")
        if owner == 0 or rank not in (0, owner):
            return empty if whole is None or rank > 0 else whole.cpu()
        if rank == owner:
            assert whole is not None
            distributed.send_object_list([(whole.shape, whole.dtype)], dst=0, device=_HOST)
            distributed.send(whole.cpu().contiguous(), dst=0)
            return empty
        told: list[Any] = [None]
        distributed.recv_object_list(told, src=owner, device=_HOST)
        received = torch.empty(told[0][0], dtype=told[0][1])
        distributed.recv(received, src=owner)
        return received
