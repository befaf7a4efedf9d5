"""ChatGLM2's folders: which model they hold, what is missing, and the way to transformers and back."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hanlin.core.errors import CheckpointError
from hanlin.core.files import read_json_object, write_json
from hanlin.formats.convert import convert
from hanlin.formats.describe import describe
from hanlin.formats.files import open_weights, write_pickle
from hanlin.formats.load import base_parameters, load_into, save_base
from hanlin.formats.source import open_source, read_config
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2 import formats as layouts
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.generation import GENERATION_KEY
from hanlin.models.chatglm2.model import ChatGlm2

CONFIG = ChatGlm2Config(
    vocab_size=50, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, ffn_size=24, max_length=64
)


def save_model(folder: Path, config: ChatGlm2Config = CONFIG) -> ChatGlm2:
    torch.manual_seed(0)
    model = ChatGlm2(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_base(folder, family, config, base_parameters(model))
    return model


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A folder in the original's layout."""
    save_model(tmp_path / "base")
    convert(tmp_path / "base", family, None, "original", tmp_path / "original")
    return tmp_path / "original"


def reload(folder: Path) -> ChatGlm2:
    model = ChatGlm2(read_config(folder, family))
    load_into(model, folder, family)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fused_by_head": True, "num_kv_heads": 4},
        {"linear_bias": True, "norm": "layer", "has_final_norm": False, "residual_after_norm": True},
        {"generation": "chatglm3", "rotary_base": 500000.0},
        {"generation": "chatglm2", "position_divisor": 4.0},
        {"generation": "codegeex2"},
        {"generation": "glm4", "rotary_base": 500000.0, "end_ids": (30, 36)},
        {"qkv_bias": False, "fp32_residual": True},
    ],
)
def test_the_original_layout_gives_back_every_variant(tmp_path: Path, changes: dict) -> None:
    config = replace(CONFIG, **changes)
    model = save_model(tmp_path / "base", config)
    convert(tmp_path / "base", family, None, "original", tmp_path / "there")
    again = reload(tmp_path / "there")
    assert again.config == config
    for name, parameter in model.named_parameters():
        assert again.get_parameter(name).equal(parameter), name


def test_large_weights_are_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_model(tmp_path / "base")
    for name, ending in (("original", "bin"), ("huggingface", "safetensors")):
        small = replace(family.formats[name], shard_bytes=6000)
        monkeypatch.setitem(layouts.FORMATS, name, small)
        convert(tmp_path / "base", family, None, name, tmp_path / name)
        shards = sorted(path.name for path in (tmp_path / name).glob(f"*.{ending}"))
        assert len(shards) > 2
        assert shards[0].endswith(f"-00001-of-{len(shards):05d}.{ending}")
        assert reload(tmp_path / name).head.weight.equal(model.head.weight)


def test_a_missing_shard_and_missing_tensors_are_named(tmp_path: Path, original: Path) -> None:
    tensors = dict(open_weights(original))
    fused = "transformer.encoder.layers.1.self_attention.query_key_value.weight"
    tensors["transformer.encoder.layers.1.extra.weight"] = tensors.pop(fused)
    broken = tmp_path / "broken"
    shutil.copytree(original, broken)
    write_pickle(broken / "pytorch_model.bin", tensors)
    with pytest.raises(CheckpointError, match=rf"missing, 1: {fused}.*\n.*surplus, 1: .*extra"):
        reload(broken)
    write_json(broken / "pytorch_model.bin.index.json", {"weight_map": {fused: "pytorch_model-00002-of-00007.bin"}})
    with pytest.raises(CheckpointError, match="files that are not there: pytorch_model-00002-of-00007"):
        reload(broken)


def test_another_number_of_kv_groups_is_told_by_the_rows(original: Path) -> None:
    values = read_json_object(original / "config.json")
    write_json(original / "config.json", {**values, "multi_query_group_num": 1})
    with pytest.raises(CheckpointError, match=r"query_key_value.*expected 32 \+ 8 \+ 8 rows"):
        reload(original)


