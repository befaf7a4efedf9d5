"""Everything that would keep a recipe from running, in one list, before anything heavy starts.

Files and arithmetic are checked without torch; only an original checkpoint and a named device need it, and they are
looked at last, when all else is right.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from hanlin.core.config import (
    COMMAND_LINE,
    Draft,
    Problem,
    dump_recipe,
    listing,
    load_recipe,
    make_recipe,
    nearest,
    read_recipe,
)
from hanlin.core.effect import idle_settings
from hanlin.core.errors import ConfigError, DataError, HanlinError
from hanlin.core.settings import DataSettings, Recipe
from hanlin.data.expand import records_in
from hanlin.data.mixture_file import is_mixture, read_mixture
from hanlin.data.samples import JoinsExamples
from hanlin.data.windows import check_windows, is_corpus
from hanlin.formats.convert import is_base, likely_families, open_any
from hanlin.generate.prompts import make_prompt
from hanlin.models.family import Family, family_names, load_family, option_problems
from hanlin.parallel.fit import settings_problems
from hanlin.parts import describe_parts, make_samples, model_config
from hanlin.train.trackers import check_trackers

__all__ = ["Purpose", "check", "check_file"]

Purpose = Literal["train", "evaluate", "generate"]
Found = Iterator[tuple[str, str]]
"""Key and text of a problem."""

_ROWS = 20  # rows of each data file that are tried
_BAD_ROWS = 3  # of which so many are shown
_SCAN_BYTES = 1 << 29  # larger files are not opened here: finding their lines takes longer than a check may
_PADDING_ROWS = 1024  # embedding rows that a base may have beyond its tokens
_FREE_BYTES = 100 << 20  # a run without a base needs at least this

# What may change between two calls that continue the same run.
_CHANGEABLE = re.compile(
    r"(generate|evaluate)\..*|run\.(?!seed).*|data\.(cache|eval)"
    r"|parallel\..*|train\.(steps|epochs|micro_rows|eval_every|samples|patience|save_every|save_in_background|keep|max_skipped)"
)


def check_file(path: Path | str, overrides: Iterable[str] = (), purpose: Purpose | None = None) -> Recipe:
    """Read and check a recipe; purpose None: train when the recipe has a section `train` or training data,
    else evaluate.

    Raises: ConfigError that lists all problems.
    """
    draft = read_recipe(path, overrides)
    problems = list(draft.problems)
    if draft.recipe is not None:
        found = check(draft.recipe, draft.places, purpose=purpose, with_torch=not draft.problems)
        problems += [problem for problem in found if not draft.problems or not _follows(problem, draft, draft.recipe)]
    if problems or draft.recipe is None:
        raise ConfigError(listing(problems, path))
    return draft.recipe


def check(
    recipe: Recipe,
    places: Mapping[str, str] | None = None,
    *,
    purpose: Purpose | None = None,
    with_torch: bool = True,
) -> list[Problem]:
    """All problems of a recipe whose values are right one by one.

    places: where each key stands; with_torch: look at the device and at original weights too, which takes seconds.
    """
    places = places or {}
    purpose = purpose or ("train" if recipe.data.trained or "train" in recipe.model_fields_set else "evaluate")
    found = [*_settings_without_effect(recipe, places), *_model_files(recipe), *_data_files(recipe, purpose)]
    if purpose == "train":
        found += [*_length(recipe), *_batch(recipe), *settings_problems(recipe), *_output(recipe), *_trackers(recipe)]
    family = _load_family(recipe, found)
    if family is not None:
        found += [*_size(recipe, family), *_config_values(recipe, family)]
        found += option_problems(family, recipe.data.options)
        if not any(key.startswith(("model.", "data.options", "data.transform")) for key, _ in found):
            found += [*_vocabulary_and_rows(recipe, family, purpose)]
    if not found and with_torch:
        found += [*_device(recipe), *_original_weights(recipe, purpose)]
    if not found and with_torch and purpose == "train":
        found += _layout(recipe)
    return [Problem(key, text, _place(key, places)) for key, text in found]


def _place(key: str, places: Mapping[str, str]) -> str:
    return places.get(key) or places.get(key.rpartition(".")[0], "")


def _follows(problem: Problem, draft: Draft, recipe: Recipe) -> bool:
    """Whether a problem may only be there because a wrong setting was left out of the draft."""
    wrong = {other.key for other in draft.problems}
    idle = idle_settings(recipe).get(problem.key)
    # What is missing may stand there under a wrong name.
    return problem.key in wrong or problem.key not in draft.places or (idle is not None and idle.cause in wrong)


# --- settings against each other ---


def _settings_without_effect(recipe: Recipe, places: Mapping[str, str]) -> Found:
    for key, idle in idle_settings(recipe).items():
        section, name = key.split(".")
        is_switched = places.get(idle.cause) == COMMAND_LINE != places.get(key)
        settings = getattr(recipe, section)
        if name in settings.model_fields_set and getattr(settings, name) is not None and not is_switched:
            yield key, f"has no effect {idle.reason}"


def _length(recipe: Recipe) -> Found:
    train = recipe.train
    if train.steps is None and train.epochs is None:
        yield "train.steps", "say how long to train: train.steps (optimiser steps) or train.epochs (passes)"
    if train.steps is not None and train.epochs is not None:
        yield "train.epochs", f"both steps ({train.steps}) and epochs ({train.epochs:g}) are given; remove one of them"
    end = train.decay_steps or train.steps
    if train.schedule in ("linear", "cosine") and end is not None and train.warmup_steps >= end:
        yield (
            "train.warmup_steps",
            f"the rate rises for {train.warmup_steps} steps and has to be back at 0 at step {end}; "
            "lower train.warmup_steps, or use train.schedule constant or noam",
        )
    if train.schedule == "noam" and train.schedule_form != "bmtrain":
        yield "train.schedule", f"{train.schedule_form} has no noam; use linear, cosine, exponential or constant"


def _batch(recipe: Recipe) -> Found:
    rows, micro = recipe.train.batch_rows, recipe.train.micro_rows
    if micro is not None and rows % micro:
        near = sorted({max(rows // micro, 1) * micro, (rows // micro + 1) * micro})
        yield (
            "train.batch_rows",
            f"{rows} is not a multiple of train.micro_rows {micro} "
            f"(batch_rows = micro_rows x forward passes per step); use {' or '.join(map(str, near))}",
        )


# --- files ---


def _model_files(recipe: Recipe) -> Found:
    model = recipe.model
    for name in ("base", "adapter", "vocab"):
        path: Path | None = getattr(model, name)
        if path is not None and not path.exists():
            yield f"model.{name}", _missing(path)
    if model.vocab is None and model.base is None:
        yield "model.vocab", "name the vocabulary (there is no model.base that could bring one)"
    if model.vocab is None and model.base is not None and model.base.is_file():
        yield "model.vocab", f"name the vocabulary (model.base is a single file: {model.base})"
    if model.base is not None and model.base.is_dir():
        yield from _shards(model.base)


def _shards(folder: Path) -> Found:
    for index in folder.glob("*.index.json"):
        named = _read_json(index).get("weight_map", {})
        missing = sorted({name for name in named.values() if not (folder / name).is_file()})
        if missing:
            yield "model.base", f"{folder}: {index.name} lists files that are missing: {', '.join(missing)}; copy them"


def _data_files(recipe: Recipe, purpose: Purpose) -> Found:
    if purpose == "train" and not recipe.data.trained:
        yield "data.train", "is empty; name the training files"
    if recipe.data.train and recipe.data.mixture is not None:
        yield "data.mixture", "stands beside data.train; keep one of them"
    if purpose == "evaluate" and not (recipe.evaluate.data or recipe.data.eval or recipe.data.split):
        yield "evaluate.data", "is empty, and so is data.eval; name the files to score"
    for key, path in _files(recipe, purpose):
        if is_corpus(path):
            if recipe.data.split is None:
                yield key, f'{path} is a token corpus; say how to divide it for pretraining: data.split: "949,50,1"'
        elif not path.exists():
            yield key, _missing(path)
        elif is_mixture(path):
            yield key, f"{path} is a list of data sets; name it in data.mixture"
    if isinstance(recipe.data.transform, Path) and not recipe.data.transform.is_file():
        yield "data.transform", _missing(recipe.data.transform)
    if purpose == "train" and recipe.data.mixture is not None:
        try:
            read_mixture(recipe.data.mixture)
        except ConfigError as error:
            yield "data.mixture", str(error)


def _files(recipe: Recipe, purpose: Purpose) -> list[tuple[str, Path]]:
    data = [("data.train", path) for path in recipe.data.train] + [("data.eval", path) for path in recipe.data.eval]
    scored = [("evaluate.data", path) for path in recipe.evaluate.data]
    match purpose:
        case "train":
            return data
        case "evaluate":
            return scored or [pair for pair in data if pair[0] == "data.eval"]
        case "generate":
            return []


def _missing(path: Path) -> str:
    folder, name = path.parent, path.name
    beside = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    where = "" if path.is_absolute() else f" (that is {path.absolute()})"
    close = nearest(name, beside) if beside else ""
    return f"there is no {path}{where}" + (close if "did you mean" in close else "; check the path")


def _output(recipe: Recipe) -> Found:
    for key, folder in (("run.folder", recipe.run.folder), ("data.cache", recipe.data.cache)):
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        if not existing.is_dir():
            yield key, f"{folder.absolute()} cannot be made: {existing} is a file; choose another folder"
        elif not os.access(existing, os.W_OK | os.X_OK):
            yield key, f"no permission to write into {existing}; choose another folder"
        elif key == "run.folder":
            yield from _other_run(recipe)
            yield from _disk_space(recipe, existing)


def _other_run(recipe: Recipe) -> Found:
    folder = recipe.run.folder
    if not (folder / "config.yaml").is_file() or not any((folder / "checkpoints").glob("*")):
        return
    try:
        # Through the settings, so that one that came into being after that run has its default on both sides.
        there = _flat(load_recipe(folder).model_dump(mode="json"))
    except ConfigError as error:
        yield "run.folder", f"{folder} holds a run whose config.yaml cannot be read ({error}); choose another folder"
        return
    here = _flat(make_recipe(yaml.safe_load(dump_recipe(recipe))).model_dump(mode="json"))
    changed = [key for key in here.keys() | there.keys() if here.get(key) != there.get(key)]
    changed = sorted(key for key in changed if not _CHANGEABLE.fullmatch(key))
    if changed:
        shown = "; ".join(f"{key}: {there.get(key)} there, {here.get(key)} here" for key in changed[:4])
        yield "run.folder", f"{folder} holds a run with other settings ({shown}); choose another folder or delete it"


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{section}.{name}": value for section, group in values.items() for name, value in group.items()}


def _disk_space(recipe: Recipe, folder: Path) -> Found:
    free, needed = shutil.disk_usage(folder).free, _least_bytes(recipe)
    if free < needed:
        yield (
            "run.folder",
            f"{folder} has {free / 1e9:,.1f} GB free, the run writes at least {needed / 1e9:,.1f} GB; "
            "free some space, choose another folder, or lower train.keep",
        )


def _least_bytes(recipe: Recipe) -> int:
    """A lower bound: a full run's checkpoints hold weights and two moments, `best` and `last` the weights."""
    base = recipe.model.base
    if base is None or not recipe.tuning.trains_base or not base.exists():
        return _FREE_BYTES
    files = [base] if base.is_file() else [*base.glob("*.safetensors"), *base.glob("*.bin"), *base.glob("*.pt")]
    weights = sum(file.stat().st_size for file in files)
    return max(_FREE_BYTES, weights * (3 * (recipe.train.keep + 1) + 2))


