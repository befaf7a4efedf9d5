"""The weights of a recipe: into a model that answers, or into a parallel model that trains (out of it: export.py)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from hanlin.adapters.adapter import Adapter, load_adapter
from hanlin.core.device import pick_device, set_threads
from hanlin.core.errors import ConfigError
from hanlin.core.parameters import set_parameter
from hanlin.core.progress import counted
from hanlin.core.ranks import read_ranks
from hanlin.formats.fingerprint import Fingerprint
from hanlin.formats.load import added_parameters, is_large, load_into, look_at_values, open_ours
from hanlin.formats.read_once import passing_unread
from hanlin.formats.values import ValueReport, stored_dtype
from hanlin.layers.label_head import label_parameters
from hanlin.layers.precision import DTYPES
from hanlin.layers.quantised import packed, packed_linears, quantise_linears
from hanlin.models.common.init_weights import init_weights
from hanlin.parallel.compiled import compile_blocks
from hanlin.parallel.inference_model import ShardedInferenceModel
from hanlin.parallel.mesh import Degrees, Mesh
from hanlin.parallel.parallel_model import ParallelModel
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import ParallelSettings
from hanlin.recipe.tuning import TuningMethod
from hanlin.run.base_checks import hashes_here, refuse_changed_base, refuse_packed_experts, say_packing
from hanlin.run.components import Components, blaming, build_components
from hanlin.run.hash_shares import names_to_hash
from hanlin.run.precision import precision_of, saved_dtype, trained_dtype
from hanlin.tuning.apply import allocate_additions, apply_tuning, init_additions_of

if TYPE_CHECKING:
    from hanlin.generate.engine import Engine
    from hanlin.recipe.settings import Recipe

log = logging.getLogger(__name__)

_HALF = ("float16", "bfloat16")

NamedTensors = Iterator[tuple[str, torch.Tensor]]


def load_engine(recipe: Recipe, components: Components | None = None, *, is_alone: bool = False) -> Engine:
    """The recipe's model, ready to write answers: whole in a process that is alone, else as tensor and pipe say.

    Data ranks hold a copy each, also where training shards it: frozen weights alone need a small part of its memory.
    is_alone: there may be other ranks, but they have nothing to do with it.
    Raises: ConfigError, CheckpointError.
    """
    from hanlin.generate.engine import Engine

    components = components or build_components(recipe)
    _refuse_untrained(components)
    refuse_changed_base(components, is_alone=is_alone)
    set_threads(recipe.run.threads)
    say_packing(components)
    device, world = pick_device(recipe.run.device), 1 if is_alone else read_ranks().world
    layout = ParallelSettings(tensor=recipe.parallel.tensor, pipe=recipe.parallel.pipe)
    degrees = Degrees.of(layout, world) if world > 1 else Degrees()
    if degrees.tensor * degrees.pipe > 1:
        if recipe.generate.expert_memory is not None:
            raise ConfigError("generate.expert_memory: only where a process has all blocks; set tensor and pipe to 1")
        model = _frozen_sharded(components, device, layout)
        mesh = model.mesh
    else:
        model, mesh = frozen_model(components, device), Mesh(degrees, device)
    engine = Engine(
        model,
        components.processor,
        device,
        precision_of(recipe),
        max_length=getattr(components.config, "max_length", None),
        family=components.family,
        mesh=mesh,
    )
    engine.attention = recipe.run.attention
    return engine


def empty_frozen_model(components: Components) -> torch.nn.Module:
    """The model of `load_engine` on the meta device, to see whether its parts fit each other.

    Raises: ConfigError, CheckpointError.
    """
    _refuse_untrained(components)
    refuse_packed_experts(components)
    return with_adapter(empty_model(components), components)


def empty_tuned_model(components: Components) -> torch.nn.Module:
    """The model of `parallelize_tuned` on the meta device, to see whether its parts fit each other and the layout.

    Raises: ConfigError, CheckpointError.
    """
    model = empty_model(components)
    if components.recipe.model.base is None and not all(one.is_floating_point() for one in model.parameters()):
        raise ConfigError("model.config: fresh weights cannot be quantised; name a model.base, or set bits to 0")
    apply_tuning(model, components.recipe.tuning, components.family)
    _init_additions(model, components)
    return model


def training_engine(components: Components, parallel_model: ParallelModel) -> Engine:
    """The model in training, ready to write answers between two steps; every rank writes all of them."""
    from hanlin.generate.engine import Engine

    engine = Engine(
        parallel_model.model
        if parallel_model.is_whole
        else ShardedInferenceModel(parallel_model, parallel_model.names),
        components.processor,
        parallel_model.device,
        precision_of(components.recipe),
        max_length=getattr(components.config, "max_length", None),
        family=components.family,
    )
    engine.attention = components.recipe.run.attention
    return engine


def frozen_model(
    components: Components, device: torch.device, fingerprint: Fingerprint | None = None
) -> torch.nn.Module:
    """The base with the recipe's adapter, frozen, in the precision of the recipe.

    fingerprint: takes the base's weights into account while they are read.
    Raises: ConfigError, CheckpointError.
    """
    dtype = DTYPES[precision_of(components.recipe)]
    has_all = components.recipe.generate.expert_memory is None
    model = _base_model(components, dtype, fingerprint) if has_all else _with_few_experts(components, dtype, device)
    return with_adapter(model, components).requires_grad_(False).eval().to(device)


def _with_few_experts(components: Components, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """The base with experts that are read when they are needed."""
    from hanlin.layers.expert_memory import ExpertMemory, expert_weights

    base, limit = components.source, components.recipe.generate.expert_memory
    model = _plain_model(components)
    streamed = expert_weights(model)
    refuse_packed_experts(components)
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


def parallelize_frozen(components: Components, device: torch.device, fingerprint: Fingerprint) -> ParallelModel:
    """A frozen model with its adapter, of which tensor ranks hold a part each, data ranks a copy.

    fingerprint: takes all of its weights into account.
    Raises: ConfigError, CheckpointError.
    """
    recipe = components.recipe
    refuse_changed_base(components)
    if recipe.parallel.tensor > 1:
        return _frozen_divided(components, device, recipe.parallel, fingerprint)
    model = frozen_model(components, torch.device("cpu"), fingerprint)
    _add_all(fingerprint, added_parameters(model))
    for weight in added_parameters(model).values():
        weight.requires_grad_(True)  # which keeps it in fp32, as it lies in the adapter
    return parallelize(model, device, precision_of(recipe), recipe.parallel, attention=recipe.run.attention)


def _add_all(fingerprint: Fingerprint | None, weights: Mapping[str, torch.Tensor]) -> None:
    if fingerprint is not None:
        for name, weight in weights.items():
            fingerprint.add(name, weight)
        fingerprint.wait()


def parallelize_tuned(
    components: Components, device: torch.device, world: int, fingerprint: Fingerprint | None = None
) -> ParallelModel:
    """The model with what the tuning method trains, or this rank's share of it; the rest is frozen.

    fingerprint: takes the weights that the recipe starts from into account, as they are kept, while they are read; on
    several ranks those that this one holds.
    Raises: ConfigError, CheckpointError.
    """
    recipe, precision = components.recipe, precision_of(components.recipe)
    refuse_changed_base(components)
    if components.adapter is None and _fresh_head(components):
        log.info("head for labels: drawn fresh from run.seed, since %s is a language model", recipe.model.base)
    _say_precision(components)
    options: dict[str, Any] = {"attention": recipe.run.attention, "trained": trained_dtype(recipe)}
    if world == 1:
        model = _tuned_model(components, fingerprint)
        return parallelize(compile_blocks(model, recipe), device, precision, recipe.parallel, **options)

    def empty() -> torch.nn.Module:
        return compile_blocks(apply_tuning(empty_model(components), recipe.tuning, components.family), recipe)

    parallel_model = parallelize(empty(), device, precision, recipe.parallel, copy=empty, **options)
    parallel_model.fill(_kept(components, parallel_model.names, _base_dtype(components), fingerprint))
    parallel_model.fill(_additions(components))
    return parallel_model


# --- making ---


def _refuse_untrained(components: Components) -> None:
    """Raises: ConfigError for a head for labels without weights, and for rows with places for what is not there."""
    tuning = components.recipe.tuning
    if components.adapter is None and type(tuning).adapt_processor is not TuningMethod.adapt_processor:
        raise ConfigError(
            f"tuning.method: the rows of {tuning.method} have places for what it trains, and there is no adapter that "
            "would fill them: name it (model.adapter), or ask the base alone (tuning.method=full)"
        )
    if components.adapter is None and _fresh_head(components):
        raise ConfigError(
            "model.config.labels: model.base is a language model and has no head for them; train one first, or name "
            "the adapter that holds it (model.adapter)"
        )


def with_adapter(model: torch.nn.Module, components: Components) -> torch.nn.Module:
    """The model with the recipe's adapter, if there is one.

    Raises: CheckpointError, ConfigError.
    """
    if components.adapter is not None:
        with blaming("model.adapter"):
            settings, draw = _adapter_settings(components, components.adapter), _tuning_generator(components)
            apply_tuning(model, settings, components.family, draw, is_loaded=True)
            load_adapter(model, components.adapter)
    return model


def empty_model(components: Components) -> torch.nn.Module:
    """The model on the meta device, with packed linears where the recipe wants such.

    Raises: ConfigError.
    """
    model, settings = _plain_model(components), components.recipe.model
    if settings.quantise is None:
        return model
    if settings.base is None:
        raise ConfigError("model.quantise: only weights that exist are quantised; name a model.base, or leave it out")
    quantise_linears(model, settings.quantise)
    return model


def _plain_model(components: Components) -> torch.nn.Module:
    with torch.device("meta"):
        return components.family.model()(components.config)


def _base_model(components: Components, dtype: torch.dtype, fingerprint: Fingerprint | None = None) -> torch.nn.Module:
    """The weights that the recipe starts from: a checkpoint's, or fresh ones from its seed."""
    model = empty_model(components)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, weight in _kept(components, list(trained), dtype, fingerprint):
        # What was read may lie in the file still.
        own = torch.empty(weight.shape, dtype=weight.dtype).copy_(weight)
        set_parameter(model, name, own, requires_grad=trained[name])
    return model


