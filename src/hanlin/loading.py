"""The weights of a recipe: into a model that answers, into a parallel model that trains, and out into folders."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hanlin.core.errors import ConfigError
from hanlin.core.ranks import pick_device, read_ranks, set_threads
from hanlin.core.settings import ParallelSettings, TuningSettings
from hanlin.formats.files import published
from hanlin.formats.load import added_parameters, base_parameters, load_into, open_ours, save_base
from hanlin.layers.label_head import label_parameters
from hanlin.models.fresh import fresh_weights
from hanlin.parallel.inference_model import ShardedInferenceModel
from hanlin.parallel.mesh import Degrees, Mesh
from hanlin.parallel.parallel_model import ParallelModel
from hanlin.parallel.parallelize import DTYPES, parallelize
from hanlin.parts import Parts, describe_parts
from hanlin.tuning.apply import apply_tuning, fill_additions

if TYPE_CHECKING:
    from hanlin.core.settings import Recipe
    from hanlin.generate.engine import Engine

log = logging.getLogger(__name__)

Weights = Iterator[tuple[str, torch.Tensor]]


def load_engine(recipe: Recipe, parts: Parts | None = None) -> Engine:
    """The recipe's model, ready to write answers: whole in a process that is alone, else as tensor and pipe say.

    Data ranks hold a copy each, also where training shards it: frozen weights alone need a small part of its memory.
    Raises: ConfigError, CheckpointError.
    """
    from hanlin.generate.engine import Engine

    parts = parts or describe_parts(recipe)
    if recipe.model.adapter is None and _fresh_head(parts):
        raise ConfigError(
            "model.config.labels: model.base is a language model and has no head for them; train one first, or name "
            "the adapter that holds it (model.adapter)"
        )
    set_threads(recipe.run.threads)
    device, world = pick_device(recipe.run.device), read_ranks().world
    layout = ParallelSettings(tensor=recipe.parallel.tensor, pipe=recipe.parallel.pipe)
    degrees = Degrees.of(layout, world) if world > 1 else Degrees()
    if degrees.tensor * degrees.pipe > 1:
        if recipe.generate.expert_memory is not None:
            raise ConfigError("generate.expert_memory: only where a process has all blocks; set tensor and pipe to 1")
        model = _frozen_sharded(parts, device, layout)
        mesh = model.mesh
    else:
        model, mesh = frozen_model(parts, device), Mesh(degrees, device)
    return Engine(
        model,
        parts.processor,
        device,
        recipe.train.precision,
        max_length=getattr(parts.config, "max_length", None),
        beam_manner=parts.family.beam_manner,
        mesh=mesh,
    )


def training_engine(parts: Parts, parallel_model: ParallelModel) -> Engine:
    """The model in training, ready to write answers between two steps; every rank writes all of them."""
    from hanlin.generate.engine import Engine

    return Engine(
        parallel_model.model
        if parallel_model.mesh.size("all") == 1
        else ShardedInferenceModel(parallel_model, parallel_model.names),
        parts.processor,
        parallel_model.device,
        parts.recipe.train.precision,
        max_length=getattr(parts.config, "max_length", None),
        beam_manner=parts.family.beam_manner,
    )


def frozen_model(parts: Parts, device: torch.device) -> torch.nn.Module:
    """The base with the recipe's adapter, frozen, in the precision of the recipe.

    Raises: ConfigError, CheckpointError.
    """
    dtype = DTYPES[parts.recipe.train.precision]
    has_all = parts.recipe.generate.expert_memory is None
    model = _base_model(parts, dtype) if has_all else _with_few_experts(parts, dtype, device)
    adapter = parts.recipe.model.adapter
    if adapter is not None:
        from hanlin.checkpoint.delta import load_adapter

        apply_tuning(model, _adapter_settings(parts, adapter), parts.family)
        load_adapter(model, adapter, parts.family)
    return model.requires_grad_(False).eval().to(device)


def _with_few_experts(parts: Parts, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """The base with experts that are read when they are needed."""
    from hanlin.layers.expert_memory import ExpertMemory, expert_weights

    base, limit = parts.recipe.model.base, parts.recipe.generate.expert_memory
    model = _empty_model(parts)
    streamed = expert_weights(model)
    if base is None or limit is None or not streamed:
        raise ConfigError("generate.expert_memory: only for a model.base with a mixture of experts; remove it")
    load_into(model, base, parts.family, dtype=dtype, wanted=lambda name: name not in streamed)
    try:
        ExpertMemory(open_ours(base, parts.family, config=parts.config), limit * 2**30, dtype).attach(model, device)
    except ValueError as error:
        raise ConfigError(f"generate.expert_memory: {error}; give more") from None
    return model


def parallelize_tuned(parts: Parts, device: torch.device, world: int) -> ParallelModel:
    """The model with what the tuning method trains, or this rank's share of it; the rest is frozen.

    Raises: ConfigError, CheckpointError.
    """
    recipe = parts.recipe
    if recipe.model.adapter is None and _fresh_head(parts):
        log.info("head for labels: drawn fresh from run.seed, since %s is a language model", recipe.model.base)
    if world == 1:
        return parallelize(_tuned_model(parts), device, recipe.train.precision, recipe.parallel)

    def empty() -> torch.nn.Module:
        return apply_tuning(_empty_model(parts), recipe.tuning, parts.family)

    parallel_model = parallelize(empty(), device, recipe.train.precision, recipe.parallel, copy=empty)
    parallel_model.fill(_base_weights(parts, parallel_model.names))
    parallel_model.fill(_additions(parts))
    return parallel_model


def export(parts: Parts, parallel_model: ParallelModel, target: Path) -> None:
    """Write a base folder or, when the base is frozen, an adapter folder; the one in the other if both are trained.

    Every rank must call it; the main one writes.
    """
    from hanlin.checkpoint.delta import ADAPTER_FOLDER, save_adapter

    tuning = parts.recipe.tuning
    model = _gathered(parts, parallel_model)
    if model is None:
        return
    if not tuning.trains_base:
        save_adapter(model, tuning, target, overwrite=True)
        return
    with published(target, overwrite=True) as beside:
        save_base(beside, parts.family, parts.config, base_parameters(model), parts.tokenizer)
        if tuning.method != "full":
            save_adapter(model, tuning, beside / ADAPTER_FOLDER)


def base_weights(parts: Parts) -> Weights:
    """The weights that the recipe starts from, in the precision in which they lie frozen."""
    dtype = DTYPES[parts.recipe.train.precision]
    names = [name for name, _ in _empty_model(parts).named_parameters()]
    return ((name, weight.to(dtype)) for name, weight in _base_weights(parts, names))


# --- making ---


def _empty_model(parts: Parts) -> torch.nn.Module:
    with torch.device("meta"):
        return parts.family.model()(parts.config)


def _base_model(parts: Parts, dtype: torch.dtype) -> torch.nn.Module:
    """The weights that the recipe starts from: a checkpoint's, or fresh ones from its seed."""
    model, fresh = _empty_model(parts), _fresh_head(parts)
    if parts.recipe.model.base is not None:
        base, config = parts.recipe.model.base, parts.base_config
        load_into(model, base, parts.family, dtype=dtype, config=config, wanted=lambda name: name not in fresh)
        for name, weight in _base_weights(parts, fresh):
            owner, _, last = name.rpartition(".")
            model.get_submodule(owner).register_parameter(last, torch.nn.Parameter(weight.to(dtype)))
        return model
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for name, weight in _base_weights(parts, []):
            model.get_parameter(name).copy_(weight)
    return model.to(dtype)


