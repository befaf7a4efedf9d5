"""Say what a file or folder is, and why: weights and their layout, an adapter, data, a vocabulary, a recipe, a run.

hanlin inspect chatglm2-6b/                 weights: family, layout, shape, dtype
hanlin inspect pytorch_model.bin --values   likewise, and whether the numbers are sound
hanlin inspect data/ runs/mine vocab.txt    anything else
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hanlin.cli._recipe import add_tuning, run_tuning_file
from hanlin.cli._say import in_users_language
from hanlin.cli._trust import add_trust
from hanlin.core.errors import DataError
from hanlin.core.files import has_file, missing_link
from hanlin.core.hub import hint, locate
from hanlin.core.terminal import padded

if TYPE_CHECKING:
    from hanlin.adapters.adapter import AdapterFormat
    from hanlin.formats.describe import Description
    from hanlin.formats.values import ValueReport
    from hanlin.models.family import Family

HELP = "say what a file is, and why"

_WEIGHT_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".safetensors", ".gguf")

_LABEL_WIDTH = 12
_DATA = ("first",)
"""Facts that quote a file."""

_MOST_FILES = 20
"""Files of a folder that are named."""

Facts = Iterator[tuple[str, str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--values", action="store_true", help="of weights: read all numbers; count NaN, inf and zeros")
    parser.add_argument("--family", help="whose weights they are: a name, or the .py file of a model of your own")
    add_tuning(parser)
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    run_tuning_file(args)
    for given in args.paths:
        path = locate(given, whole=False)
        print(path if path == given else f"{given}: {path}")
        for name, value in _facts(path, args.values, args.family):
            label = in_users_language(name)
            print(f"  {padded(label, _LABEL_WIDTH)} {value if name in _DATA else in_users_language(value)}")
    return 0


def _facts(path: Path, reads_values: bool, family: str | None) -> Facts:
    from hanlin.data.sources.several import is_there

    if prefixes := _corpus_prefixes(path):
        return _corpus(prefixes)
    if not is_there(path):
        raise DataError(f"there is no {_missing_half(path) or path}{missing_link(path) or hint(path)}")
    if path.is_dir():
        return _folder(path, reads_values, family)
    if _is_bee_file(path):
        return _bee(path.parent)
    if path.suffix in _WEIGHT_ENDINGS or path.name.endswith(".index.json"):
        return _weights(path, reads_values, family)
    if path.suffix in (".yaml", ".yml"):
        return _recipe(path)
    if path.suffix in (".txt", ".model"):
        return (_vocabulary if path.suffix == ".txt" else _pieces)(path)
    return _data(path)


def _folder(path: Path, reads_values: bool, family: str | None) -> Facts:
    from hanlin.data.sources.several import is_saved_set

    if (path / "meta.bin").is_file():
        return _bee(path)
    if is_saved_set(path):
        return _data(path, " (it holds .arrow files, as the datasets library's save_to_disk writes them)")
    if (path / "config.yaml").is_file():
        return _run(path)
    if files := _without_weights(path):
        return _files(path, files)
    return _weights(path, reads_values, family)


def _without_weights(folder: Path) -> list[Path]:
    """The files of a folder in which no weights lie, if they are data for training; else none.

    Raises: DataError for a link that leads nowhere.
    """
    from hanlin.data.sources.several import files_below, has_data_name

    if any(_is_of_model(file) for file in folder.iterdir()):
        return []
    found = files_below(folder)
    if not any(has_data_name(file) or file.suffix in (".txt", ".idx") for file in found):
        return []
    is_corpus = any(file.suffix == ".idx" for file in found)
    return [] if any(_is_of_model(file) and not (is_corpus and file.suffix == ".bin") for file in found) else found


def _is_of_model(file: Path) -> bool:
    is_corpus = file.suffix == ".bin" and file.with_suffix(".idx").is_file()
    named = file.name in ("config.json", "adapter_config.json", "tokenizer_config.json", "vocab.txt")
    return named or (file.suffix in _WEIGHT_ENDINGS and not is_corpus) or file.name.endswith(".index.json")


def _files(folder: Path, files: Sequence[Path]) -> Facts:
    """The files of data in a folder, each by its kind, and what they are together."""
    from hanlin.data.sources import open_records
    from hanlin.data.sources.several import has_data_name

    rows = [file for file in files if has_data_name(file)]
    corpora = [file for file in files if file.suffix == ".idx"]
    texts = [file for file in files if file.suffix == ".txt"]
    kinds = ((rows, "files of rows"), (corpora, "token corpora"), (texts, "texts"))
    yield "kind", f"a folder of data: {', '.join(f'{len(some):,} {what}' for some, what in kinds if some)}"
    listed = [*rows, *corpora, *texts]
    for file in listed[:_MOST_FILES]:
        yield "file", f"{file.relative_to(folder)}: {_one_file(file)}"
    if len(listed) > _MOST_FILES:
        yield "", f"and {len(listed) - _MOST_FILES:,} more"
    if not rows:
        return
    try:
        source = open_records(folder)
        yield "rows", f"{len(source):,}"
        yield "first", json.dumps(source[0], ensure_ascii=False)[:300]
    except DataError as error:
        yield "together", str(error)


def _one_file(file: Path) -> str:
    """What a file of data is, in a few words."""
    from hanlin.data.sources import open_records

    if file.suffix == ".txt":
        return f"text, {file.stat().st_size:,} bytes"
    try:
        if file.suffix == ".idx":
            return "; ".join(f"{name} {value}" for name, value in _index(file.with_suffix("")))
        source = open_records(file)
        return f"{source.kind}, {len(source):,} rows"
    except DataError as error:
        return str(error)


def _run(path: Path) -> Facts:
    yield "kind", "a run folder (it holds config.yaml)"
    steps = sorted(entry.name for entry in (path / "checkpoints").glob("[0-9]*"))
    yield "checkpoints", ", ".join(steps) or "none"
    for name in ("best", "last"):
        yield name, "there" if (path / name).is_dir() else "not yet"
    yield from _recipe(path / "config.yaml")


def _recipe(path: Path) -> Facts:
    from hanlin.recipe.reading import load_recipe

    recipe = load_recipe(path)
    yield "recipe", str(path)
    yield "model", f"{recipe.model.family}, {recipe.model.base or recipe.model.size or 'fresh weights'}"
    if recipe.model.quantise is not None:
        yield "in memory", f"the blocks' matrices packed as {recipe.model.quantise} (model.quantise)"
    yield "tuning", recipe.tuning.method
    yield "data.train", ", ".join(map(str, recipe.data.trained)) or "none"


def _weights(path: Path, reads_values: bool, family: str | None) -> Facts:
    from hanlin.adapters.opening import find_format
    from hanlin.formats.describe import describe
    from hanlin.models.family import family_names, load_family

    families = [load_family(name) for name in ([family] if family else family_names())]
    found, form = describe(path, families, reads_values=reads_values), find_format(path)
    yield from _model(found) if form is None else _adapter(path, form, families)
    yield "parameters", f"{found.num_parameters:,} ({', '.join(found.dtypes)}) in {found.num_tensors} tensors"
    yield "bytes", f"{found.num_bytes:,}"
    if found.values is not None:
        yield from _values(found.values)
    for name, shape in found.shapes.items():
        yield "tensor", f"{name} {shape}"
    if found.num_tensors > len(found.shapes):
        yield "", f"and {found.num_tensors - len(found.shapes)} more"


def _values(report: ValueReport) -> Facts:
    yield "values", f"{str(report) or 'all are numbers'}; {len(report.zeros)} tensors hold nothing but zeros"
    for line in report.broken_lines():
        yield "no numbers", line
    for name in sorted(report.zeros):
        yield "zeros", name


def _adapter(path: Path, form: AdapterFormat, families: Sequence[Family]) -> Facts:
    from hanlin.adapters.lora_parts import OtherShapeError
    from hanlin.adapters.opening import find_families, open_adapter

    known = find_families(path, form, families)
    yield "kind", f"adapter: {form.title}"
    if known:
        yield "family", " or ".join(family.name for family in known)
        try:
            adapter = open_adapter(path, known[0])
        except OtherShapeError:
            yield "settings", "of fused linears, which its base alone tells how to cut: hanlin convert ... --base BASE"
            return
        if adapter.base is not None:
            yield "base", f"{adapter.base}, as its files say"
        if adapter.quantise is not None:
            yield "trained on", f"a base held as {adapter.quantise} (model.quantise)"
        settings = adapter.settings.model_dump(mode="json", exclude_none=True)
        yield "settings", ", ".join(f"{name}: {value}" for name, value in settings.items())


def _model(found: Description) -> Facts:
    yield "kind", "weights of a model"
    yield "family", f"{found.family or 'unknown'}, layout {found.layout or 'unknown'}"
    yield "because", found.reason
    if found.remark:
        yield "told", found.remark
    if found.lying:
        yield "files", found.lying
    if found.iteration is not None:
        yield "iteration", f"{found.iteration:,}"
    if found.num_prompts:
        yield "prompts", f"{found.num_prompts} soft prompts lie among the tensors; model.adapter takes them from here"
    if found.problem:
        yield "problem", found.problem
    for name, value in found.config.items():
        yield "config", f"{name}: {value}"


def _data(path: Path, reason: str = "") -> Facts:
    from hanlin.data.sources import open_records

    source = open_records(path)
    yield "kind", f"data: {source.kind}{reason}"
    yield "rows", f"{len(source):,}"
    yield "first", json.dumps(source[0], ensure_ascii=False)[:300]


def _bee(folder: Path) -> Facts:
    from hanlin.data.sources.bee import read_meta

    yield from _data(folder, " (a meta.bin lies in the folder)")
    for file in read_meta(folder):
        path, wanted = folder / file.file_name, file.num_blocks * file.block_size
        size = path.stat().st_size if path.is_file() else 0
        yield (
            "file",
            f"{file.file_name}{' (masked: not read)' if file.mask else ''}: {file.nlines:,} rows, blocks of "
            f"{file.block_size:,} bytes; {_agreement(size, wanted, 'meta.bin')}",
        )


def _is_bee_file(path: Path) -> bool:
    """Whether it is the list of a data set in CPM-Bee's binary form, or one of its files."""
    from hanlin.data.sources.bee import read_meta

    return path.name == "meta.bin" or path.name in {file.file_name for file in read_meta(path.parent)}