def _trackers(recipe: Recipe) -> Found:
    try:
        check_trackers(recipe.run.trackers)
    except ConfigError as error:
        yield "run.trackers", str(error).removeprefix("run.trackers: ")


# --- the family, its tokens and the rows ---


def _load_family(recipe: Recipe, found: list[tuple[str, str]]) -> Family | None:
    name = recipe.model.family
    if name not in family_names() and not name.endswith(".py"):
        found.append(
            ("model.family", f"there is no family {name!r}{nearest(name, family_names())}; or give a .py file")
        )
        return None
    try:
        return load_family(name)
    except ConfigError as error:
        found.append(("model.family", str(error).removeprefix("model.family: ")))
        return None


def _size(recipe: Recipe, family: Family) -> Found:
    size = recipe.model.size
    if size is not None and size not in family.sizes:
        yield "model.size", f"{family.name} has no size {size!r}{nearest(size, family.sizes)}"


def _config_values(recipe: Recipe, family: Family) -> Found:
    values = recipe.model.config
    known = [field.name for field in dataclasses.fields(family.config)]
    for name in values:
        if name not in known:
            yield f"model.config.{name}", f"{family.name} has no such value{nearest(name, known)}"
    given = {name: value for name, value in values.items() if name in known}
    try:
        TypeAdapter(family.config).validate_python(given)
    except ValidationError as error:
        for detail in error.errors():
            if detail["loc"] and detail["loc"][0] in given:
                yield f"model.config.{detail['loc'][0]}", f"{detail['msg']}; found {detail['input']!r}"
    for name, value in given.items():
        is_size = name.startswith("num_") or name.endswith(("_size", "_dim"))
        if is_size and isinstance(value, int) and value <= 0:
            yield f"model.config.{name}", f"must be greater than 0; found {value}"


