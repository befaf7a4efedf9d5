"""The matrix of layouts: every family x tuning x kind of rows under every layout, against one process.

    python tests/drills/layouts.py                  the whole matrix, 30 steps a cell (hours on two cores)
    python tests/drills/layouts.py --only cpm2      cells whose name has this word (may be given again: all words)
    python tests/drills/layouts.py --sample 50      some of them
    python tests/drills/layouts.py --list           the names of the cells

Rows come from the program's own loader: packed or one sample a row, with lengths that differ per rank and step, and a
smaller last batch in each epoch. A cell is `equal` (losses, norms and all weights in fp64), `refused` (before anything
starts, by the function that `check` asks), or a fault: `differs`, `accepted` (it should be refused), `fails`, `hangs`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":
    TESTS = Path(__file__).parents[1]
    folders = ("contract", "parallel", "models/chatglm2", "models/cpm1", "models/cpm2")
    sys.path[:0] = [str(TESTS), *(str(TESTS / folder) for folder in folders)]
    import conftest  # noqa: F401  one thread, no devices

import torch
from family_cases import METHODS, Case, case_of
from ranks import run_ranks
from scratch import scratch
from torch import nn

from hanlin.core.batch import Batch
from hanlin.core.errors import ConfigError
from hanlin.data.loader import Loader
from hanlin.data.prepare import prepare
from hanlin.layers.quantised import PackingName, packed, packed_linears, quantise_linears
from hanlin.parallel.layout_checks import combination_problems, model_problems
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import DataSettings, ParallelSettings, TrainSettings
from hanlin.training.objectives.likelihood import mean_loss
from hanlin.training.optimizer import build_optimizer
from hanlin.training.step import Step
from hanlin.tuning.apply import apply_tuning
from hanlin.tuning.full import FullTuning

CPU = torch.device("cpu")
BATCH_SIZE, NUM_RECORDS = 8, 60
RELATIVE, ABSOLUTE = 1e-7, 1e-8
"""Of fp64, after sums in another order have gone through 30 steps of Adam."""

_LETTERS = "床前明月光疑是地上霜举头望低思故乡"
_KEYS = {"cpm_bee": ("input", "<ans>"), "chatglm2": ("prompt", "response"), "cpm1": ("prompt", "answer")}
Kind = Literal["packed", "single"]


@dataclass(frozen=True)
class Variant:
    """A family with values of its configuration, and the methods that are trained on it.

    quantise: how a recipe has the base packed; has_experts: its numbers depend on what goes through the model together,
    so nothing is cut into micro-batches; has_turns: its rows are dialogues of which every answer is learned, most of
    them with branches.
    """

    family: str
    methods: tuple[str, ...]
    config: tuple[tuple[str, Any], ...] = ()
    has_experts: bool = False
    has_turns: bool = False
    quantise: PackingName | None = None


VARIANTS = {
    "cpm_bee": Variant("cpm_bee", ("full", "lora", "prefix")),
    "chatglm2": Variant("chatglm2", ("full", "lora", "prefix")),
    "chatglm2-int8": Variant("chatglm2", ("lora", "prefix"), (("bits", 8),)),
    "chatglm2-int4": Variant("chatglm2", ("lora", "prefix"), (("bits", 4),)),
    "chatglm2-turns": Variant("chatglm2", ("full", "lora", "prefix"), has_turns=True),
    "chatglm2-turns-int4": Variant("chatglm2", ("lora", "prefix"), (("bits", 4),), has_turns=True),
    "cpm1": Variant("cpm1", ("full", "lora", "prefix", "prompt")),
    "cpm1_t5": Variant("cpm1_t5", ("full", "lora")),
    "cpm2": Variant("cpm2", ("full", "lora", "prompt")),
    "cpm2-experts": Variant("cpm2", ("full", "lora"), (("num_experts", 4),), has_experts=True),
    "cpm_bee-nf4": Variant("cpm_bee", ("lora",), quantise="nf4"),
    "chatglm2-nf4": Variant("chatglm2", ("lora",), quantise="nf4"),
    "cpm1-nf4": Variant("cpm1", ("lora",), quantise="nf4"),
    "cpm1_t5-int8": Variant("cpm1_t5", ("lora",), quantise="int8"),
    "cpm2-nf4": Variant("cpm2", ("prompt",), quantise="nf4"),
    "cpm2-experts-nf4": Variant("cpm2", ("lora",), (("num_experts", 4),), has_experts=True, quantise="nf4"),
}

SHARDED, GRADIENTS = {"shard": "parameters"}, {"shard": "gradients"}
LAYOUTS: dict[str, dict[str, Any]] = {
    "data": {"data": 2},
    "data-micro": {"data": 2, "micro_batches": 2},
    "gradients": {"data": 2, "micro_batches": 2, **GRADIENTS},
    "parameters": {"data": 2, "micro_batches": 2, **SHARDED},
    "hybrid": {"data": 4, "shard_ranks": 2, **SHARDED},
    "offload": {"data": 2, "offload": True, **SHARDED},
    "tensor": {"tensor": 2, "micro_batches": 2},
    "sequence": {"tensor": 2, "sequence_parallel": True, "micro_batches": 2},
    "sequence-again": {"tensor": 2, "sequence_parallel": True, "checkpoint_activations": "full"},
    "sequence-some": {"tensor": 2, "sequence_parallel": True, "checkpoint_activations": "selective"},
    "sequence-sharded": {"data": 2, "tensor": 2, "sequence_parallel": True, **SHARDED},
    "pipe": {"pipe": 2, "micro_batches": 2},
    "gpipe": {"pipe": 2, "micro_batches": 3, "schedule": "gpipe"},
    "interleaved": {"pipe": 2, "micro_batches": 2, "schedule": "interleaved"},
    "pipe-data": {"data": 2, "pipe": 2, "micro_batches": 2},
    "pipe-gradients": {"data": 2, "pipe": 2, "micro_batches": 2, **GRADIENTS},
    "pipe-parameters": {"data": 2, "pipe": 2, "micro_batches": 2, **SHARDED},
    "pipe-again": {"data": 2, "pipe": 2, "micro_batches": 2, "checkpoint_activations": "full", **SHARDED},
    "interleaved-gradients": {"data": 2, "pipe": 2, "micro_batches": 2, "schedule": "interleaved", **GRADIENTS},
    "interleaved-parameters": {"data": 2, "pipe": 2, "micro_batches": 2, "schedule": "interleaved", **SHARDED},
    "tensor-pipe": {"tensor": 2, "pipe": 2, "micro_batches": 2, "sequence_parallel": True},
    "all": {"data": 2, "tensor": 2, "pipe": 2, "micro_batches": 2, "sequence_parallel": True, **SHARDED},
    "expert": {"data": 2, "expert": 2},
    "expert-pipe": {"data": 2, "pipe": 2, "expert": 2, **SHARDED},
}


@dataclass(frozen=True)
class Cell:
    variant: str
    method: str
    kind: Kind
    layout: str

    @property
    def name(self) -> str:
        return f"{self.variant}.{self.method}.{self.kind}.{self.layout}"

    @property
    def settings(self) -> ParallelSettings:
        given = LAYOUTS[self.layout]
        return ParallelSettings(**{**given, "micro_batches": 1} if VARIANTS[self.variant].has_experts else given)


def cells() -> Iterator[Cell]:
    for name, variant in VARIANTS.items():
        for method in variant.methods:
            for kind in ("packed", "single"):
                for layout in LAYOUTS:
                    yield Cell(name, method, kind, layout)


# --- rows and models ---


@cache
def case(variant: str) -> Case:
    """The family's small case with four blocks, or two on each side."""
    chosen = VARIANTS[variant]
    folder = scratch()
    made = case_of(chosen.family, folder)
    changes = {**dict(chosen.config), **({} if hasattr(made.empty(), "encoder_blocks") else {"num_layers": 4})}
    return replace(made, config=replace(made.config, **changes))


