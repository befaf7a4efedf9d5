"""Indexed data in both forms, read and written to the byte, and the samples cut from them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from hanlin.data.pretraining.indexed_data import IndexedData, IndexForm, indexed_file, written_index
from hanlin.data.pretraining.sample_index import SPLITS, SampleIndex, build_index, index_prefix, split_bounds


def check(case: Path, vocab: Path) -> None:
    del vocab
    facts = json.loads((case / "case.json").read_text())
    documents = json.loads((case / "documents.json").read_text())
    expected = np.load(case / "expected.npz")
    whole = [[item] for item in documents["docs"]]
    sentences = documents["sentence_items"]
    in_pairs = [sentences[i : i + 2] for i in range(0, len(sentences), 2)]
    forms: list[tuple[str, IndexForm, bool]] = [
        ("mmap_u16_text_document", "mmap", True),
        ("mmap_i32_text_document", "mmap", False),
        ("cached_i32_text_document", "cached", False),
    ]
    for name, form, is_narrow in forms:
        _check_form(case / name, form, is_narrow, whole)
    _check_form(case / "mmap_sent_text_sentence", "mmap", True, in_pairs)

    data = IndexedData(case / "mmap_u16_text_document")
    assert data.sizes.tolist() == expected["sizes"].tolist()
    assert data.index.documents.tolist() == expected["doc_idx"].tolist()
    _check_samples(case, facts, data, expected)


def _check_form(prefix: Path, form: IndexForm, is_narrow: bool, documents: list[list[list[int]]]) -> None:
    data = IndexedData(prefix)
    assert (data.index.form, data.index.dtype) == (form, np.dtype("<u2" if is_narrow else "<i4")), prefix
    assert [data[i].tolist() for i in range(len(data))] == [item for items in documents for item in items], prefix
    with tempfile.TemporaryDirectory() as folder:
        ours = Path(folder) / "ours"
        with written_index(ours, form, 120 if is_narrow else None) as writer:
            for items in documents:
                for item in items:
                    writer.add(item)
                writer.end_document()
        for ending in ("bin", "idx"):
            assert indexed_file(ours, ending).read_bytes() == indexed_file(prefix, ending).read_bytes(), prefix


def _check_samples(case: Path, facts: dict[str, Any], data: IndexedData, expected: Any) -> None:
    bounds, length, seed = split_bounds(facts["split"], len(data)), facts["seq_length"], facts["data_seed"]
    assert bounds == facts["splits"]
    for i, split in enumerate(SPLITS):
        index = build_index(data.sizes, range(bounds[i], bounds[i + 1]), facts["num_samples"][i], length, seed)
        assert len(index) == facts["datasets"][split]["len"]
        samples = np.stack([index.tokens(number, data) for number in range(len(index))])
        tables = {"doc_idx": index.documents, "sample_idx": index.samples, "shuffle_idx": index.order}
        for name, ours in {**tables, "samples": samples}.items():
            theirs = expected[f"{split}_{name}"]
            assert ours.dtype == theirs.dtype, (split, name)
            assert np.array_equal(ours, theirs), (split, name)
        name = index_prefix(data.prefix, split, facts["num_samples"][i], length, seed).name
        _check_files(case / "index_cache" / name, index)


def _check_files(theirs: Path, index: SampleIndex) -> None:
    stored = SampleIndex.load(theirs)
    assert stored is not None, theirs
    assert np.array_equal(stored.samples, index.samples)
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder) / theirs.name)
        for path in Path(folder).iterdir():
            assert path.read_bytes() == (theirs.parent / path.name).read_bytes(), path.name