def _kept(
    components: Components, names: list[str], dtype: torch.dtype, fingerprint: Fingerprint | None = None
) -> NamedTensors:
    """`base_weights` as they are kept: packed, or in `dtype`."""
    kept = _packed_or_cast(components, names, dtype)
    if fingerprint is None:
        return kept
    return fingerprint.passing(kept, None if components.source is None else names_to_hash(names))


def _packed_or_cast(components: Components, names: list[str], dtype: torch.dtype) -> NamedTensors:
    """Those that the recipe's `quantise` packs become several tensors; what is packed on disk stays as it is."""
    linears = packed_linears(empty_model(components)) if components.recipe.model.quantise else {}
    parts = {f"{name}.{part}" for name, packing in linears.items() for part in packing.parts}
    for name, weight in base_weights(components, [name for name in names if name not in parts], dtype):
        owner, _, last = name.rpartition(".")
        if last == "weight" and owner in linears:
            tensors = packed(linears[owner], weight.float())
            kept = {f"{owner}.{part}": tensor for part, tensor in tensors.items()}
        else:
            kept = {name: weight}
        for part, tensor in kept.items():
            yield part, tensor.to(dtype) if tensor.is_floating_point() else tensor


def _base_dtype(components: Components) -> torch.dtype:
    """Trained weights are kept in `train.weight_dtype`, frozen ones in the precision of the recipe."""
    recipe = components.recipe
    return trained_dtype(recipe) if recipe.tuning.trains_base else DTYPES[precision_of(recipe)]


