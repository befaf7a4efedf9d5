"""Weights in 4 and 8 bits: the original's packed folder read, and the same bytes made from the fp16 folder."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from glm_case import inputs_of, load_model, logits_atol, mean_loss, real_columns
from golden_case import Case, close, same

from hanlin.core.files import read_json_object
from hanlin.formats.convert import convert
from hanlin.formats.files import open_weights
from hanlin.formats.source import open_source
from hanlin.layers.packing import dequantise, unpack_int4
from hanlin.layers.quantised import QuantisedLinear
from hanlin.models.chatglm2 import family


def check(case: Case, vocab: Path) -> None:
    del vocab
    inputs, expected = case.arrays("inputs.npz"), case.arrays()
    folder, bits = case / "quantized", read_json_object(case / "quantized" / "config.json")["quantization_bit"]
    packed = open_weights(folder)

    for name in (name for name in packed if f"{name}_scale" in packed):
        integers = packed[name] if bits == 8 else unpack_int4(packed[name])
        same(f"qint.{name}", integers, expected)
        weight = dequantise(packed[name], packed[f"{name}_scale"].float(), integers.shape[1])
        same(f"dequant.{name}", weight, expected)

    assert open_source(folder, family).format == "quantized"
    model = load_model(folder)
    assert sum(isinstance(module, QuantisedLinear) for module in model.modules()) == 7 * model.config.num_layers
    if "input_ids" in inputs:
        with torch.no_grad():
            close("logits", model(**inputs_of(inputs)), expected, logits_atol(case), where=real_columns(inputs))
            if "labels" in inputs:
                close("loss", mean_loss(model, inputs), expected, logits_atol(case))
    if case.holds("fp16"):
        _check_packed(case / "fp16", folder, bits)


def _check_packed(fp16: Path, quantized: Path, bits: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        convert(fp16, family, None, f"int{bits}", Path(temporary) / "out")
        written, original = open_weights(Path(temporary) / "out"), open_weights(quantized)
        kept = [name for name in original if not name.endswith("inv_freq")]
        assert sorted(written) == sorted(kept)
        assert all(written[name].equal(original[name]) for name in kept)
        assert read_json_object(Path(temporary) / "out" / "config.json")["quantization_bit"] == bits
