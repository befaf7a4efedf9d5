"""`convert` on one's own small model: dtypes, what is told of the numbers, merging where no tokenizer is."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from hanlin.adapters.folder import save_adapter
from hanlin.cli.main import main
from hanlin.formats.load import save_base
from hanlin.formats.source import open_source
from hanlin.models.cpm1 import family
from hanlin.models.cpm1.config import shape
from hanlin.tuning.apply import apply_tuning
from hanlin.tuning.lora import LoraTuning

CONFIG = shape(16, 2, 4, vocab_size=24, max_length=8, vocab_multiple=8)


def make_model() -> torch.nn.Module:
    model = family.model()(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def write(folder: Path, **changes: torch.Tensor) -> Path:
    tensors = {name: weight.detach().half() for name, weight in make_model().named_parameters()}
    save_base(folder, family, CONFIG, {**tensors, **changes})
    return folder


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(open_source(path, family).weights)


@pytest.mark.parametrize("layout", ["base", "huggingface", "original"])
def test_weights_are_written_in_the_dtype_that_is_asked_for(
    tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = write(tmp_path / "base"), tmp_path / "out"
    assert json.loads((base / "config.json").read_text())["dtype"] == "float16"
    assert main(["convert", str(base), str(out), "--to", layout, "--dtype", "bf16"]) == 0
    assert f"{out}: written, bfloat16, " in capsys.readouterr().out
    assert {tensor.dtype for tensor in weights(out).values()} == {torch.bfloat16}
    if layout != "original":
        key = {"base": "dtype", "huggingface": "torch_dtype"}[layout]
        assert json.loads((out / "config.json").read_text())[key] == "bfloat16"
    assert main(["convert", str(out), str(tmp_path / "again"), "--dtype", "fp32"]) == 0
    expected = {name: tensor.bfloat16().float() for name, tensor in weights(base).items()}
    again = weights(tmp_path / "again")
    assert all(again[name].equal(tensor) for name, tensor in expected.items())


def test_numbers_beyond_a_dtype_stop_the_conversion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = {"norm.weight": torch.full((16,), 1e5)}
    base = write(tmp_path / "base", **large)
    assert main(["convert", str(base), str(tmp_path / "out"), "--dtype", "fp16"]) == 2
    assert "norm.weight has numbers up to 1e+05, which float16 cannot hold" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_no_number_is_said_and_written_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write(tmp_path / "base", **{"norm.bias": torch.tensor([torch.nan] * 3 + [1.0] * 13)})
    assert main(["convert", str(base), str(tmp_path / "out"), "--to", "huggingface"]) == 0
    assert "1 of 36 tensors hold no numbers: norm.bias: 3 NaN, 0 inf of 16 numbers" in capsys.readouterr().err
    assert weights(tmp_path / "out")["transformer.ln_f.bias"].isnan().sum() == 3


@pytest.mark.parametrize("layout", ["base", "huggingface"])
def test_merging_needs_no_tokenizer(tmp_path: Path, layout: str) -> None:
    base, settings = write(tmp_path / "base"), LoraTuning(rank=2)
    model = apply_tuning(make_model(), settings, family, torch.Generator().manual_seed(1))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.fill_(0.5)
    save_adapter(model, settings, tmp_path / "lora")
    (base / "vocab.json").write_text("{}")
    words = ["convert", str(base), str(tmp_path / "out"), "--merge", str(tmp_path / "lora"), "--to", layout]
    assert main([*words, "--dtype", "fp32"]) == 0
    assert (tmp_path / "out" / "vocab.json").read_text() == "{}"  # what there is of one is brought as it is
    if layout == "base":
        before, after = weights(base), weights(tmp_path / "out")
        changed = {name.split(".")[-2] for name in after if not after[name].equal(before[name].float())}
        assert changed == set(family.lora_targets)


@pytest.mark.parametrize("words", [[], ["--overwrite"]])
def test_a_target_is_there_with_its_card_or_not_at_all(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = write(tmp_path / "base"), tmp_path / "out"
    if words:
        out.mkdir()
        (out / "mine").touch()

    def fails(folder: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, "", str(folder / "README.md"))

    with monkeypatch.context() as patch:
        patch.setattr("hanlin.api.model_card.write_card", fails)
        assert main(["convert", str(base), str(out), *words]) == 2
    assert "README.md: no space is left on its disk" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*") if "base" not in path.parts] == (["out", "mine"] if words else [])
    assert main(["convert", str(base), str(out), *words]) == 0
    assert f"{out}: written, " in capsys.readouterr().out
    assert (out / "README.md").is_file()