def _vocabulary_and_rows(recipe: Recipe, family: Family, purpose: Purpose) -> Found:
    path = recipe.model.vocab or recipe.model.base
    assert path is not None, "_model_files has found this"
    key = "model.vocab" if recipe.model.vocab else "model.base"
    try:
        tokenizer = family.tokenizer(path)
    except HanlinError as error:
        other = _other_family(recipe, family)
        yield (
            ("model.family", f"{recipe.model.base} holds a {other}, not a {family.name}")
            if other
            else (key, str(error))
        )
        return
    if _is_original(recipe):
        return  # its configuration may have to be read from the weights: _original_weights does that
    try:
        config = model_config(recipe, family, tokenizer.vocab_size)
    except HanlinError as error:
        yield "model.base", str(error)
        return
    if problems := [*_vocabulary(recipe, config.vocab_size, tokenizer.vocab_size, path), *_reach(recipe, config)]:
        yield from problems
        return
    try:
        samples = make_samples(recipe, family, tokenizer, config)
    except ConfigError as error:
        key, colon, text = str(error).partition(": ")
        yield (key, text) if colon and key.startswith(("tuning.", "model.")) else ("data.options", str(error))
        return
    yield from _all_records(recipe, samples, config, purpose)


def _other_family(recipe: Recipe, family: Family) -> str | None:
    """The family of the base, where it is certainly another one."""
    base = recipe.model.base
    if base is None:
        return None
    if is_base(base):
        found = _read_json(base / "config.json")["family"]
        return found if found != family.name else None
    try:
        families = [load_family(name) for name in family_names()]
        known = [one.name for one in likely_families(open_any(base, families), families)]
    except HanlinError:
        return None
    return known[0] if known and family.name not in known else None