def refuse_unsound(components: Components, *, is_trained: bool, is_loaded_next: bool = False) -> ValueReport | None:
    """See that the base holds numbers, such as the dtype can hold in which training (else: answering) keeps them.

    It is read for that, unless it is large and loaded next, which looks at it too; see `look_at_values`. Returns what
    is in it, None where that is not known: there is no base, or its experts are read only when they are needed.
    Raises: CheckpointError, as what loads it would.
    """
    source = components.source
    if source is None or (components.recipe.generate.expert_memory is not None and not is_trained):
        return None
    if is_loaded_next and is_large(source.weights.files):
        return None
    report = look_at_values(source, components.base_config)
    report.refuse(source.path, _base_dtype(components) if is_trained else DTYPES[precision_of(components.recipe)])
    return report


def base_weights(components: Components, names: list[str], dtype: torch.dtype | None = None) -> NamedTensors:
    """Those of a checkpoint that have one of the names, or all fresh ones; one at a time.

    dtype: which is to hold them. To a language model's a fresh head for labels is added, where the recipe has labels.
    """
    source, fresh = components.source, _fresh_head(components)
    if source is None:
        yield from init_weights(lambda: _plain_model(components), components.recipe.run.seed)
        return
    with blaming("model.base"):
        weights = open_ours(source, components.family, config=components.base_config, dtype=dtype)
        here = [name for name in names if name in weights]
        folder = source.path if hashes_here(components) else None
        yield from counted(passing_unread(folder, weights, here), "Loading weights", len(here))
    if read_ranks().is_main:
        weights.report.tell_zeros(source.path)
    if set(fresh) & set(names):
        part = fresh[0].partition(".")[0]
        yield from init_weights(lambda: _plain_model(components), components.recipe.run.seed, part)


