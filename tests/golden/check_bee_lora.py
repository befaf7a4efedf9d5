"""A delta checkpoint of the original on its base: logits, loss, merged weights, and the file written back."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hanlin.adapters.adapter import load_adapter
from hanlin.adapters.cpm_bee_delta import DELTA
from hanlin.adapters.opening import open_adapter
from hanlin.formats.files import open_weights
from hanlin.formats.load import load_into
from hanlin.formats.source import read_config
from hanlin.layers.lora import merge_lora
from hanlin.models.cpm_bee import family
from hanlin.models.cpm_bee.model import CpmBee
from hanlin.tuning.apply import apply_tuning, trained_parameters

INPUT_NAMES = {
    "input": "tokens",
    "input_sub": "subs",
    "length": "lengths",
    "context": "is_context",
    "segment": "segments",
    "segment_rel_offset": "relation_offsets",
    "segment_rel": "relations",
    "span": "spans",
    "ext_table_ids": "ext_tokens",
    "ext_table_sub": "ext_subs",
    "target": "labels",
}


def check(case: Path, vocab: Path) -> None:
    del vocab
    facts = json.loads((case / "case.json").read_text())
    expected = np.load(case / "expected.npz")
    inputs = load_inputs(case)
    labels = inputs.pop("labels")
    delta = next(case.glob("*.pt"))
    model = load_model(case)
    atol = facts["tolerance"]["logits_atol"]

    assert_close(model(**inputs), expected["logits_base"], atol)
    adapter = open_adapter(delta, family)
    settings: Any = adapter.settings
    assert (settings.rank, settings.alpha) == (facts["lora"]["lora_r"], facts["lora"]["lora_alpha"])
    apply_tuning(model, settings, family)
    assert_close(model(**inputs), expected["logits_base"], atol)
    load_adapter(model, adapter)
    tuned = model(**inputs)
    assert_close(tuned, expected["logits"], atol)
    assert_close(model(**inputs, labels=labels) / (labels != -100).sum(), expected["loss"], atol)
    assert len(trained_parameters(model)) == len(facts["keys"])
    check_written_back(model, settings, delta)

    merge_lora(model)
    # The original's own merging differed by merge_max_abs_diff; ours rounds once per weight as well.
    assert_close(model(**inputs), tuned.detach().numpy(), max(10 * facts["merge_max_abs_diff"], 1e-5))


def check_written_back(model: CpmBee, settings, delta: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        DELTA.save(model, settings, Path(folder) / "delta.pt", family)
        written, original = open_weights(Path(folder) / "delta.pt"), open_weights(delta)
        assert list(written) == list(original)
        assert all(written[name].equal(original[name]) for name in original)


def load_model(case: Path) -> CpmBee:
    with torch.device("meta"):
        model = CpmBee(read_config(case / "pytorch_model.bin", family))
    load_into(model, case / "pytorch_model.bin", family, dtype=torch.float32)
    return model


def load_inputs(case: Path) -> dict[str, torch.Tensor]:
    arrays = {name: torch.from_numpy(array) for name, array in np.load(case / "inputs.npz").items()}
    inputs = {INPUT_NAMES.get(name) or name: array for name, array in arrays.items()}
    for name in ("ext_tokens", "ext_subs"):
        inputs[name] = inputs[name].expand(len(inputs["tokens"]), -1)
    return inputs


def assert_close(ours: torch.Tensor, theirs: np.ndarray, atol: float) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), theirs, atol=atol, rtol=1e-5)
