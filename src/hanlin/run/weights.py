"""The weights of a recipe: into a model that answers, into a parallel model that trains, and out into folders."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hanlin.adapters.cpm2_prompts import find_prompts, set_prompts
from hanlin.adapters.files import ADAPTER_FOLDER, load_adapter, read_adapter_settings, save_adapter
from hanlin.core.device import pick_device, set_threads
from hanlin.core.errors import ConfigError
from hanlin.core.files import published
from hanlin.core.ranks import read_ranks
from hanlin.formats.load import added_parameters, base_parameters, load_into, open_ours, save_base
from hanlin.layers.expert_memory import ExpertMemory, expert_weights
from hanlin.layers.label_head import label_parameters
from hanlin.models.common.init_weights import init_weights
from hanlin.parallel.inference_model import ShardedInferenceModel
from hanlin.parallel.mesh import Degrees, Mesh
from hanlin.parallel.parallel_model import ParallelModel
from hanlin.parallel.parallelize import DTYPES, parallelize
from hanlin.recipe.settings import ParallelSettings, TuningSettings
from hanlin.run.components import Components, build_components
from hanlin.tuning.apply import apply_tuning, fill_additions
from hanlin.tuning.soft_prompt import begin_with_tokens, first_tokens

if TYPE_CHECKING:
    from hanlin.generate.engine import Engine
    from hanlin.recipe.settings import Recipe

log = logging.getLogger(__name__)

NamedTensors = Iterator[tuple[str, torch.Tensor]]


def load_engine(recipe: Recipe, components: Components | None = None) -> Engine:
    """The recipe's model, ready to write answers: whole in a process that is alone, else as tensor and pipe say.

    Data ranks hold a copy each, also where training shards it: frozen weights alone need a small part of its memory.
    Raises: ConfigError, CheckpointError.
    """
    from hanlin.generate.engine import Engine

    components = components or build_components(recipe)
    if recipe.model.adapter is None and _fresh_head(components):
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
        model = _frozen_sharded(components, device, layout)
        mesh = model.mesh
    else:
        model, mesh = frozen_model(components, device), Mesh(degrees, device)
    return Engine(
        model,
        components.processor,
        device,
        recipe.train.precision,
        max_length=getattr(components.config, "max_length", None),
        beam_variant=components.family.beam_variant,
        mesh=mesh,
    )


def training_engine(components: Components, parallel_model: ParallelModel) -> Engine:
    """The model in training, ready to write answers between two steps; every rank writes all of them."""
    from hanlin.generate.engine import Engine

    return Engine(
        parallel_model.model
        if parallel_model.mesh.size("all") == 1
        else ShardedInferenceModel(parallel_model, parallel_model.names),
        components.processor,
        parallel_model.device,
        components.recipe.train.precision,
        max_length=getattr(components.config, "max_length", None),
        beam_variant=components.family.beam_variant,
    )


def frozen_model(components: Components, device: torch.device) -> torch.nn.Module:
    """The base with the recipe's adapter, frozen, in the precision of the recipe.

    Raises: ConfigError, CheckpointError.
    """
    dtype = DTYPES[components.recipe.train.precision]
    has_all = components.recipe.generate.expert_memory is None
    model = _base_model(components, dtype) if has_all else _with_few_experts(components, dtype, device)
    adapter = components.recipe.model.adapter
    if adapter is not None:
        apply_tuning(model, _adapter_settings(components, adapter), components.family)
        load_adapter(model, adapter, components.family)
    return model.requires_grad_(False).eval().to(device)


def _with_few_experts(components: Components, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """The base with experts that are read when they are needed."""
    base, limit = components.recipe.model.base, components.recipe.generate.expert_memory
    model = _empty_model(components)
    streamed = expert_weights(model)
    if base is None or limit is None or not streamed:
        raise ConfigError("generate.expert_memory: only for a model.base with a mixture of experts; remove it")
    load_into(model, base, components.family, dtype=dtype, wanted=lambda name: name not in streamed)
    try:
        ExpertMemory(open_ours(base, components.family, config=components.config), limit * 2**30, dtype).attach(
            model, device
        )
    except ValueError as error:
        raise ConfigError(f"generate.expert_memory: {error}; give more") from None
    return model


def parallelize_tuned(components: Components, device: torch.device, world: int) -> ParallelModel:
    """The model with what the tuning method trains, or this rank's share of it; the rest is frozen.

    Raises: ConfigError, CheckpointError.
    """
    recipe = components.recipe
    if recipe.model.adapter is None and _fresh_head(components):
        log.info("head for labels: drawn fresh from run.seed, since %s is a language model", recipe.model.base)
    if world == 1:
        return parallelize(_tuned_model(components), device, recipe.train.precision, recipe.parallel)

    def empty() -> torch.nn.Module:
        return apply_tuning(_empty_model(components), recipe.tuning, components.family)

    parallel_model = parallelize(empty(), device, recipe.train.precision, recipe.parallel, copy=empty)
    parallel_model.fill(_base_weights(components, parallel_model.names))
    parallel_model.fill(_additions(components))
    return parallel_model


def export(components: Components, parallel_model: ParallelModel, target: Path) -> None:
    """Write a base folder or, when the base is frozen, an adapter folder; the one in the other if both are trained.

    Every rank must call it; the main one writes.
    """
    tuning = components.recipe.tuning
    model = _gathered(components, parallel_model)
    if model is None:
        return
    if not tuning.trains_base:
        save_adapter(model, tuning, target, overwrite=True)
        return
    with published(target, "replace") as beside:
        save_base(beside, components.family, components.config, base_parameters(model), components.tokenizer)
        if tuning.method != "full":
            save_adapter(model, tuning, beside / ADAPTER_FOLDER)


def base_weights(components: Components) -> NamedTensors:
    """The weights that the recipe starts from, in the precision in which they lie frozen."""
    dtype = DTYPES[components.recipe.train.precision]
    names = [name for name, _ in _empty_model(components).named_parameters()]
    return ((name, weight.to(dtype)) for name, weight in _base_weights(components, names))


# --- making ---


def _empty_model(components: Components) -> torch.nn.Module:
    with torch.device("meta"):
        return components.family.model()(components.config)


def _base_model(components: Components, dtype: torch.dtype) -> torch.nn.Module:
    """The weights that the recipe starts from: a checkpoint's, or fresh ones from its seed."""
    model, fresh = _empty_model(components), _fresh_head(components)
    if components.recipe.model.base is not None:
        base, config = components.recipe.model.base, components.base_config
        load_into(model, base, components.family, dtype=dtype, config=config, wanted=lambda name: name not in fresh)
        for name, weight in _base_weights(components, fresh):
            owner, _, last = name.rpartition(".")
            model.get_submodule(owner).register_parameter(last, torch.nn.Parameter(weight.to(dtype)))
        return model
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for name, weight in _base_weights(components, []):
            model.get_parameter(name).copy_(weight)
    return model.to(dtype)


