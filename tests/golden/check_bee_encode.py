"""Dict -> arrays of CPM-Bee: training (with the original's shuffles), generation, left-padded batches, packed rows."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bee_tables import shared_entries, shared_ids, strings_of
from golden_case import Case, Reading, needed

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


def check(case: Case, vocab: Path) -> None:
    tokenizer = CpmBeeTokenizer.load(needed(vocab / "bee" / "bee.txt"))
    config = replace(CpmBeeConfig(), vocab_size=tokenizer.vocab_size)
    # The original refuses <name> with an unknown name, and looks at no other marks.
    options = CpmBeeOptions(strict=True, control_marks=True, free_answers=True)
    processor = CpmBeeProcessor(tokenizer, config, options)
    deep = CpmBeeProcessor(tokenizer, config, replace(options, max_depth=16))
    for row, record in _rows(case, "training.json"):
        _check_training(processor, deep, row, record)
    for row, record in _rows(case, "generation.json"):
        _check_generation(processor, row, record)
    case.set_aside(r".*\.message", "of the original's errors, which are refusals in other words here")
    case.set_aside(r"generation\.json: .*ext_table\.\d+", "<ans_n>, which data_after shows in its place")
    case.set_aside(r"packs\.json: \[\]\.rows", "read as they are")
    for row, records in _rows(case, "generation_batch.json"):
        _check_prompt_batch(processor, row, records)
    for pack, raw in zip(case.json("packs.json", []), _data(case, "packs.json"), strict=True):
        _check_pack(case, processor, pack, raw["rows"], case.arrays(pack["file"]))


def _rows(case: Case, name: str) -> Iterator[tuple[dict[str, Any], Any]]:
    """What is noted of each record, and the record as it is."""
    for row, raw in zip(case.json(name, []), _data(case, name), strict=True):
        assert row["data"] == raw["data"]
        yield row, raw["data"]


def _data(case: Case, name: str) -> list[Any]:
    return case.data(name) if case.holds(name) else []


def _check_training(processor: CpmBeeProcessor, deep: CpmBeeProcessor, row: dict, record: Any) -> None:
    for name, one in (("no_shuffle", processor), ("max_depth_16", deep)):
        if name in row:
            _check_encoded(one, record, None, row[name])
    for seeded in row.get("seeds", ()):
        _check_encoded(processor, record, np.random.RandomState(seeded["np_seed"]), seeded["result"])


def _check_encoded(processor: CpmBeeProcessor, record: Any, rng: np.random.RandomState | None, expected: dict) -> None:
    if expected.get("error"):
        with pytest.raises(DataError):
            processor.encode(record, rng)
        return
    encoded = processor.encode(record, rng)
    for theirs, ours in ENCODED.items():
        assert getattr(encoded, ours).tolist() == expected[theirs], (record, ours)
    assert encoded.num_segments == expected["num_segments"]
    _check_tables(processor, encoded, expected)


def _check_tables(processor: CpmBeeProcessor, encoded: Encoded, expected: dict) -> None:
    assert {str(token): text for token, text in encoded.table.items()} == expected.get("ext_table", {})
    kinds = {kind: processor.tokenizer.marks[kind] for kind in expected["token_id_table"]}
    renamed = {
        int(token): (kinds[kind], sub)
        for kind, subs in expected["token_id_table"].items()
        for token, sub in subs.items()
    }
    assert encoded.renamed == renamed


def _check_generation(processor: CpmBeeProcessor, row: dict, record: Any) -> None:
    expected = row["result"]
    if expected.get("error"):
        with pytest.raises(DataError):
            processor.prompt(record)
        return
    prompt = processor.prompt(record)
    names = {"ids": "tokens", "position": "positions", "segment_rel_offset": "relation_offsets"}
    names |= {name: name for name in ("subs", "segments", "sample_ids", "num_segments")}
    for theirs, ours in {**names, "context": "is_context", "segment_rel": "relations"}.items():
        assert prompt.inputs[ours].tolist() == expected[theirs], (record, ours)
    _check_places(prompt, expected)
    _check_table(processor, prompt, record, expected)


def _check_table(processor: CpmBeeProcessor, prompt: Prompt, record: Any, expected: dict) -> None:
    """The strings of the prompt's table, and the original's record with a mark in each place of an answer."""
    if "token_id_table" in expected and "ext_table" in expected:
        theirs = {
            (processor.tokenizer.marks[kind], sub): expected["ext_table"][token]
            for kind, subs in expected["token_id_table"].items()
            for token, sub in subs.items()
            if kind != "<ans>"
        }
        assert strings_of(prompt) == theirs
    if "data_after" in expected:
        marked = copy.deepcopy(record)
        for number, path in enumerate(prompt.state.paths, 1):
            *parents, last = path
            place = functools.reduce(lambda data, key: data[key], parents, marked)
            place[last] = f"<ans_{number}>"
        assert marked == expected["data_after"]


def _check_places(prompt: Prompt, expected: dict) -> None:
    segments = prompt.state.slots.segments
    assert [[segment, number] for number, segment in enumerate(segments, 1)] == expected["predict_segments"]
    assert [list(path[1:]) for path in prompt.state.paths] == expected["answer_placeholders"]


def _check_prompt_batch(processor: CpmBeeProcessor, row: dict, records: list[Any]) -> None:
    prompts = [processor.prompt(record) for record in records]
    batch = processor.collate_prompts(prompts)
    padded = row["result"]["padded"]
    for theirs, ours in PADDED.items():
        if not ours.startswith("ext_"):
            np.testing.assert_array_equal(batch.inputs[ours].numpy(), np.array(padded[theirs]), err_msg=ours)
    shared = shared_entries(prompts)
    for theirs, ours in PADDED.items():
        if ours.startswith("ext_"):
            assert [entry[ours == "ext_subs"] for entry in shared] == padded[theirs]
    for prompt, expected in zip(prompts, row["result"]["other_info"], strict=True):
        _check_places(prompt, expected)
        ids = shared_ids(prompt, shared)
        assert {str(ids.get(id, id)): text for id, text in prompt.state.by_id.items()} == expected["ext_table"]


def _check_pack(case: Case, processor: CpmBeeProcessor, pack: dict, records: list[Any], arrays: Reading) -> None:
    args, seeded = pack["args"], np.random.RandomState(pack["args"]["seed"])
    instances = instances_of(processor, records, args["maxlen"], seeded, args.get("incontext", [1.0]))
    packed = list(best_fit(instances, args["maxlen"], args["batch"]))
    assert len(packed) == pack.get("num_batches", len(packed))
    for number, rows in enumerate(packed):
        if "raw" in pack:
            assert [raw for row in rows for _, raw in row] == pack["raw"][number]
        batch = processor.collate([[sample for sample, _ in row] for row in rows], args["maxlen"])
        check_batch(batch, arrays.under(f"batch{number}."))
    if all(len(names) == 1 for names in pack.get("task_names", ())):
        for name in (name for name in arrays if name.endswith(".task_ids")):
            assert not arrays[name].any(), "one data set has the number 0"
    case.set_aside(r".*task_(ids|names)", "ours names no data sets in a batch; several have numbers without an order")


def check_batch(batch: Batch, expected: Reading) -> None:
    """A packed batch, array by array."""
    for theirs, ours in PACKED.items():
        if theirs in expected:
            found = batch.inputs[ours].numpy()
            found = found[0] if ours.startswith("ext_") else found
            np.testing.assert_array_equal(found, expected[theirs].numpy(), err_msg=ours)
    if "target" in expected:
        np.testing.assert_array_equal(batch.labels.numpy(), expected["target"].numpy())


Instance = tuple[Sample, dict[str, Any]]
"""A sample with its examples, and the records that they were made of."""


def instances_of(
    processor: CpmBeeProcessor, records: list[Any], length: int, rng: np.random.RandomState, incontext: list[float]
) -> Iterator[Instance]:
    """Samples in the original's order of random draws: how many examples, then the shuffles of each row read."""
    weights = np.array(incontext, dtype=np.float32)
    weights /= weights.sum()
    encoded = ((processor.labelled(processor.encode(record, rng)), record) for record in records)
    while True:
        wanted = rng.choice(len(weights), p=weights)
        main = next((pair for pair in encoded if pair[0].length <= length), None)
        if main is None:
            return
        room, examples = length - main[0].length, []
        while len(examples) < wanted and room > 0:
            example = next(encoded, None)
            if example is None:
                return
            room -= example[0].length
            if room < 0:
                break
            examples.append(example)
        shown = [sample for sample, _ in examples]
        yield processor.join(main[0], shown), {"input": main[1], "samples": [record for _, record in examples]}


def best_fit(instances: Iterable[Instance], length: int, batch_size: int) -> Iterator[list[list[Instance]]]:
    rows: list[list[Instance]] = []
    for instance in instances:
        free = [length - sum(sample.length for sample, _ in row) - instance[0].length for row in rows]
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