def _say_precision(components: Components) -> None:
    """Tell where what is written takes more room than what it came from."""
    recipe, source = components.recipe, components.source
    is_larger = recipe.tuning.trains_base and saved_dtype(recipe) == torch.float32
    if source is None or not is_larger or stored_dtype(source.weights) not in _HALF:
        return
    count = sum(weight.numel() for weight in empty_model(components).parameters())
    log.info(
        "the base is in %s; its weights are trained and written in float32, %.3g GB in best/ and again in last/; "
        "train.save_dtype=bf16 halves that, or hanlin convert %s OUT --dtype fp16 afterwards",
        stored_dtype(source.weights),
        4 * count / 1e9,
        recipe.run.folder / "best",
    )


def _fresh_head(components: Components) -> list[str]:
    """The names of a head for labels that the weights that the recipe starts from do not have."""
    return [] if components.base_config == components.config else label_parameters(empty_model(components))


def _frozen_sharded(components: Components, device: torch.device, layout: ParallelSettings) -> ShardedInferenceModel:
    """`frozen_model` divided among the ranks, each of which reads its share only."""
    parallel_model = _frozen_divided(components, device, layout)
    names = [name for name, _ in _empty_adapted(components).named_parameters()]
    return ShardedInferenceModel(parallel_model, names).requires_grad_(False).eval()


def _empty_adapted(components: Components) -> torch.nn.Module:
    model, adapter = empty_model(components), components.adapter
    if adapter is None:
        return model
    return apply_tuning(model, _adapter_settings(components, adapter), components.family)


