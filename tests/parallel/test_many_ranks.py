"""One rank of 8, of 64 and of 512, in this process: what it holds, and what a step sends, by the real code.

On torch's fake process group, whose collectives return at once: what other ranks would say is not there, so the
numbers mean nothing, but every call is made.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hanlin.core.batch import Batch
from hanlin.models.cpm1.config import Cpm1Config
from hanlin.models.cpm1.model import Cpm1
from hanlin.parallel.parallelize import parallelize
from hanlin.planner.trace import TraceSettings, make_inputs
from hanlin.recipe.settings import ParallelSettings

LAYOUTS = {
    "data": {},
    "sharded": {"shard": "parameters"},
    "hybrid": {"shard": "gradients", "shard_ranks": 4},
    "tensor": {"tensor": 2, "shard": "parameters"},
}
SHAPE = {"vocab_size": 512, "hidden_size": 512, "head_dim": 64, "num_heads": 8, "ffn_size": 512, "max_length": 512}
"""Every weight has rows for 512 ranks."""
TOLD = [("all", "max", [0.0]), ("data", "max", [1.0]), ("data", "sum", [8.0, 8.0])]
"""As by training/step.py: whether it wants to end, and rows and tokens of the next batch."""
HOST_BYTES = 7 * 8
"""That each rank tells the others in a step: this, and loss, gradients that are lacking, norm."""


@dataclass(frozen=True)
class Step:
    """calls: how often a rank calls each collective; sizes: bytes of what is summed, gathered or divided by them;
    host_bytes: what all ranks told of themselves; held: bytes of its weights.
    """

    calls: Counter[str]
    sizes: Counter[str]
    host_bytes: int
    held: int


class Collectives(TorchDispatchMode):
    """Notes the collectives of torch, eager and functional ones, by the largest of what goes in and what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.sizes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.__name__.partition(".")[0]
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in name and "wrap" not in name:
            sides = ([one for one in tree_leaves(side) if isinstance(one, torch.Tensor)] for side in (args, found))
            # An eager one has its result among its arguments.
            size = max((one.nbytes for side in sides for one in side), default=0)
            if name == "allgather_":  # numbers of the host: a tensor from each rank
                name, size = "host", sum(one.nbytes for one in tree_leaves(args[0]))
            self.calls[name] += 1
            self.sizes[name] += size
        return found


def step_of(world: int, layout: dict[str, Any], monkeypatch: pytest.MonkeyPatch, layers: int = 2) -> Step:
    for name, value in {"WORLD_SIZE": world, "RANK": 0, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        model = Cpm1(Cpm1Config(**SHAPE, num_layers=layers, dropout=0, attention_dropout=0))
        inputs = make_inputs(model, 1, TraceSettings(8, 8, torch.float32))
        parallel_model = parallelize(model, torch.device("cpu"), "fp32", ParallelSettings(**layout))
        batch = Batch(inputs, torch.zeros(1, 8, dtype=torch.int64), torch.ones(1, 8))
        with Collectives() as seen:
            parallel_model.forward_backward([batch], [1.0], tell=lambda: TOLD)
        sizes = Counter({name: size for name, size in seen.sizes.items() if name != "host"})
        return Step(seen.calls, sizes, seen.sizes["host"], parallel_model.num_bytes)
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rank_of_many_sends_as_little_and_holds_as_little_as_one_of_few(
    layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many, most = (step_of(world, LAYOUTS[layout], monkeypatch) for world in (8, 64, 512))
    assert few.calls == many.calls == most.calls
    assert few.sizes == many.sizes == most.sizes
    # The only thing that grows with the ranks, and it does not with the layers.
    assert [step.host_bytes // HOST_BYTES for step in (few, many, most)] == [8, 64, 512]
    assert step_of(64, LAYOUTS[layout], monkeypatch, layers=3).host_bytes == many.host_bytes
    if LAYOUTS[layout].get("shard") == "parameters":
        assert few.held > 7 * many.held > 49 * most.held
    else:
        assert few.held == many.held == most.held