def _vocabulary(recipe: Recipe, rows: int, tokens: int, path: Path) -> Found:
    key = "model.vocab" if recipe.model.vocab else "model.base"
    if tokens > rows:
        yield key, f"{path} has {tokens:,} tokens, but the model has {rows:,} rows in its embedding (vocab_size)"
    elif recipe.model.base is not None and rows - tokens >= _PADDING_ROWS:
        yield key, f"{path} has {tokens:,} tokens, but {recipe.model.base} was made for {rows:,}; use its vocabulary"


def _reach(recipe: Recipe, config: Any) -> Found:
    limit = getattr(config, "max_length", None)
    if recipe.data.trained and limit is not None and recipe.data.max_length > limit:
        yield (
            "data.max_length",
            f"{recipe.data.max_length} tokens, but the model reads at most {limit} (max_length); lower it, or set "
            "model.config.max_length for a fresh model",
        )


def _all_records(recipe: Recipe, samples: Any, config: Any, purpose: Purpose) -> Found:
    yield from _all_rows(recipe, samples, purpose)
    if purpose == "train":
        yield from _sample_texts(recipe, samples, getattr(config, "max_length", None))


def _sample_texts(recipe: Recipe, samples: Any, max_length: int | None) -> Found:
    """Entries of train.samples that the model could not answer."""
    for number, entry in enumerate(recipe.train.samples, start=1):
        try:
            for record in records_in([entry], samples):
                make_prompt(samples, record, recipe.generate, max_length)
        except HanlinError as error:
            yield "train.samples", f"entry {number}: {error}"


