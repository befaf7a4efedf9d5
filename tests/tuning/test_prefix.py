"""A prefix before every block: any model that takes one, packed or cached, and its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hanlin.adapters.adapter import load_adapter
from hanlin.adapters.chatglm2_prefix import PREFIX
from hanlin.adapters.folder import save_adapter
from hanlin.adapters.opening import format_to_write, is_adapter, open_adapter
from hanlin.core.errors import CheckpointError, ConfigError
from hanlin.core.files import read_json_object, write_json
from hanlin.formats.load import base_parameters
from hanlin.layers.kv_cache import KVCache
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.model import ChatGlm2
from hanlin.models.cpm_bee import family as bee_family
from hanlin.models.cpm_bee.config import CpmBeeConfig
from hanlin.models.cpm_bee.model import CpmBee
from hanlin.tuning.apply import apply_tuning, trained_parameters
from hanlin.tuning.prefix import PrefixTuning

CONFIG = ChatGlm2Config(
    vocab_size=30, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, ffn_size=24, max_length=64
)
BEE_CONFIG = CpmBeeConfig(
    vocab_size=30,
    hidden_size=16,
    num_layers=3,
    num_heads=2,
    head_dim=6,
    ffn_size=24,
    num_distance_buckets=8,
    num_relation_buckets=12,
    max_distance=16,
    removed_attention=(1,),
)
SETTINGS = PrefixTuning(length=5, projection=True, dropout=0.1)


def tuned(settings: PrefixTuning = SETTINGS, seed: int = 0) -> ChatGlm2:
    generator = torch.Generator().manual_seed(seed)
    model = ChatGlm2(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    return apply_tuning(model, settings, family, generator).eval()


def test_only_the_prefix_is_trained_and_the_base_keeps_its_names() -> None:
    model = tuned()
    assert set(base_parameters(model)) == {name for name, _ in ChatGlm2(CONFIG).named_parameters()}
    assert set(trained_parameters(model)) == {
        "prefix.embedding.weight",
        *(f"prefix.trans.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")),
    }
    assert model.plan.shared == ("prefix",)
    width = 2 * CONFIG.num_layers * CONFIG.num_kv_heads * CONFIG.head_dim
    assert model.get_parameter("prefix.embedding.weight").shape == (5, width)


def test_each_row_drops_its_own_part_of_the_prefix_in_training_only() -> None:
    model, tokens = tuned(SETTINGS.model_copy(update={"dropout": 0.5})), torch.arange(6).expand(2, -1)
    still = model(tokens=tokens)
    torch.testing.assert_close(still[0], still[1])
    moving = model.train()(tokens=tokens)
    assert (moving[0] - moving[1]).abs().max() > 1e-4


def test_the_prefix_stays_in_fp32_under_autocast() -> None:
    model, tokens = tuned(), torch.arange(6)[None]
    with torch.autocast("cpu", torch.bfloat16):
        assert model.prefix is not None
        assert model.prefix()["0"].keys.dtype == torch.float32
        loss = model(tokens=tokens, labels=tokens)
    loss.backward()
    assert model.get_parameter("prefix.embedding.weight").grad.abs().sum() > 0


def test_adapter_folders_and_the_originals_give_the_prefix_back(tmp_path: Path) -> None:
    model, tokens = tuned(), torch.arange(6)[None]
    save_adapter(model, SETTINGS, tmp_path / "ours")
    PREFIX.save(model, SETTINGS, tmp_path / "theirs", family)
    for name in ("ours", "theirs"):
        assert is_adapter(tmp_path / name)
        adapter = open_adapter(tmp_path / name, family)
        assert adapter.settings == SETTINGS
        again = tuned(SETTINGS, seed=1)
        load_adapter(again, adapter)
        assert again(tokens=tokens).equal(model(tokens=tokens))
    with pytest.raises(ConfigError, match="of a prefix is written as adapter, peft, delta, original"):
        format_to_write(SETTINGS, "ckpt")


def test_a_config_that_does_not_belong_to_the_prefix_is_told(tmp_path: Path) -> None:
    PREFIX.save(tuned(), SETTINGS, tmp_path / "theirs", family)
    config = tmp_path / "theirs" / "config.json"
    write_json(config, {**read_json_object(config), "pre_seq_len": 64})
    with pytest.raises(CheckpointError, match=r"pre_seq_len 64.*the tensors have 5"):
        open_adapter(tmp_path / "theirs", family)


def test_a_prefix_of_another_length_is_told(tmp_path: Path) -> None:
    save_adapter(tuned(), SETTINGS, tmp_path / "ours")
    with pytest.raises(CheckpointError, match=r"prefix.embedding.weight: found \[5, 64\], expected \[7, 64\]"):
        load_adapter(tuned(SETTINGS.model_copy(update={"length": 7})), open_adapter(tmp_path / "ours", family))


def test_a_model_without_a_place_for_a_prefix_is_told() -> None:
    with pytest.raises(ConfigError, match="takes no prefix"):
        apply_tuning(nn.Linear(2, 2), SETTINGS, family)


def test_cpm_bee_takes_a_prefix_in_windows_and_with_a_cache() -> None:
    model = CpmBee(BEE_CONFIG).double()
    model.init_weights(torch.Generator().manual_seed(0))
    bare = model(**bee_inputs())
    apply_tuning(model, SETTINGS, bee_family, torch.Generator().manual_seed(0)).double().eval()
    whole = model(**bee_inputs())
    assert (whole - bare).abs().max() > 0.01
    windows = torch.tensor([[[*range(8), -1, -1]]])
    torch.testing.assert_close(model(**bee_inputs(), windows=windows), whole)

    kv_cache, pieces = KVCache(), []
    for part in (slice(0, 5), slice(5, 6), slice(6, 8)):
        columns = {name: tensor[:, part] for name, tensor in bee_inputs().items() if name != "relations"}
        positions = torch.arange(8)[None, part]
        pieces.append(model(**columns, relations=bee_inputs()["relations"], positions=positions, kv_cache=kv_cache))
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


def bee_inputs() -> dict[str, torch.Tensor]:
    """A sample of one segment: five columns of context, three of an answer."""
    nothing = torch.zeros(1, 8, dtype=torch.long)
    return {
        "tokens": torch.arange(8)[None],
        "subs": nothing,
        "is_context": (torch.arange(8) < 5)[None],
        "sample_ids": nothing,
        "num_segments": nothing + 1,
        "segments": nothing,
        "relation_offsets": nothing,
        "relations": torch.zeros(1, 1, dtype=torch.long),
    }
