"""A quantised base: packed in memory, tuned and merged as its unpacked twin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hanlin.core.errors import CheckpointError, ConfigError
from hanlin.formats.convert import convert
from hanlin.formats.load import base_parameters, load_into, save_base
from hanlin.formats.source import read_config
from hanlin.layers.quantised import QuantisedLinear
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.model import ChatGlm2
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.tuning import TUNING_METHODS
from hanlin.tuning.apply import apply_tuning, trained_parameters
from hanlin.tuning.full import FullTuning
from hanlin.tuning.lora import LoraTuning

CONFIG = ChatGlm2Config(
    vocab_size=50, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, ffn_size=24, max_length=64
)
TOKENS = torch.arange(24).view(2, 12)


@pytest.fixture(params=[4, 8])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A model in the original's quantised layout."""
    model = ChatGlm2(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    for weight in model.parameters():
        weight.data = weight.data.half()
    save_base(tmp_path / "base", family, CONFIG, base_parameters(model))
    convert(tmp_path / "base", family, None, f"int{request.param}", tmp_path / "packed")
    return tmp_path / "packed"


def load(folder: Path, dtype: torch.dtype = torch.float32, **changes: int) -> ChatGlm2:
    with torch.device("meta"):
        model = ChatGlm2(read_config(folder, family, changes))
    load_into(model, folder, family, dtype=dtype)
    return model


def test_weights_stay_packed_and_answer_as_unpacked_ones(folder: Path) -> None:
    packed, plain = load(folder), load(folder, bits=0)
    linears = [module for module in packed.modules() if isinstance(module, QuantisedLinear)]
    assert len(linears) == 7 * CONFIG.num_layers
    assert all(linear.weight.dtype == torch.int8 for linear in linears)
    assert not any(isinstance(module, QuantisedLinear) for module in plain.modules())
    torch.testing.assert_close(packed(tokens=TOKENS), plain(tokens=TOKENS))


@pytest.mark.parametrize(("method", "extra"), [("lora", {"rank": 2}), ("prefix", {"length": 3})])
def test_adapters_get_the_gradients_that_they_get_on_the_unpacked_base(folder: Path, method: str, extra: dict) -> None:
    settings = TUNING_METHODS.make({"method": method, **extra})
    gradients = []
    for model in (load(folder), load(folder, bits=0)):
        apply_tuning(model, settings, family, torch.Generator().manual_seed(1))
        parallel_model = parallelize(model, torch.device("cpu"))
        model(tokens=TOKENS, labels=TOKENS).backward()
        gradients.append({name: weight.grad for name, weight in parallel_model.parameters.items()})
        assert list(trained_parameters(model)) == list(parallel_model.parameters)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_half_precision_leaves_packed_weights_as_they_are(folder: Path) -> None:
    model = load(folder, torch.bfloat16)
    apply_tuning(model, LoraTuning(rank=2), family)
    parallelize(model, torch.device("cpu"), "bf16")
    before = model.get_parameter("blocks.0.ffn.up.weight").clone()
    with torch.autocast("cpu", torch.bfloat16):
        model(tokens=TOKENS, labels=TOKENS).backward()
    weight = model.get_parameter("blocks.0.ffn.up.weight")
    assert weight.dtype == torch.int8
    assert weight.equal(before)


def test_quantised_weights_are_rewritten_as_plain_ones(folder: Path, tmp_path: Path) -> None:
    for layout in ("base", "original"):
        target = tmp_path / f"plain_{layout}"
        written = convert(folder, family, None, layout, target)
        assert (written.dtype, written.bits) == ("float16", read_config(folder, family).bits)
        assert read_config(target, family).bits == 0
        plain, exact = base_parameters(load(target)), base_parameters(load(folder, bits=0))
        assert all(plain[name].equal(weight.half().float()) for name, weight in exact.items())


def test_what_cannot_be_quantised_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="full cannot train quantised weights"):
        apply_tuning(load(folder), FullTuning(), family)
    with pytest.raises(ConfigError, match="only weights that exist"):
        ChatGlm2(replace(CONFIG, bits=4)).init_weights()
    convert(tmp_path / "base", family, None, "original", tmp_path / "original")
    with pytest.raises(CheckpointError, match="hanlin convert FOLDER NEW_FOLDER --to int4"):
        load(tmp_path / "original", bits=4)
