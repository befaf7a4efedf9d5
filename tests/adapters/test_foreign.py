"""Adapters as other programs write them: every form computes what it computed there, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hanlin.adapters.adapter import load_adapter
from hanlin.adapters.chatglm2_prefix import PREFIX
from hanlin.adapters.opening import is_adapter, open_adapter
from hanlin.adapters.peft_prefix import PEFT_PREFIX_TUNING
from hanlin.core.errors import CheckpointError
from hanlin.core.files import read_json_object, write_json
from hanlin.formats.convert import convert
from hanlin.formats.files import open_weights, write_pickle
from hanlin.formats.load import base_parameters, load_into, save_base
from hanlin.formats.source import open_source, read_config
from hanlin.layers.lora import merge_lora
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.model import ChatGlm2
from hanlin.models.cpm1 import family as gpt2
from hanlin.models.cpm1.config import shape
from hanlin.tuning.apply import apply_tuning
from hanlin.tuning.prefix import PrefixTuning

CONFIG = ChatGlm2Config(
    vocab_size=20, hidden_size=8, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, ffn_size=12, max_length=32
)
LAYER = "transformer.encoder.layers.{}.self_attention."


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A base in the original's layout."""
    model = ChatGlm2(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    save_base(tmp_path / "base", family, CONFIG, base_parameters(model))
    convert(tmp_path / "base", family, None, "original", tmp_path / "original")
    return tmp_path / "original"


def write_peft(folder: Path, modules: dict[str, tuple[int, int, int]], name: str = ".weight", **stated: object) -> Path:
    """modules: their name -> rank, columns and rows."""
    folder.mkdir()
    draw = torch.Generator().manual_seed(1)
    tensors = {}
    for module, (rank, columns, rows) in modules.items():
        tensors[f"base_model.model.{module}.lora_A{name}"] = torch.randn(rank, columns, generator=draw)
        tensors[f"base_model.model.{module}.lora_B{name}"] = torch.randn(rows, rank, generator=draw)
    save_file(tensors, folder / "adapter_model.safetensors")
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": 2, "lora_alpha": 8, **stated})
    return folder


def changes(path: Path, original: Path) -> dict[str, torch.Tensor]:
    """By how much each weight of the original's layout is another with the adapter merged into it."""
    model = ChatGlm2(CONFIG)
    load_into(model, original, family)
    adapter = open_adapter(path, family, read_config(original, family))
    apply_tuning(model, adapter.settings, family)
    load_adapter(model, adapter)
    merge_lora(model)
    save_base(path / "merged", family, CONFIG, base_parameters(model))
    convert(path / "merged", family, None, "original", path / "theirs")
    before, after = open_weights(original), open_weights(path / "theirs")
    found = {name: after[name].double() - before[name].double() for name in before}
    return {name: change for name, change in found.items() if change.abs().max() > 0}


FUSED = {f"{LAYER.format(i)}query_key_value": (2, 8, 32) for i in range(2)}


@pytest.mark.parametrize("name", [".weight", ".default.weight"])
@pytest.mark.parametrize(
    ("stated", "factor"),
    [
        ({}, 4.0),
        ({"use_rslora": True}, 8 / 2**0.5),
        ({"alpha_pattern": {"layers.1.self_attention.query_key_value": 3}}, 4.0),
    ],
)
def test_a_lora_of_a_fused_linear_adds_what_it_adds_in_peft(
    stated: dict, factor: float, name: str, original: Path, tmp_path: Path
) -> None:
    path = write_peft(tmp_path / "peft", FUSED, name, **stated)
    tensors, found = load_file(path / "adapter_model.safetensors"), changes(path, original)
    assert set(found) == {f"{module}.weight" for module in FUSED}
    for number, module in enumerate(FUSED):
        inner, outer = (tensors[f"base_model.model.{module}.lora_{part}{name}"].double() for part in "AB")
        own = 1.5 if number and "alpha_pattern" in stated else factor
        torch.testing.assert_close(found[f"{module}.weight"], own * outer @ inner, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pattern", [[1], {"query_key_value": "8"}, {"query_key_value": None}, {"(": 8}, {"(.*)*x": 8}])
@pytest.mark.parametrize("name", ["alpha_pattern", "rank_pattern"])
def test_what_is_no_pattern_is_refused_by_name(name: str, pattern: object, tmp_path: Path) -> None:
    path = write_peft(tmp_path / "peft", FUSED, **{name: pattern})
    with pytest.raises(CheckpointError, match=rf"adapter_config.json: {name}"):
        open_adapter(path, family, CONFIG)


def test_modules_of_several_ranks_become_one_lora(original: Path, tmp_path: Path) -> None:
    modules = {f"{LAYER.format(i)}dense": (rank, 16, 8) for i, rank in enumerate((2, 5))}
    path = write_peft(tmp_path / "peft", modules, rank_pattern={r".*\.1\..*\.dense": 5}, use_rslora=True)
    tensors, found = load_file(path / "adapter_model.safetensors"), changes(path, original)
    settings: Any = open_adapter(path, family, CONFIG).settings
    assert settings.rank == 5
    for module, (rank, _, _) in modules.items():
        inner, outer = (tensors[f"base_model.model.{module}.lora_{part}.weight"].double() for part in "AB")
        expected = 8 / rank**0.5 * outer @ inner
        torch.testing.assert_close(found[f"{module}.weight"], expected, rtol=1e-5, atol=1e-5)


def test_matrices_that_stand_the_other_way_round_have_their_additions_too(tmp_path: Path) -> None:
    config = shape(8, 1, 2, vocab_size=16, max_length=8)
    path = write_peft(
        tmp_path / "peft", {"transformer.h.0.attn.c_attn": (2, 8, 24), "transformer.h.0.mlp.c_fc": (2, 8, 32)}
    )
    tensors, adapter = load_file(path / "adapter_model.safetensors"), open_adapter(path, gpt2, config)
    outer = tensors["base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"]
    assert adapter.tensors["blocks.0.attention.key.lora_B"].equal(outer[8:16])
    model = gpt2.model()(config)
    model.init_weights(torch.Generator().manual_seed(0))
    apply_tuning(model, adapter.settings, gpt2)
    load_adapter(model, adapter)


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"use_dora": True}, "use_dora is True, but there is no lora_magnitude_vector for"),
        ({"bias": "lora_only"}, "bias is 'lora_only', known: 'none'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; LORA, IA3, PREFIX_TUNING, PROMPT_TUNING and P_TUNING are read"),
        ({"r": 4}, "says rank 4 for transformer.encoder.layers.0.*lora_A has 2 rows"),
        ({"lora_alpha": None}, "lora_alpha is None"),
    ],
)
def test_what_peft_says_and_is_not_computed_is_refused(stated: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=says):
        open_adapter(write_peft(tmp_path / "peft", FUSED, **stated), family, CONFIG)


