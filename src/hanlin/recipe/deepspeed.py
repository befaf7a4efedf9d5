"""DeepSpeed's files read as settings of ours: its JSON configuration and its hostfile.

What DeepSpeed's file says about the layout and the arithmetic becomes settings; what tunes DeepSpeed's own engine has
no meaning here. A value that is absent gets DeepSpeed's default, which is not always ours (no clipping, for one).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanlin.core.errors import ConfigError
from hanlin.core.files import read_json
from hanlin.core.os_errors import explain

__all__ = ["Translation", "parse_hosts", "read_deepspeed", "read_hostfile", "translate_deepspeed"]


@dataclass(frozen=True)
class Translation:
    """settings: dotted keys of a recipe with their values; notes: what was left out or needs a look, and why."""

    settings: Mapping[str, Any]
    notes: Sequence[str]


def read_deepspeed(path: Path, data_ranks: int | None = None) -> Translation:
    """Translate a configuration file; see `translate_deepspeed`."""
    config = read_json(path, ConfigError, holds="DeepSpeed's configuration")
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: DeepSpeed's configuration is a JSON object; found {type(config).__name__}")
    try:
        return translate_deepspeed(config, data_ranks)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def translate_deepspeed(config: Mapping[str, Any], data_ranks: int | None = None) -> Translation:
    """The settings that a configuration stands for.

    data_ranks: among how many ranks the rows of a batch are divided; None: the file must not need it.
    Raises: ConfigError for what contradicts itself, or cannot be had here and would change the result.
    """
    given, auto = _without_auto(config)
    if changing := [key for key in _CHANGES_NUMBERS if _is_on(given.get(key))]:
        raise ConfigError(
            f"{', '.join(changing)}: changes what is learnt and is not had here; take it out to train without it"
        )
    notes = [f"{key}: is auto, which another program fills in; our setting keeps its value" for key in auto]
    settings = {
        **_batch(given, data_ranks),
        **_zero(given, notes),
        "train.clip": given.get("gradient_clipping") or None,
        **_precision(given, notes),
        **_optimizer(given, notes),
        **_schedule(given, notes),
        **_rest(given, notes),
    }
    kept = tuple(key for name in auto for key in _KEPT.get(name, ()))
    settings = {key: value for key, value in settings.items() if not key.startswith(kept)}
    notes += [f"{key}: {_NO_MEANING.get(key, 'is unknown here; left out')}" for key in given if key not in _READ]
    return Translation(settings, notes)


_CHANGES_NUMBERS = (
    *("amp", "compression_training", "curriculum_learning", "data_efficiency", "progressive_layer_drop"),
    *("quantize_training", "sparse_attention"),
)


def _is_on(value: Any) -> bool:
    """Whether a section of DeepSpeed's, or one inside it, is switched on; one without a switch is."""
    if not isinstance(value, Mapping):
        return bool(value)
    inner = [_is_on(part) for part in value.values() if isinstance(part, Mapping)]
    return bool(value["enabled"]) if "enabled" in value else any(inner) if inner else bool(value)


