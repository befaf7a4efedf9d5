"""Dict -> arrays of CPM-Bee: training (with the original's shuffles), generation, left-padded batches, packed rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hanlin.core.batch import Batch, Prompt, Sample
from hanlin.core.errors import DataError
from hanlin.models.cpm_bee.config import CpmBeeConfig
from hanlin.models.cpm_bee.processor import CpmBeeOptions, CpmBeeProcessor, Encoded
from hanlin.models.cpm_bee.tokenizer import CpmBeeTokenizer

ENCODED = {"ids": "tokens", "subs": "subs", "context": "is_context", "segments": "segments", "segment_rel": "relations"}
PADDED = {
    "batch_ext_table_ids": "ext_tokens",
    "batch_ext_table_sub": "ext_subs",
    "context": "is_context",
    "input": "tokens",
    "input_pos": "positions",
    "input_sub": "subs",
    "num_segments": "num_segments",
    "sample_idx": "sample_ids",
    "segment": "segments",
    "segment_rel": "relations",
    "segment_rel_offset": "relation_offsets",
}
PACKED = {
    "inputs": "tokens",
    "inputs_sub": "subs",
    "length": "lengths",
    "context": "is_context",
    "sample_ids": "sample_ids",
    "num_segments": "num_segments",
    "segment_ids": "segments",
    "segment_rel_offset": "relation_offsets",
    "segment_rel": "relations",
    "spans": "spans",
    "ext_ids": "ext_tokens",
    "ext_sub": "ext_subs",
}


def check(case: Path, vocab: Path) -> None:
    tokenizer = CpmBeeTokenizer.load(vocab / "bee" / "bee.txt")
    config = replace(CpmBeeConfig(), vocab_size=tokenizer.vocab_size)
    # The original refuses <name> with an unknown name, and looks at no other marks.
    options = CpmBeeOptions(strict=True, control_marks=True, free_answers=True)
    processor = CpmBeeProcessor(tokenizer, config, options)
    deep = CpmBeeProcessor(tokenizer, config, replace(options, max_depth=16))
    for row in _read(case / "training.json"):
        _check_training(processor, deep, row)
    for row in _read(case / "generation.json"):
        _check_generation(processor, row)
    for row in _read(case / "generation_batch.json"):
        _check_prompt_batch(processor, row)
    for pack in _read(case / "packs.json"):
        _check_pack(processor, pack, np.load(case / pack["file"]))


def _check_training(processor: CpmBeeProcessor, deep: CpmBeeProcessor, row: dict) -> None:
    _check_encoded(processor, row["data"], None, row["no_shuffle"])
    _check_encoded(deep, row["data"], None, row["max_depth_16"])
    for seeded in row["seeds"]:
        _check_encoded(processor, row["data"], np.random.RandomState(seeded["np_seed"]), seeded["result"])


def _check_encoded(processor: CpmBeeProcessor, record: Any, rng: np.random.RandomState | None, expected: dict) -> None:
    if "error" in expected:
        with pytest.raises(DataError):
            processor.encode(record, rng)
        return
    encoded = processor.encode(record, rng)
    for theirs, ours in ENCODED.items():
        assert getattr(encoded, ours).tolist() == expected[theirs], (record, ours)
    assert encoded.num_segments == expected["num_segments"]
    _check_tables(processor, encoded, expected)


def _check_tables(processor: CpmBeeProcessor, encoded: Encoded, expected: dict) -> None:
    assert {str(token): text for token, text in encoded.table.items()} == expected["ext_table"]
    kinds = {kind: processor.tokenizer.marks[kind] for kind in expected["token_id_table"]}
    renamed = {
        int(token): (kinds[kind], sub)
        for kind, subs in expected["token_id_table"].items()
        for token, sub in subs.items()
    }
    assert encoded.renamed == renamed


def _check_generation(processor: CpmBeeProcessor, row: dict) -> None:
    expected = row["result"]
    if "error" in expected:
        with pytest.raises(DataError):
            processor.prompt(row["data"])
        return
    prompt = processor.prompt(row["data"])
    names = {"ids": "tokens", "position": "positions", "segment_rel_offset": "relation_offsets"}
    names |= {name: name for name in ("subs", "segments", "sample_ids", "num_segments")}
    for theirs, ours in {**names, "context": "is_context", "segment_rel": "relations"}.items():
        assert prompt.inputs[ours].tolist() == expected[theirs], (row["data"], ours)
    _check_places(prompt, expected)


def _check_places(prompt: Prompt, expected: dict) -> None:
    segments = prompt.state.slots.segments
    assert [[segment, number] for number, segment in enumerate(segments, 1)] == expected["predict_segments"]
    assert [list(path[1:]) for path in prompt.state.paths] == expected["answer_placeholders"]


def _check_prompt_batch(processor: CpmBeeProcessor, row: dict) -> None:
    prompts = [processor.prompt(record) for record in row["data"]]
    batch = processor.collate_prompts(prompts)
    for theirs, ours in PADDED.items():
        expected = np.array(row["result"]["padded"][theirs])
        found = batch.inputs[ours].numpy()
        np.testing.assert_array_equal(found[0] if ours.startswith("ext_") else found, expected, err_msg=ours)
    for prompt, expected in zip(prompts, row["result"]["other_info"], strict=True):
        _check_places(prompt, expected)
        assert {str(column): text for column, text in prompt.state.by_id.items()} == expected["ext_table"]


def _check_pack(processor: CpmBeeProcessor, pack: dict, arrays: Any) -> None:
    args = pack["args"]
    instances = _instances(processor, pack["rows"], args)
    batches = [processor.collate(rows, args["maxlen"]) for rows in _best_fit(instances, args["maxlen"], args["batch"])]
    assert len(batches) == pack["num_batches"]
    for number, batch in enumerate(batches):
        _check_batch(batch, {name: arrays[f"batch{number}.{name}"] for name in (*PACKED, "target")})


def _check_batch(batch: Batch, expected: dict[str, np.ndarray]) -> None:
    for theirs, ours in PACKED.items():
        found = batch.inputs[ours].numpy()
        np.testing.assert_array_equal(found[0] if ours.startswith("ext_") else found, expected[theirs], err_msg=ours)
    np.testing.assert_array_equal(batch.labels.numpy(), expected["target"])


def _instances(processor: CpmBeeProcessor, records: list[Any], args: dict) -> Iterator[Sample]:
    """Samples in the original's order of random draws: how many examples, then the shuffles of each row read."""
    rng = np.random.RandomState(args["seed"])
    weights = np.array(args.get("incontext", [1.0]), dtype=np.float32)
    weights /= weights.sum()
    encoded = (processor.labelled(processor.encode(record, rng)) for record in records)
    while True:
        wanted = rng.choice(len(weights), p=weights)
        main = next((sample for sample in encoded if sample.length <= args["maxlen"]), None)
        if main is None:
            return
        length, examples = main.length, []
        while len(examples) < wanted and length < args["maxlen"]:
            example = next(encoded, None)
            if example is None:
                return
            length += example.length
            if length > args["maxlen"]:
                break
            examples.append(example)
        yield processor.join(main, examples)


def _best_fit(instances: Iterator[Sample], length: int, batch_size: int) -> Iterator[list[list[Sample]]]:
    rows: list[list[Sample]] = []
    for instance in instances:
        free = [length - sum(sample.length for sample in row) - instance.length for row in rows]
        fitting = [place for place, space in enumerate(free) if space >= 0]
        if fitting:
            rows[min(fitting, key=free.__getitem__)].append(instance)
        else:
            rows.append([instance])
        if len(rows) > batch_size:
            yield rows[:batch_size]
            rows = rows[batch_size:]
    if rows:
        yield rows


def _read(path: Path) -> list[dict]:
    return json.loads(path.read_text("utf-8"))