def _base_weights(components: Components, names: list[str]) -> NamedTensors:
    """Those of a checkpoint that have one of the names, or all fresh ones; one at a time.

    To a language model's a fresh head for labels is added, where the recipe has labels.
    """
    base, fresh = components.recipe.model.base, _fresh_head(components)
    if base is None:
        yield from init_weights(lambda: _empty_model(components), components.recipe.run.seed)
        return
    weights = open_ours(base, components.family, config=components.base_config)
    for name in names:
        if name in weights:
            yield name, weights[name]
            weights.forget(name)
    if set(fresh) & set(names):
        part = fresh[0].partition(".")[0]
        yield from init_weights(lambda: _empty_model(components), components.recipe.run.seed, part)


def _fresh_head(components: Components) -> list[str]:
    """The names of a head for labels that the weights that the recipe starts from do not have."""
    return [] if components.base_config == components.config else label_parameters(_empty_model(components))


def _frozen_sharded(components: Components, device: torch.device, layout: ParallelSettings) -> ShardedInferenceModel:
    """`frozen_model` divided among the ranks, each of which reads its share only."""
    adapter, family, precision = components.recipe.model.adapter, components.family, components.recipe.train.precision

    def empty() -> torch.nn.Module:
        model = _empty_model(components)
        return model if adapter is None else apply_tuning(model, _adapter_settings(components, adapter), family)

    model = empty().requires_grad_(False)
    for weight in added_parameters(model).values():
        weight.requires_grad_(True)  # which keeps it in fp32, as it lies in the adapter
    names = [name for name, _ in model.named_parameters()]
    parallel_model = parallelize(model, device, precision, layout)
    parallel_model.fill(_base_weights(components, parallel_model.names))
    if adapter is not None:
        tuned = empty()
        fill_additions(tuned)
        load_adapter(tuned, adapter, family)
        parallel_model.fill(added_parameters(tuned).items())
    return ShardedInferenceModel(parallel_model, names).requires_grad_(False).eval()


