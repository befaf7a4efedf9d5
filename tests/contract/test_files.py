"""Of files: weights come back from each layout bit by bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import Case

from hanlin.core.errors import CheckpointError
from hanlin.formats.convert import convert
from hanlin.formats.format import BASE
from hanlin.formats.load import base_parameters, load_into, save_base
from hanlin.formats.source import is_base, open_source, read_config


def test_a_base_folder_gives_back_weights_shape_and_tokenizer(case: Case, tmp_path: Path) -> None:
    model = case.model().float()
    save_base(tmp_path / "base", case.family, case.config, base_parameters(model), case.tokenizer)
    assert is_base(tmp_path / "base")
    assert read_config(tmp_path / "base", case.family) == case.config
    assert_same_weights(load(case, tmp_path / "base"), model)
    again = case.family.tokenizer(tmp_path / "base")
    assert list(map(again.encode, case.texts)) == list(map(case.tokenizer.encode, case.texts))


def test_weights_come_back_from_a_layout_bit_by_bit(case: Case, layout: str, tmp_path: Path) -> None:
    if layout in case.read_only:
        assert_not_written(case, layout, tmp_path)
        return
    written = written_in(case, layout, tmp_path)
    assert open_source(written, case.family).format == layout or layout in case.lossy
    convert(written, case.family, None, BASE, tmp_path / "back", tokenizer=case.tokenizer)
    back, expected = load(case, tmp_path / "back"), load(case, tmp_path / "base")
    assert_same_shape(back.config, expected.config)
    if layout not in case.lossy:
        assert_same_weights(back, expected)
        return
    # What was rounded once is not rounded further.
    convert(tmp_path / "back", case.family, None, layout, tmp_path / "again")
    convert(tmp_path / "again", case.family, None, BASE, tmp_path / "twice")
    for name, weight in load(case, tmp_path / "twice").named_parameters():
        torch.testing.assert_close(weight, back.get_parameter(name), rtol=1e-3, atol=1e-6)


def assert_not_written(case: Case, layout: str, folder: Path) -> None:
    with pytest.raises(CheckpointError):
        written_in(case, layout, folder)
    assert not (folder / "theirs").exists()


def written_in(case: Case, layout: str, folder: Path) -> Path:
    """A model of the case in another layout."""
    config = replace(case.config, **case.for_format.get(layout, {}))
    model = case.model(**case.for_format.get(layout, {})).float()
    save_base(folder / "base", case.family, config, base_parameters(model), case.tokenizer)
    convert(folder / "base", case.family, None, layout, folder / "theirs", tokenizer=case.tokenizer)
    return folder / "theirs"


def load(case: Case, folder: Path) -> Any:
    with torch.device("meta"):
        model = case.family.model()(read_config(folder, case.family))
    load_into(model, folder, case.family)
    return model


def assert_same_weights(model: Any, expected: Any) -> None:
    found, wanted = dict(model.named_parameters()), dict(expected.named_parameters())
    assert found.keys() == wanted.keys()
    assert [name for name, weight in wanted.items() if not weight.equal(found[name])] == []


def assert_same_shape(config: Any, expected: Any) -> None:
    """Not only the weights have their shapes, but their heads too; what is not told (dropout) may differ."""
    for name in ("num_heads", "num_kv_heads", "head_dim", "num_layers", "vocab_size"):
        assert getattr(config, name, None) == getattr(expected, name, None), name
