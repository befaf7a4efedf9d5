"""Weights from one layout to another, with the adapters that are worked into them or stand on their own."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hanlin.api.process import called
from hanlin.core.errors import ConfigError, HanlinError
from hanlin.core.extensions import import_file
from hanlin.core.files import path_of, published, written_alone
from hanlin.core.hub import locate, name_of_folder

if TYPE_CHECKING:
    import torch

    from hanlin.core.tokenizer import Tokenizer
    from hanlin.formats.source import Source
    from hanlin.models.family import Family
    from hanlin.recipe.settings import Recipe

log = logging.getLogger(__name__)

_PEFT = "peft"

__all__ = ["ConvertSettings", "Written", "convert", "convert_held", "convert_weights"]


@dataclass(frozen=True)
class ConvertSettings:
    """How weights are rewritten.

    to: base, a layout of the family, or of an adapter: adapter, delta, peft (None: base, or adapter); layout: with
    peft, whose names of modules, huggingface (None) or original; from_: the source's layout (None: told from the
    files); family: None: told from the files; vocab: the vocabulary to put into the target; merge: the adapter to work
    into the weights; base: of a source that is an adapter (None:
    what its run began with); ranks: model-parallel ranks to divide over; iteration: of
    the training program, for file names (None: the source's); config: values of the model that win over the source's;
    dtype: of the numbers written (None: the source's), or how a GGUF file packs its matrices; options: values of
    `data.options` that win over those of the run that trained the weights: how other programs write questions;
    overwrite: replace the target.
    """

    to: str | None = None
    layout: str | None = None
    from_: str | None = None
    family: str | None = None
    vocab: Path | None = None
    merge: Path | None = None
    base: Path | None = None
    ranks: int = 1
    iteration: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    dtype: Literal["fp32", "bf16", "fp16", "q8_0"] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False


@dataclass(frozen=True)
class Written:
    """What was written. dtype, num_bytes: of a model's numbers and of all files (of an adapter alone they are not
    told); unpacked_bits: of a quantised source whose weights are plain numbers now, else 0; remark: what is odd about
    the values.
    """

    target: Path
    dtype: str | None = None
    num_bytes: int | None = None
    unpacked_bits: int = 0
    remark: str = ""


def convert(  # noqa: PLR0913 the fields of ConvertSettings
    source: str | Path,
    target: str | Path,
    *,
    to: str | None = None,
    layout: str | None = None,
    from_: str | None = None,
    family: str | None = None,
    tuning: str | Path | None = None,
    vocab: str | Path | None = None,
    merge: str | Path | None = None,
    base: str | Path | None = None,
    ranks: int = 1,
    iteration: int | None = None,
    config: Mapping[str, Any] | None = None,
    dtype: Literal["fp32", "bf16", "fp16", "q8_0"] | None = None,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Written:
    """Rewrite weights, or an adapter, from one layout to another; `ConvertSettings` says what each option means.

    tuning: a tuning method of your own (a Python file) that the adapter names; it is run.
    Raises: ConfigError, CheckpointError; the target is whole or not there at all.
    """
    given = {"vocab": vocab, "merge": merge, "base": base}
    paths = {name: None if path is None else path_of(path, name) for name, path in given.items()}
    with called([family, tuning]):
        if tuning is not None:
            import_file(Path(tuning))
        how = ConvertSettings(
            to=to,
            layout=layout,
            from_=from_,
            family=family,
            ranks=ranks,
            iteration=iteration,
            config=config or {},
            dtype=dtype,
            options=options or {},
            overwrite=overwrite,
            **paths,
        )
        return convert_weights(path_of(source, "source"), path_of(target, "target"), how)


def convert_weights(source: Path, target: Path, how: ConvertSettings) -> Written:
    """Rewrite weights, or an adapter, into `target`: a folder (delta, gguf: a file), which is whole or not there.

    source: a run folder stands for what it has trained best.

    Raises: ConfigError, CheckpointError.
    """
    from hanlin.adapters.opening import OURS, is_adapter, is_adapter_layout, weights_of_run
    from hanlin.api.weights import located

    if how.layout and how.to != _PEFT:
        raise ConfigError("--layout: says whose names PEFT's folder has; it goes with --to peft")
    source = weights_of_run(located(source))
    how = replace(how, **{name: located(path) for name in ("base", "merge") if (path := getattr(how, name))})
    how = replace(how, vocab=how.vocab and locate(how.vocab, whole=False))
    if how.to and is_adapter(source) and not is_adapter_layout(how.to):
        raise ConfigError(_no_whole_model(source, target, how))
    with _whole(target, how) as beside:
        if is_adapter(source) or how.to == OURS:
            written = _convert_adapter(source, beside, how)
        elif how.merge:
            written = _merge(source, beside, how)
        else:
            written = _convert(source, beside, how, _family(how, source))
    return replace(written, target=target)


def convert_held(source: Source, family: Family, tokenizer: Tokenizer, target: Path, how: ConvertSettings) -> Written:
    """The same of weights in memory (`formats.convert.held_source`), with their tokenizer.

    Raises: ConfigError, CheckpointError.
    """
    with _whole(target, how) as beside:
        written = _convert(source, beside, how, family, tokenizer=tokenizer)
    return replace(written, target=target)


@contextmanager
def _whole(target: Path, how: ConvertSettings) -> Iterator[Path]:
    """The place to write to, which becomes `target` at the end."""
    with written_alone(target), published(target, "replace" if how.overwrite else "refuse") as beside:
        yield beside


def _convert(
    source: Path | Source,
    target: Path,
    how: ConvertSettings,
    family: Family,
    *,
    more: Mapping[str, torch.Tensor] | None = None,
    tokenizer: Tokenizer | None = None,
) -> Written:
    """more: tensors to write along under the names given; tokenizer: to write along (None: that of `how`)."""
    from hanlin.formats.convert import convert
    from hanlin.formats.format import BASE
    from hanlin.formats.source import Source
    from hanlin.layers.precision import DTYPES

    weights = source.path if isinstance(source, Source) else source
    found = convert(
        source,
        family,
        how.from_,
        how.to or BASE,
        target,
        changes=how.config,
        tokenizer=tokenizer or (family.tokenizer(how.vocab) if how.vocab else None),
        overwrite=how.overwrite,
        ranks=how.ranks,
        iteration=how.iteration,
        more=more,
        dtype=DTYPES.get(how.dtype) if how.dtype else None,
        packing=None if how.dtype in DTYPES else how.dtype,
        options=_options(how, family, weights),
    )
    _accompany(target, how.to or BASE, family, weights, how.merge)
    size = sum(file.stat().st_size for file in [target, *target.rglob("*")] if file.is_file())
    unpacked = 0 if how.to == f"int{found.bits}" else found.bits
    return Written(target, found.dtype, size, unpacked, str(found.values))


def _merge(source: Path, target: Path, how: ConvertSettings) -> Written:
    from hanlin.adapters.opening import open_adapter
    from hanlin.api.weights import merge_adapter
    from hanlin.formats.convert import held_source
    from hanlin.formats.load import base_parameters
    from hanlin.formats.source import plain_values, read_config

    assert how.merge is not None, how
    family = _family(how, source)
    adapter = open_adapter(how.merge, family, read_config(source, family))
    model = merge_adapter(adapter, source, family)
    if adapter.quantise is not None:
        log.warning(
            "%s was trained on a base held as %s; it is worked into the weights on disk, which were not rounded so: "
            "answers differ a little from those of the base with model.quantise=%s",
            *(how.merge, adapter.quantise, adapter.quantise),
        )
    config = read_config(source, family, {**plain_values(family), **adapter.config})
    merged = {name: parameter.detach() for name, parameter in base_parameters(model).items()}
    return _convert(held_source(source, family, config, merged), target, how, family)


def _convert_adapter(source: Path, target: Path, how: ConvertSettings) -> Written:
    from hanlin.adapters.adapter import ForBase
    from hanlin.adapters.opening import OURS, format_to_write, is_adapter, open_adapter
    from hanlin.api.weights import model_of_adapter
    from hanlin.formats.source import open_source, read_config

    # It may lie among the tensors of a whole model.
    base = how.base or (_base_of_run(source) if is_adapter(source) else source)
    if base is None:
        raise ConfigError(f"{source} is an adapter; name the base that it belongs to with --base")
    if not base.exists():
        raise ConfigError(f"{source}: its run began with {base}, which is not there; name where it lies with --base")
    family = _family(how, base)
    adapter = open_adapter(source, family, read_config(base, family))
    layout = format_to_write(adapter.settings, how.to or OURS)
    about = ForBase(quantise=adapter.quantise)
    if layout.names_base:
        about = ForBase(how.layout, name_of_folder(base) or str(base.resolve()), open_source(base, family).format)
    if adapter.quantise is not None and not layout.keeps_packing:
        log.warning("%s was trained on a base held as %s, which %s cannot say", source, adapter.quantise, layout.title)
    layout = layout.for_base(about)
    model = model_of_adapter(adapter, base, family)
    if layout.tensors is not None:
        return _convert(base, target, how, family, more=layout.tensors(model, family))
    if how.dtype:
        raise ConfigError("--dtype: an adapter is written in the dtype that it has; remove it")
    layout.save(model, adapter.settings, target, family, overwrite=how.overwrite)
    _accompany(target, how.to or OURS, family, base, source)
    return Written(target)


def _no_whole_model(source: Path, target: Path, how: ConvertSettings) -> str:
    """Why an adapter alone is not written in a layout of whole models, and what to do."""
    from hanlin.adapters.lora_parts import OtherShapeError
    from hanlin.adapters.opening import OURS, find_families, find_format, open_adapter
    from hanlin.models.family import family_names, load_family
    from hanlin.recipe.tuning import TuningMethod

    form, base = find_format(source), how.base or _base_of_run(source)
    assert form is not None, source
    if base is not None or how.family:
        families = [_family(how, base or source)]
    else:
        families = find_families(source, form, map(load_family, family_names()))
    settings = None
    with suppress(OtherShapeError):
        settings = open_adapter(source, families[0]).settings if families else None
    if settings is not None and type(settings).merge is TuningMethod.merge:
        return (
            f"{source}: a {settings.method} cannot be worked into weights, and --to {how.to} writes whole models; "
            f"it is written as {', '.join([OURS, *settings.formats()])}"
        )
    return (
        f"{source} is an adapter, and --to {how.to} writes whole models; this works it into its base: "
        f"hanlin convert {base or 'BASE'} {target} --merge {source} --to {how.to}"
    )


def _base_of_run(weights: Path) -> Path | None:
    """What the run was started from that weights lie in; None where that is not known."""
    recipe = _recipe_of_run(weights)
    return None if recipe is None else recipe.model.base


def _recipe_of_run(weights: Path) -> Recipe | None:
    """The recipe of the run that weights lie in; None where they lie in none."""
    from hanlin.recipe.reading import load_recipe

    config = weights.parent / "config.yaml"
    if not config.is_file():
        return None
    try:
        return load_recipe(config)
    except HanlinError as error:
        log.warning("%s: not read, so nothing is known of the run: %s", config, error)
        return None


def _options(how: ConvertSettings, family: Family, weights: Path) -> Any:
    """The options of the samples that weights, or the adapter that is worked into them, were trained on.

    Raises: ConfigError.
    """
    from hanlin.adapters.opening import of_run
    from hanlin.models.family import make_options

    recipe = _recipe_of_run(of_run(how.merge) if how.merge else weights)
    known = recipe.data.options if recipe is not None and recipe.model.family == family.name else {}
    return make_options(family, {**known, **how.options})


def _accompany(target: Path, layout: str, family: Family, source: Path, trained: Path | None) -> None:
    """Write the model card of a folder."""
    from hanlin.api.model_card import card_facts, write_card

    if target.is_dir():
        write_card(target, layout, card_facts(family.name, family.title, source, trained))


def _family(how: ConvertSettings, source: Path) -> Family:
    from hanlin.api.weights import find_family
    from hanlin.models.family import load_family

    return load_family(how.family) if how.family else find_family(source)
