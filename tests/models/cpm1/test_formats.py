"""CPM-1's layouts: what the files do not say, and what must not be guessed."""

from __future__ import annotations

import pytest
import torch

from hanlin.core.errors import CheckpointError
from hanlin.models.cpm1.config import SIZES
from hanlin.models.cpm1.formats import FORMATS


def released(hidden_size: int) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return {
            "word_embeddings.weight": torch.empty(30000, hidden_size),
            "position_embeddings.weight": torch.empty(1024, hidden_size),
            **{
                f"transformer.layers.{i}.mlp.dense_h_to_4h.weight": torch.empty(4 * hidden_size, hidden_size)
                for i in range(12)
            },
        }


def test_a_published_size_tells_its_heads() -> None:
    values = FORMATS["original"].read_config({}, released(768))
    small = vars(SIZES["small"])
    assert values == {name: small[name] for name in values}
    assert values["num_heads"] == 12


def test_heads_of_another_size_are_not_guessed() -> None:
    assert "num_heads" not in FORMATS["original"].read_config({}, released(96))
    assert FORMATS["original"].read_config({"num_attention_heads": 6}, released(96))["head_dim"] == 16


def test_the_hub_config_decides_the_form_of_gelu() -> None:
    values = {"n_embd": 768, "n_head": 12, "n_layer": 12}
    for function, gelu in (("gelu_new", "tanh"), ("gelu", "erf")):
        config = FORMATS["huggingface"].read_config({**values, "activation_function": function}, {})
        assert (config["gelu"], config["ffn_size"], config["head_dim"]) == (gelu, 3072, 64)
    with pytest.raises(CheckpointError, match="activation_function 'relu'"):
        FORMATS["huggingface"].read_config({**values, "activation_function": "relu"}, {})


@pytest.mark.parametrize("layout", ["original", "huggingface"])
def test_a_written_config_is_read_back(layout: str) -> None:
    form, config = FORMATS[layout], SIZES["medium"]
    weights = {name: tensor for name, tensor in released(1024).items() if "layers" not in name}
    with torch.device("meta"):
        weights |= {f"transformer.layers.{i}.mlp.dense_h_to_4h.weight": torch.empty(4096, 1024) for i in range(24)}
    values = form.read_config(form.write_config(config), weights)
    assert values == {name: vars(config)[name] for name in values}
    assert {"num_heads", "gelu", "num_layers", "max_length"} <= set(values)
