"""Further parts of device_check.py (see device_parts.py): what a step is made of, what it holds, and how it ends.

No script itself.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from device_parts import Bench, draw_batch, draw_rows, make_large, time_steps
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hanlin.checkpoint.state import Checkpointer
from hanlin.core.batch import IGNORED, Batch
from hanlin.core.ranks import group_of_one
from hanlin.generate.engine import Engine, record_stream
from hanlin.generate.methods.beam import BeamSettings
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import OPTIMIZERS, ParallelSettings, TrainSettings
from hanlin.training.objective import RunStart, build_objective
from hanlin.training.optimizer import build_optimizer
from hanlin.training.step import Step

PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "addbmm", "mv", "addmv"}
ON_CPU = {"forward float32"}
"""Of a CPU alone: the gradient of a head, whose products in fp32 cost it no more (layers/loss.py)."""
CHILD = Path(__file__).with_name("device_child.py")


# --- dtypes ---


def check_dtypes(bench: Bench) -> None:
    """In which dtype the matrix products of a step are, forwards and backwards: with bf16 asked for, all in bf16."""
    wrong = []
    for method, form in (("full", None), ("lora", None), ("lora", "nf4"), ("prefix", None)):
        for recomputed in ("none", "selective", "full"):
            for family_name in ("chatglm2", "cpm_bee") if method == "lora" else ("chatglm2",):
                name = "/".join(filter(None, (family_name, method, form, recomputed)))
                found = products_of_step(bench, family_name, method, form, recomputed)
                bench.keep(name, found)
                wide = {one for one in found if not one.endswith(" bfloat16")}
                wrong += [name] if wide - (ON_CPU if bench.device.type == "cpu" else set()) else []
                assert any(one.startswith("backward") for one in found), f"{name}: no products backwards: {found}"
    assert not wrong, f"products that are not in bf16: {', '.join(wrong)}"


def products_of_step(
    bench: Bench, family_name: str, method: str, form: Any = None, recomputed: Any = "none"
) -> dict[str, int]:
    """How many products there are of each kind, by where and in which dtype ("backward bfloat16")."""
    model, config = make_large(bench, method, 2, family_name, form)
    step = make_step(bench, model, ParallelSettings(checkpoint_activations=recomputed))
    with Products() as products:
        step.run(draw_batch(bench, family_name, config, 1, 64, seed=0))
    return dict(sorted(products.counts.items()))


class Products(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.split("::")[1] in PRODUCTS:
            is_backward = torch._C._current_autograd_node() is not None
            dtype = next(one.dtype for one in reversed(args) if isinstance(one, torch.Tensor))
            self.counts[f"{'backward' if is_backward else 'forward'} {str(dtype).removeprefix('torch.')}"] += 1
        return func(*args, **(kwargs or {}))


def make_step(
    bench: Bench,
    model: Any,
    layout: ParallelSettings | None = None,
    objective: Any = None,
    copied: bool = False,
    attention: Any = "auto",
) -> Step:
    """copied: leave the model as it is."""
    settings = TrainSettings(
        steps=99, precision="bf16", micro_batch_size=1, lr=1e-3, optimizer=OPTIMIZERS.make("adamw")
    )
    model = copy.deepcopy(model) if copied else model
    parallel_model = parallelize(model, bench.device, "bf16", layout or ParallelSettings(), attention=attention)
    optimizer = build_optimizer(parallel_model.parameters, settings.optimizer)
    return Step(parallel_model, optimizer, settings, 99, objective=objective)


# --- answers ---


def check_answers(bench: Bench) -> None:
    """Answers of every family in fp32 against the CPU's, and what of each token the host does."""
    family_cases, wrong = import_contract(), []
    for family_name in ("chatglm2", "cpm1", "cpm1_t5", "cpm2", "cpm_bee"):
        with tempfile.TemporaryDirectory() as folder:
            case = family_cases.case_of(family_name, Path(folder))
            model = case.model(None).requires_grad_(False)
            for settings in (GreedySettings(max_new_tokens=6), BeamSettings(max_new_tokens=6, beams=3)):
                expected, _ = answer(torch.device("cpu"), case, model, settings, lambda run: run())
                calls: dict[str, float] = {}
                found, steps = answer(bench.device, case, model, settings, partial(count_calls, bench, into=calls))
                is_same = found == expected
                each = {name: round(count / steps, 1) for name, count in calls.items()}
                bench.keep(f"{family_name}/{settings.method}", {"same": is_same, **each})
                wrong += [] if is_same else [f"{family_name}/{settings.method}"]
    assert not wrong, f"answers differ from the CPU's: {', '.join(wrong)}"


