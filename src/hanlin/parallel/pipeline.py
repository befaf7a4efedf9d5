"""Pipeline parallelism: a model cut into runs of blocks (stages.py), driven by torch's own schedules.

A stage is the model itself without the parts that other stages have. All stages are given the whole batch, so only
hidden states travel; of several tensor ranks each sends its share of them. The last stage's forward gives the loss.

Torch's schedules would cut a batch up into new tensors, of which nothing is known on the host (`core.transfer`): stages
would wait for the device in every part. So they run without inputs, and each stage takes those of its parts in turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

from hanlin.parallel.mesh import Mesh
from hanlin.parallel.shard import release_gathered
from hanlin.parallel.state_shapes import States, StateShapes

if TYPE_CHECKING:
    from hanlin.core.batch import Batch
    from hanlin.parallel.parallel_model import Around

_HEADER = 8
"""Numbers that announce a tensor: its dimensions, the place of its dtype, whether it bears a gradient."""
KEPT_SCHEDULES = 8
"""Batches of a data set of many lengths have no two shapes alike."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Stage(nn.Module):
    """A part of a model as torch's pipeline runs it: hidden states in, hidden states (the last one: the result) out."""

    def __init__(self, model: nn.Module, number: int, count: int, mesh: Mesh) -> None:
        super().__init__()
        self.model, self.number, self.mesh = model, number, mesh
        self.is_last = number == count - 1
        ranks, size = mesh.size("tensor"), getattr(getattr(model, "config", None), "hidden_size", 1)
        self._is_shared = ranks > 1 and size % ranks == 0
        self.told: list[torch.Size] | None = None
        """The shapes that the next stage has made room for."""
        self.waiting: Iterator[Mapping[str, torch.Tensor]] = iter(())
        """The inputs of the parts that a schedule has yet to run here; all schedules run them in their order."""

    def forward(self, *state: torch.Tensor, **inputs: Any) -> Any:
        """inputs: none in a schedule."""
        inputs = inputs or dict(next(self.waiting))
        out = self.model(*(self._move(one, to_whole=True) for one in state), **inputs)
        if self.is_last:
            return out
        made = tuple(self._move(one, to_whole=False) for one in (out if isinstance(out, tuple) else (out,)))
        shapes = [one.shape for one in made]
        assert self.told is None or shapes == self.told, f"stage {self.number} makes {shapes}, told were {self.told}"
        return made

    def _move(self, hidden: torch.Tensor, *, to_whole: bool) -> torch.Tensor:
        """A state between the tensor ranks' shares of its last dimension and the whole."""
        if not self._is_shared:
            return hidden.contiguous()
        from torch.distributed.tensor import DTensor, Replicate, Shard

        here, there = Replicate(), Shard(hidden.ndim - 1)
        if to_whole:
            here, there = there, here
        moved = DTensor.from_local(hidden, self.mesh.part("tensor"), [here], run_check=False)
        return moved.redistribute(placements=[there]).to_local(grad_placements=[there]).contiguous()


