"""The files that a recipe names: whether they are there and of the right kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from hanlin.adapters.opening import is_adapter, weights_of_run
from hanlin.core.errors import CheckpointError, ConfigError
from hanlin.core.extensions import why_untrusted
from hanlin.core.files import missing_link
from hanlin.core.hub import hint
from hanlin.core.json_text import parse_json
from hanlin.core.manifest import check_manifest
from hanlin.data.mixture_file import is_mixture, read_mixture
from hanlin.data.pretraining.windows import is_corpus
from hanlin.data.sources.several import is_pattern, is_there, no_match
from hanlin.formats.files import read_shard_index
from hanlin.formats.read_once import sha256_and_values, unread_files
from hanlin.formats.source import is_base
from hanlin.recipe.reading import Found, nearest
from hanlin.recipe.settings import Recipe

Purpose = Literal["train", "evaluate", "generate"]


def model_file_problems(recipe: Recipe) -> Found:
    model = recipe.model
    for name in ("base", "adapter", "vocab"):
        path: Path | None = getattr(model, name)
        if path is not None and not path.exists():
            yield f"model.{name}", _missing(path)
        elif name == "base" and path is not None and (trained := weights_of_run(path)) != path:
            yield f"model.{name}", f"{path} is a run's folder; {_trained_there(trained)}"
    if model.vocab is None and model.base is None:
        yield "model.vocab", "name the vocabulary (there is no model.base that could bring one)"
    if model.vocab is None and model.base is not None and model.base.is_file():
        yield "model.vocab", f"name the vocabulary (model.base is a single file: {model.base})"
    if model.base is not None and model.base.is_dir():
        yield from _shards(model.base)


def _trained_there(trained: Path) -> str:
    if is_adapter(trained):
        return f"it has trained an adapter: name {trained} in model.adapter, and its base here"
    return f"what it has trained is {trained}"


def damaged_weights(recipe: Recipe, purpose: Purpose, *, is_loaded_next: bool = False) -> Found:
    """Weights that are not as they were written; those of ours and converted ones carry a list of their bytes.

    Where their values are looked at next, that is done on the way: large files are read once for both. Where a base of
    ours is loaded next, that looks at both.
    """
    is_left = is_loaded_next and recipe.generate.expert_memory is None
    sha256 = None if purpose == "generate" else sha256_and_values
    for name in ("base", "adapter"):
        path: Path | None = getattr(recipe.model, name)
        try:
            if path is not None:
                later = unread_files(path) if is_left and name == "base" and is_base(path) else ()
                check_manifest(path, sha256, later)
        except CheckpointError as error:
            yield f"model.{name}", str(error)


def _shards(folder: Path) -> Found:
    for index in folder.glob("*.index.json"):
        try:
            read_shard_index(index)
        except CheckpointError as error:
            yield "model.base", str(error)


def data_file_problems(recipe: Recipe, purpose: Purpose) -> Found:
    if purpose == "train" and not recipe.data.trained:
        yield "data.train", "is empty; name the training files"
    if recipe.data.train and recipe.data.mixture is not None:
        yield "data.mixture", "stands beside data.train; keep one of them"
    if purpose == "evaluate" and not (recipe.evaluate.data or recipe.data.eval or recipe.data.split):
        yield "evaluate.data", "is empty, and so is data.eval; name the files to score"
    for key, path in named_files(recipe, purpose):
        if is_corpus(path):
            if recipe.data.split is None:
                yield key, f'{path} is a token corpus; say how to divide it for pretraining: data.split: "949,50,1"'
        elif not is_there(path):
            yield key, _missing_data(path)
        elif is_mixture(path):
            yield key, f"{path} is a list of data sets; name it in data.mixture"
    if isinstance(script := recipe.data.transform, Path):
        yield from _script_problems(script)
    if purpose == "train" and recipe.data.mixture is not None:
        try:
            read_mixture(recipe.data.mixture)
        except ConfigError as error:
            yield "data.mixture", str(error)


def _script_problems(script: Path) -> Found:
    if reason := why_untrusted(script) if script.is_file() else _missing(script):
        yield "data.transform", reason


def named_files(recipe: Recipe, purpose: Purpose) -> list[tuple[str, Path]]:
    data = [("data.train", path) for path in recipe.data.train] + [("data.eval", path) for path in recipe.data.eval]
    scored = [("evaluate.data", path) for path in recipe.evaluate.data]
    match purpose:
        case "train":
            return data
        case "evaluate":
            if recipe.data.split is not None:
                return [pair for pair in data if pair[0] == ("data.eval" if recipe.data.eval else "data.train")]
            return scored or [pair for pair in data if pair[0] == "data.eval"]
        case "generate":
            return []


def _missing_data(path: Path) -> str:
    return no_match(path) if is_pattern(path) else _missing(path)


def _missing(path: Path) -> str:
    folder, name = path.parent, path.name
    beside = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    where = "" if path.is_absolute() else f" (that is {path.absolute()})"
    if link := missing_link(path):
        return f"there is no {path}{link}; mend the link, or name the file itself"
    close = nearest(name, beside) if beside else ""
    return f"there is no {path}{where}" + (close if "did you mean" in close else hint(path) or "; check the path")


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # what is wrong with it is said when the weights are opened
    return values if isinstance(values, dict) else {}
