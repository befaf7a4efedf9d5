"""What a recipe needs on so many devices, per rank: memory, traffic and time; and which layouts would fit.

hanlin plan recipe.yaml --nodes 2 --per-node 8 --device 910B-64     training
hanlin plan chatglm2-6b --device A10-24 --serve --context 4096      answering: how many at once, how fast

No device, no weights and no vocabulary are needed: where they are missing, the sizes of the family's config stand for
them. Exit code 1: the recipe's layout does not fit the device.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from hanlin.cli._numbers import MAX_PROCESSES, real, whole
from hanlin.cli._recipe import add_recipe
from hanlin.cli._say import in_users_language, tell
from hanlin.core.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from hanlin.core.cards import Device
    from hanlin.planner.estimate import Estimate
    from hanlin.planner.job import PlannedModel
    from hanlin.planner.layout import Layout
    from hanlin.planner.search import Proposal
    from hanlin.recipe.settings import Recipe

HELP = "what a layout needs in memory, traffic and time, before anything runs"

_GIB = 1 << 30
_SHOWN_RANKS = 4
_DEGREES = ("data", "tensor", "pipe")
_MEMORY = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "copies": "copies of weights",
    "activations": "activations",
    "loss": "head and loss",
    "backward": "backward pass",
    "peak": "peak",
    "host": "in the CPU's memory",
    "teacher": "the teacher's weights",
}
_TRAFFIC = {
    "gather": "weights gathered",
    "scatter": "gradients divided",
    "reduce": "gradients summed",
    "tensor": "tensor ranks",
    "pipe": "between stages",
    "expert": "to experts",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument("--nodes", type=whole(1, 100_000), default=1, help="machines (default 1)")
    parser.add_argument(
        "--per-node", type=whole(1, MAX_PROCESSES), default=1, help="devices of each machine (default 1)"
    )
    parser.add_argument("--device", default="A100-80", help="its name (default A100-80; another name lists all)")
    parser.add_argument(
        "--memory",
        type=real(0.001, 10**6),
        metavar="GIB",
        help="of each device, where it has another one than the device of that name",
    )
    parser.add_argument(
        "--network", type=real(0.001, 10**6), default=25.0, metavar="GB/S", help="per device, between machines (25)"
    )
    parser.add_argument("--size", help="a named size of the family in place of the recipe's base")
    parser.add_argument(
        "--encoder-length", type=whole(1, 2**24), help="tokens that an encoder reads (default: data.max_length)"
    )
    parser.add_argument(
        "--sample-length", type=whole(1, 2**24), default=0, help="tokens of a usual sample in a packed row"
    )
    parser.add_argument(
        "--serve", action="store_true", help="what one device holds while it answers, how many at once, how fast"
    )
    parser.add_argument(
        "--context",
        type=whole(2, 2**24),
        help="with --serve: tokens of a prompt and its answer together (default 2048)",
    )
    parser.add_argument("--propose", type=whole(0), default=8, metavar="N", help="so many layouts that fit (default 8)")
    parser.add_argument("--json", action="store_true", help="everything as JSON, in bytes and seconds")


def run(args: argparse.Namespace) -> int:
    from hanlin.planner.devices import find_device
    from hanlin.planner.estimate import estimate
    from hanlin.planner.job import PlannedModel, SequenceLengths
    from hanlin.planner.search import propose

    device = find_device(args.device)
    if args.memory is not None:
        device = replace(device, memory_bytes=int(args.memory * _GIB))
    recipe = _recipe(args)
    _refuse(recipe, answers=args.serve)
    if args.serve:
        from hanlin.cli._plan_answers import plan_answers

        return plan_answers(args, recipe, device)
    if args.context is not None:
        raise ConfigError("--context: goes with --serve; the rows of training have data.max_length tokens")
    lengths = SequenceLengths(recipe.data.max_length, args.encoder_length, args.sample_length)
    job = PlannedModel(recipe, lengths, args.size, device=device)
    job.refuse_layout()
    layout, reason = _layout(recipe, args.nodes * args.per_node)
    own = None if layout is None else estimate(job, layout)
    found = propose(job, device, args.nodes, args.per_node, args.network * 1e9) if args.propose else []
    notes = [*job.notes, *([reason] if reason else [])]
    show = _print_json if args.json else _print_tables
    show(args, job, device, own, found[: args.propose], notes)
    return 0 if own is not None and own.fits(device) else 1


def _recipe(args: argparse.Namespace) -> Recipe:
    """That of a file or a run; of a folder or a file of weights one that says nothing else.

    Raises: ConfigError, CheckpointError.
    """
    from hanlin.adapters.opening import is_adapter
    from hanlin.api.weights import find_family
    from hanlin.recipe.reading import is_recipe, load_recipe, make_recipe

    path = args.recipe
    if not path.exists():
        return _missing_recipe(path, args.changes)
    if is_recipe(path):
        return load_recipe(path, args.changes)
    if is_adapter(path):
        raise ConfigError(
            f"{path}: an adapter, which is planned with its base: hanlin plan BASE model.adapter={path}, or the recipe "
            "that trains it"
        )
    return make_recipe(
        {"model": {"family": find_family(path).name, "base": str(path)}, "run": {"folder": "."}}, args.changes
    )


def _missing_recipe(path: Path, changes: Sequence[str]) -> Recipe:
    """Raises: ConfigError that says where it was looked for, and what is called nearly so."""
    from hanlin.recipe.reading import load_recipe, nearest

    try:
        return load_recipe(path, changes)
    except ConfigError as error:
        beside = [str(path.parent / entry.name) for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = nearest(str(path), beside) if beside else ""
        told = str(error) + (near if "did you mean" in near and "; " not in str(error) else "")
        where = "" if path.is_absolute() else f" (that is {path.absolute()})"
        raise ConfigError(told.replace(f"{path}: ", f"{path}{where}: ", 1)) from None


def _refuse(recipe: Recipe, *, answers: bool) -> None:
    """Raises: ConfigError for what `check` finds in the settings that a plan follows from."""
    from hanlin.checking.model import value_problems
    from hanlin.checking.settings import batch_problems, objective_problems
    from hanlin.models.family import load_family

    found = [*value_problems(recipe, load_family(recipe.model.family))]
    if not answers:
        found += [*batch_problems(recipe), *objective_problems(recipe)]
    if found:
        raise ConfigError("; ".join(f"{key}: {text}" for key, text in found))


def _layout(recipe: Recipe, world: int) -> tuple[Layout | None, str]:
    """The recipe's layout; if it states none, and the default is none for so many ranks, why."""
    from hanlin.planner.layout import layout_of

    try:
        return layout_of(recipe, world), ""
    except ConfigError as error:
        if "parallel" in recipe.model_fields_set:
            raise
        return None, f"the recipe states no layout, and data ranks alone do not do: {error}"


