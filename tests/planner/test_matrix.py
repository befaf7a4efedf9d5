"""The plan against real steps of every family, tuning method and circumstance, and of layouts of several ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from measure import job_of, measure, measure_rank, tiny_recipe
from ranks import run_ranks
from sampled import sampled

from hanlin.planner.estimate import estimate
from hanlin.planner.layout import layout_of

FAMILIES = ["chatglm2", "cpm1", "cpm1_t5", "cpm2", "cpm_bee"]
LION = Path(__file__).parents[2] / "examples" / "my_optimizer.py"

OF_BASE = {
    "full": ("tuning.method=full",),
    "frozen": ("tuning.method=full", "tuning.frozen=[embedding]"),
    "prompt and base": ("tuning.method=prompt", "tuning.trains_model=true"),
}
BESIDE = {
    "lora": ("tuning.method=lora", "tuning.b_rate=16"),
    "lora, dropout": ("tuning.method=lora", "tuning.dropout=0.1"),
    "dora": ("tuning.method=lora", "tuning.dora=true"),
    "pissa": ("tuning.method=lora", "tuning.init=pissa"),
    "ia3": ("tuning.method=ia3",),
    "prefix": ("tuning.method=prefix", "tuning.length=20"),
    "projected prefix": ("tuning.method=prefix", "tuning.projection=true"),
    "prompt": ("tuning.method=prompt", "tuning.length=20"),
}
TUNINGS = {**OF_BASE, **BESIDE}
BF16, TWICE = "train.precision=bf16", "train.batch_size=4"
FULL, SELECTIVE, INPUTS = (f"parallel.checkpoint_activations={kept}" for kept in ("full", "selective", "offload"))
ANYWHERE = {
    "fp32": (),
    "bf16": (BF16,),
    "two passes": (BF16, TWICE),
    "recomputed": (BF16, FULL),
    "recomputed in part": (SELECTIVE,),
    "inputs on the host": (BF16, INPUTS, TWICE),
    "dpo": (BF16, "train.objective=dpo"),
    "kto, recomputed": (FULL, "train.objective=kto", TWICE),
    "8 bits": (BF16, FULL, "train.optimizer=adamw_8bit"),
    "adafactor": (FULL, "train.optimizer=adafactor"),
    "muon": (FULL, "train.optimizer=muon"),
    "lion": (BF16, f"train.optimizer={LION}"),
}
WITH_BASE = {
    "bf16 weights": (BF16, "train.weight_dtype=bf16", TWICE),
    "bf16 weights, recomputed": (BF16, "train.weight_dtype=bf16", FULL),
    "bf16 weights, 8 bits": (BF16, "train.weight_dtype=bf16", FULL, "train.optimizer=adamw_8bit"),
    "bf16 weights, adafactor": (BF16, "train.weight_dtype=bf16", FULL, TWICE, "train.optimizer=adafactor"),
}
WITH_FROZEN = {
    "nf4": (BF16, "model.quantise=nf4"),
    "nf4, recomputed": (BF16, "model.quantise=nf4", FULL, TWICE),
    "int8": ("model.quantise=int8",),
    "int8, dpo": (BF16, "model.quantise=int8", "train.objective=dpo"),
}
WITH_PACKED = {  # of the one family that has such files
    "int4 on disk": (BF16, "model.config.bits=4"),
    "int8 on disk": ("model.config.bits=8", FULL),
}
CIRCUMSTANCES = {**ANYWHERE, **WITH_BASE, **WITH_FROZEN, **WITH_PACKED}
Cell = tuple[str, str, str]


def _cells() -> Iterator[Cell]:
    for family in FAMILIES:
        for tuning in TUNINGS:
            fitting = {**ANYWHERE, **(WITH_BASE if tuning in OF_BASE else WITH_FROZEN)}
            if family == "chatglm2" and tuning in BESIDE:
                fitting |= WITH_PACKED
            yield from ((family, tuning, circumstance) for circumstance in fitting)


def _spread(cells: list[Cell]) -> list[Cell]:
    """Some of them, in which each family, tuning and circumstance is."""
    chosen: list[Cell] = []
    for place, values in ((2, CIRCUMSTANCES), (1, TUNINGS)):
        for value in values:
            if not any(cell[place] == value for cell in chosen):
                seen = [part for cell in chosen for part in cell]
                chosen.append(min((cell for cell in cells if cell[place] == value), key=lambda one: _known(one, seen)))
    return chosen


def _known(cell: Cell, seen: list[str]) -> int:
    return sum(seen.count(part) for part in cell)


CELLS = list(_cells())


@pytest.mark.parametrize(("family", "tuning", "circumstance"), sampled(CELLS, _spread(CELLS)))
def test_a_step_takes_what_the_plan_says(family: str, tuning: str, circumstance: str) -> None:
    """Weights, gradients and optimizer to the byte; the peak within 10 %, without weights and optimizer within 15 %.

    Where blocks are computed again the plan may be above by 10 % more: all gradients count as if they were there when
    the block that needs most is, which is so in deep models, and not in one of two blocks; and bf16 weights as if the
    largest was rounded first.
    """
    recipe = tiny_recipe(family, *TUNINGS[tuning], *CIRCUMSTANCES[circumstance])
    job = job_of(recipe)
    job.refuse_layout()
    ((planned,), measured) = estimate(job, layout_of(recipe, 1)).ranks, measure(recipe, job.config)
    memory = planned.memory
    assert memory.parameters == measured.parameters
    assert memory.gradients == measured.gradients
    assert memory.optimizer == measured.optimizer
    fixed = measured.parameters + measured.optimizer
    above = 0.1 * (recipe.parallel.checkpoint_activations != "none")
    assert 0.9 <= memory.peak / measured.peak <= 1.1 + above
    assert 0.85 - above <= (memory.peak - fixed) / (measured.peak - fixed) <= 1.15 + 1.5 * above


SHARD, OFFLOAD, EIGHT = "parallel.shard=parameters", "parallel.offload=true", "train.batch_size=8"
DEEP = ("model.config.num_layers=4", EIGHT)
INTERLEAVED = ("parallel.pipe=2", "parallel.schedule=interleaved", *DEEP)
EXPERTS = "model.config.num_experts=4"
TENSOR, SEQUENCE = "parallel.tensor=2", "parallel.sequence_parallel=true"
LAYOUTS = {
    "shared parts on two stages": (2, "chatglm2", (*INTERLEAVED, *BESIDE["prefix"])),
    "position bias on two stages": (2, "cpm2", INTERLEAVED),
    "soft prompts on two stages": (2, "cpm_bee", (*INTERLEAVED, *BESIDE["prompt"])),
    "lora on two stages": (2, "cpm1", (*INTERLEAVED, *BESIDE["lora"])),
    "experts": (2, "cpm2", (EXPERTS, "parallel.expert=2", BF16)),
    "experts, divided": (2, "cpm2", (EXPERTS, TENSOR)),
    "experts along the text": (2, "cpm2", (EXPERTS, TENSOR, SEQUENCE)),
    "offloaded, alone": (1, "cpm_bee", (SHARD, OFFLOAD, FULL, BF16, TWICE)),
    "offloaded, two": (2, "chatglm2", (SHARD, OFFLOAD, EIGHT)),
    "a large table": (2, "cpm_bee", (SHARD, FULL, "model.config.vocab_size=12000", EIGHT)),
    "large tables, one pass": (2, "chatglm2", (SHARD, FULL, "model.config.vocab_size=12000", TWICE)),
    "nf4, sharded": (2, "cpm_bee", (SHARD, *BESIDE["lora"], "model.quantise=nf4", BF16, TWICE)),
    "ia3, sharded gradients": (2, "cpm_bee", ("parallel.shard=gradients", *BESIDE["ia3"], BF16, TWICE)),
    "frozen, sharded": (2, "cpm2", (SHARD, *OF_BASE["frozen"], TWICE)),
    "dora, divided": (2, "chatglm2", (TENSOR, *BESIDE["dora"])),
    "prefix, divided": (2, "cpm1", (TENSOR, *BESIDE["prefix"])),
    "soft prompts, divided": (2, "cpm_bee", (TENSOR, *BESIDE["prompt"], BF16)),
    "divided and sharded": (2, "cpm1", (TENSOR, SHARD, FULL, TWICE)),
    "soft prompts on stages": (2, "cpm_bee", ("parallel.pipe=2", *BESIDE["prompt"], EIGHT)),
    "two kinds of blocks": (2, "cpm1_t5", ("parallel.pipe=2", TWICE)),
    "copies": (2, "cpm1", ("parallel.data=2", TWICE)),
}


@pytest.mark.parametrize(
    "name", sampled(list(LAYOUTS), ["shared parts on two stages", "experts along the text", "offloaded, alone"])
)
def test_a_rank_takes_what_the_plan_says(name: str) -> None:
    world, family, changes = LAYOUTS[name]
    recipe = tiny_recipe(family, *changes)
    job, layout = job_of(recipe), layout_of(recipe, world)
    ranks = [rank.memory for rank in estimate(job, layout).ranks]
    # On a CPU the host's memory is the device's.
    planned = [one.peak + layout.offload * (one.parameters + one.gradients + one.optimizer) for one in ranks]
    found = run_ranks(world, lambda: measure_rank(recipe, job.config, layout.micro_batch_size, layout.micro_batches))
    assert planned == pytest.approx(found if len(planned) == world else found[:1], rel=0.1)
