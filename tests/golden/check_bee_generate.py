"""Beam search (`CPMBeeBeamSearch.generate`) and the incremental forward that it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bee_tables import shared_entries, shared_ids
from golden_case import Case, Reading, close

from hanlin.formats.load import load_into
from hanlin.formats.source import read_config
from hanlin.generate.beam import Hypothesis
from hanlin.generate.engine import Engine
from hanlin.generate.methods.beam import BeamSettings
from hanlin.layers.kv_cache import KVCache
from hanlin.models.cpm_bee import family
from hanlin.models.cpm_bee.model import CpmBee
from hanlin.models.cpm_bee.processor import CpmBeeProcessor
from hanlin.recipe.settings import GenerateSettings

# The original's names of the columns -> ours.
COLUMNS = {
    "input": "tokens",
    "input_sub": "subs",
    "input_pos": "positions",
    "position": "positions",
    "context": "is_context",
    "sample_idx": "sample_ids",
    "sample_ids": "sample_ids",
    "num_segments": "num_segments",
    "segment": "segments",
    "segment_rel_offset": "relation_offsets",
}


def check(case: Case, vocab: Path) -> None:
    del vocab
    model = load_model(case.weights())
    if case.holds("cases.json", "vocab.txt"):
        processor = CpmBeeProcessor(family.tokenizer(case / "vocab.txt"), model.config)
        atol = case.tolerance("score_atol", default=1e-3)
        for given, raw in zip(case.json("cases.json"), case.data("cases.json"), strict=True):
            check_search(Engine(model, processor), given, raw["data"], atol)
    if case.holds("inference_inputs.npz"):
        atol = case.tolerance("inference_logits_atol", default=2e-4)
        check_incremental_forward(
            model, case.arrays("inference_inputs.npz"), case.arrays("inference_expected.npz"), atol
        )


def load_model(folder: Path) -> CpmBee:
    model = CpmBee(read_config(folder / "pytorch_model.bin", family))
    load_into(model, folder / "pytorch_model.bin", family)
    return model.eval()


def check_search(engine: Engine, given: dict[str, Any], records: list[Any], score_atol: float) -> None:
    options = options_of(**dict(given.get("kwargs", {}).items()))
    assert given["data"] == records
    prompts = [engine.prompt(record, options) for record in records]
    *_, searches = engine.search(prompts, options)
    found = [search.best for search in searches]
    expected = given["expected"]
    if "scores" in expected:
        np.testing.assert_allclose([best.score for best in found], expected["scores"], atol=score_atol, rtol=0)
    if given.get("stable_in_fp64", True):
        entries = shared_entries(prompts)
        ids = [
            numbered_ids(best, engine, shared_ids(prompt, entries)) for best, prompt in zip(found, prompts, strict=True)
        ]
        assert ids == expected.get("ids", ids), given
        if "result" in expected:
            assert engine.generate(records, options) == expected["result"], given


def options_of(
    beam_size: int = 3,
    max_length: int = 100,
    repetition_penalty: float = 1.0,
    repetition_window: int | None = None,
) -> GenerateSettings:
    return BeamSettings(
        beams=beam_size,
        # The original makes room for one </s> and then takes one step more.
        max_new_tokens=max_length + 2,
        repetition_penalty=repetition_penalty,
        repetition_window=repetition_window,
    )


def numbered_ids(best: Hypothesis, engine: Engine, shared: Mapping[int, int]) -> list[list[int]]:
    """Each token, with its id in the original's shared table, with the number (from 1) of the answer it belongs to."""
    end = engine.processor.tokenizer.marks["</s>"]  # pyright: ignore[reportAttributeAccessIssue]
    number, numbered = 1, []
    for token in best.tokens:
        numbered.append([shared.get(token, token), number])
        number += token == end
    return numbered


@torch.inference_mode()
def check_incremental_forward(model: CpmBee, given: Reading, expected: Reading, atol: float) -> None:
    rows = len(given["prefix.input"])
    constant = {
        "relations": given["prefix.segment_rel"],
        "ext_tokens": given["prefix.batch_ext_table_ids"].expand(rows, -1),
        "ext_subs": given["prefix.batch_ext_table_sub"].expand(rows, -1),
    }
    hidden: list[torch.Tensor] = []
    assert model.norm is not None
    hook = model.norm.register_forward_hook(lambda _module, _args, output: hidden.append(output))
    kv_cache = KVCache()
    for part in parts_of(given):
        columns = columns_of_part(given.under(f"{part}."))
        logits = model(**columns, **constant, kv_cache=kv_cache)
        is_real = columns["num_segments"] != 0
        close(f"{part}.logits", logits, expected, atol, rtol=0, where=is_real)
        close(f"{part}.hidden", hidden.pop(), expected, atol, rtol=0, where=is_real)
    hook.remove()


def parts_of(given: Reading) -> list[str]:
    """prefix, step0, step1, ... step10."""
    steps = {name.split(".")[0] for name in given} - {"prefix"}
    return ["prefix", *sorted(steps, key=lambda name: int(name.removeprefix("step")))]


def columns_of_part(given: Reading) -> dict[str, torch.Tensor]:
    columns = {ours: given[theirs] for theirs, ours in COLUMNS.items() if theirs in given}
    return columns | {"is_context": columns["is_context"].bool()}