def _all_rows(recipe: Recipe, samples: Any, purpose: Purpose) -> Found:
    if recipe.data.split is not None:
        yield from _windows(recipe, samples)
        return
    for key, file in _files(recipe, purpose):
        if file.exists() and not is_mixture(file):
            yield from ((key, text) for text in _rows(recipe.data, samples, file))
    if purpose == "train" and recipe.data.mixture is not None:
        yield from (("data.mixture", text) for text in _mixture_rows(recipe.data, samples))


def _mixture_rows(settings: DataSettings, samples: Any) -> Iterator[str]:
    """What is wrong with the first rows of each data set, in each of their forms."""
    assert settings.mixture is not None, settings
    try:
        sets = [one for one in read_mixture(settings.mixture) if one.is_drawn]
    except ConfigError:
        return  # _data_files has told it
    for one in sets:
        if any(one.incontext_weight[1:]) and not isinstance(samples, JoinsExamples):
            yield f"{one.name}: incontext_weight: this family has no in-context samples; leave it at [1.0]"
        for way in one.ways:
            found = _rows(settings.model_copy(update={"transform": way}), samples, one.path)
            yield from (f"{one.name}: {text}" for text in found)


def _windows(recipe: Recipe, samples: Any) -> Found:
    """What keeps the corpora from being read as windows."""
    try:
        check_windows(recipe.data, samples)
    except ConfigError as error:
        key, _, text = str(error).partition(": ")
        yield (key, text) if key.startswith("data.") else ("data.split", str(error))
    except DataError as error:
        yield "data.train", str(error)


def _rows(settings: DataSettings, samples: Any, path: Path) -> Iterator[str]:
    """What is wrong with the first rows of a data file."""
    if path.is_file() and path.stat().st_size > _SCAN_BYTES:
        return
    try:
        tried = list(_check_rows(settings, samples, path))
    except DataError as error:
        yield str(error)
        return
    bad = [reason for reason in tried if reason]
    if bad and (settings.bad_rows == "error" or len(bad) == len(tried)):
        shown, advice = "; ".join(bad[:_BAD_ROWS]), "correct them or set data.bad_rows: drop"
        yield f"{len(bad)} of the first {len(tried)} rows cannot be used: {shown}; {advice}"


def _check_rows(settings: DataSettings, samples: Any, path: Path) -> Iterator[str]:
    from hanlin.data.sources.source import BadRowError
    from hanlin.data.transform import open_records

    source = open_records(path, settings)
    for number in range(min(len(source), _ROWS)):
        try:
            samples.check(source[number])
            yield ""
        except BadRowError as error:
            yield str(error)
        except DataError as error:
            yield f"{source.where(number)}: {error}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # what is wrong with it is said when the weights are opened
    return values if isinstance(values, dict) else {}


# --- what needs torch ---


def _device(recipe: Recipe) -> Found:
    if recipe.run.device in ("auto", "cpu"):
        return
    from hanlin.core.ranks import pick_device

    try:
        pick_device(recipe.run.device)
    except HanlinError as error:
        yield "run.device", str(error).removeprefix("run.device: ")


def _original_weights(recipe: Recipe, purpose: Purpose) -> Found:
    if not _is_original(recipe):
        return
    try:
        parts = describe_parts(recipe)
    except HanlinError as error:
        yield "model.base", str(error)
        return
    path = recipe.model.vocab or recipe.model.base
    assert path is not None, recipe
    rows, tokens = parts.config.vocab_size, parts.tokenizer.vocab_size
    problems = [*_vocabulary(recipe, rows, tokens, path), *_reach(recipe, parts.config)]
    yield from problems or _all_records(recipe, parts.samples, parts.config, purpose)


def _layout(recipe: Recipe) -> Found:
    """What the plan of the model, made without memory, says to the recipe's degrees."""
    if recipe.parallel.tensor == recipe.parallel.pipe == 1:
        return
    import torch

    from hanlin.parallel.fit import model_problems

    parts = describe_parts(recipe)
    with torch.device("meta"):
        model = parts.family.model()(parts.config)
    yield from model_problems(model, recipe.parallel)


def _is_original(recipe: Recipe) -> bool:
    """Whether the base is in another layout than our own."""
    return recipe.model.base is not None and not is_base(recipe.model.base)