def _base_weights(parts: Parts, names: list[str]) -> Weights:
    """Those of a checkpoint that have one of the names, or all fresh ones; one at a time.

    To a language model's a fresh head for labels is added, where the recipe has labels.
    """
    base, fresh = parts.recipe.model.base, _fresh_head(parts)
    if base is None:
        yield from fresh_weights(lambda: _empty_model(parts), parts.recipe.run.seed)
        return
    weights = open_ours(base, parts.family, config=parts.base_config)
    for name in names:
        if name in weights:
            yield name, weights[name]
            weights.forget(name)
    if set(fresh) & set(names):
        part = fresh[0].partition(".")[0]
        yield from fresh_weights(lambda: _empty_model(parts), parts.recipe.run.seed, part)


def _fresh_head(parts: Parts) -> list[str]:
    """The names of a head for labels that the weights that the recipe starts from do not have."""
    return [] if parts.base_config == parts.config else label_parameters(_empty_model(parts))


def _frozen_sharded(parts: Parts, device: torch.device, layout: ParallelSettings) -> ShardedInferenceModel:
    """`frozen_model` divided among the ranks, each of which reads its share only."""
    adapter, family, precision = parts.recipe.model.adapter, parts.family, parts.recipe.train.precision

    def empty() -> torch.nn.Module:
        model = _empty_model(parts)
        return model if adapter is None else apply_tuning(model, _adapter_settings(parts, adapter), family)

    model = empty().requires_grad_(False)
    for weight in added_parameters(model).values():
        weight.requires_grad_(True)  # which keeps it in fp32, as it lies in the adapter
    names = [name for name, _ in model.named_parameters()]
    parallel_model = parallelize(model, device, precision, layout)
    parallel_model.fill(_base_weights(parts, parallel_model.names))
    if adapter is not None:
        from hanlin.checkpoint.delta import load_adapter

        tuned = empty()
        fill_additions(tuned)
        load_adapter(tuned, adapter, family)
        parallel_model.fill(added_parameters(tuned).items())
    return ShardedInferenceModel(parallel_model, names).requires_grad_(False).eval()