def _missing_half(path: Path) -> str:
    """The file that a corpus of this prefix lacks, and what it is for; '' where the other is not there either.

    Raises: DataError where something else than a file is in its place.
    """
    index, tokens = (path.with_name(f"{path.name}{ending}") for ending in (".idx", ".bin"))
    has_index, has_tokens = has_file(index, DataError), has_file(tokens, DataError)
    if has_index == has_tokens:
        return ""
    return f"{tokens if has_index else index}, and a corpus has two files; copy both"


def _corpus_prefixes(path: Path) -> list[Path]:
    """The prefixes of an indexed corpus that a path names: one, or those of the three files that T5's tool writes."""
    from hanlin.data.pretraining.indexed_data import indexed_file
    from hanlin.data.pretraining.span_corruption import PARTS

    prefix = path.with_suffix("") if path.suffix in (".idx", ".bin") else path
    endings = [f"_{part}" for part in PARTS]
    stem = next((str(prefix).removesuffix(end) for end in endings if prefix.name.endswith(end)), str(prefix))
    three = [Path(f"{stem}{ending}") for ending in endings]
    if sum(indexed_file(part, "idx").is_file() for part in three) > 1:
        return three
    return [prefix] if indexed_file(prefix, "idx").is_file() else []


def _corpus(prefixes: list[Path]) -> Facts:
    from hanlin.data.pretraining.corpus_checks import check_spans
    from hanlin.data.pretraining.indexed_data import IndexedData, indexed_file

    if len(prefixes) == 1:
        yield "kind", "documents as token ids for pretraining (Megatron's indexed data)"
        yield from _index(prefixes[0])
        return
    yield "kind", "documents for a T5 with spans taken out, in three files (Megatron's indexed data)"
    for prefix in prefixes:
        has_index = indexed_file(prefix, "idx").is_file()
        facts = _index(prefix) if has_index else [("problem", "its .idx file is missing; copy all six files")]
        yield prefix.name, "; ".join(f"{name} {value}" for name, value in facts)
    try:
        check_spans([IndexedData(prefix) for prefix in prefixes])
    except DataError as error:
        yield "problem", str(error)