def records(variant: str) -> list[dict[str, Any]]:
    """Texts of 1 to 9 and answers of 1 to 7 letters, from a fixed seed; of dialogues 1 to 3 of each in turn."""
    draw, chosen = random.Random(0), VARIANTS[variant]
    keys = _KEYS.get(chosen.family, ("source", "target"))

    def said(most: int) -> str:
        return "".join(draw.choices(_LETTERS, k=draw.randint(1, most)))

    def dialogue() -> dict[str, Any]:
        turns = [(role, most) for _ in range(draw.randint(1, 3)) for role, most in (("user", 9), ("assistant", 7))]
        return {"messages": [{"role": role, "content": said(most)} for role, most in turns]}

    if chosen.has_turns:
        return [dialogue() for _ in range(NUM_RECORDS)]
    return [{key: said(most) for key, most in zip(keys, (9, 7), strict=True)} for _ in range(NUM_RECORDS)]


@cache
def samples(variant: str, method: str, kind: Kind) -> tuple[Any, Any, int]:
    """Prepared records, their processor, and the length of rows."""
    chosen = case(variant)
    processor = chosen.processor if method == "full" else chosen.processor_for(method)
    folder = scratch()
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records(variant)), "utf-8")
    longest = max(processor.sample(record).length for record in records(variant))
    length = int(longest * 1.5) if kind == "packed" else longest
    settings = DataSettings(max_length=length, pack=kind == "packed", cache=folder)
    return prepare([file], processor, settings, tokenizer=chosen.tokenizer), processor, length


