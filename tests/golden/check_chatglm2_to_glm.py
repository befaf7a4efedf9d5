"""The layout of transformers' GlmForCausalLM: read, written, and from it the original's logits."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from glm_case import inputs_of, kinds_of, load_model, logits_atol, mean_loss, real_columns
from golden_case import Case, close

from hanlin.core.files import read_json_object
from hanlin.formats.convert import convert
from hanlin.formats.files import open_weights
from hanlin.formats.source import open_source
from hanlin.models.chatglm2 import family

OF_THE_WRITER = ("transformers_version", "dtype", "torch_dtype")


def check(case: Case, vocab: Path) -> None:
    del vocab
    [folder] = case.folders("hf*")
    inputs, expected = case.arrays("inputs.npz"), case.arrays()
    assert open_source(folder, family).format == "huggingface"
    model = load_model(folder)
    for kind in kinds_of(inputs):
        arrays, wanted = inputs.under(f"{kind}."), expected.under(f"{kind}.")
        with torch.no_grad():
            close("logits", model(**inputs_of(arrays)), wanted, logits_atol(case), where=real_columns(arrays))
            if "labels" in arrays and "loss" in wanted:
                close("loss", mean_loss(model, arrays), wanted, logits_atol(case))
    _check_written(folder, folder)
    if (original := case.parent / str(case.facts.get("source_case"))).is_dir():
        _check_written(original, folder)
    case.set_aside(r"inputs\.npz: .*", "those of the original's case; for some of them it has no results here")


def _check_written(source: Path, expected: Path) -> None:
    """Converted, a folder holds the expected one's tensors, bit by bit, and at least its config."""
    with tempfile.TemporaryDirectory() as temporary:
        convert(source, family, None, "huggingface", Path(temporary) / "out")
        written, theirs = open_weights(Path(temporary) / "out"), open_weights(expected)
        assert sorted(written) == sorted(theirs)
        assert all(written[name].equal(theirs[name]) for name in theirs)
        config, known = (read_json_object(folder / "config.json") for folder in (Path(temporary) / "out", expected))
        for name, value in known.items():
            assert name in OF_THE_WRITER or config.get(name) == value, name
