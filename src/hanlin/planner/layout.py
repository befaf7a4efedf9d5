"""How a job is divided over its ranks, and the formulas that need nothing but that."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hanlin.core.errors import ConfigError
from hanlin.parallel.layout_checks import FORMULA
from hanlin.parallel.mesh import Degrees
from hanlin.recipe.settings import Recipe

Shard = Literal["none", "gradients", "parameters"]
Schedule = Literal["gpipe", "1f1b", "interleaved"]
Recomputed = Literal["none", "full", "offload", "selective"]


@dataclass(frozen=True)
class Layout:
    """Degrees as in a recipe: data x tensor x pipe is the number of ranks, expert divides the data ranks.

    micro_batch_size: rows of one forward pass; micro_batches: forward passes of a rank in one step; hybrid_ranks: ranks
    that hold one copy together when it is sharded (None: all that have rows of their own).
    """

    data: int = 1
    tensor: int = 1
    pipe: int = 1
    expert: int = 1
    shard: Shard = "none"
    hybrid_ranks: int | None = None
    schedule: Schedule = "1f1b"
    stages_per_rank: int = 2
    micro_batch_size: int = 1
    micro_batches: int = 1
    sequence_parallel: bool = False
    offload: bool = False
    checkpoint_activations: Recomputed = "none"

    @property
    def world(self) -> int:
        return self.data * self.tensor * self.pipe

    @property
    def computes_all_again(self) -> bool:
        """Whether the backward pass has blocks computed again, of which only the inputs were kept."""
        return self.checkpoint_activations in ("full", "offload")

    @property
    def batch_size(self) -> int:
        return self.micro_batch_size * self.micro_batches * self.data

    def as_settings(self) -> list[str]:
        """What a command line changes of a recipe to have this layout: the section `parallel`, the rows of a pass."""
        usual, given = Layout(), {"data": self.data}
        names = ["tensor", "expert", "shard", "sequence_parallel", "offload", "checkpoint_activations", "pipe"]
        if self.pipe > 1:
            names += ["schedule", *(["stages_per_rank"] if self.schedule == "interleaved" else [])]
        given |= {name: getattr(self, name) for name in names if getattr(self, name) != getattr(usual, name)}
        if self.hybrid_ranks is not None:
            given["shard_ranks"] = self.hybrid_ranks
        section = ", ".join(f"{name}: {str(value).lower()}" for name, value in given.items())
        return [f"parallel={{{section}}}", f"train.micro_batch_size={self.micro_batch_size}"]

    @property
    def stages(self) -> int:
        return self.pipe * (self.stages_per_rank if self.schedule == "interleaved" and self.pipe > 1 else 1)

    @property
    def waits_for_all(self) -> bool:
        """Whether all forward passes of a step come before its first backward pass; 1F1B with few of them is GPipe."""
        is_late = self.schedule == "gpipe" or (self.schedule == "1f1b" and self.micro_batches < self.pipe)
        return self.pipe > 1 and is_late

    @property
    def shard_ranks(self) -> int:
        """Ranks that hold one copy of the weights together."""
        return 1 if self.shard == "none" else self.hybrid_ranks or self.data

    @property
    def is_sharded(self) -> bool:
        """Whether a rank holds shares, and gathers what it needs; one alone does so only in order to offload."""
        return self.shard != "none" and (self.world > 1 or self.offload)

    def bubble(self) -> float:
        """Share of the step in which a rank waits for the pipeline to fill and to drain.

        (p - 1) / (m + p - 1) with p ranks and m micro-batches (Huang et al. 2019, Narayanan et al. 2021); v stages on
        each rank make m v times as long.
        """
        waits, turns = self.pipe - 1, self.micro_batches * self.stages // self.pipe
        return waits / (turns + waits)

    def in_flight(self, rank: int) -> float:
        """Micro-batches whose activations pipeline rank `rank` holds at once, in units of all its stages."""
        if self.pipe == 1:
            return 1.0
        if self.waits_for_all:
            return float(self.micro_batches)
        if self.schedule == "1f1b":
            return float(min(self.micro_batches, self.pipe - rank))
        warm_up = 2 * (self.pipe - rank - 1) + (self.stages_per_rank - 1) * self.pipe + 1
        return min(float(self.micro_batches), warm_up / self.stages_per_rank)


def layout_of(recipe: Recipe, world: int) -> Layout:
    """The layout that a recipe asks for on `world` ranks; `parallel.data: null` takes what the other degrees leave.

    Raises: ConfigError when the degrees do not multiply to it, or leave ranks without rows.
    """
    asked = recipe.parallel
    try:
        degrees = Degrees.of(asked, world)
    except ConfigError as error:
        raise ConfigError(f"{error} (the global batch is {FORMULA})") from None
    micro_batch_size, micro_batches = _rows(recipe, degrees.data)
    return Layout(
        data=degrees.data,
        tensor=asked.tensor,
        pipe=asked.pipe,
        expert=asked.expert,
        shard=asked.shard,
        hybrid_ranks=degrees.shard if asked.shard != "none" and degrees.replicate > 1 else None,
        schedule=asked.schedule,
        stages_per_rank=asked.stages_per_rank,
        micro_batch_size=micro_batch_size,
        micro_batches=micro_batches,
        sequence_parallel=asked.sequence_parallel,
        offload=asked.offload,
        checkpoint_activations=asked.checkpoint_activations,
    )


def _rows(recipe: Recipe, data: int) -> tuple[int, int]:
    """Rows of a forward pass, and passes in a step; what does not divide evenly is rounded up, as a run does."""
    rows, asked = recipe.train.batch_size, recipe.parallel.micro_batches
    if rows < data:
        raise ConfigError(
            f"train.batch_size: {rows} rows are too few for {data} data ranks; the global batch is {FORMULA}"
        )
    own = math.ceil(rows / data)
    passes = asked or math.ceil(own / (recipe.train.micro_batch_size or own))
    return math.ceil(own / passes), passes
