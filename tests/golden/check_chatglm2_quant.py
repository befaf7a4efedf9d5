"""Weights in 4 and 8 bits: the original's packed folder read, and the same bytes made from the fp16 folder."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from glm_case import arrays_of, assert_close, facts_of, inputs_of, load_model, mean_loss, real_columns

from hanlin.core.files import read_json_object
from hanlin.formats.convert import convert
from hanlin.formats.files import open_weights
from hanlin.formats.source import open_source
from hanlin.layers.quantised import QuantisedLinear, dequantise, unpack_int4
from hanlin.models.chatglm2 import family


def check(case: Path, vocab: Path) -> None:
    del vocab
    atol = facts_of(case)["tolerance"]["logits_atol"]
    inputs, expected = arrays_of(case / "inputs.npz"), arrays_of(case / "expected.npz")
    folder, bits = case / "quantized", read_json_object(case / "quantized" / "config.json")["quantization_bit"]
    packed = open_weights(folder)

    for name in (key.removeprefix("qint.") for key in expected if key.startswith("qint.")):
        integers = packed[name] if bits == 8 else unpack_int4(packed[name])
        assert integers.equal(expected[f"qint.{name}"])
        weight = dequantise(packed[name], packed[f"{name}_scale"].float(), integers.shape[1])
        assert weight.equal(expected[f"dequant.{name}"])

    assert open_source(folder, family).format == "quantized"
    model, real = load_model(folder), real_columns(inputs)
    assert sum(isinstance(module, QuantisedLinear) for module in model.modules()) == 7 * model.config.num_layers
    with torch.no_grad():
        assert_close("logits", model(**inputs_of(inputs))[real], expected["logits"][real], atol)
        assert_close("loss", mean_loss(model, inputs), expected["loss"], atol)
    _check_packed(case, bits)


def _check_packed(case: Path, bits: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        convert(case / "fp16", family, None, f"int{bits}", Path(temporary) / "out")
        written, original = open_weights(Path(temporary) / "out"), open_weights(case / "quantized")
        kept = [name for name in original if not name.endswith("inv_freq")]
        assert sorted(written) == sorted(kept)
        assert all(written[name].equal(original[name]) for name in kept)
        assert read_json_object(Path(temporary) / "out" / "config.json")["quantization_bit"] == bits
