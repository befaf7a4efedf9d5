"""A folder as on the hub, half precision in several .bin shards: every tensor, the logits, and the folder back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from glm_case import inputs_of, load_model, logits_atol, mean_loss, real_columns
from golden_case import Case, close

from hanlin.formats.convert import convert
from hanlin.formats.files import open_weights
from hanlin.formats.source import open_source
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.formats import tell


def check(case: Case, vocab: Path) -> None:
    del vocab
    inputs, expected = case.arrays("inputs.npz"), case.arrays()
    for folder in case.folders() or [case.weights()]:
        weights = open_weights(folder)
        found = {name: [list(weights[name].shape), str(weights[name].dtype)] for name in weights}
        assert found == case.facts.get("keys", found)
        for name in weights:
            close(f"sum.{name}", weights[name].double().sum(), expected, 0, rtol=1e-9)
        assert open_source(folder, family).format == "original"
        assert tell(folder).generation == case.facts.get("generation", "chatglm2")
        if "input_ids" in inputs:
            model, real = load_model(folder), real_columns(inputs)
            with torch.no_grad():
                close("logits", model(**inputs_of(inputs)), expected, logits_atol(case), where=real)
                if "labels" in inputs:
                    close("loss", mean_loss(model, inputs), expected, logits_atol(case))
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
