"""What is said when CPM-Bee is written for transformers, which has no class for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hanlin.formats.convert import convert
from hanlin.formats.load import base_parameters, save_base
from hanlin.models.cpm_bee import family
from hanlin.models.cpm_bee.config import CpmBeeConfig


def test_the_folder_is_said_to_need_code_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = CpmBeeConfig(vocab_size=16, hidden_size=8, num_layers=1, num_heads=2, head_dim=4, ffn_size=8)
    model = family.model()(config)
    model.init_weights(torch.Generator().manual_seed(1))
    save_base(tmp_path / "base", family, config, base_parameters(model))
    convert(tmp_path / "base", family, None, "huggingface", tmp_path / "out")
    assert "transformers has no class for CPM-Bee" in caplog.text