def import_contract() -> Any:
    """The small models and tokenizers of the tests of every family's contract."""
    tests = Path(__file__).parents[1] / "tests"
    folders = ("contract", "models/chatglm2", "models/cpm1", "models/cpm2")
    sys.path += [str(tests / folder) for folder in folders if str(tests / folder) not in sys.path]
    return importlib.import_module("family_cases")


def answer(device: torch.device, case: Any, model: Any, settings: Any, run: Any) -> tuple[list[Any], int]:
    """Tokens of the answers to two questions, and in how many steps they were found; run: calls what does so, once all
    prompts are read.
    """
    engine = Engine(copy.deepcopy(model).to(device), case.processor, device, family=case.family)
    prompts = [engine.prompt(record, settings) for record in case.records[:2]]
    found = engine.search(prompts, settings, [record_stream(0, number) for number in range(2)])
    next(found)
    searches: list[Any] = []
    run(lambda: searches.extend(found))
    return [search.best.tokens for search in searches[-1]], len(searches)


def count_calls(bench: Bench, run: Callable[[], object], into: dict[str, float]) -> None:
    """What the host asks of the device: kernels, copies and waits; on a CPU, operations."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.is_cuda else [])]
    with profile(activities=activities) as seen:
        run()
    counts = Counter(str(event.name) for event in seen.events() or ())
    if not bench.is_cuda:
        operations = (event for event in seen.events() or () if event.cpu_parent is None)
        into["operations"] = sum(event.name.startswith("aten::") for event in operations)
        return
    kinds = {
        "launches": ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx"),
        "graphs": ("cudaGraphLaunch",),
        "copies": ("cudaMemcpyAsync", "cudaMemcpy"),
        "waits": ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy"),
    }
    into |= {kind: sum(counts[name] for name in names) for kind, names in kinds.items()}


# --- memory ---


def measure_memory(bench: Bench) -> None:
    """Steps that hold memory in another way: autocast's remembered casts, weights and optimizer in the CPU's memory,
    inputs of blocks there.
    """
    cells: dict[str, dict[str, Any]] = {
        "casts_kept": {},
        "casts_forgotten": {"around": forgetting_casts},
        "recomputed": {"recomputed": "full"},
        "inputs_on_host": {"recomputed": "offload"},
        "offloaded": {
            "recomputed": "full",
            "layout": {"shard": "parameters", "offload": True},
            "around": partial(group_of_one, bench.device),
        },
    }
    for name, options in cells.items():
        around = options.pop("around", nullcontext)
        with around():
            bench.keep(f"full_{name}", time_steps(bench, "full", steps=3, layers=6, **options))
    with forgetting_casts():
        bench.keep("lora_casts_forgotten", time_steps(bench, "lora", steps=3, layers=6))
    bench.keep("lora_casts_kept", time_steps(bench, "lora", steps=3, layers=6))


@contextmanager
def forgetting_casts() -> Iterator[None]:
    """Autocast casts a weight anew each time it is used."""
    casting = torch.autocast

    def autocast(*args: Any, **options: Any) -> Any:
        return casting(*args, **{**options, "cache_enabled": False})

    with patch.object(torch, "autocast", autocast):
        yield


def measure_pieces(bench: Bench) -> None:
    """30 steps of changing shapes: what the allocator takes beyond what tensors need, with both its ways."""
    for name, words in (("usual", ""), ("expandable", "expandable_segments:True")):
        tiny = ["--tiny"] if bench.is_tiny else []
        done = run_child("pieces", bench.device.type, *tiny, PYTORCH_ALLOC_CONF=words)
        assert done.returncode == 0, done.stderr[-1000:]
        bench.keep(name, json.loads(done.stdout.splitlines()[-1]))
    if not bench.is_cuda:
        bench.skip("reserved", "needs CUDA: what the allocator takes")


def run_child(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, **{name: value for name, value in environment.items() if value}}
    command = [sys.executable, str(CHILD), *words]
    return subprocess.run(command, capture_output=True, text=True, env=given, check=False)


# --- an end ---


def check_failure(bench: Bench) -> None:
    """A device that fails in the third step of a training: a sentence, an exit code, and the checkpoint before it."""
    with tempfile.TemporaryDirectory() as folder:
        done = run_child("failure", bench.device.type, folder, HANLIN_LANG="en")
        checkpoints = sorted(path.name for path in (Path(folder) / "run" / "checkpoints").glob("0*"))
    told = [line for line in done.stderr.splitlines() if "the device failed" in line]
    bench.keep("exit", {"code": done.returncode, "told": told[:1], "checkpoints": checkpoints})
    assert done.returncode == 1, f"exit code {done.returncode}: {done.stderr[-600:]}"
    assert told, f"nobody says that the device failed: {done.stderr[-600:]}"
    assert "Traceback" not in done.stderr, done.stderr[-1500:]
    assert checkpoints, "no checkpoint is left"


# --- the same bits ---


def check_repeatable(bench: Bench) -> None:
    """Whether the same steps from the same weights give the same bits, also after a checkpoint; if not, which
    operations give others for the same numbers. Attention is plain products: flash attention adds up the gradient of
    its queries in an order of chance, so of `auto` it is only told.
    """
    wrong = []
    for name, (method, settings) in REPEATED.items():
        model, config = make_large(bench, method, layers=2)
        for kernel in ("math", *(("auto",) if name == "full" else ())):
            train = partial(bits_after_steps, bench, model, config, settings, kernel)
            runs = [train(), train(goes_on=True) if name == "lora" else train()]
            differ = [weight for weight, bits in runs[0].items() if not bits.equal(runs[1][weight])]
            found: dict[str, Any] = {"weights": len(runs[0]), "differ": differ[:20], "count": len(differ)}
            if differ:
                found["operations"] = differing_operations(train)
            bench.keep(f"{name}, {kernel}", found)
            if kernel != "auto":
                wrong += [f"{name}/{weight}" for weight in differ]
        bench.free()
    assert not wrong, f"{len(wrong)} weights differ between two runs: {', '.join(wrong[:5])}"


REPEATED: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("full", {"name": "likelihood"}),
    "lora": ("lora", {"name": "likelihood"}),
    "dpo": ("lora", {"name": "dpo", "beta": 0.5}),
    "kto": ("lora", {"name": "kto", "beta": 0.5}),
    "distill": ("lora", {"name": "distill", "teacher": "teacher"}),
}
"""What is trained, and by which objective."""


def bits_after_steps(
    bench: Bench, model: Any, config: Any, objective: Mapping[str, Any], kernel: Any, goes_on: bool = False
) -> dict[str, torch.Tensor]:
    """goes_on: the last step is taken by another model, from a checkpoint."""
    length = 64 if bench.is_tiny else 1024
    batches = [draw_rows(bench, config.vocab_size, 2, length, seed) for seed in range(3)]
    batches = [with_answers(batch, objective["name"]) for batch in batches]
    made = build_objective(TrainSettings(steps=1, objective=dict(objective)).objective)
    make = partial(make_step, bench, model, objective=made, copied=True, attention=kernel)
    step = make()
    with tempfile.TemporaryDirectory() as folder:
        rows: Any = OneBatch(batches[0])
        teacher = parallelize(copy.deepcopy(model).requires_grad_(False), bench.device, "bf16", ParallelSettings())
        made.begin(step.parallel_model, {"train": rows, "valid": rows}, RunStart(Path(folder), teacher=teacher))
        for number, batch in enumerate(batches):
            if goes_on and number == len(batches) - 1:
                step = moved(step, make(), Path(folder) / "checkpoints")
            step.run(batch)
    return {name: weight.detach().cpu().clone() for name, weight in step.parallel_model.parameters.items()}


def moved(step: Step, other: Step, folder: Path) -> Step:
    """The other one, with all that the first has come to."""
    Checkpointer(folder).save(1, held_by(step), {"step": step.values()})
    saved = Checkpointer(folder).load_latest(held_by(other))
    assert saved is not None
    other.restore(saved.values["step"])
    return other


def held_by(step: Step) -> dict[str, torch.Tensor]:
    return {**step.parallel_model.parameters, **step.optimizer.tensors()}


def with_answers(batch: Batch, objective: str) -> Batch:
    """A pair in each row, for objectives that compare: the labels of a row cut into two or three answers."""
    count = {"dpo": 2, "kto": 3}.get(objective)
    if count is None:
        return batch
    is_labelled = batch.labels != IGNORED
    places = is_labelled.cumsum(1) - 1
    answers = torch.where(is_labelled, 1 + places * count // (places[:, -1:] + 1), 0)
    rows = [[number] for number in range(batch.size)]
    return replace(batch, answers=answers, weights=(answers > 0).float(), rows=rows)


class OneBatch:
    """A loader of one batch."""

    class prepared:  # noqa: N801 as the attribute of a loader
        lengths = np.zeros(2)
        identity = "rows"

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def steps_per_epoch(self) -> int:
        return 1

    def once(self) -> Iterator[Batch]:
        yield self.batch


def differing_operations(run: Callable[[], object]) -> dict[str, int]:
    """The operations that gave other numbers in a second run for the same ones, and how often."""
    runs = []
    for _ in range(2):
        with Fingerprints() as seen:
            run()
        runs.append([(name, [int(one) for one in given], [int(one) for one in made]) for name, given, made in seen.all])
    found: Counter[str] = Counter()
    for (name, given, made), (other, given_again, made_again) in zip(*runs, strict=False):
        if name != other:
            found["other operations"] += 1
            break
        found[name] += given == given_again and made != made_again
    return {name: count for name, count in found.most_common() if count}


class Fingerprints(TorchDispatchMode):
    """Of what goes into each operation and of what comes out of it: the sums of its bits."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[tuple[str, list[torch.Tensor], list[torch.Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        given = [sum_of_bits(one) for one in tree_leaves((args, kwargs or {})) if isinstance(one, torch.Tensor)]
        made = func(*args, **(kwargs or {}))
        if "empty" not in name:  # whose numbers are whatever was there
            results = [sum_of_bits(one) for one in tree_leaves(made) if isinstance(one, torch.Tensor)]
            self.all.append((name, given, results))
        return made