def test_what_peft_writes_without_effect_is_harmless(tmp_path: Path) -> None:
    stated = {
        "auto_mapping": None, "bias": "none", "corda_config": None, "fan_in_fan_out": False, "loftq_config": {},
        "megatron_core": "megatron.core", "qalora_group_size": 16, "target_modules": ["query_key_value"],
        "task_type": "CAUSAL_LM", "use_dora": False, "use_qalora": False, "peft_version": "0.18.0",
    }  # fmt: skip
    open_adapter(write_peft(tmp_path / "peft", FUSED, **stated), family, CONFIG)


def test_dora_and_several_adapters_are_told_by_their_tensors(tmp_path: Path) -> None:
    path = write_peft(tmp_path / "peft", FUSED)
    file = path / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "base_model.model.x.lora_magnitude_vector": torch.ones(2)}, file)
    with pytest.raises(CheckpointError, match="of lora_A and lora_B only one is there: x"):
        open_adapter(path, family)
    save_file({**tensors, "base_model.model.x.lora_A.other.weight": torch.ones(2, 2)}, file)
    with pytest.raises(CheckpointError, match=r"several adapters \(None, other\)"):
        open_adapter(path, family)


# Prefixes -------------------------------------------------------------------------------------------------------------


def with_prefix(projection: bool) -> ChatGlm2:
    model = ChatGlm2(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    return apply_tuning(model, PrefixTuning(length=3, projection=projection), family, torch.Generator().manual_seed(1))


def whole(folder: Path, tensors: dict[str, torch.Tensor], original: Path) -> None:
    write_json(folder / "config.json", read_json_object(original / "config.json"))
    write_pickle(folder / "pytorch_model.bin", {**open_weights(original), **tensors})


def bare(folder: Path, tensors: dict[str, torch.Tensor], original: Path) -> None:
    start = "transformer.prefix_encoder."
    write_pickle(folder / "pytorch_model.bin", {name.removeprefix(start): one for name, one in tensors.items()})


def half_bare(folder: Path, tensors: dict[str, torch.Tensor], original: Path) -> None:
    write_pickle(folder / "x.pt", {name.removeprefix("transformer."): one for name, one in tensors.items()})


def beside_base_config(folder: Path, tensors: dict[str, torch.Tensor], original: Path) -> None:
    values = read_json_object(original / "config.json")
    write_json(folder / "config.json", {**values, "pre_seq_len": None, "prefix_projection": False})
    write_pickle(folder / "pytorch_model.bin", tensors)


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("write", [whole, bare, half_bare, beside_base_config])
def test_a_prefix_is_found_in_every_form(write: Callable, projection: bool, original: Path, tmp_path: Path) -> None:
    model, tokens = with_prefix(projection), torch.arange(6)[None]
    PREFIX.save(model, None, tmp_path / "checkpoint", family)
    (tmp_path / "form").mkdir()
    write(tmp_path / "form", dict(open_weights(tmp_path / "checkpoint")), original)
    assert is_adapter(tmp_path / "form") == (write is not whole)
    adapter = open_adapter(tmp_path / "form", family)
    settings: Any = adapter.settings
    assert (settings.method, settings.length, settings.projection) == ("prefix", 3, projection)
    again = ChatGlm2(CONFIG)
    load_into(again, original, family)
    load_adapter(apply_tuning(again, settings, family).eval(), adapter)
    assert again(tokens=tokens).equal(model.eval()(tokens=tokens))


def test_a_whole_model_with_a_prefix_is_a_base_as_well_and_says_so(original: Path, tmp_path: Path) -> None:
    PREFIX.save(with_prefix(projection=True), None, tmp_path / "checkpoint", family)
    (tmp_path / "whole").mkdir()
    whole(tmp_path / "whole", dict(open_weights(tmp_path / "checkpoint")), original)
    model, plain = ChatGlm2(CONFIG), ChatGlm2(CONFIG)
    load_into(model, tmp_path / "whole", family)
    load_into(plain, original, family)
    assert all(weight.equal(plain.get_parameter(name)) for name, weight in model.named_parameters())
    assert "name these files as model.adapter too" in open_source(tmp_path / "whole", family).remark


@pytest.mark.parametrize("projection", [False, True])
def test_pefts_prefix_tuning_goes_out_and_in(projection: bool, tmp_path: Path) -> None:
    model, tokens = with_prefix(projection), torch.arange(6)[None]
    PEFT_PREFIX_TUNING.save(model, None, tmp_path / "peft", family)
    stated = read_json_object(tmp_path / "peft" / "adapter_config.json")
    assert (stated["num_virtual_tokens"], stated["num_layers"], stated["token_dim"]) == (3, 2, 8)
    assert is_adapter(tmp_path / "peft")
    adapter = open_adapter(tmp_path / "peft", family)
    again = ChatGlm2(CONFIG)
    again.init_weights(torch.Generator().manual_seed(0))
    load_adapter(apply_tuning(again, adapter.settings, family).eval(), adapter)
    torch.testing.assert_close(again(tokens=tokens), model.eval()(tokens=tokens))
    write_json(tmp_path / "peft" / "adapter_config.json", {**stated, "num_virtual_tokens": 4})
    with pytest.raises(CheckpointError, match="num_virtual_tokens is 4, but prompt_embeddings has 3 rows"):
        open_adapter(tmp_path / "peft", family)


def test_a_fused_linear_of_another_shape_is_said(tmp_path: Path) -> None:
    path = write_peft(tmp_path / "peft", FUSED)
    with pytest.raises(CheckpointError, match="expected 16 \\+ 4 \\+ 4 rows"):
        open_adapter(path, family, replace(CONFIG, num_kv_heads=1))
