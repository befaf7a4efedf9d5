"""What keeps a layout from its batch and its model: key and text of each problem, before anything heavy starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hanlin.core.errors import ConfigError
from hanlin.recipe.reading import Found
from hanlin.recipe.settings import ParallelSettings, Recipe

if TYPE_CHECKING:
    from torch import nn

FORMULA = "train.batch_size = rows per forward pass x micro-batches x data"


def settings_problems(recipe: Recipe) -> Found:
    """What is wrong with a layout whatever the model; without torch."""
    yield from combination_problems(recipe.parallel)
    if recipe.parallel.data is not None:
        yield from degree_problems(recipe.parallel, recipe.parallel.data)
    yield from _batch(recipe)


def combination_problems(layout: ParallelSettings) -> Found:
    """Settings that ask for something that their layout does not have."""
    if layout.offload and layout.shard != "parameters":
        yield "parallel.offload", "only with parallel.shard: parameters; set that or remove it"
    elif layout.offload and layout.expert > 1:
        yield "parallel.offload", "not with parallel.expert, which keeps its experts on the device; remove one of them"


def degree_problems(layout: ParallelSettings, data: int) -> Found:
    """Groups of data ranks that are not equally large."""
    groups = {"shard_ranks": 1 if layout.shard == "none" else layout.shard_ranks or data, "expert": layout.expert}
    for name, size in groups.items():
        if data % size:
            yield f"parallel.{name}", f"{size} does not divide the {data} data ranks; use a divisor of {data}"


def _batch(recipe: Recipe) -> Found:
    layout, rows = recipe.parallel, recipe.train.batch_size
    if layout.micro_batches and recipe.train.micro_batch_size:
        yield (
            "parallel.micro_batches",
            f"{layout.micro_batches} is given beside train.micro_batch_size {recipe.train.micro_batch_size}, and each "
            "of them says how a rank's rows are cut; remove one of them",
        )
        return
    data, parts = layout.data or 1, layout.micro_batches or 1
    if rows < data * parts:
        yield (
            "train.batch_size",
            f"{rows} rows are too few for {parts} micro-batches x {data} data ranks: {FORMULA}; "
            f"use at least {data * parts}, or fewer of them",
        )
    rounds = max(parts // layout.pipe, 1)
    if layout.schedule == "interleaved" and parts % rounds:
        yield (
            "parallel.micro_batches",
            f"{parts} cannot go through an interleaved pipeline of {layout.pipe} ranks in equal rounds; "
            f"use {parts // layout.pipe * layout.pipe} or {(parts // layout.pipe + 1) * layout.pipe}",
        )


def compile_problems(model: nn.Module, layout: ParallelSettings) -> Found:
    """What keeps the blocks of a model from being compiled (`train.compile: blocks`)."""
    from hanlin.layers.experts import Experts
    from hanlin.layers.quantised import packed_linears

    if layout.tensor > 1:
        yield (
            "train.compile",
            "blocks, with parallel.tensor, whose ranks move activations inside of blocks by hooks that torch.compile "
            "does not see; set it to none or parallel.tensor to 1",
        )
    if any(isinstance(module, Experts) for module in model.modules()):
        yield "train.compile", "blocks, of a mixture of experts, whose shapes follow its routing; set it to none"
    if packed_linears(model):
        yield "train.compile", "blocks, of a packed base, whose products torch.compile cannot take in; set it to none"


def model_problems(model: nn.Module, layout: ParallelSettings) -> Found:
    """What is wrong with a layout for a model, which may be on the meta device."""
    if layout.expert > 1:
        from hanlin.parallel.experts import expert_problems

        yield from expert_problems(model, layout.expert)
    if layout.tensor > 1:
        from hanlin.parallel.tensor import division_problems

        yield from division_problems(model, layout.tensor)
    if layout.pipe > 1:
        from hanlin.parallel.stages import stage_blocks

        try:
            stage_blocks(model, layout.num_stages)
        except ConfigError as error:
            key, _, text = str(error).partition(": ")
            yield key, text
