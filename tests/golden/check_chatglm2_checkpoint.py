"""A folder as on the hub, half precision in several .bin shards: every tensor, the logits, and the folder back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from glm_case import arrays_of, assert_close, facts_of, inputs_of, load_model, mean_loss, real_columns

from hanlin.formats.convert import convert
from hanlin.formats.files import open_weights
from hanlin.formats.source import open_source
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.formats import tell


def check(case: Path, vocab: Path) -> None:
    del vocab
    facts, folder = facts_of(case), case / "model"
    atol = facts["tolerance"]["suggested_fp32_atol_logits"]
    inputs, expected = arrays_of(case / "inputs.npz"), arrays_of(case / "expected.npz")

    weights = open_weights(folder)
    assert {name: [list(weights[name].shape), str(weights[name].dtype)] for name in weights} == facts["keys"]
    for name in weights:
        assert_close(name, weights[name].double().sum(), expected[f"sum.{name}"], 0, rtol=1e-9)
    assert open_source(folder, family).format == "original"
    assert tell(folder).generation == "chatglm2"

    model, real = load_model(folder), real_columns(inputs)
    with torch.no_grad():
        assert_close("logits", model(**inputs_of(inputs))[real], expected["logits"][real], atol)
        assert_close("loss", mean_loss(model, inputs), expected["loss"], atol)
    _check_round_trip(folder)


def _check_round_trip(folder: Path) -> None:
    """Original -> base -> original, and original -> transformers' layout -> original: the same bits."""
    original = open_weights(folder)
    for between in ("base", "huggingface"):
        with tempfile.TemporaryDirectory() as temporary:
            there, back = Path(temporary) / "there", Path(temporary) / "back"
            convert(folder, family, None, between, there)
            convert(there, family, None, "original", back)
            written = open_weights(back)
            kept = [name for name in original if not name.endswith("inv_freq")]
            assert sorted(written) == sorted(kept)
            assert all(written[name].equal(original[name]) for name in kept)