def _tuned_model(components: Components) -> torch.nn.Module:
    recipe = components.recipe
    model = _base_model(components, torch.float32 if recipe.tuning.trains_base else DTYPES[recipe.train.precision])
    apply_tuning(model, recipe.tuning, components.family, _tuning_generator(components))
    _begin_additions(model, components)
    return model


def _additions(components: Components) -> NamedTensors:
    """What the tuning method adds, with its first values; small, so that every rank makes the whole of it."""
    model = apply_tuning(_empty_model(components), components.recipe.tuning, components.family)
    if components.recipe.tuning.method == "prompt":
        # The first values have the embedding's spread, or are rows of it.
        for name, weight in _base_weights(components, ["embedding.weight"]):
            if name == "embedding.weight":
                model.get_submodule("embedding").weight = torch.nn.Parameter(weight.float())
    fill_additions(model, _tuning_generator(components))
    _begin_head(model, components)
    _begin_additions(model, components)
    return ((name, weight.detach()) for name, weight in added_parameters(model).items())


def _tuning_generator(components: Components) -> torch.Generator:
    return torch.Generator().manual_seed(components.recipe.run.seed + 1)


def _begin_additions(model: torch.nn.Module, components: Components) -> None:
    """Give what a tuning method added the first values that the recipe asks for; it has random ones already."""
    recipe = components.recipe
    if recipe.tuning.method == "prompt":
        _begin_prompts(model, components)
    if recipe.model.adapter is not None:
        load_adapter(model, recipe.model.adapter, components.family)


@torch.no_grad()
def _begin_head(model: torch.nn.Module, components: Components) -> None:
    """Give a head for labels that is trained beside a frozen base its values there, or fresh ones."""
    added = added_parameters(model)
    if names := [name for name in label_parameters(model) if name in added]:
        for name, weight in _base_weights(components, names):
            if name in names:
                added[name].copy_(weight)


def _begin_prompts(model: torch.nn.Module, components: Components) -> None:
    prompt, base = components.recipe.tuning.prompt, components.recipe.model.base
    if prompt.init == "vocabulary":
        begin_with_tokens(model, first_tokens(prompt, components.tokenizer))
    elif (
        prompt.init == "checkpoint"
        and base is not None
        and (found := find_prompts(base, components.family)) is not None
    ):
        set_prompts(model, found, base)


def _adapter_settings(components: Components, adapter: Path) -> TuningSettings:
    """Those that the adapter states; how soft prompts are masked, an original's file leaves to the recipe."""
    tuning = components.recipe.tuning
    return tuning if tuning.method == "prompt" else read_adapter_settings(adapter, components.family)


def _gathered(components: Components, parallel_model: ParallelModel) -> torch.nn.Module | None:
    """The model with what was trained, on the main rank; None on the others."""
    if parallel_model.mesh.size("all") == 1:
        return parallel_model.model
    tuning = components.recipe.tuning
    model = apply_tuning(_empty_model(components), tuning, components.family)
    names = None if tuning.trains_base else list(added_parameters(model))
    for name, weight in parallel_model.gather(names):
        if parallel_model.mesh.is_main:
            module, _, last = name.rpartition(".")
            model.get_submodule(module)._parameters[last] = torch.nn.Parameter(weight, requires_grad=False)
    return model if parallel_model.mesh.is_main else None