def loader(cell: Cell, rank: int, world: int) -> Loader:
    prepared, processor, length = samples(cell.variant, cell.method, cell.kind)
    shows_examples = cell.variant == "cpm_bee" and cell.kind == "packed"
    return Loader(
        prepared, processor, max_length=length, batch_size=BATCH_SIZE, seed=5, pack=cell.kind == "packed",
        in_context=(1.0, 0.5) if shows_examples else (1.0,), rank=rank, world=world,
    )  # fmt: skip


def model_of(cell: Cell) -> nn.Module:
    """In fp64, with values that hide nothing; of a quantised base the packed ones are rounded fresh ones."""
    chosen, draw = case(cell.variant), torch.Generator().manual_seed(3)
    make, bits, form = chosen.family.model(), getattr(chosen.config, "bits", 0), VARIANTS[cell.variant].quantise
    model = make(replace(chosen.config, bits=0) if bits else chosen.config)
    model.init_weights(draw)
    if bits or form:
        model = _quantised(make(chosen.config), dict(model.named_parameters()), form)
    method = FullTuning() if cell.method == "full" else METHODS[cell.method]
    apply_tuning(model, method, chosen.family, draw)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.is_floating_point() and weight.ndim == 2:
                weight.add_(torch.randn(weight.shape, generator=draw), alpha=0.1)
    return model.double()


@torch.no_grad()
def _quantised(model: nn.Module, weights: Mapping[str, torch.Tensor], form: PackingName | None) -> nn.Module:
    """The model with these weights; form: how its linears are packed (None: they are already)."""
    if form is not None:
        quantise_linears(model, form)
    values = dict(weights)
    for name, packing in packed_linears(model).items():
        values |= {f"{name}.{part}": tensor for part, tensor in packed(packing, weights[f"{name}.weight"]).items()}
    for name, place in model.named_parameters():
        place.copy_(values[name])
    return model


# --- one cell ---


def problems(cell: Cell) -> list[str]:
    """What `check` has against the layout of a cell."""
    found = [*combination_problems(cell.settings), *model_problems(model_of(cell), cell.settings)]
    return [f"{key}: {text}" for key, text in found]


def world_of(settings: ParallelSettings) -> int:
    return (settings.data or 1) * settings.tensor * settings.pipe


def train(cell: Cell, settings: ParallelSettings, steps: int) -> dict[str, Any]:
    """What one rank sees of the steps: losses, norms, the loss of an evaluation; and the weights after them."""
    parallel_model = parallelize(model_of(cell), CPU, "fp32", settings, copy=lambda: model_of(cell))
    given = TrainSettings(steps=steps, lr=5e-3, schedule="constant", clip=1.0, batch_size=BATCH_SIZE)
    step = Step(parallel_model, build_optimizer(parallel_model.parameters, given.optimizer), given, steps)
    rows = loader(cell, parallel_model.mesh.rank("data"), parallel_model.data_ranks)
    batches, reports = _batches(rows, cell), []
    for number in range(steps):
        reports.append(step.run(_double(next(batches))))
        if number == steps // 2:
            silent = mean_loss(parallel_model, (_double(batch) for batch in rows.once()))
    return {
        "loss": [report.loss for report in reports],
        "norm": [report.grad_norm for report in reports],
        "silent": [silent],
        "weights": {name: weight.detach().clone() for name, weight in parallel_model.gather()},
    }


