"""Keys of foreign configs: none that changes the arithmetic is read over."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

import pytest
import torch

from hanlin.core.errors import CheckpointError
from hanlin.core.files import read_json_object, write_json
from hanlin.formats.config_keys import ConfigKeys
from hanlin.formats.convert import convert
from hanlin.formats.load import save_base
from hanlin.formats.source import open_source, read_config
from hanlin.models.cpm1.config import shape
from hanlin.models.cpm_bee.config import CpmBeeConfig
from hanlin.models.family import Family, family_names, load_family

FORMATS = [
    (family, layout)
    for family in map(load_family, family_names())
    for layout in family.formats
    if layout != "quantized"
]
KEYS = ConfigKeys(read=("size",), harmless=("seed",), neutral={"scale": (True,)})


@pytest.mark.parametrize(("family", "layout"), FORMATS, ids=lambda one: one if isinstance(one, str) else one.name)
def test_a_layout_knows_what_it_writes_and_refuses_what_it_does_not_know(family: Family, layout: str) -> None:
    form = family.formats[layout]
    config = family.config(num_experts=2) if layout == "experts" else family.sizes["tiny"]
    written = form.write_config(config)
    form.config_keys.check({**written, "new_switch": False, "another": None, "a_list": [], "a_share": 0.0}, "x.json")
    with pytest.raises(
        CheckpointError, match=r"x.json.*new_switch is True, which is unknown here; quantization_config"
    ):
        form.config_keys.check({**written, "new_switch": True, "quantization_config": {"bits": 4}}, "x.json")


@pytest.mark.parametrize("value", [False, None, 0, "no"])
def test_a_neutral_value_alone_is_taken(value: object) -> None:
    KEYS.check({"size": 3, "seed": 4, "scale": True}, "x")
    with pytest.raises(CheckpointError, match=r"scale is .*, known: True"):
        KEYS.check({"scale": value}, "x")


def test_a_list_of_neutral_values_and_null_in_place_of_off_are_taken() -> None:
    keys = ConfigKeys(neutral={"layer_types": ("full", ""), "dropout": (0,), "scale": (True,)})
    keys.check({"layer_types": ["full", "full"], "dropout": None}, "x")
    keys.check({"layer_types": None, "dropout": 0.0}, "x")
    for values in ({"layer_types": ["full", "sliding"]}, {"layer_types": "sliding"}, {"dropout": 0.1}, {"scale": None}):
        with pytest.raises(CheckpointError, match="says what is not computed here"):
            keys.check(values, "x")


def written(folder: Path, family: Family, config: object, layout: str) -> Path:
    model = family.model()(config)
    model.init_weights(torch.Generator().manual_seed(0))
    save_base(folder / "base", family, config, dict(model.named_parameters()))
    convert(folder / "base", family, None, layout, folder / "theirs")
    return folder / "theirs"


@pytest.mark.parametrize(
    ("name", "layout", "values", "says"),
    [
        ("cpm1", "huggingface", {"scale_attn_weights": False}, "scale_attn_weights is False, known: True"),
        ("cpm1", "huggingface", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("cpm1", "huggingface", {"embd_pdrop": 0.0}, "embd_pdrop is 0.0 and resid_pdrop 0.1"),
        ("cpm1", "huggingface", {"model_type": "gpt_neo"}, "model_type is 'gpt_neo'"),
        ("cpm_bee", "original", {"int4": True}, "int4 is True, which is unknown here"),
        ("cpm_bee", "original", {"hidden_size": 99}, "its other spelling is 99"),
        ("cpm_bee", "huggingface", {"distance_scale": 8}, "distance_scale is 8, known: 16"),
    ],
)
def test_a_key_that_changes_the_arithmetic_is_refused_by_name(
    name: str, layout: str, values: dict, says: str, tmp_path: Path
) -> None:
    family = load_family(name)
    config = (
        shape(16, 1, 2, vocab_size=16, max_length=8)
        if name == "cpm1"
        else CpmBeeConfig(vocab_size=20, hidden_size=8, num_layers=1, num_heads=2, head_dim=6, ffn_size=10)
    )
    folder = written(tmp_path, family, config, layout)
    assert read_config(folder, family) == config
    write_json(folder / "config.json", {**read_json_object(folder / "config.json"), **values})
    with pytest.raises(CheckpointError, match=says):
        read_config(folder, family)


ODD = [None, "4", "", -1, 0, True, 4.5, 1e30, [], [1], {}, {"a": 1}]


@pytest.mark.parametrize(("name", "layout"), [("cpm1", "huggingface"), ("cpm1", "original"), ("cpm_bee", "original")])
def test_a_value_of_the_wrong_kind_is_refused_for_every_key(name: str, layout: str, tmp_path: Path) -> None:
    family = load_family(name)
    config = (
        shape(16, 1, 2, vocab_size=16, max_length=8)
        if name == "cpm1"
        else CpmBeeConfig(vocab_size=20, hidden_size=8, num_layers=1, num_heads=2, head_dim=6, ffn_size=10)
    )
    folder = written(tmp_path, family, config, layout)
    file = next(file for file in sorted(folder.glob("*.json")) if "config" in file.name)
    values = read_json_object(file)
    for key in values:
        left_out = {other: value for other, value in values.items() if other != key}
        for odd in [left_out, *({**values, key: value} for value in ODD)]:
            write_json(file, odd)
            with contextlib.suppress(CheckpointError):  # anything else fails the test
                read_config(folder, family)


def test_arguments_in_the_weights_are_looked_at_and_can_be_outweighed(tmp_path: Path) -> None:
    family, config = load_family("cpm1"), shape(16, 1, 2, vocab_size=16, max_length=8, vocab_multiple=8)
    folder = written(tmp_path, family, config, "megatron")
    file = next(folder.rglob("*.pt"))
    state = torch.load(file, weights_only=False)
    state["args"] = argparse.Namespace(**vars(state["args"]), lr=1e-4, use_rotary=True)
    torch.save(state, file)
    with pytest.raises(CheckpointError, match="use_rotary is True"):
        read_config(folder, family)
    beside = folder / "cpm1_config.json"
    write_json(beside, {**read_json_object(beside), "use_rotary": None})
    assert read_config(folder, family) == config


@pytest.mark.parametrize(("key", "value", "said"), [("dtype", "float8", "dtype: 'float8'"), ("", 1, "unknown .* ''")])
def test_an_odd_value_in_a_base_of_ours_is_named_with_the_damage(
    key: str, value: object, said: str, tmp_path: Path
) -> None:
    family = load_family("cpm_bee")
    config = CpmBeeConfig(vocab_size=20, hidden_size=8, num_layers=1, num_heads=2, head_dim=6, ffn_size=10)
    model = family.model()(config)
    model.init_weights(torch.Generator().manual_seed(1))
    save_base(tmp_path / "base", family, config, dict(model.named_parameters()))
    file = tmp_path / "base" / "config.json"
    write_json(file, {**read_json_object(file), key: value})
    with pytest.raises(CheckpointError, match=rf"base: .*{said}"):
        read_config(tmp_path / "base", family)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"base: not as it was written: config\.json is missing"):
        open_source(tmp_path / "base", family)
