"""Which settings of a recipe do nothing because of another one.

A user who gives such a setting expects something that will not happen, so `check` reports it; the resolved recipe
leaves it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hanlin.recipe.settings import ModelSettings, Recipe, RunSettings
from hanlin.recipe.tuning import TUNING_METHODS, TuningMethod

__all__ = ["Unused", "depends_on", "unused_settings"]


@dataclass(frozen=True)
class Unused:
    """cause: the setting that makes another one idle; reason: the rest of the sentence "has no effect ..."."""

    cause: str
    reason: str


def unused_settings(recipe: Recipe) -> dict[str, Unused]:
    """The keys of all settings, given or default, that change nothing in this recipe."""
    rules = [*_rules(recipe), *_tuning_rules(recipe.tuning)]
    return {key: unused for keys, unused, is_idle in rules if is_idle for key in keys.split()}


def depends_on(key: str) -> tuple[str, ...]:
    """The settings that can make this one idle, in any recipe."""
    return _causes().get(key, ())


@cache
def _causes() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    plain = Recipe(model=ModelSettings(family="any"), run=RunSettings(folder=Path()))
    of_methods = [rule for name in TUNING_METHODS.names for rule in _tuning_rules(TUNING_METHODS.make(name))]
    for keys, unused, _ in (*_rules(plain), *of_methods):
        for key in keys.split():
            found[key] = tuple(dict.fromkeys([*found.get(key, ()), unused.cause]))
    return found


def _tuning_rules(tuning: TuningMethod) -> list[tuple[str, Unused, bool]]:
    """Those of a method, as `_rules`."""
    return [
        (
            " ".join(f"tuning.{name}" for name in one.names.split()),
            Unused(f"tuning.{one.cause}", one.reason),
            one.is_idle,
        )
        for one in tuning.idle_rules
    ]


def _rules(recipe: Recipe) -> list[tuple[str, Unused, bool]]:
    """Keys, why they may be idle, and whether they are; a later rule's reason wins."""
    model, train, generate, layout = recipe.model, recipe.train, recipe.generate, recipe.parallel
    return [
        (
            "model.size",
            Unused("model.base", "because model.base has its own shape; remove one of them"),
            model.base is not None,
        ),
        (
            "train.loss_scale_consecutive",
            Unused("train.loss_scale_hysteresis", "with train.loss_scale_hysteresis 1; set that to 2 or more"),
            train.loss_scale_hysteresis == 1,
        ),
        (
            "train.loss_scale_hysteresis train.loss_scale_consecutive train.loss_scale_min",
            Unused("train.loss_scale_steps", "with train.loss_scale_steps null, which keeps the scale as it is"),
            train.loss_scale_steps is None,
        ),
        (
            "train.loss_scale train.loss_scale_steps train.loss_scale_hysteresis train.loss_scale_consecutive "
            "train.loss_scale_min",
            Unused("train.precision", f"with train.precision {train.precision}; only fp16 scales the loss"),
            train.precision in ("fp32", "bf16"),
        ),
        (
            "train.save_dtype train.weight_dtype",
            Unused("tuning.method", f"with tuning.method {recipe.tuning.method}, which writes an adapter"),
            not recipe.tuning.trains_base,
        ),
        (
            "train.decay_steps",
            Unused("train.schedule", f"with train.schedule {train.schedule}, which has no end; use linear or cosine"),
            train.schedule_form == "standard" and train.schedule not in ("linear", "cosine"),
        ),
        (
            "train.warmup_share train.min_lr",
            Unused("train.schedule_form", "with train.schedule_form standard; use floored, or train.warmup_steps"),
            train.schedule_form == "standard",
        ),
        (
            "train.min_lr",
            Unused("train.schedule_form", "with train.schedule_form endless, which knows no least rate"),
            train.schedule_form == "endless",
        ),
        (
            "train.warmup_steps",
            Unused("train.warmup_share", "with train.warmup_share; remove one of them"),
            train.schedule_form != "standard" and train.warmup_share is not None,
        ),
        (
            "train.first_step_at_zero",
            Unused("train.schedule_form", f"with train.schedule_form {train.schedule_form}, which always does so"),
            train.schedule_form != "standard",
        ),
        (
            "train.patience",
            Unused("train.eval_every", "without train.eval_every; say how often to evaluate"),
            train.eval_every is None,
        ),
        (
            "train.eval_every train.samples train.patience",
            Unused("data.eval", "without data.eval; name the files to evaluate on"),
            not recipe.data.eval and recipe.data.split is None,
        ),
        (
            "data.transform data.format data.overlong data.bad_rows data.pack data.shuffle data.in_context "
            "data.train_share data.eval_share data.train_limit data.mixture",
            Unused("data.split", "with data.split, which reads windows of token corpora; remove one of them"),
            recipe.data.split is not None,
        ),
        (
            "data.weights data.eval_windows data.text_key",
            Unused("data.split", "without data.split; it is for pretraining on token corpora"),
            recipe.data.split is None,
        ),
        (
            "data.shuffle data.in_context",
            Unused("data.mixture", "with data.mixture, which has an order and an incontext_weight of its own"),
            recipe.data.mixture is not None,
        ),
        (
            "data.transform",
            Unused("data.mixture", "with data.mixture, whose data sets have transforms of their own"),
            recipe.data.mixture is not None and not (recipe.data.eval or recipe.evaluate.data),
        ),
        (
            "evaluate.metrics",
            Unused("evaluate.tasks", "without the task generate; add it to evaluate.tasks or remove the metrics"),
            "generate" not in recipe.evaluate.tasks,
        ),
        (
            "generate.repetition_window",
            Unused("generate.repetition_penalty", "with generate.repetition_penalty 1"),
            generate.repetition_penalty == 1,
        ),
        (
            "parallel.stages_per_rank",
            Unused(
                "parallel.schedule", f"with parallel.schedule {layout.schedule}; only interleaved has several stages"
            ),
            layout.schedule != "interleaved",
        ),
        (
            "parallel.schedule parallel.stages_per_rank",
            Unused("parallel.pipe", "with parallel.pipe 1; a schedule is for several stages"),
            layout.pipe == 1,
        ),
        (
            "parallel.shard_ranks",
            Unused("parallel.shard", "with parallel.shard none; set it to gradients or parameters, or remove it"),
            layout.shard == "none",
        ),
        (
            "parallel.gather_fp32",
            Unused("parallel.shard", "with parallel.shard none; set it to gradients or parameters, or remove it"),
            layout.gather_fp32 and layout.shard == "none",
        ),
        (
            "parallel.gather_fp32",
            Unused("train.precision", "with train.precision fp32; set that to bf16 or fp16"),
            layout.gather_fp32 and recipe.train.precision == "fp32",
        ),
        (
            "parallel.gather_fp32",
            Unused("train.weight_dtype", "with train.weight_dtype bf16; there is nothing else to gather"),
            layout.gather_fp32 and train.weight_dtype == "bf16",
        ),
        (
            "parallel.sequence_parallel",
            Unused("parallel.tensor", "with parallel.tensor 1; it divides the text among the tensor ranks"),
            layout.sequence_parallel and layout.tensor == 1,
        ),
    ]