def test_the_first_chatglm_is_refused_by_name(tmp_path: Path) -> None:
    write_json(
        tmp_path / "config.json", {"model_type": "chatglm", "inner_hidden_size": 8, "position_encoding_2d": True}
    )
    write_pickle(tmp_path / "pytorch_model.bin", {"transformer.word_embeddings.weight": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match="ChatGLM-6B, the first one"):
        open_source(tmp_path, family)
    assert "ChatGLM-6B, the first one" in describe(tmp_path, [family]).reason


def test_the_meaning_of_rope_ratio_is_told_by_the_code_beside(original: Path) -> None:
    values = read_json_object(original / "config.json")
    del values[GENERATION_KEY]
    write_json(original / "config.json", {**values, "rope_ratio": 4})
    with pytest.raises(CheckpointError, match="rope_ratio"):
        read_config(original, family)
    code = original / "modeling_chatglm.py"
    code.write_text("seq_idx = torch.arange(seq_len) / self.rope_ratio\n")
    assert read_config(original, family).position_divisor == 4
    assert layouts.tell(original).generation == "chatglm2"
    code.write_text("base = base * self.rope_ratio\n")
    assert read_config(original, family).rotary_base == 40000
    assert layouts.tell(original).generation == "chatglm3"


def test_int8_and_int4_folders_are_close_and_zero_rows_stay(tmp_path: Path) -> None:
    model = save_model(tmp_path / "base")
    tensors = dict(base_parameters(model))
    tensors["blocks.0.attention.key.weight"].data[3] = 0
    save_base(tmp_path / "zero", family, CONFIG, tensors)
    for bits, limit in ((8, 0.005), (4, 0.08)):
        convert(tmp_path / "zero", family, None, f"int{bits}", tmp_path / f"int{bits}")
        convert(tmp_path / f"int{bits}", family, None, "base", tmp_path / f"plain{bits}")
        again = reload(tmp_path / f"plain{bits}")
        assert open_source(tmp_path / f"int{bits}", family).format == "quantized"
        for name, tensor in tensors.items():
            difference = (again.get_parameter(name) - tensor).abs().max() / tensor.abs().max()
            assert difference <= limit, name
        assert (again.get_parameter("blocks.0.attention.key.weight")[3] == 0).all()


def test_what_glm_cannot_express_is_said(tmp_path: Path) -> None:
    save_model(tmp_path / "base", replace(CONFIG, norm="layer", linear_bias=True))
    with pytest.raises(CheckpointError, match="LayerNorm instead of RMSNorm, biases on all linears"):
        convert(tmp_path / "base", family, None, "huggingface", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_config_survives_transformers_layout(tmp_path: Path) -> None:
    config = replace(CONFIG, generation="chatglm2", position_divisor=4.0, end_ids=(2, 40), norm_eps=1.5e-7)
    save_model(tmp_path / "base", config)
    convert(tmp_path / "base", family, None, "huggingface", tmp_path / "glm")
    assert read_config(tmp_path / "glm", family) == config


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "says rope_type 'default', but it is 'linear'"),
        ({"rope_scaling": {"rope_theta": 500.0}}, "says rope_theta 10000.0, but it is 500.0"),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\], expected an object"),
    ],
)
def test_two_words_on_the_rotation_that_differ_are_refused(values: dict, says: str, tmp_path: Path) -> None:
    save_model(tmp_path / "base", CONFIG)
    convert(tmp_path / "base", family, None, "huggingface", tmp_path / "glm")
    file = tmp_path / "glm" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    with pytest.raises(CheckpointError, match=says):
        read_config(tmp_path / "glm", family)


@pytest.mark.parametrize("changes", [{}, {"position_divisor": 4.0}, {"fused_by_head": True, "num_kv_heads": 4}])
def test_transformers_computes_the_same_logits(tmp_path: Path, changes: dict) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    # Bit by bit only in sizes of whole vector registers: there the fused product of gate and up adds in our order.
    model = save_model(tmp_path / "base", replace(CONFIG, hidden_size=32, ffn_size=64, vocab_size=64, **changes))
    convert(tmp_path / "base", family, None, "huggingface", tmp_path / "glm")
    theirs = transformers.GlmForCausalLM.from_pretrained(tmp_path / "glm", attn_implementation="sdpa")
    tokens = torch.arange(40)[None] % 50
    with torch.no_grad():
        assert model(tokens=tokens).equal(theirs(tokens).logits)


def test_a_config_of_ours_is_plain_json(original: Path) -> None:
    values = json.loads((original / "config.json").read_text())
    assert values["multi_query_group_num"] == 2
    assert "auto_map" not in values
