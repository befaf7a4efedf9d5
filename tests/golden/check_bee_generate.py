"""Beam search (`CPMBeeBeamSearch.generate`) and the incremental forward that it runs on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

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


def check(case: Path, vocab: Path) -> None:
    tolerance = json.loads((case / "case.json").read_text())["tolerance"]
    model = load_model(case)
    processor = CpmBeeProcessor(family.tokenizer(case / "vocab.txt"), model.config)
    for given in json.loads((case / "cases.json").read_text()):
        check_search(Engine(model, processor), given, tolerance["score_atol"])
    check_incremental_forward(model, case, tolerance["inference_logits_atol"])


def load_model(case: Path) -> CpmBee:
    model = CpmBee(read_config(case / "pytorch_model.bin", family))
    load_into(model, case / "pytorch_model.bin", family)
    return model.eval()


def check_search(engine: Engine, given: dict[str, Any], score_atol: float) -> None:
    options = options_of(**given["kwargs"])
    prompts = [engine.prompt(record, options) for record in given["data"]]
    *_, searches = engine.search(prompts, options)
    found = [search.best for search in searches]
    expected = given["expected"]
    np.testing.assert_allclose([best.score for best in found], expected["scores"], atol=score_atol, rtol=0)
    if given["stable_in_fp64"]:
        assert [numbered_ids(best, engine) for best in found] == expected["ids"], given
        assert engine.generate(given["data"], options) == expected["result"], given


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


def numbered_ids(best: Hypothesis, engine: Engine) -> list[list[int]]:
    """Each token with the number (from 1) of the answer it belongs to."""
    end = engine.processor.tokenizer.marks["</s>"]  # pyright: ignore[reportAttributeAccessIssue]
    number, numbered = 1, []
    for token in best.tokens:
        numbered.append([token, number])
        number += token == end
    return numbered


@torch.inference_mode()
def check_incremental_forward(model: CpmBee, case: Path, atol: float) -> None:
    given, expected = np.load(case / "inference_inputs.npz"), np.load(case / "inference_expected.npz")
    rows = len(given["prefix.input"])
    constant = {
        "relations": torch.from_numpy(given["prefix.segment_rel"]),
        "ext_tokens": torch.from_numpy(given["prefix.batch_ext_table_ids"]).expand(rows, -1),
        "ext_subs": torch.from_numpy(given["prefix.batch_ext_table_sub"]).expand(rows, -1),
    }
    kv_cache = KVCache()
    for part in sorted({name.split(".")[0] for name in given}):
        logits = model(**columns_of_part(given, part), **constant, kv_cache=kv_cache)
        is_real = given[f"{part}.num_segments"] != 0
        np.testing.assert_allclose(
            logits.numpy()[is_real], expected[f"{part}.logits"][is_real], atol=atol, rtol=0, err_msg=part
        )


def columns_of_part(given: Any, part: str) -> dict[str, torch.Tensor]:
    columns = {ours: given[f"{part}.{name}"] for name, ours in COLUMNS.items() if f"{part}.{name}" in given}
    return {name: torch.from_numpy(a.astype(bool if name == "is_context" else a.dtype)) for name, a in columns.items()}