def _frozen_divided(
    components: Components, device: torch.device, layout: ParallelSettings, fingerprint: Fingerprint | None = None
) -> ParallelModel:
    """This rank's share of the frozen model, and no more, is read."""
    adapter, precision = components.adapter, precision_of(components.recipe)
    model = _empty_adapted(components).requires_grad_(False)
    for weight in added_parameters(model).values():
        weight.requires_grad_(True)  # which keeps it in fp32, as it lies in the adapter
    parallel_model = parallelize(model, device, precision, layout, attention=components.recipe.run.attention)
    parallel_model.fill(_kept(components, parallel_model.names, DTYPES[precision], fingerprint))
    if adapter is not None:
        tuned = _empty_adapted(components)
        allocate_additions(tuned)
        load_adapter(tuned, adapter)
        parallel_model.fill(added_parameters(tuned).items())
        _add_all(fingerprint, added_parameters(tuned))
    return parallel_model


def _tuned_model(components: Components, fingerprint: Fingerprint | None = None) -> torch.nn.Module:
    recipe = components.recipe
    model = _base_model(components, _base_dtype(components), fingerprint)
    draw = _tuning_generator(components)
    apply_tuning(model, recipe.tuning, components.family, draw, is_loaded=components.adapter is not None)
    _init_additions(model, components)
    return model


def _additions(components: Components) -> NamedTensors:
    """What the tuning method adds, with its first values; small, so that every rank makes the whole of it."""
    tuning = components.recipe.tuning
    model = apply_tuning(empty_model(components), tuning, components.family)
    _load_what_is_read(model, components)
    init_additions_of(model, tuning, _tuning_generator(components))
    if components.adapter is None:
        _init_from_base(model, components)
    _init_head(model, components)
    _init_additions(model, components)
    return ((name, weight.detach()) for name, weight in added_parameters(model).items())


def _load_what_is_read(model: torch.nn.Module, components: Components) -> None:
    """Give a model on the meta device the weights of its base that a tuning method reads for its first values."""
    names = list(components.recipe.tuning.reads_base)
    if not names:
        return
    for name, weight in base_weights(components, names):
        if name in names:
            set_parameter(model, name, weight.float())


def _init_from_base(model: torch.nn.Module, components: Components) -> None:
    """Give additions that come from the weight beside them their first values: one weight after the other, each as it
    is kept while it is trained on, is put into a model on the meta device and forgotten.
    """
    waiting = {
        owner: {name for name, _ in module.named_parameters(recurse=False)} - set(getattr(module, "added", ()))
        for owner, module in model.named_modules()
        if getattr(module, "reads_base", False)
    }
    names = [f"{owner}.{own}" for owner, needed in waiting.items() for own in sorted(needed)]
    for name, weight in _kept(components, names, _base_dtype(components)) if names else ():
        owner, _, own = name.rpartition(".")
        if own not in waiting.get(owner, ()):
            continue
        set_parameter(model, name, weight, requires_grad=False)
        waiting[owner].remove(own)
        if not waiting[owner]:
            module: Any = model.get_submodule(owner)
            module.init_from_base()
            module.register_parameter("weight", None)  # it was needed for this alone


def _tuning_generator(components: Components) -> torch.Generator:
    return torch.Generator().manual_seed(components.recipe.run.seed + 1)


def _init_additions(model: torch.nn.Module, components: Components) -> None:
    """Give what a tuning method added the first values that the recipe asks for; it has random ones already."""
    recipe = components.recipe
    recipe.tuning.init_from_settings(model, components.tokenizer, components.family, recipe.model.base)
    if components.adapter is not None:
        load_adapter(model, components.adapter)


@torch.no_grad()
def _init_head(model: torch.nn.Module, components: Components) -> None:
    """Give a head for labels that is trained beside a frozen base its values there, or fresh ones."""
    added = added_parameters(model)
    if names := [name for name in label_parameters(model) if name in added]:
        for name, weight in base_weights(components, names):
            if name in names:
                added[name].copy_(weight)


def _adapter_settings(components: Components, adapter: Adapter) -> TuningMethod:
    return adapter.settings.completed(components.recipe.tuning)
