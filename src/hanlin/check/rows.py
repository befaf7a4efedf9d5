"""The first rows of each data file, tried as they would be in a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hanlin.check.files import Purpose, named_files
from hanlin.core.errors import ConfigError, DataError, HanlinError
from hanlin.data.expand import records_in
from hanlin.data.mixture_file import is_mixture, read_mixture
from hanlin.data.pretraining.windows import check_windows
from hanlin.data.processor import JoinsExamples
from hanlin.data.sources.records import BadRowError
from hanlin.data.transform import open_transformed
from hanlin.generate.prompts import make_prompt
from hanlin.models.family import ModelConfig, Processor
from hanlin.recipe.reading import Found
from hanlin.recipe.settings import DataSettings, Recipe

_ROWS = 20  # rows of each data file that are tried
_BAD_ROWS = 3  # of which so many are shown
_SCAN_BYTES = 1 << 29  # larger files are not opened here: finding their lines takes longer than a check may


def record_problems(recipe: Recipe, processor: Processor, config: ModelConfig, purpose: Purpose) -> Found:
    yield from _all_rows(recipe, processor, purpose)
    if purpose == "train":
        yield from _sample_texts(recipe, processor, getattr(config, "max_length", None))


def _sample_texts(recipe: Recipe, processor: Processor, max_length: int | None) -> Found:
    """Entries of train.samples that the model could not answer."""
    for number, entry in enumerate(recipe.train.samples, start=1):
        try:
            for record in records_in([entry], processor):
                make_prompt(processor, record, recipe.generate, max_length)
        except HanlinError as error:
            yield "train.samples", f"entry {number}: {error}"


def _all_rows(recipe: Recipe, processor: Processor, purpose: Purpose) -> Found:
    if recipe.data.split is not None:
        yield from _windows(recipe, processor)
        return
    for key, file in named_files(recipe, purpose):
        if file.exists() and not is_mixture(file):
            yield from ((key, text) for text in _rows(recipe.data, processor, file))
    if purpose == "train" and recipe.data.mixture is not None:
        yield from (("data.mixture", text) for text in _mixture_rows(recipe.data, processor))


def _mixture_rows(settings: DataSettings, processor: Processor) -> Iterator[str]:
    """What is wrong with the first rows of each data set, in each of their forms."""
    assert settings.mixture is not None, settings
    try:
        sets = [one for one in read_mixture(settings.mixture) if one.is_drawn]
    except ConfigError:
        return  # data_file_problems has told it
    for one in sets:
        if any(one.incontext_weight[1:]) and not isinstance(processor, JoinsExamples):
            yield f"{one.name}: incontext_weight: this family has no in-context samples; leave it at [1.0]"
        for way in one.ways:
            found = _rows(settings.model_copy(update={"transform": way}), processor, one.path)
            yield from (f"{one.name}: {text}" for text in found)


def _windows(recipe: Recipe, processor: Processor) -> Found:
    """What keeps the corpora from being read as windows."""
    try:
        check_windows(recipe.data, processor)
    except ConfigError as error:
        key, _, text = str(error).partition(": ")
        yield (key, text) if key.startswith("data.") else ("data.split", str(error))
    except DataError as error:
        yield "data.train", str(error)


def _rows(settings: DataSettings, processor: Processor, path: Path) -> Iterator[str]:
    """What is wrong with the first rows of a data file."""
    if path.is_file() and path.stat().st_size > _SCAN_BYTES:
        return
    try:
        tried = list(_check_rows(settings, processor, path))
    except DataError as error:
        yield str(error)
        return
    bad = [reason for reason in tried if reason]
    if bad and (settings.bad_rows == "error" or len(bad) == len(tried)):
        shown, advice = "; ".join(bad[:_BAD_ROWS]), "correct them or set data.bad_rows: drop"
        yield f"{len(bad)} of the first {len(tried)} rows cannot be used: {shown}; {advice}"


def _check_rows(settings: DataSettings, processor: Processor, path: Path) -> Iterator[str]:
    source = open_transformed(path, settings)
    for number in range(min(len(source), _ROWS)):
        try:
            processor.check(source[number])
            yield ""
        except BadRowError as error:
            yield str(error)
        except DataError as error:
            yield f"{source.where(number)}: {error}"
