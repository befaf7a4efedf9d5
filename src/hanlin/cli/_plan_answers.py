"""`hanlin plan --serve`: what a device holds while it answers, how many at once, how fast."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hanlin.cli._say import tell
from hanlin.core.errors import ConfigError

if TYPE_CHECKING:
    from hanlin.core.cards import Device
    from hanlin.planner.answering import AnsweringModel
    from hanlin.recipe.settings import Recipe

__all__ = ["plan_answers"]

_GIB = 1 << 30
_CONTEXT = 2048


def plan_answers(args: argparse.Namespace, recipe: Recipe, device: Device) -> int:
    """Print the plan; the exit code: 1 where not even one answer fits.

    Raises: ConfigError, CheckpointError.
    """
    from hanlin.planner.answering import AnsweringModel
    from hanlin.serve.limits import Limits

    context = _context(args, recipe)
    lengths = context, args.encoder_length or context, Limits().step_tokens
    model = AnsweringModel(recipe, device, args.size, lengths)
    rows = model.most_rows(device)
    if args.json:
        print(_json(args, model, device, rows))
    else:
        tell("\n".join(_lines(args, model, device, rows)))
    return 0 if rows else 1


def _context(args: argparse.Namespace, recipe: Recipe) -> int:
    """Raises: ConfigError for more tokens than the model has places for, and for what would have no effect."""
    from hanlin.models.family import load_family
    from hanlin.planner.job import planned_config

    idle = {"--nodes": args.nodes > 1, "--per-node": args.per_node > 1, "--sample-length": args.sample_length > 0}
    if given := [option for option, is_given in idle.items() if is_given]:
        raise ConfigError(f"{', '.join(given)}: --serve plans one device that holds the whole model; leave it out")
    config, _ = planned_config(recipe, load_family(recipe.model.family), args.size)
    limit = getattr(config, "max_length", None)
    if args.context is None:
        return min(_CONTEXT, limit or _CONTEXT)
    if limit is not None and args.context > limit:
        raise ConfigError(
            f"--context {args.context}: the model has places for {limit} tokens (model.config.max_length)"
        )
    return int(args.context)


def _json(args: argparse.Namespace, model: AnsweringModel, device: Device, rows: int) -> str:
    shown = max(rows, 1)
    values: dict[str, Any] = {
        "recipe": str(args.recipe),
        "device": asdict(device),
        "precision": model.precision,
        "parameters": model.parameters,
        "notes": model.notes,
        "weight_bytes": model.weights,
        "sequence_bytes": model.slot,
        "sequence_positions": model.width,
        "encoder_positions": model.encoder_width,
        "reading_bytes": model.reading.transient,
        "step_bytes": model.step_bytes(shown),
        "peak_bytes": model.peak(shown),
        "sequences": rows,
        "seconds_per_step": {str(count): model.step_seconds(count, device).total for count in sorted({1, shown})},
        "reading_seconds": model.reading_seconds(device).total,
        "attention": {"prompts": _kernels(model, reading=True), "answers": _kernels(model, reading=False)},
    }
    return json.dumps(values, indent=1, ensure_ascii=False)


def _lines(args: argparse.Namespace, model: AnsweringModel, device: Device, rows: int) -> Iterable[str]:
    auto = " (train.precision: auto)" if model.recipe.train.precision == "auto" else ""
    encoder = f" and {model.encoder_length:,} of an encoder" if model.encoder_width else ""
    yield f"{args.recipe}: {model.parameters:,} parameters, {model.precision}{auto}, answers on {device.name}"
    yield from (f"note: {note}" for note in model.notes)
    if model.recipe.parallel.tensor * model.recipe.parallel.pipe > 1:
        yield "note: planned for one device that holds the whole model, not for parallel.tensor and parallel.pipe"
    yield f"weights: {model.weights / _GIB:.2f} GiB"
    yield f"KV cache: {model.slot / 2**20:.1f} MiB for each sequence of {model.context:,} tokens{encoder}"
    step = f"a step of {max(rows, 1):,} answers: {model.step_bytes(max(rows, 1)) / _GIB:.2f} GiB"
    yield f"reading a prompt: {model.reading.transient / _GIB:.2f} GiB besides; {step}"
    for what, is_reading in (("attention of prompts", True), ("attention of answers", False)):
        for kernel, reason in _kernels(model, reading=is_reading).items():
            yield f"{what}: {kernel}{f' ({reason})' if reason else ''}"
    yield from _verdict(model, device, rows)


def _verdict(model: AnsweringModel, device: Device, rows: int) -> Iterable[str]:
    if not rows:
        advice = ["take a larger device", "a shorter --context"]
        if model.recipe.model.quantise is None and model.recipe.generate.expert_memory is None:
            advice.append("or pack the weights (model.quantise=nf4)")
        yield f"does not fit {device.name}: {model.peak(1) / _GIB:.1f} GiB for one sequence; {', '.join(advice)}"
        return
    positions = rows * (model.width + model.encoder_width)
    yield f"fits {device.name}: {rows:,} sequences at once (--max-rows {rows} --max-cache-tokens {positions})"
    if model.beams > 1:
        yield f"generate.method {model.recipe.generate.method}: {model.beams} beams, each a sequence of its own"
    for count in sorted({1, rows}):
        seconds = model.step_seconds(count, device).total
        yield (
            f"{count:,} at once: about {count / seconds:,.0f} tokens/s, {1 / seconds:,.0f} for each (an estimate, "
            "docs/planning.md)"
        )
    yield f"the first token of a prompt of {min(model.context, model.step_tokens):,} tokens: about " + (
        f"{model.reading_seconds(device).total * 1e3:,.0f} ms"
    )


def _kernels(model: AnsweringModel, *, reading: bool) -> Mapping[str, str]:
    from hanlin.planner.kernels import why_not_flash

    calls = (model.reading if reading else model.step(1)).attention
    found: dict[str, str] = {}
    for call, kernel in calls.items():
        if model.device is not None:
            found.setdefault(kernel, why_not_flash(call, kernel, model.device))
    return found
