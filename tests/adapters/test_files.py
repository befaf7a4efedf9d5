"""Adapters in three forms, in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hanlin.adapters.adapter import load_adapter
from hanlin.adapters.cpm_bee_delta import DELTA
from hanlin.adapters.folder import FOLDER, save_adapter
from hanlin.adapters.opening import is_adapter, open_adapter
from hanlin.adapters.peft import PEFT
from hanlin.core.errors import CheckpointError
from hanlin.formats.load import added_parameters
from hanlin.models.cpm_bee import family
from hanlin.models.cpm_bee.config import CpmBeeConfig
from hanlin.models.cpm_bee.model import CpmBee
from hanlin.models.family import load_family
from hanlin.tuning.apply import apply_tuning
from hanlin.tuning.lora import LoraTuning

CONFIG = CpmBeeConfig(vocab_size=20, hidden_size=8, num_layers=2, num_heads=2, head_dim=6, ffn_size=10)


def tuned(settings: LoraTuning, seed: int = 0) -> CpmBee:
    torch.manual_seed(seed)
    model = CpmBee(CONFIG)
    model.init_weights()
    apply_tuning(model, settings, family)
    for parameter in added_parameters(model).values():
        torch.nn.init.normal_(parameter)
    return model


def additions(model: CpmBee, settings: LoraTuning) -> dict[str, torch.Tensor]:
    """What each tuned linear adds to its output, as one matrix."""
    return {
        name: module.lora_B @ module.lora_A * module.factor
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


def write(form: str, model: CpmBee, settings: LoraTuning, folder: Path) -> Path:
    if form == "ours":
        save_adapter(model, settings, folder / "adapter")
        return folder / "adapter"
    if form == "peft":
        PEFT.save(model, settings, folder / "peft", family)
        return folder / "peft"
    DELTA.save(model, settings, folder / "delta.pt", family)
    return folder / "delta.pt"


@pytest.mark.parametrize("form", ["ours", "peft", "original"])
@pytest.mark.parametrize("tuning_form", ["original", "scaled"])
def test_an_adapter_comes_back_with_its_settings(form: str, tuning_form: str, tmp_path: Path) -> None:
    settings = LoraTuning(rank=3, alpha=12, targets=("query", "down"), form=tuning_form)
    model = tuned(settings)
    path = write(form, model, settings, tmp_path)
    assert is_adapter(path)
    adapter = open_adapter(path, family)
    read: Any = adapter.settings
    assert (read.rank, set(read.targets)) == (3, {"query", "down"})
    other = tuned(read, seed=1)
    load_adapter(other, adapter)
    torch.testing.assert_close(additions(other, read), additions(model, settings), atol=1e-6, rtol=1e-5)


def test_foreign_forms_have_foreign_names(tmp_path: Path) -> None:
    settings = LoraTuning()
    model = tuned(settings)
    delta = torch.load(write("original", model, settings, tmp_path))
    assert "encoder.layers.1.self_att.self_attention.project_v.lora.lora_B" in delta
    peft = write("peft", model, settings, tmp_path)
    config = json.loads((peft / "adapter_config.json").read_text())
    assert (config["peft_type"], config["target_modules"]) == ("LORA", ["project_q", "project_v"])
    from safetensors.torch import load_file

    name = "base_model.model.cpmbee.encoder.layers.0.self_att.self_attention.project_q.lora_A.weight"
    assert load_file(peft / "adapter_model.safetensors")[name].equal(
        model.get_parameter("blocks.0.attention.query.lora_A")
    )


def test_every_tensor_must_find_its_place(tmp_path: Path) -> None:
    settings = LoraTuning()
    path = write("original", tuned(settings), settings, tmp_path)
    tensors = torch.load(path)
    first = next(iter(tensors)).removesuffix("lora_A")
    tensors["typo.lora.lora_A"] = tensors.pop(f"{first}lora_A")
    torch.save(tensors, path)
    with pytest.raises(CheckpointError, match=f"only one is there: {first.removesuffix('.lora.')}, typo"):
        open_adapter(path, family)
    tensors["typo.lora.lora_B"] = tensors.pop(f"{first}lora_B")
    torch.save(tensors, path)
    with pytest.raises(CheckpointError, match=r"missing: blocks.0.attention.query.lora_A\n(.*\n)+.*surplus: typo"):
        load_adapter(tuned(settings), open_adapter(path, family))


def test_another_rank_is_named(tmp_path: Path) -> None:
    settings = LoraTuning()
    path = write("ours", tuned(settings), settings, tmp_path)
    with pytest.raises(CheckpointError, match=r"lora_A: found \[8, 8\], expected \[4, 8\]"):
        load_adapter(tuned(LoraTuning(rank=4)), open_adapter(path, family))


def test_an_adapter_of_another_family_is_refused(tmp_path: Path) -> None:
    settings = LoraTuning()
    FOLDER.save(tuned(settings), settings, tmp_path / "adapter", family)
    assert open_adapter(tmp_path / "adapter", family).settings.method == "lora"
    with pytest.raises(CheckpointError, match="was trained on a model of cpm_bee, and this one is of chatglm2"):
        open_adapter(tmp_path / "adapter", load_family("chatglm2"))
    save_adapter(tuned(settings), settings, tmp_path / "own", family="my_family")  # which may be called otherwise
    assert open_adapter(tmp_path / "own", family).settings.method == "lora"


def test_settings_that_are_none_are_refused(tmp_path: Path) -> None:
    settings = LoraTuning()
    path = write("ours", tuned(settings), settings, tmp_path)
    (path / "adapter.json").write_text('{"method": "magic"}')
    with pytest.raises(CheckpointError, match="method"):
        open_adapter(path, family)
