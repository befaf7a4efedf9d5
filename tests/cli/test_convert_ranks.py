"""Checkpoints of the training programs by commands: told, divided over ranks, put into other forms and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hanlin.cli.main import main
from hanlin.formats.load import save_base
from hanlin.formats.source import open_source
from hanlin.models.cpm1 import family
from hanlin.models.cpm1.config import shape

CONFIG = shape(16, 2, 4, vocab_size=24, max_length=8, vocab_multiple=8)
# What none of these forms tells, or not where a single file is named.
VALUES = ("num_heads=4", "head_dim=4", "vocab_size=24", "gelu=tanh")
TOLD = [word for value in VALUES for word in ("--config", value)]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    model = family.model()(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    save_base(tmp_path / "base", family, CONFIG, {name: weight.detach() for name, weight in model.named_parameters()})
    return tmp_path / "base"


@pytest.mark.parametrize(
    ("form", "file"),
    [
        ("original", "9/mp_rank_01_model_states.pt"),
        ("megatron", "iter_0000009/mp_rank_01/model_optim_rng.pt"),
        ("deepspeed", "global_step9/mp_rank_01_model_states.pt"),
        ("pipeline", "global_step9/layer_03-model_01-model_states.pt"),
    ],
)
def test_every_form_goes_out_and_in_by_any_of_its_paths(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, file: str
) -> None:
    out = tmp_path / "out"
    assert main(["convert", str(base), str(out), "--to", form, "--ranks", "2", "--iteration", "9"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    told = capsys.readouterr().out
    assert f"cpm1, layout {form}" in told
    assert "iteration    9" in told
    ours = open_source(base, family).weights
    inner = out / file.partition("/")[0]
    for number, path in enumerate((out, inner, out / file)):
        again = tmp_path / f"again_{number}"
        assert main(["convert", str(path), str(again), *TOLD]) == 0
        found = open_source(again, family).weights
        assert all(found[name].equal(ours[name]) for name in ours)


def test_a_value_of_the_model_is_a_name_and_a_value(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["convert", str(base), str(tmp_path / "out"), "--config", "num_heads"]) != 0
    assert "NAME=VALUE is expected" in capsys.readouterr().err
    assert main(["convert", str(base), str(tmp_path / "out"), "--to", "huggingface", "--ranks", "2"]) != 0
    assert "is not divided over ranks" in capsys.readouterr().err
