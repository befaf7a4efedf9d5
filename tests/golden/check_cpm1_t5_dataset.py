"""Span corruption of documents, its three indexed files, and the samples cut from them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from check_cpm1_indexed_dataset import check_index_files, check_tables
from golden_case import Case, Reading

from hanlin.data.pretraining.indexed_data import IndexedData, indexed_file, written_index
from hanlin.data.pretraining.sample_index import SPLITS, build_index, index_prefix, split_bounds
from hanlin.data.pretraining.span_corruption import PARTS, Marks, SpanData, corrupt_spans, span_sample, write_spans
from hanlin.tokens.wordpiece import WordPiece

PAD, EOD = 5, 7  # of vocab/cpm1/t5_vocab.txt


def check(case: Case, vocab: Path) -> None:
    documents = case.json("documents.json", {})
    records = documents.get("records")
    if records:
        words = vocab / "cpm1" / "t5_vocab.txt"
        if words.is_file() and "lines" in documents:
            _check_ids(WordPiece.load(words), documents["lines"], records)
        case.set_aside(r"documents\.json: lines", "tokenized where the vocabulary is there")
        _check_corruption(records, case.facts)
    [prefix] = {Path(str(path).removesuffix("_context.idx")) for path in case.folder.glob("*_context.idx")} or {None}
    if prefix is not None:
        files = [
            case / indexed_file(Path(f"{prefix}_{part}"), ending).name for part in PARTS for ending in ("bin", "idx")
        ]
        if records:
            _check_files(prefix, files, records, case.facts)
        _check_samples(case, prefix, case.arrays())


def _check_ids(words: WordPiece, lines: list[str], records: list) -> None:
    for line, record in zip(lines, records, strict=True):
        if record:
            assert [*words.encode(line.replace("<n>", "\n")), EOD] == record["ids"], line


def _check_corruption(records: list, facts: dict) -> None:
    generator = torch.Generator().manual_seed(facts["torch_generator_seed"])
    manner = {"density": facts["noisy_density"], "mean_span": facts["mean_noise_span_length"]}
    for record in filter(None, records):
        ours = corrupt_spans(record["ids"], facts["vocab_size"], generator, **manner)
        assert ours.context == record["context"]
        assert ours.target == record["target"]
        assert ours.offsets == record["target_offset"]


def _check_files(prefix: Path, files: list[Path], records: list, facts: dict) -> None:
    for part in PARTS:
        data = IndexedData(Path(f"{prefix}_{part}"))
        stored = [record[part] for record in records if record and record.get(part) is not None]
        assert [data[item].tolist() for item in range(len(data))] == stored, part
    manner = {"density": facts["noisy_density"], "mean_span": facts["mean_noise_span_length"]}
    with tempfile.TemporaryDirectory() as folder:
        plain, ours = Path(folder) / "plain", Path(folder) / prefix.name
        with written_index(plain) as writer:
            for record in records:
                writer.add(record["ids"] if record else [1, EOD])
        assert write_spans(IndexedData(plain), ours, facts["vocab_size"], EOD, **manner) == sum(map(bool, records))
        for theirs in files:
            assert (Path(folder) / theirs.name).read_bytes() == theirs.read_bytes(), theirs.name


def _check_samples(case: Case, prefix: Path, expected: Reading) -> None:
    facts, data = case.facts, IndexedData(Path(f"{prefix}_context"))
    bounds, length, seed = split_bounds(facts["split"], len(data)), facts["enc_seq_length"] - 1, facts["data_seed"]
    for split, begin, end, wanted in zip(SPLITS, bounds, bounds[1:], facts["num_samples"], strict=False):
        if not wanted or begin >= end or not expected.names(f"{split}_"):
            continue
        index = build_index(data.sizes, range(begin, end), wanted, length, seed)
        check_tables(index, expected, split)
        check_index_files(case, index_prefix(Path(prefix.name), split, wanted, length, seed).name, index)
        marks = Marks(facts["sentinel0"], EOD, PAD, facts["vocab_size"])
        pairs = SpanData(prefix, index, marks)
        for number in range(len(expected.get(f"{split}_contexts", ()))):
            sample = span_sample(*pairs.pair(number), marks, facts["dec_seq_length"])
            ours = {
                "contexts": sample.context, "ctx_eod_mask": sample.holds_end,
                "targets": sample.tokens, "labels": sample.labels,
            }  # fmt: skip
            for name, row in ours.items():
                if f"{split}_{name}" in expected:
                    assert row.tolist() == expected[f"{split}_{name}"][number].tolist(), (split, name, number)
