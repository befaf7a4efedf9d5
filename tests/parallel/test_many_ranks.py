"""One rank of 8, of 64 and of 512, in this process: what it holds, and what a step sends, by the real code.

On torch's fake process group, whose collectives return at once: what other ranks would say is not there, so the
numbers mean nothing, but every call is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hanlin.core.batch import Batch
from hanlin.models.cpm1.config import Cpm1Config
from hanlin.models.cpm1.model import Cpm1
from hanlin.models.cpm2.config import Cpm2Config
from hanlin.models.cpm2.model import Cpm2
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
TOKENS = 8
TOLD = [("all", "max", [0.0]), ("data", "max", [1.0]), ("data", "sum", [8.0, 8.0, 0.0])]
"""As by training/step.py: whether it wants to end, and rows, tokens and FLOP of the next batch."""
HOST_BYTES = 8 * 8
"""That each rank tells the others in a step: this, and loss, gradients that are lacking, norm."""


@dataclass(frozen=True)
class Step:
    """calls: how often a rank calls each collective; sizes: bytes of what is summed, gathered or divided by them;
    host_bytes: what all ranks told of themselves; held: bytes of its weights; evaluation, evaluation_sizes: of an
    evaluation.
    """

    calls: Counter[str]
    sizes: Counter[str]
    host_bytes: int
    held: int
    evaluation: Counter[str]
    evaluation_sizes: Counter[str]


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


@contextmanager
def rank_of(world: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {"WORLD_SIZE": world, "RANK": 0, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def gpt2(layers: int) -> nn.Module:
    return Cpm1(Cpm1Config(**SHAPE, num_layers=layers, dropout=0, attention_dropout=0))


def step_of(
    world: int,
    layout: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    layers: int = 2,
    make: Callable[[int], nn.Module] = gpt2,
) -> Step:
    with rank_of(world, monkeypatch):
        inputs = make_inputs(make(layers), 1, TraceSettings(TOKENS, TOKENS, torch.float32))
        parallel_model = parallelize(
            make(layers), torch.device("cpu"), "fp32", ParallelSettings(**layout), copy=lambda: make(layers)
        )
        batch = Batch(inputs, torch.zeros(1, TOKENS, dtype=torch.int64), torch.ones(1, TOKENS))
        with Collectives() as seen:
            parallel_model.forward_backward([batch], [1.0], tell=lambda: TOLD)
        with Collectives() as asked:
            parallel_model.losses(batch)
        sizes = Counter({name: size for name, size in seen.sizes.items() if name != "host"})
        return Step(seen.calls, sizes, seen.sizes["host"], parallel_model.num_bytes, asked.calls, asked.sizes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rank_of_many_sends_as_little_and_holds_as_little_as_one_of_few(
    layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many, most = (step_of(world, LAYOUTS[layout], monkeypatch) for world in (8, 64, 512))
    assert few.calls == many.calls == most.calls
    assert few.sizes == many.sizes == most.sizes
    assert few.evaluation == many.evaluation == most.evaluation
    assert few.evaluation_sizes == many.evaluation_sizes == most.evaluation_sizes
    # The only thing that grows with the ranks, and it does not with the layers.
    assert [step.host_bytes // HOST_BYTES for step in (few, many, most)] == [8, 64, 512]
    assert step_of(64, LAYOUTS[layout], monkeypatch, layers=3).host_bytes == many.host_bytes
    if LAYOUTS[layout].get("shard") == "parameters":
        assert few.held > 7 * many.held > 49 * most.held
    else:
        assert few.held == many.held == most.held


EXPERTS = 8
MIXTURES = {
    "data": {},
    "expert": {"expert": EXPERTS},
    "expert, tensor": {"expert": EXPERTS, "tensor": 2},
}


def mixture(layers: int) -> nn.Module:
    shape = {name: size for name, size in SHAPE.items() if name != "max_length"}
    model = Cpm2(Cpm2Config(**shape, num_distance_buckets=512, num_experts=EXPERTS, num_layers=layers))
    model.init_weights(torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("layout", MIXTURES)
def test_of_a_mixture_only_the_assignment_of_tokens_grows_with_the_ranks(
    layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token's expert is chosen among those of all data ranks, as the original does: its scores go to all of them,
    the choice comes back in a sum. An evaluation assigns each token alone.
    """
    given = MIXTURES[layout]
    many, most = (step_of(world, given, monkeypatch, 1, mixture) for world in (64, 512))
    assert many.calls == most.calls
    assert many.evaluation == most.evaluation
    assert many.evaluation_sizes == most.evaluation_sizes
    ranks, blocks = (512 - 64) // given.get("tensor", 1), 2  # of the encoder and of the decoder
    told = ranks * blocks * (8 + TOKENS * EXPERTS * 4) + HOST_BYTES * (512 - 64)
    assert most.host_bytes - many.host_bytes == told
    assert most.sizes - many.sizes == Counter({"allreduce_": ranks * blocks * TOKENS * 8})
    assert many.sizes - most.sizes == Counter()