def sum_of_bits(tensor: torch.Tensor) -> torch.Tensor:
    """Weighed by their places, so that two that change places are seen."""
    if tensor.is_meta or not tensor.numel():
        return torch.zeros((), dtype=torch.int64)
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.detach().contiguous().view(whole).flatten().long()
    return (bits * (torch.arange(len(bits), device=bits.device) % 127 + 1)).sum()


# --- compiled attention ---


def measure_flex(bench: Bench) -> None:
    """A block of CPM-Bee on rows of 20 lengths, its bias pair by pair: how often code is made, how long it takes."""
    model, config = make_large(bench, "lora", layers=1, family_name="cpm_bee")
    parallel_model = parallelize(model, bench.device, "bf16", ParallelSettings(), attention="flex")
    if not bench.is_cuda:
        bench.skip("kernel", "needs CUDA: flex_attention, here by plain products")
    firsts, nexts, made = [], [], []
    for number in range(3 if bench.is_tiny else 20):
        length = 32 + 7 * number if bench.is_tiny else 384 + 37 * number
        batch = draw_batch(bench, "cpm_bee", config, 1 + number % 2, length, number)

        def run(batch: Batch = batch) -> None:
            parallel_model.forward_backward([batch], [1.0])
            parallel_model.drop_grads()

        before = counters["stats"]["unique_graphs"]
        firsts.append(bench.seconds(run))
        nexts.append(bench.median_seconds(run, warm=0, rounds=2))
        made.append(counters["stats"]["unique_graphs"] - before)
    slowest = sorted(firsts, reverse=True)[:5]
    bench.keep(
        "lengths",
        {
            "shapes": len(firsts),
            "codes_made": sum(made),
            "shapes_that_made_code": sum(count > 0 for count in made),
            "first_seconds": [round(value, 3) for value in slowest],
            "all_firsts_seconds": round(sum(firsts), 1),
            "next_ms": round(1e3 * sorted(nexts)[len(nexts) // 2], 2),
        },
    )
