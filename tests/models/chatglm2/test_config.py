import json
from dataclasses import replace

import pytest

from hanlin.core.errors import CheckpointError
from hanlin.models.chatglm2.config import SIZES, ChatGlm2Config, from_original, to_original
from hanlin.models.chatglm2.generation import tell_generation

ORIGINAL = {"model_type": "chatglm", "padded_vocab_size": 65024, "multi_query_attention": True}


@pytest.mark.parametrize("size", SIZES)
def test_a_shape_survives_the_way_to_the_original_and_back(size: str):
    config = SIZES[size]
    assert from_original(json.loads(json.dumps(to_original(config))), config.generation) == config


def test_unusual_shapes_survive_too():
    odd = replace(
        SIZES["tiny"], num_kv_heads=4, fused_by_head=True, norm="layer", has_final_norm=False, linear_bias=True,
        residual_after_norm=True, fp32_residual=True, dropout=0.1, end_ids=(2, 5), head_dim=20,
    )  # fmt: skip
    assert from_original(to_original(odd), "chatglm2") == odd


def test_the_golden_configs_are_read(shared):
    files = sorted((shared / "golden").glob("chatglm2_*/**/config.json"))
    assert files
    for file in files:
        values = json.loads(file.read_text("utf-8"))
        if "multi_query_attention" in values:
            config = from_original(values)
            written = to_original(config)
            assert {key: written[key] for key in written if key in values and key != "architectures"}.items() <= (
                values.items()
            ), file


def test_rope_ratio_scales_positions_in_one_model_and_the_base_in_the_other():
    values = {**ORIGINAL, "rope_ratio": 4}
    second, third = from_original(values, "chatglm2"), from_original(values, "chatglm3")
    assert (second.position_divisor, second.rotary_base) == (4.0, 10000.0)
    assert (third.position_divisor, third.rotary_base) == (1.0, 40000.0)


def test_absent_keys_have_the_original_class_defaults():
    config = from_original(ORIGINAL)
    assert (config.max_length, config.qkv_bias, config.num_kv_heads) == (2048, False, 1)


@pytest.mark.parametrize(
    ("extra", "tokenizer", "code", "generation"),
    [
        ({}, {}, "", "chatglm2"),
        ({"_name_or_path": "THUDM/chatglm3-6b-32k", "rope_ratio": 50}, {}, "", "chatglm3"),
        ({}, {"name_or_path": "THUDM/codegeex2-6b"}, "", "codegeex2"),
        ({"interleaved_qkv": False}, {}, "", "codegeex2"),
        ({}, {"added_tokens_decoder": {"64795": {"content": "<|user|>"}}}, "", "chatglm3"),
        ({"rope_ratio": 50}, {}, "base = base * self.rope_ratio", "chatglm3"),
        ({"rope_ratio": 4}, {}, "arange(seq_len) / self.rope_ratio", "chatglm2"),
        ({"padded_vocab_size": 151552, "rope_ratio": 500}, {}, "", "glm4"),
    ],
)
def test_the_generation_is_told_from_the_folder(extra, tokenizer, code, generation):
    told = tell_generation({**ORIGINAL, **extra}, tokenizer, code)
    assert told.generation == generation
    assert told.reason


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "chatglm", "inner_hidden_size": 16384}, "ChatGLM-6B, the first one"),
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"model_type": "chatglm"}, "no ChatGLM2 or later"),
        ({**ORIGINAL, "rope_ratio": 4}, "nothing here says which"),
        ({**ORIGINAL, "num_layers": "28"}, "num_layers is '28'"),
        ({**ORIGINAL, "multi_query_group_num": 3}, "no multiple of"),
        ({**ORIGINAL, "kv_channels": 6}, "kv_channels is 6"),
    ],
)
def test_what_it_is_not_is_refused(values, message):
    with pytest.raises(CheckpointError, match=message):
        from_original(values)


def test_the_default_is_the_6b():
    assert SIZES["6b"] == ChatGlm2Config()
