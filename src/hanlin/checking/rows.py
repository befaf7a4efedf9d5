"""The first rows of each data file, tried as they would be in a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hanlin.checking.files import Purpose
from hanlin.core.batch import Sample
from hanlin.core.errors import ConfigError, DataError, HanlinError
from hanlin.core.tokenizer import Tokenizer
from hanlin.data.bad_rows import BadRow, list_bad_rows, list_dropped, try_records
from hanlin.data.expand import FileRecords, open_first, records_in
from hanlin.data.forms.content import Side
from hanlin.data.mixture_file import is_mixture, read_mixture
from hanlin.data.pairs import SAME_TOKENS, answer_settings, is_same
from hanlin.data.prepare import try_rows
from hanlin.data.pretraining.indexing import end_id, try_texts
from hanlin.data.pretraining.windows import CorpusPart, check_windows, is_corpus
from hanlin.data.processor import JoinsExamples
from hanlin.data.sources import Records
from hanlin.data.sources.opening import opening_bytes
from hanlin.data.sources.several import is_there
from hanlin.evaluation.scorable import ScoredBy
from hanlin.generate.prompts import make_prompt
from hanlin.models.family import Processor
from hanlin.recipe.reading import Found
from hanlin.recipe.settings import DataSettings, Recipe
from hanlin.run.components import Components
from hanlin.training.objective import find_objective

TRIED_ROWS = 100
"""Rows of each data file that are tried."""
TRIED_DOCUMENTS = 1000
"""Documents of each text for pretraining that are read, without making tokens of them."""
_SCAN_BYTES = 1 << 29  # larger files are not opened here: finding their lines takes longer than a check may


def record_problems(components: Components, purpose: Purpose) -> Found:
    yield from _all_rows(components, purpose)
    if purpose == "train":
        max_length = getattr(components.config, "max_length", None)
        yield from _sample_texts(components.recipe, components.processor, max_length)


def _sample_texts(recipe: Recipe, processor: Processor, max_length: int | None) -> Found:
    """Entries of train.samples that the model could not answer."""
    for number, entry in enumerate(recipe.train.samples, start=1):
        try:
            for record in records_in([entry], processor):
                make_prompt(processor, record, recipe.generate, max_length)
        except HanlinError as error:
            yield "train.samples", f"entry {number}: {error}"


def _all_rows(components: Components, purpose: Purpose) -> Found:
    recipe, processor = components.recipe, components.processor
    if purpose == "generate":
        return
    if recipe.data.split is not None:
        yield from _windows(recipe, components, purpose)
        return
    if purpose == "evaluate":
        yield from _scored_rows(recipe, processor, components.config)
        return
    if any(recipe.data.in_context[1:]) and not isinstance(processor, JoinsExamples):
        yield "data.in_context", "this family has no in-context samples; leave it at [1.0]"
    data = recipe.data
    answers = find_objective(recipe.train.objective).answers
    if answers:
        each = answer_settings(data, len(answers))
        # What is wrong with a row itself is the same for each of its answers.
        problems = list(dict.fromkeys(found for side in answers for found in _rows_of_files(each, processor, side)))
        yield from problems or _same_answers(each, processor)
        return
    yield from _rows_of_files(data, processor)
    if data.mixture is not None:
        yield from (("data.mixture", text) for text in _mixture_rows(data, processor))


def _rows_of_files(settings: DataSettings, processor: Processor, side: Side | None = None) -> Found:
    for key, files, share in (
        ("data.train", settings.train, settings.train_share),
        ("data.eval", settings.eval, settings.eval_share),
    ):
        yield from ((key, text) for text in _trained_rows(settings, processor, files, share, key == "data.train", side))


def _same_answers(settings: DataSettings, processor: Processor) -> Found:
    """Of the first rows those whose two answers are the same as tokens."""
    if settings.bad_rows == "drop":
        return
    for key, path in (*(("data.train", one) for one in settings.train), *(("data.eval", one) for one in settings.eval)):
        if not _is_opened(path):
            continue
        sides = [open_first(path, settings, processor, TRIED_ROWS, side=side) for side in ("chosen", "rejected")]
        (source, is_whole), tried = sides[0], [dict(_first_samples(one, processor, settings)) for one, _ in sides]
        bad = [
            (source.where(number), SAME_TOKENS)
            for number, chosen in tried[0].items()
            if number in tried[1] and is_same(chosen, tried[1][number])
        ]
        if bad:
            yield key, _listing(bad, len(source), is_whole)


def _first_samples(source: FileRecords, processor: Processor, settings: DataSettings) -> list[tuple[int, Sample]]:
    return try_rows(source, processor, settings, keep=TRIED_ROWS).first


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
            changed = settings.model_copy(update={"transform": way})
            found = _trained_rows(changed, processor, [one.path], settings.train_share, True)
            yield from (f"{one.name}: {text}" for text in found)


def _windows(recipe: Recipe, components: Components, purpose: Purpose) -> Found:
    """What keeps the corpora from being read as windows."""
    try:
        for part in _corpus_parts(recipe.data, purpose):
            check_windows(recipe.data, components.processor, part, components.tokenizer.vocab_size)
            for path in part.files:
                if is_there(path) and not is_corpus(path):
                    _check_texts(path, components.tokenizer, part, recipe.data.text_key)
    except ConfigError as error:
        key, _, text = str(error).partition(": ")
        yield (key, text) if key.startswith("data.") else ("data.split", str(error))
    except DataError as error:
        yield "data.train", str(error)


def _corpus_parts(settings: DataSettings, purpose: Purpose) -> Sequence[CorpusPart]:
    """The parts that a run reads.

    Raises: ConfigError when there is nothing that it could read.
    """
    train, valid, test = (CorpusPart.of(settings, part) for part in ("train", "valid", "test"))
    if purpose == "train" and train is None:
        raise ConfigError(f"data.split: {settings.split!r} leaves nothing to train on; its first number is 0")
    if purpose == "evaluate" and valid is test is None:
        raise ConfigError("data.split: leaves nothing for valid and test; give it three numbers: 949,50,1")
    wanted = (train, valid) if purpose == "train" else (test or valid,)
    return [part for part in wanted if part is not None]


def _check_texts(path: Path, tokenizer: Tokenizer, part: CorpusPart, key: str) -> None:
    """Raises: ConfigError, DataError for texts that cannot be made a corpus, as far as the first ones show it."""
    end_id(tokenizer)
    count, is_whole = try_texts(path, key, TRIED_DOCUMENTS)
    if is_whole:
        part.documents(path, count)


def is_tried_whole(path: Path, settings: DataSettings, processor: Processor, side: Side | None = None) -> bool:
    """Whether a file that is trained on has no more rows than are tried; side: of rows with answers to compare."""
    if not _is_opened(path):
        return False
    _, is_whole = open_first(
        path, settings, processor, TRIED_ROWS, share=settings.train_share, limit=settings.train_limit, side=side
    )
    return is_whole


def _trained_rows(
    settings: DataSettings,
    processor: Processor,
    files: Sequence[Path],
    share: float,
    is_training: bool,
    side: Side | None = None,
) -> Iterator[str]:
    """What keeps files from being trained on together, as far as their first rows show it."""
    limit = settings.train_limit if is_training else None
    tried, has_more = [], False
    for path in filter(_is_opened, files):
        try:
            source, is_whole = open_first(path, settings, processor, TRIED_ROWS, share=share, limit=limit, side=side)
            tried.append(try_rows(source, processor, settings))
        except DataError as error:
            yield str(error)
            return
        has_more |= not is_whole
        if bad := tried[-1].bad:
            yield _listing(bad, len(source), is_whole)
    has_more |= len(tried) < len(files)
    if tried and not has_more and not any(one.lengths or one.bad for one in tried):
        dropped = [row for one in tried for row in one.counts.examples]
        yield _indented(list_dropped(dropped))


def _scored_rows(recipe: Recipe, processor: Processor, config: Any) -> Found:
    """What keeps records from being scored by the recipe's tasks, as far as the first rows of their files show it."""
    by = ScoredBy.of(recipe, processor, config)
    try:
        by.check_tasks()
    except ConfigError as error:
        yield "evaluate.tasks", str(error).removeprefix("evaluate.tasks: ")
        return
    key, share = ("evaluate.data", 1.0) if recipe.evaluate.data else ("data.eval", recipe.data.eval_share)
    num_usable, has_more, limit = 0, False, recipe.evaluate.limit
    dropped: list[BadRow] = []
    for path in filter(_is_opened, recipe.evaluate.data or recipe.data.eval):
        try:
            source, is_whole = _first_scored(by, path, recipe.data, processor, share)
        except DataError as error:
            yield key, str(error)
            return
        found = try_records([source], by.check, limit=None if limit is None else max(limit - num_usable, 0))
        num_usable, has_more = num_usable + len(found.records), has_more or not is_whole
        if found.bad and recipe.data.bad_rows == "error":
            yield key, _listing(found.bad, found.num_tried, is_whole)
        else:
            dropped += found.bad
    if dropped and not num_usable and not has_more:
        yield key, _indented(list_dropped(dropped))


def _first_scored(
    by: ScoredBy, path: Path, settings: DataSettings, processor: Processor, share: float
) -> tuple[Records, bool]:
    """The first records of a file, and whether these are all."""
    whole: list[bool] = []

    def open_side(side: Side | None) -> Records:
        source, is_whole = open_first(path, settings, processor, TRIED_ROWS, share=share, side=side)
        whole.append(is_whole)
        return source

    return by.opened(open_side), all(whole)


def _is_opened(path: Path) -> bool:
    return is_there(path) and not is_mixture(path) and opening_bytes(path) <= _SCAN_BYTES


def _listing(bad: Sequence[BadRow], num_tried: int, is_whole: bool) -> str:
    looked = f"the {num_tried:,} rows" if is_whole else f"the first {num_tried:,} rows, more were not looked at,"
    return _indented(list_bad_rows(bad, f"{len(bad):,} of {looked} cannot be used."))


def _indented(text: str) -> str:
    """Further lines below the problem that they belong to; the only row stays in its line."""
    head, *rows, advice = text.splitlines()
    if len(rows) == 1:
        return f"{head} {rows[0].strip()}. {advice}"
    return "\n    ".join([head, *map(str.strip, rows), advice])