def _index(prefix: Path) -> Facts:
    from hanlin.data.pretraining.indexed_data import IndexedData, indexed_file, read_index

    index, tokens = read_index(indexed_file(prefix, "idx")), indexed_file(prefix, "bin")
    documents, count = len(index.documents) - 1, int(index.sizes.sum())
    yield "form", {"mmap": "mmap (MMIDIDX)", "cached": "cached, also called lazy (TNTIDX)"}[index.form]
    yield "documents", f"{documents:,}" + (f" in {len(index.sizes):,} items" if len(index.sizes) != documents else "")
    yield "tokens", f"{count:,}" + (f", {count / documents:,.1f} a document" if documents else "")
    yield "dtype", str(index.dtype)
    try:
        IndexedData(prefix)
    except DataError as error:
        yield "problem", str(error)
        return
    yield "bytes", f"{tokens.name}: {tokens.stat().st_size:,} bytes, as the index says"


def _agreement(size: int, wanted: int, says: str) -> str:
    """Whether a file is as large as another one says."""
    if size == wanted:
        return f"{size:,} bytes, as {says} says"
    cause = "cut off; copy it again" if size < wanted else "the rest is never read; it may belong to another index"
    return f"{size:,} bytes, but {says} says {wanted:,}: {cause}"


def _pieces(path: Path) -> Facts:
    from hanlin.tokens.byte_ranks import read_ranks
    from hanlin.tokens.sentencepiece_file import read_file

    content = path.read_bytes()
    with suppress(DataError):
        ranks = read_ranks(content)
        yield "kind", "a vocabulary of byte strings (tiktoken)"
        yield "tokens", f"{len(ranks):,}"
        return
    try:
        model = read_file(content)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if not model.pieces:
        raise DataError(f"{path}: a sentencepiece model without any piece; copy it again")
    yield "kind", f"a vocabulary of sentencepiece ({model.algorithm})"
    yield "pieces", f"{len(model.pieces):,}"
    yield "first", " ".join(piece.text for piece in model.pieces[:12])


def _vocabulary(path: Path) -> Facts:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    yield "kind", "text, one token a line if it is a vocabulary"
    yield "lines", f"{sum(map(bool, lines)):,}"
    yield "first", " ".join(lines[:12])