class Pipeline:
    """This rank's stages, and the schedules that run them.

    torch fixes the shapes of what a schedule sends, and each holds memory for it: those used last are kept.
    """

    def __init__(self, stages: Sequence[Stage], count: int, mesh: Mesh, schedule: str) -> None:
        self.stages, self.count, self.mesh, self.schedule = list(stages), count, mesh, schedule
        self._shapes = StateShapes()
        self._made: dict[Any, Any] = {}  # by the number of parts and the shapes of states, the one used last at the end

    def forward_backward(
        self, parts: Sequence[Batch], factors: Sequence[float], around: Sequence[Around] = ()
    ) -> torch.Tensor:
        """Add the gradients of the sum of factor x loss over parts of one shape; return the losses `[parts]`."""
        assert not around, "torch's schedules run the parts"
        inputs = [{**part.inputs, "labels": part.labels, "weights": part.weights} for part in parts]
        schedule = self._schedule(inputs[0], len(parts))
        for stage in self.stages:
            stage.waiting = iter(inputs)
        scales = torch.tensor(factors, dtype=parts[0].weights.dtype, device=self.mesh.device)
        losses: list[torch.Tensor] = []
        is_end = any(stage.is_last for stage in self.stages)
        schedule.step(target=scales if is_end else None, losses=losses if is_end else None, return_outputs=False)
        scaled = torch.stack([loss.detach() for loss in losses]) if is_end else None
        return self._from_end(scaled) / scales

    def __call__(self, **inputs: Any) -> torch.Tensor:
        """The result of the last stage for one batch, on all ranks; no gradient.

        kv_cache: this rank's own, for the blocks that it holds.
        """
        with torch.no_grad():
            return self._from_end(self._pass_on(inputs, {}))

    def _schedule(self, inputs: Mapping[str, torch.Tensor], parts: int) -> Any:
        """inputs: of one of the parts."""
        states = self._states(inputs)
        for stage, out in zip(self.stages, states[1::2], strict=True):
            stage.told = None if stage.is_last else [state.shape for state in out]
            # A new schedule of torch's does so, and other data ranks may have none now: then all must.
            release_gathered(stage)
        key = (parts, *(tuple(state.shape) for state in chain(*states)))
        self._made[key] = self._made.pop(key, None) or self._new_schedule(states, parts)
        if len(self._made) > KEPT_SCHEDULES:
            del self._made[next(iter(self._made))]
        return self._made[key]

    def _states(self, inputs: Mapping[str, torch.Tensor]) -> States:
        """What goes into and comes out of this rank's stages for a part of a batch.

        If any rank does not know, all send a part through and look: on the way stages gather weights, or assign tokens
        to experts, together with those of other data ranks, whose batches have other shapes.
        """
        told = self._shapes.tell(inputs)
        if not self.mesh.maximum("all", float(told is None)):
            assert told is not None
            return told
        seen: dict[int, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        with _same_random_numbers(self.mesh.device):
            self._pass_on(inputs, seen)
        return self._shapes.learn(inputs, [group for stage in self.stages for group in seen[stage.number]])

    def _new_schedule(self, states: States, parts: int) -> Any:
        made: list[Any] = [
            PipelineStage(
                stage,
                stage.number,
                self.count,
                self.mesh.device,
                input_args=given,
                output_args=out,
                group=self.mesh.group("pipe"),
            )
            for stage, given, out in zip(self.stages, states[::2], states[1::2], strict=True)
        ]
        options = {"loss_fn": _scaled, "scale_grads": False}
        if self.schedule == "interleaved":
            return ScheduleInterleaved1F1B(made, parts, **options)
        kind = ScheduleGPipe if self.schedule == "gpipe" or parts < self.count else Schedule1F1B
        return kind(made[0], parts, **options)

    def _pass_on(
        self, inputs: Mapping[str, Any], seen: dict[int, tuple[list[torch.Tensor], list[torch.Tensor]]]
    ) -> torch.Tensor | None:
        """Run the stages one after the other; the last one's result, where this rank has it."""
        ranks, own = self.mesh.size("pipe"), self.mesh.rank("pipe")
        for stage in self.stages:
            stage.told = None  # each state is announced
        kept: list[torch.Tensor] = []
        for number in range(self.count):
            if number % ranks != own:
                continue
            stage = next(stage for stage in self.stages if stage.number == number)
            came = number > 0 and (number - 1) % ranks != own
            state = self._receive((number - 1) % ranks) if came else kept
            out = stage(*state, **self._own_cache(inputs, number))
            kept = list(out) if isinstance(out, tuple) else [out]
            seen[number] = (state, kept)
            if not stage.is_last and (number + 1) % ranks != own:
                self._send(kept, (number + 1) % ranks)
        return kept[0] if self.stages[-1].is_last else None

    def _own_cache(self, inputs: Mapping[str, Any], number: int) -> Mapping[str, Any]:
        kv_cache = inputs.get("kv_cache")
        if kv_cache is None or len(self.stages) == 1:
            return inputs
        return {**inputs, "kv_cache": kv_cache.of_stage(number)}

    def _send(self, tensors: Sequence[torch.Tensor], to: int) -> None:
        group = self.mesh.group("pipe")
        self._announce(tensors, to)
        for tensor in tensors:
            distributed.send(tensor.detach().contiguous(), group=group, group_dst=to)

    def _announce(self, tensors: Sequence[torch.Tensor], to: int) -> None:
        headers = torch.zeros(1 + len(tensors), _HEADER, dtype=torch.int64, device=self.mesh.device)
        headers[0, 0] = len(tensors)
        for header, tensor in zip(headers[1:], tensors, strict=True):
            header[:3] = torch.tensor([_DTYPES.index(tensor.dtype), tensor.requires_grad, tensor.ndim])
            header[3 : 3 + tensor.ndim] = torch.tensor(tensor.shape)
        for header in headers:
            distributed.send(header, group=self.mesh.group("pipe"), group_dst=to)

    def _receive(self, origin: int) -> list[torch.Tensor]:
        group = self.mesh.group("pipe")

        def header() -> list[int]:
            numbers = torch.empty(_HEADER, dtype=torch.int64, device=self.mesh.device)
            distributed.recv(numbers, group=group, group_src=origin)
            return numbers.tolist()

        tensors = []
        for dtype, needs_grad, ndim, *shape in [header() for _ in range(header()[0])]:
            tensor = torch.empty(shape[:ndim], dtype=_DTYPES[dtype], device=self.mesh.device)
            distributed.recv(tensor, group=group, group_src=origin)
            tensors.append(tensor.requires_grad_(bool(needs_grad)))
        return tensors

    def _from_end(self, result: torch.Tensor | None) -> torch.Tensor:
        """The last stage's tensor, on all ranks of the pipe."""
        group, end = self.mesh.group("pipe"), (self.count - 1) % self.mesh.size("pipe")
        header = torch.zeros(_HEADER, dtype=torch.int64, device=self.mesh.device)
        if result is not None:
            header[0], header[1] = _DTYPES.index(result.dtype), result.ndim
            header[2 : 2 + result.ndim] = torch.tensor(result.shape)
        distributed.broadcast(header, group=group, group_src=end)
        dtype, ndim, *shape = header.tolist()
        if result is None:
            result = torch.empty(shape[:ndim], dtype=_DTYPES[dtype], device=self.mesh.device)
        result = result.detach().contiguous()
        distributed.broadcast(result, group=group, group_src=end)
        return result


def _scaled(loss: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return loss * factors[0]


@contextmanager
def _same_random_numbers(device: torch.device) -> Iterator[None]:
    """Leave the random numbers as if nothing had been drawn."""
    if device.type == "cpu":
        fork = torch.random.fork_rng([])
    else:
        fork = torch.random.fork_rng([device], device_type=device.type)
    with fork:
        yield
