"""Step time and memory per process on 1, 2 and 4 processes, under each kind of layout (gloo, CPU).

python benchmarks/scaling.py [--out result.json]

GPT-2 of 4 layers x 256 hidden, vocabulary 8,192, fp32, one thread a process; every layout trains on the same global
batches of 8 rows x 256 (strong scaling) and must reach the same loss. The layouts take turns.
state_mib: what lies in tensors of weights, gradients and optimizer, on the rank that holds most; peak_mib: growth of
that process' resident memory since before the model was made, activations and buffers included. share: of what one
process holds; sharding divides all, tensor all but norms and positions, pipe all but the embedding, which is on both
ends. seconds: of a step, by the clock, which needs a core per process; cpu_seconds: of the rank that computes most,
waiting not counted, which is what a step would take at least with a core for each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from script import read_arguments, report
from torch import distributed

from hanlin.core.batch import Batch
from hanlin.core.device import peak_memory_bytes
from hanlin.core.ranks import LISTENING, join, leave, meeting_socket
from hanlin.models.cpm1.config import shape
from hanlin.models.cpm1.model import Cpm1
from hanlin.parallel.launch import rank_environment
from hanlin.parallel.mesh import local
from hanlin.parallel.parallel_model import ParallelModel
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import ParallelSettings, TrainSettings
from hanlin.training.optimizer import Optimizer, build_optimizer
from hanlin.training.step import Step

CONFIG = shape(256, 4, 4, vocab_size=8192, dropout=0.0, attention_dropout=0.0)
ROWS, STEPS = 8, 3
KINDS: dict[str, Any] = {
    "data": lambda world: {"data": world},
    "shard gradients": lambda world: {"data": world, "shard": "gradients"},
    "shard parameters": lambda world: {"data": world, "shard": "parameters"},
    "tensor": lambda world: {"tensor": world},
    "pipe": lambda world: {"pipe": world, "micro_batches": 4},
}
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worlds", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--length", type=int, default=256, help="of a row")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rank-of", help="the layout of which this process is a rank; used by the benchmark itself")
    args = read_arguments(parser, "--rounds 1 --worlds 2 --length 8 --kinds pipe")
    if args.rank_of:
        run_rank(ParallelSettings(**json.loads(args.rank_of)), args.length)
        return
    layouts = {"alone": (1, {})} | {
        f"{kind} x{world}": (world, KINDS[kind](world)) for kind in args.kinds for world in args.worlds
    }
    rounds: dict[str, list[list[dict[str, float]]]] = {name: [] for name in layouts}
    for _ in range(args.rounds):
        for name, (world, layout) in layouts.items():
            rounds[name].append(run_ranks(world, layout, args.length))
    alone = summary(rounds["alone"])
    figures = {name: compared(summary(ranks), alone) for name, ranks in rounds.items()}
    report({"layouts": figures}, args.out)


def run_ranks(world: int, layout: Mapping[str, Any], length: int) -> list[dict[str, float]]:
    """The facts of all ranks."""
    command = [sys.executable, __file__, "--length", str(length), "--rank-of", json.dumps(layout)]
    with meeting_socket() as listening:
        port, handle = listening.getsockname()[1], listening.fileno()
        environments = [rank_environment(rank, world, port, 0) | {"OMP_NUM_THREADS": "1"} for rank in range(world)]
        environments[0][LISTENING] = str(handle)
        ranks = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, pass_fds=() if rank else (handle,))
            for rank, environment in enumerate(environments)
        ]
    outputs = [rank.communicate()[0] for rank in ranks]
    assert not any(rank.returncode for rank in ranks), [rank.returncode for rank in ranks]
    return [json.loads(output) for output in outputs]


def run_rank(settings: ParallelSettings, length: int) -> None:
    """Print the facts of this rank."""
    device = torch.device("cpu")
    torch.set_num_threads(1)
    join(device)
    before = peak_memory_bytes(device)
    model = Cpm1(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    parallel_model = parallelize(model, device, "fp32", settings)
    train = TrainSettings(steps=100, batch_size=ROWS, lr=1e-3, schedule="constant")
    optimizer = build_optimizer(parallel_model.parameters, train.optimizer)
    step = Step(parallel_model, optimizer, train, 100)
    state = state_bytes(parallel_model, optimizer, own_rows(parallel_model, length, seed=0))
    losses = [step.run(own_rows(parallel_model, length, seed=0)).loss]  # warms up
    seconds, cpu_seconds = [], []
    for number in range(1, STEPS + 1):
        batch = own_rows(parallel_model, length, seed=number)
        if distributed.is_initialized():
            distributed.barrier()
        start, cpu_start = time.perf_counter(), time.process_time()
        losses.append(step.run(batch).loss)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    facts = {"loss": losses[-1], "seconds": median(seconds), "cpu_seconds": median(cpu_seconds), "state": state}
    print(json.dumps(facts | {"peak": peak_memory_bytes(device) - before}))
    leave()


def own_rows(parallel_model: ParallelModel, length: int, seed: int) -> Batch:
    """This rank's rows of a global batch."""
    ids = torch.randint(0, CONFIG.vocab_size, (ROWS, length + 1), generator=torch.Generator().manual_seed(seed))
    batch = Batch({"tokens": ids[:, :-1]}, ids[:, 1:], torch.ones(ROWS, length), [(row,) for row in range(ROWS)])
    return batch.split(parallel_model.data_ranks)[parallel_model.mesh.rank("data")]


def state_bytes(parallel_model: ParallelModel, optimizer: Optimizer, batch: Batch) -> int:
    """Of weights, gradients and optimizer on this rank between the backward pass and the update."""
    parts = parallel_model.split(batch, None)
    parallel_model.forward_backward(parts, [1.0] * len(parts))
    weights = list(parallel_model.parameters.values())
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    held = sum(local(tensor).nbytes for tensor in [*weights, *gradients, *optimizer.tensors().values()])
    parallel_model.drop_grads()
    return held


def summary(rounds: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, float]:
    """Of each round its worst rank, of these the median."""
    return {name: median(max(rank[name] for rank in ranks) for ranks in rounds) for name in rounds[0][0]}


def compared(facts: Mapping[str, float], alone: Mapping[str, float]) -> dict[str, float]:
    assert abs(facts["loss"] / alone["loss"] - 1) < 1e-4, (facts["loss"], alone["loss"])
    return {
        "state_mib": round(facts["state"] / MIB, 1),
        "state_share": round(facts["state"] / alone["state"], 3),
        "peak_mib": round(facts["peak"] / MIB),
        "seconds": round(facts["seconds"], 2),
        "cpu_seconds": round(facts["cpu_seconds"], 2),
        "speedup": round(alone["seconds"] / facts["seconds"], 2),
        "cpu_speedup": round(alone["cpu_seconds"] / facts["cpu_seconds"], 2),
    }


if __name__ == "__main__":
    main()