def _tuned_model(parts: Parts) -> torch.nn.Module:
    recipe = parts.recipe
    model = _base_model(parts, torch.float32 if recipe.tuning.trains_base else DTYPES[recipe.train.precision])
    apply_tuning(model, recipe.tuning, parts.family, _tuning_generator(parts))
    _begin_additions(model, parts)
    return model


def _additions(parts: Parts) -> Weights:
    """What the tuning method adds, with its first values; small, so that every rank makes the whole of it."""
    model = apply_tuning(_empty_model(parts), parts.recipe.tuning, parts.family)
    if parts.recipe.tuning.method == "prompt":
        # The first values have the embedding's spread, or are rows of it.
        for name, weight in _base_weights(parts, ["embedding.weight"]):
            if name == "embedding.weight":
                model.get_submodule("embedding").weight = torch.nn.Parameter(weight.float())
    fill_additions(model, _tuning_generator(parts))
    _begin_head(model, parts)
    _begin_additions(model, parts)
    return ((name, weight.detach()) for name, weight in added_parameters(model).items())


def _tuning_generator(parts: Parts) -> torch.Generator:
    return torch.Generator().manual_seed(parts.recipe.run.seed + 1)


def _begin_additions(model: torch.nn.Module, parts: Parts) -> None:
    """Give what a tuning method added the first values that the recipe asks for; it has random ones already."""
    recipe = parts.recipe
    if recipe.tuning.method == "prompt":
        _begin_prompts(model, parts)
    if recipe.model.adapter is not None:
        from hanlin.checkpoint.delta import load_adapter

        load_adapter(model, recipe.model.adapter, parts.family)


@torch.no_grad()
def _begin_head(model: torch.nn.Module, parts: Parts) -> None:
    """Give a head for labels that is trained beside a frozen base its values there, or fresh ones."""
    added = added_parameters(model)
    if names := [name for name in label_parameters(model) if name in added]:
        for name, weight in _base_weights(parts, names):
            if name in names:
                added[name].copy_(weight)


def _begin_prompts(model: torch.nn.Module, parts: Parts) -> None:
    from hanlin.checkpoint.soft_prompt import find_prompts, set_prompts
    from hanlin.tuning.soft_prompt import begin_with_tokens, first_tokens

    prompt, base = parts.recipe.tuning.prompt, parts.recipe.model.base
    if prompt.init == "vocabulary":
        begin_with_tokens(model, first_tokens(prompt, parts.tokenizer))
    elif prompt.init == "checkpoint" and base is not None and (found := find_prompts(base, parts.family)) is not None:
        set_prompts(model, found, base)


def _adapter_settings(parts: Parts, adapter: Path) -> TuningSettings:
    """Those that the adapter states; how soft prompts are masked, an original's file leaves to the recipe."""
    from hanlin.checkpoint.delta import read_adapter_settings

    tuning = parts.recipe.tuning
    return tuning if tuning.method == "prompt" else read_adapter_settings(adapter, parts.family)


def _gathered(parts: Parts, parallel_model: ParallelModel) -> torch.nn.Module | None:
    """The model with what was trained, on the main rank; None on the others."""
    if parallel_model.mesh.size("all") == 1:
        return parallel_model.model
    tuning = parts.recipe.tuning
    model = apply_tuning(_empty_model(parts), tuning, parts.family)
    names = None if tuning.trains_base else list(added_parameters(model))
    for name, weight in parallel_model.gather(names):
        if parallel_model.mesh.is_main:
            module, _, last = name.rpartition(".")
            model.get_submodule(module)._parameters[last] = torch.nn.Parameter(weight, requires_grad=False)
    return model if parallel_model.mesh.is_main else None