_READ = {
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("zero_optimization", "fp16", "bf16", "bfloat16", "optimizer", "scheduler"),
    *("steps_per_print", "tensorboard", "wandb", "activation_checkpointing", "tensor_parallel"),
}
_OWN_ENGINE = "has no meaning here: it tunes DeepSpeed's engine"
_ALWAYS_SO = "has no meaning here: gradients are summed in fp32 and divided once"
_NO_MEANING = {
    **dict.fromkeys(["communication_data_type", "prescale_gradients", "gradient_predivide_factor"], _ALWAYS_SO),
    **dict.fromkeys(
        ["sparse_gradients", "amp", "aio", "autotuning", "elasticity", "compression_training"], _OWN_ENGINE
    ),
    **dict.fromkeys(["zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "dump_state"], _OWN_ENGINE),
    **dict.fromkeys(["communication_data_type", "data_types", "disable_allgather", "seq_parallel_comm"], _OWN_ENGINE),
    **dict.fromkeys(["wall_clock_breakdown", "memory_breakdown", "comms_logger", "flops_profiler"], _OWN_ENGINE),
    "checkpoint": "has no meaning here: checkpoints are of one kind, whatever the layout",
}


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name) or {}
    if not isinstance(found, Mapping):
        raise ConfigError(f"{name}: expected a JSON object; found {found!r}")
    return found


_KEPT = {
    "gradient_clipping": ("train.clip",),
    **dict.fromkeys(["fp16", "fp16.enabled", "bf16", "bf16.enabled"], ("train.precision", "train.loss_")),
}
"""Settings that a value of auto leaves as they are."""


def _without_auto(config: Mapping[str, Any], inside: str = "") -> tuple[dict[str, Any], list[str]]:
    """The configuration without the values that transformers' Trainer would fill in, and the keys of those."""
    given, auto = {}, []
    for key, value in config.items():
        if value == "auto":
            auto.append(inside + key)
        elif isinstance(value, dict):
            given[key], inner = _without_auto(value, f"{inside}{key}.")
            auto += inner
        else:
            given[key] = value
    return given, auto


# --- batch ---


def _batch(given: Mapping[str, Any], data_ranks: int | None) -> dict[str, Any]:
    """train_batch_size = train_micro_batch_size_per_gpu x gradient_accumulation_steps x data ranks."""
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    rows, micro, steps = (_count(given, name) for name in names)
    if rows is None and micro is None:
        return {}
    if rows is not None and micro is not None and steps is not None:
        ranks, rest = divmod(rows, micro * steps)
        if rest or ranks != (data_ranks or ranks):
            raise ConfigError(
                f"train_batch_size {rows} must be train_micro_batch_size_per_gpu {micro} x "
                f"gradient_accumulation_steps {steps} x data ranks"
                + (f" {data_ranks} = {micro * steps * data_ranks}" if data_ranks else "")
            )
        return {"train.batch_size": rows, "train.micro_batch_size": micro, "parallel.data": ranks}
    if rows is not None and micro is not None:
        _divide(rows, micro * (data_ranks or 1), "train_batch_size", "train_micro_batch_size_per_gpu x data ranks")
        return {"train.batch_size": rows, "train.micro_batch_size": micro}
    if data_ranks is None:
        raise ConfigError("the number of data ranks is needed for the sizes of a batch; give it: --data N")
    steps = steps or 1
    if rows is None:
        assert micro is not None, "neither size of a batch"
        return {"train.batch_size": micro * steps * data_ranks, "train.micro_batch_size": micro}
    micro = _divide(rows, steps * data_ranks, "train_batch_size", "gradient_accumulation_steps x data ranks")
    return {"train.batch_size": rows, "train.micro_batch_size": micro}


def _count(given: Mapping[str, Any], name: str) -> int | None:
    value = given.get(name)
    if value is not None and (not isinstance(value, int) or value < 1):
        raise ConfigError(f"{name}: expected a positive whole number; found {value!r}")
    return value


def _divide(whole: int, part: int, name: str, by: str) -> int:
    if whole % part:
        raise ConfigError(f"{name} {whole} is not a multiple of {by} = {part}")
    return whole // part


# --- ZeRO and precision ---


def _zero(given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    zero = _section(given, "zero_optimization")
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise ConfigError(f"zero_optimization.stage: expected 0, 1, 2 or 3; found {stage!r}")
    if stage == 1:
        notes.append("zero_optimization.stage 1: shard: gradients (ZeRO-2), which holds less and sends no more")
    settings: dict[str, Any] = {"parallel.shard": ("none", "gradients", "gradients", "parameters")[stage]}
    for key in ("offload_optimizer", "offload_param"):
        device = _section(zero, key).get("device", "none")
        if device == "nvme":
            raise ConfigError(f"zero_optimization.{key}.device: nvme cannot be had here; cpu can, with stage 3")
        if device == "cpu" and stage < 3:
            notes.append(f"zero_optimization.{key}: cpu needs shard: parameters (stage 3) here; left out")
        elif device == "cpu":
            settings["parallel.offload"] = True
    rest = sorted(set(zero) - {"stage", "offload_optimizer", "offload_param"})
    if rest:
        notes.append(f"zero_optimization.{', '.join(rest)}: {_OWN_ENGINE}; torch overlaps and groups by blocks")
    return settings


def _precision(given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    fp16 = _section(given, "fp16")
    is_bf16 = any(_section(given, name).get("enabled", False) for name in ("bf16", "bfloat16"))
    if not fp16.get("enabled", False):
        return {"train.precision": "bf16" if is_bf16 else "fp32"}
    if is_bf16:
        raise ConfigError("fp16 and bf16 are both enabled; keep one of them")
    for key in ("auto_cast", "fp16_master_weights_and_grads"):
        if fp16.get(key):
            notes.append(f"fp16.{key}: cannot be had here; left out")
    if fixed := fp16.get("loss_scale", 0):
        return {"train.precision": "fp16", "train.loss_scale": float(fixed), "train.loss_scale_steps": None}
    consecutive = fp16.get("consecutive_hysteresis", False) and fp16.get("hysteresis", 2) > 1
    return {
        "train.precision": "fp16",
        "train.loss_scale": float(2 ** fp16.get("initial_scale_power", 16)),
        **({"train.loss_scale_consecutive": True} if consecutive else {}),
        "train.loss_scale_steps": fp16.get("loss_scale_window", 1000),
        "train.loss_scale_hysteresis": fp16.get("hysteresis", 2),
        "train.loss_scale_min": float(fp16.get("min_loss_scale", 1)),
    }


# --- optimizer and rate ---


def _optimizer(given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    optimizer = _section(given, "optimizer")
    if not optimizer:
        return {}
    kind, values = optimizer.get("type"), _section(optimizer, "params")
    decay = values.get("weight_decay", 0.0)
    if kind not in ("Adam", "AdamW"):
        raise ConfigError(f"optimizer.type: there is only AdamW here; found {kind!r}")
    if kind == "Adam" and decay and not values.get("adam_w_mode", True):
        raise ConfigError("optimizer.params.adam_w_mode: weight decay is always decoupled here; set it to true")
    known = {"lr", "betas", "eps", "weight_decay", "adam_w_mode", "bias_correction", "torch_adam", "fused"}
    if rest := sorted(set(values) - known):
        notes.append(f"optimizer.params.{', '.join(rest)}: unknown here; left out")
    if not values.get("bias_correction", True):
        notes.append("optimizer.params.bias_correction: is always on here")
    settings: dict[str, Any] = {
        "train.lr": float(values.get("lr", 1e-3)),
        "train.optimizer.betas": [float(beta) for beta in values.get("betas", (0.9, 0.999))],
        "train.optimizer.eps": float(values.get("eps", 1e-8)),
        "train.optimizer.weight_decay": float(decay),
    }
    # DeepSpeed makes no difference between matrices and norms by itself.
    return {**settings, "train.optimizer.decay_all": True} if decay else settings


_SCHEDULES = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}


def _schedule(given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    scheduler = _section(given, "scheduler")
    if not scheduler:
        return {}
    kind, values = scheduler.get("type"), _section(scheduler, "params")
    if kind not in _SCHEDULES:
        raise ConfigError(
            f"scheduler.type: expected one of {', '.join(_SCHEDULES)}; found {kind!r}; see train.schedule"
        )
    if values.get("warmup_type", "log") == "log":
        notes.append("scheduler.params.warmup_type: log (DeepSpeed's default) cannot be had; the rate rises linearly")
    for key in ("warmup_min_lr", "warmup_min_ratio", "cos_min_ratio"):
        if values.get(key):
            notes.append(f"scheduler.params.{key}: cannot be had; the rate rises from 0 and ends at 0")
    settings = {"train.schedule": _SCHEDULES[kind], "train.warmup_steps": values.get("warmup_num_steps", 1000)}
    if "warmup_max_lr" in values:
        settings["train.lr"] = float(values["warmup_max_lr"])
    if kind != "WarmupLR" and "total_num_steps" in values:
        settings["train.decay_steps"] = values["total_num_steps"]
    return settings


def _rest(given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if "steps_per_print" in given:
        settings["run.log_every"] = given["steps_per_print"]
    if trackers := [name for name in ("tensorboard", "wandb") if _section(given, name).get("enabled")]:
        settings["run.trackers"] = trackers
    if size := _section(given, "tensor_parallel").get("autotp_size"):
        settings["parallel.tensor"] = size
    if "activation_checkpointing" in given:
        notes.append(
            "activation_checkpointing: only says how DeepSpeed would do it; what is computed again says "
            "parallel.checkpoint_activations"
        )
    return settings


# --- hostfile ---


def read_hostfile(path: Path) -> dict[str, int]:
    """Host -> processes to start there, in the order of the file (`node1 slots=8`; `#` begins a comment).

    Raises: ConfigError.
    """
    try:
        return parse_hosts(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(explain(error, path, "read")) from error


def parse_hosts(text: str, name: str = "hostfile") -> dict[str, int]:
    """The hosts in the text of a hostfile. Raises: ConfigError naming the line."""
    hosts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].strip()
        if not words:
            continue
        found = re.fullmatch(r"([\w.@:-]+)\s+slots\s*=\s*([1-9]\d*)", words)
        if not found:
            raise ConfigError(f"{name}:{number}: expected `host slots=8`; found {words!r}")
        if found[1] in hosts:
            raise ConfigError(f"{name}:{number}: {found[1]} stands twice; add its slots up in one line")
        hosts[found[1]] = int(found[2])
    if not hosts:
        raise ConfigError(f"{name}: names no host; expected lines like `host slots=8`")
    return hosts
