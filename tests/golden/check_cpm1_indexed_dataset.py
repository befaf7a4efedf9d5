"""Indexed data in all forms, read and written to the byte, and the samples cut from them."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
from golden_case import Case, Reading, same

from hanlin.data.pretraining.indexed_data import IndexedData, indexed_file, written_index
from hanlin.data.pretraining.sample_index import SPLITS, SampleIndex, build_index, index_prefix, split_bounds

SMALL, LARGE = 120, 10**6
"""Vocabularies whose ids take two bytes, and four."""


def check(case: Case, vocab: Path) -> None:
    del vocab
    documents, expected = case.json("documents.json", {}), case.arrays()
    prefixes = [path.with_suffix("") for path in sorted(case.folder.glob("*.idx"))]
    for prefix in prefixes:
        items = documents.get("sentence_items" if prefix.name.endswith("_sentence") else "docs")
        _check_form(case / f"{prefix.name}.idx", case / f"{prefix.name}.bin", items)
    # The samples are those of the first data set whose items are whole documents.
    texts = [prefix for prefix in prefixes if not prefix.name.endswith("_sentence")]
    cached = [prefix for prefix in texts if list((case.folder / "index_cache").glob(f"{prefix.name}_*"))]
    first = (cached or [prefix for prefix in texts if "u16" in prefix.name] or texts)[0]
    data = IndexedData(first)
    for name, ours in (("sizes", data.sizes), ("doc_idx", data.index.documents)):
        same(name, ours.astype(np.int64), expected)
    if "split" in case.facts:
        _check_samples(case, first.name, data, expected)


def _check_form(index: Path, tokens: Path, items: list[list[int]] | None) -> None:
    prefix = index.with_suffix("")
    data = IndexedData(prefix)
    for word, told in {"mmap": data.index.form, "cached": data.index.form}.items():
        assert not prefix.name.startswith(word) or told == word, prefix
    for word, dtype in {"u16": "<u2", "i32": "<i4"}.items():
        assert f"_{word}_" not in prefix.name or data.index.dtype == np.dtype(dtype), prefix
    found = [data[number].tolist() for number in range(len(data))]
    assert items is None or found == items, prefix
    vocab_size = SMALL if data.index.dtype.itemsize == 2 else LARGE
    bounds = data.index.documents.tolist()
    with tempfile.TemporaryDirectory() as folder:
        ours = Path(folder) / "ours"
        with written_index(ours, data.index.form, vocab_size) as writer:
            for begin, end in pairwise(bounds):
                for item in found[begin:end]:
                    writer.add(item)
                writer.end_document()
        for theirs in (index, tokens):
            assert indexed_file(ours, theirs.suffix[1:]).read_bytes() == theirs.read_bytes(), theirs.name


def _check_samples(case: Case, name: str, data: IndexedData, expected: Reading) -> None:
    facts = case.facts
    bounds, length, seed = split_bounds(facts["split"], len(data)), facts["seq_length"], facts["data_seed"]
    assert bounds == facts.get("splits", bounds)
    for split, begin, end, wanted in zip(SPLITS, bounds, bounds[1:], facts["num_samples"], strict=False):
        if not wanted or begin >= end or not expected.names(f"{split}_"):
            continue
        index = build_index(data.sizes, range(begin, end), wanted, length, seed)
        told = (facts.get("datasets", {}).get(split) or {}).get("len")
        assert told in (None, len(index)), split
        check_tables(index, expected, split)
        if f"{split}_samples" in expected:
            theirs = expected[f"{split}_samples"].numpy()
            samples = np.stack([index.tokens(number, data) for number in range(len(theirs))])
            assert samples.dtype == theirs.dtype
            assert np.array_equal(samples, theirs), split
        check_index_files(case, index_prefix(Path(name), split, wanted, length, seed).name, index)


def check_tables(index: SampleIndex, expected: Reading, split: str) -> None:
    """The three tables of a split, dtypes included."""
    tables = {"doc_idx": index.documents, "sample_idx": index.samples, "shuffle_idx": index.order}
    for name, ours in tables.items():
        if same(f"{split}_{name}", ours.astype(np.int64), expected):
            assert ours.dtype == expected[f"{split}_{name}"].numpy().dtype, (split, name)


def check_index_files(case: Case, name: str, index: SampleIndex) -> None:
    """The files that the original kept of an index: read, and written to the byte."""
    files = [case / f"index_cache/{path.name}" for path in sorted((case.folder / "index_cache").glob(f"{name}_*"))]
    if not files:
        return
    stored = SampleIndex.load(files[0].parent / name)
    assert stored is None or np.array_equal(stored.samples, index.samples)
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder) / name)
        for path in files:
            assert path.read_bytes() == (Path(folder) / path.name).read_bytes(), path.name