# --- JSON ---


def _print_json(
    args: argparse.Namespace,
    job: PlannedModel,
    device: Device,
    own: Estimate | None,
    found: Sequence[Proposal],
    notes: list[str],
) -> None:
    def told(result: Estimate) -> dict[str, Any]:
        seconds = result.step_seconds(device, args.per_node, args.network * 1e9)
        return {
            "layout": asdict(result.layout),
            "settings": result.layout.as_settings(),
            "ranks": [asdict(rank) for rank in result.ranks],
            "peak_bytes": result.peak,
            "bubble": result.layout.bubble(),
            "step_seconds": seconds.total,
            "seconds": asdict(seconds),
            "fits": result.fits(device),
        }

    values = {
        "recipe": str(args.recipe),
        "nodes": args.nodes,
        "per_node": args.per_node,
        "device": asdict(device),
        "precision": job.precision,
        "attention": {} if own is None else _kernels(own),
        "parameters": _elements(job, trained_only=False),
        "trained": _elements(job, trained_only=True),
        "notes": list(notes),
        "plan": None if own is None else told(own),
        "proposals": [told(proposal.estimate) for proposal in found],
    }
    print(json.dumps(values, indent=1, ensure_ascii=False))


def _elements(job: PlannedModel, *, trained_only: bool) -> int:
    from hanlin.planner.layout import Layout

    return sum(
        weight.count(Layout()) * weight.numbers for weight in job.weights if weight.is_trained or not trained_only
    )


# --- tables ---


def _print_tables(
    args: argparse.Namespace,
    job: PlannedModel,
    device: Device,
    own: Estimate | None,
    found: Sequence[Proposal],
    notes: list[str],
) -> None:
    from hanlin.core.terminal import screen

    console = screen(highlight=False)
    trained = f"{_elements(job, trained_only=True):,} of {_elements(job, trained_only=False):,} parameters trained"
    auto = " (train.precision: auto)" if job.recipe.train.precision == "auto" else ""
    tell(f"{args.recipe}: {trained}, {job.precision}{auto}, rows of {job.lengths.length} tokens")
    for note in notes:
        tell(f"note: {note}")
    if own is not None:
        tell(_describe(own.layout))
        console.print(_ranks_table(own))
        for line in _verdict(own, job.recipe.train.batch_size, device, args):
            tell(line)
    if args.propose:
        console.print(_proposals_table(found, device, args) if found else _advice(job, device))
        if found:
            tell("as settings, in the same order, to add to a command:")
        for proposal in found:
            print(shlex.join(proposal.estimate.layout.as_settings()))


def _ranks_table(own: Estimate) -> Table:
    from rich.table import Table

    table = Table(title="per rank, GiB", title_justify="left")
    table.add_column("")
    shown = _some_ranks(own)
    for rank in shown:
        table.add_column(f"stage {rank.rank}" if len(own.ranks) > 1 else "each rank", justify="right")
    for name, text in _MEMORY.items():
        values = [getattr(rank.memory, name) for rank in shown]
        if any(values):
            table.add_row(text, *(f"{value / _GIB:.2f}" for value in values), style="bold" if name == "peak" else None)
    table.add_section()
    for name, text in _TRAFFIC.items():
        values = [getattr(rank.traffic, name) for rank in shown]
        if any(values):
            table.add_row(f"sent per step: {text}", *(f"{value / _GIB:.2f}" for value in values))
    table.add_row("10¹² FLOP per step", *(f"{rank.flops / 1e12:.1f}" for rank in shown))
    return table


