"""Span corruption of documents, its three indexed files, and the samples cut from them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from hanlin.data.pretraining.indexed_data import IndexedData, indexed_file, written_index
from hanlin.data.pretraining.sample_index import SPLITS, build_index, split_bounds
from hanlin.data.pretraining.span_corruption import PARTS, Marks, SpanData, corrupt_spans, span_sample, write_spans

PAD, EOD = 5, 7  # of vocab/cpm1/t5_vocab.txt


def check(case: Path, vocab: Path) -> None:
    del vocab  # the ids of the documents are in the case; cpm1_tokenizer checks the tokenizer
    facts = json.loads((case / "case.json").read_text())
    records = json.loads((case / "documents.json").read_text())["records"]
    _check_corruption(records, facts)
    _check_files(case, records, facts)
    expected = np.load(case / "expected.npz")
    for part in PARTS:
        data = IndexedData(case / f"small_document_{part}")
        stored = [record[part] for record in records if record and record.get(part) is not None]
        assert [data[item].tolist() for item in range(len(data))] == stored, part
    data = IndexedData(case / "small_document_context")
    bounds, length = split_bounds(facts["split"], len(data)), facts["enc_seq_length"] - 1
    for i, split in enumerate(SPLITS):
        items = range(bounds[i], bounds[i + 1])
        index = build_index(data.sizes, items, facts["num_samples"][i], length, facts["data_seed"])
        tables = {"doc_idx": index.documents, "sample_idx": index.samples, "shuffle_idx": index.order}
        for name, ours in tables.items():
            assert np.array_equal(ours, expected[f"{split}_{name}"]), (split, name)
        marks = Marks(facts["sentinel0"], EOD, PAD, facts["vocab_size"])
        pairs = SpanData(case / "small_document", index, marks)
        for number in range(len(pairs)):
            sample = span_sample(*pairs.pair(number), marks, facts["dec_seq_length"])
            assert sample.context.tolist() == expected[f"{split}_contexts"][number].tolist()
            assert sample.holds_end.tolist() == expected[f"{split}_ctx_eod_mask"][number].tolist()
            assert sample.tokens.tolist() == expected[f"{split}_targets"][number].tolist()
            assert sample.labels.tolist() == expected[f"{split}_labels"][number].tolist()


def _check_files(case: Path, records: list[dict], facts: dict) -> None:
    manner = {"density": facts["noisy_density"], "mean_span": facts["mean_noise_span_length"]}
    with tempfile.TemporaryDirectory() as folder:
        plain, ours = Path(folder) / "plain", Path(folder) / "ours"
        with written_index(plain) as writer:
            for record in records:
                writer.add(record["ids"] if record else [1, EOD])
        assert write_spans(IndexedData(plain), ours, facts["vocab_size"], EOD, **manner) == sum(map(bool, records))
        for part in PARTS:
            for ending in ("bin", "idx"):
                theirs = indexed_file(case / f"small_document_{part}", ending).read_bytes()
                assert indexed_file(Path(f"{ours}_{part}"), ending).read_bytes() == theirs, (part, ending)


def _check_corruption(records: list[dict], facts: dict) -> None:
    generator = torch.Generator().manual_seed(facts["torch_generator_seed"])
    manner = {"density": facts["noisy_density"], "mean_span": facts["mean_noise_span_length"]}
    for record in records:
        if not record:
            continue
        ours = corrupt_spans(record["ids"], facts["vocab_size"], generator, **manner)
        assert ours.context == record["context"]
        assert ours.target == record["target"]
        assert ours.offsets == record["target_offset"]