def _batches(rows: Loader, cell: Cell) -> Iterator[Batch]:
    for batch in rows.forever():
        # The last one of an epoch may be one that ranks cannot divide evenly, of which experts get other tokens.
        if rows.batch > 0 or not VARIANTS[cell.variant].has_experts:
            yield batch


def _double(batch: Batch) -> Batch:
    return replace(batch, weights=batch.weights.double())


@cache
def alone(variant: str, method: str, kind: Kind, steps: int) -> dict[str, Any]:
    return train(Cell(variant, method, kind, "data"), ParallelSettings(), steps)


def differences(found: Sequence[dict[str, Any]], expected: dict[str, Any]) -> Iterator[str]:
    for rank, result in enumerate(found):
        for name in ("loss", "norm", "silent"):
            for step, (one, other) in enumerate(zip(result[name], expected[name], strict=True), 1):
                if not abs(one - other) <= RELATIVE * abs(other) + ABSOLUTE:
                    yield f"rank {rank}: {name} of step {step} is {one:.12g}, of one process {other:.12g}"
                    break
    weights = found[0]["weights"]
    if weights.keys() != expected["weights"].keys():
        yield f"weights {sorted(weights.keys() ^ expected['weights'].keys())} are on one side only"
    for name, weight in expected["weights"].items():
        gap = (weights[name] - weight).abs().max().item()
        if not gap <= RELATIVE * max(weight.abs().max().item(), 1.0):
            yield f"{name} differs by {gap:.3g}"


def run_cell(cell: Cell, steps: int, timeout_seconds: float = 240) -> tuple[str, str]:
    """What became of a cell, and what there is to say about it."""
    told, world = problems(cell), world_of(cell.settings)

    def ranks() -> Any:
        try:
            return train(cell, cell.settings, steps)
        except ConfigError as error:
            return str(error)

    expected = None if told else alone(cell.variant, cell.method, cell.kind, steps)
    samples(cell.variant, cell.method, cell.kind)  # before the ranks are forked
    try:
        found = run_ranks(world, ranks, timeout_seconds=timeout_seconds)
    except AssertionError as error:
        text = str(error).strip()
        return ("hangs" if text.startswith("too late") or "Timed out" in text else "fails"), text
    if told:
        # Each stage names a block of its own.
        if all(_without_place(result) in map(_without_place, told) for result in found):
            return "refused", told[0]
        return "accepted", f"check says: {told[0]}; training: {str(found[0])[:200]}"
    if isinstance(found[0], str):
        return "fails", f"check says nothing, training: {found[0]}"
    assert expected is not None
    faults = list(differences(found, expected))
    return ("differs", "; ".join(faults[:4])) if faults else ("equal", "")


def _without_place(text: Any) -> str:
    return str(text).partition(" (")[0]


# --- by itself ---


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="in the name of the cell")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--sample", type=int, metavar="N", help="so many of the cells, drawn anew with each --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=300, help="seconds after which a cell is said to hang (300)")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--log", type=Path, help="file for the whole text of each fault")
    given = parser.parse_args()
    chosen = [cell for cell in cells() if all(word in f".{cell.name}." for word in given.only)]
    if given.sample and given.sample < len(chosen):
        chosen = random.Random(given.seed).sample(chosen, given.sample)
    if given.list:
        print("\n".join(cell.name for cell in chosen))
        return 0
    counts: Counter[str] = Counter()
    for number, cell in enumerate(chosen, 1):
        start = time.monotonic()
        became, text = run_cell(cell, given.steps, given.timeout)
        counts[became] += 1
        last = text.splitlines()[-1][:300] if text else ""
        took = f"{time.monotonic() - start:.1f} s"
        print(f"{number}/{len(chosen)} {cell.name}: {became} ({took}) {last}", flush=True)
        if given.log and became not in ("equal", "refused"):
            with given.log.open("a", encoding="utf-8") as log:
                log.write(f"=== {cell.name}: {became}\n{text}\n")
    print(" ".join(f"{name}={count}" for name, count in sorted(counts.items())))
    return 0 if counts.keys() <= {"equal", "refused"} else 1


if __name__ == "__main__":
    sys.exit(main())