def _some_ranks(own: Estimate) -> list[Any]:
    """All of them or, if they are many, the first, the fullest and the last."""
    if len(own.ranks) <= _SHOWN_RANKS:
        return list(own.ranks)
    fullest = max(own.ranks, key=lambda rank: rank.memory.peak)
    return sorted({own.ranks[0], fullest, own.ranks[-1]}, key=lambda rank: rank.rank)


def _verdict(own: Estimate, batch_size: int, device: Device, args: argparse.Namespace) -> Iterable[str]:
    from hanlin.planner.devices import names_of
    from hanlin.planner.search import fitting_devices

    layout, job = own.layout, own.shares[0].job
    for kernel, reason in _kernels(own).items():
        tell(f"attention on {device.name}: {kernel}{f' ({reason})' if reason else ''}")
    yield (
        f"global batch: {layout.batch_size} rows = {layout.micro_batch_size} per forward pass x {layout.micro_batches} "
        f"micro-batches x {layout.data} data ranks (train.batch_size: {batch_size})"
    )
    if layout.pipe > 1:
        yield f"pipeline: each rank waits {layout.bubble():.1%} of the step ({layout.schedule})"
    yield from _time_of_step(own, device, args)
    word = "fits" if own.fits(device) else "does not fit"
    yield f"{word} {device.name}; fits: {names_of(fitting_devices(job, layout)) or 'none of the known devices'}"


def _time_of_step(own: Estimate, device: Device, args: argparse.Namespace) -> Iterable[str]:
    from dataclasses import fields

    seconds, job = own.step_seconds(device, args.per_node, args.network * 1e9), own.shares[0].job
    tokens = own.layout.batch_size * job.lengths.length / seconds.total
    possible = device.peak(job.precision) * own.layout.world * seconds.total
    yield (
        f"step: about {_time(seconds.total)} on {device.name} (an estimate, docs/planning.md): {tokens:,.0f} tokens/s, "
        f"MFU {job.needed_flops(own.layout.batch_size) / possible:.0%}"
    )
    parts = {field.name: getattr(seconds, field.name) for field in fields(seconds)}
    told = (
        f"{in_users_language(name)} {in_users_language(_time(value))}" for name, value in parts.items() if value > 0
    )
    yield f"of which {', '.join(told)}"


def _kernels(own: Estimate) -> dict[str, str]:
    """The kernels that compute attention, each with what keeps it from a faster one."""
    from hanlin.planner.kernels import why_not_flash

    found: dict[str, str] = {}
    for share in own.shares:
        if (device := share.job.device) is not None:
            for call, kernel in share.trace.attention.items():
                found.setdefault(kernel, why_not_flash(call, kernel, device))
    return found


def _proposals_table(found: Sequence[Proposal], device: Device, args: argparse.Namespace) -> Table:
    from rich.table import Table
    from rich.text import Text

    title = f"fits {args.nodes} x {args.per_node} {device.name}: {' x '.join(_DEGREES)}"
    has_experts = any(each.estimate.layout.expert > 1 for each in found)
    table = Table(title=title, title_justify="left")
    names = ("layout", *(["expert"] if has_experts else []), "shard", "recompute", "rows", "GiB", "sent", "bubble")
    for name in (*names, "step"):
        table.add_column(name, justify="left" if name in ("layout", "shard", "recompute") else "right", no_wrap=True)
    for proposal in found:
        layout = proposal.estimate.layout
        table.add_row(
            "x".join(str(getattr(layout, name)) for name in _DEGREES),
            *([str(layout.expert)] if has_experts else []),
            Text(layout.shard),
            Text(layout.checkpoint_activations),
            f"{layout.micro_batch_size} x {layout.micro_batches}",
            f"{proposal.estimate.peak / _GIB:.1f}",
            f"{max(rank.traffic.total for rank in proposal.estimate.ranks) / _GIB:.1f}",
            f"{layout.bubble():.0%}",
            _time(proposal.step_seconds),
        )
    table.caption = "rows: of a forward pass x micro-batches; GiB: peak; sent: GiB per step"
    table.caption += "; expert: of the data ranks" if has_experts else ""
    return table


def _advice(job: PlannedModel, device: Device) -> str:
    return (
        f"no layout fits {device.name} with train.batch_size {job.recipe.train.batch_size}; take more devices, larger "
        "ones, a batch that more ranks can divide, shorter rows, or a tuning method with fewer weights"
    )


def _describe(layout: Layout) -> str:
    degrees = " x ".join(f"{name} {getattr(layout, name)}" for name in _DEGREES)
    chosen = [
        f"experts among {layout.expert} data ranks" if layout.expert > 1 else "",
        f"shard {layout.shard}" if layout.shard != "none" else "",
        "sequence parallel" if layout.sequence_parallel else "",
        "offload" if layout.offload else "",
        f"checkpoint {layout.checkpoint_activations}" if layout.checkpoint_activations != "none" else "",
    ]
    return ", ".join([degrees, *filter(None, chosen)])


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1e3:.1f} ms"
