"""Parts of a base that stay as they are, and a run that starts from the prompts of another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from family_cases import case_of
from test_own_method import losses, words, write_recipe

from hanlin.cli.main import main
from hanlin.core.errors import ConfigError
from hanlin.formats.files import open_weights
from hanlin.layers.precision import DTYPES
from hanlin.tuning.apply import apply_tuning, trained_parameters
from hanlin.tuning.full import FullTuning
from hanlin.tuning.ia3 import Ia3Tuning
from hanlin.tuning.lora import LoraTuning


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_recipe(case_of("cpm2", folder), folder)
    return folder


def test_what_is_frozen_is_named_by_module_or_run_of_blocks(tmp_path: Path) -> None:
    case = case_of("cpm2", tmp_path)
    model = apply_tuning(case.empty(), FullTuning(frozen=("embedding", "encoder_blocks.0-1")), case.family)
    trained = trained_parameters(model)
    assert not [name for name in trained if name.startswith(("embedding.", "encoder_blocks."))]
    assert {name.partition(".")[0] for name in trained} >= {"decoder_blocks", "decoder_norm", "encoder_norm", "head"}
    with pytest.raises(
        ConfigError, match=r"tuning.frozen: nothing is called blocks.0; the model has .*decoder_blocks.0-1"
    ):
        apply_tuning(case.empty(), FullTuning(frozen=("blocks.0",)), case.family)
    for beyond in ("decoder_blocks.0-19", "decoder_blocks.0-999999999"):
        with pytest.raises(ConfigError, match=f"nothing is called {beyond}"):
            apply_tuning(case.empty(), FullTuning(frozen=(beyond,)), case.family)
    with pytest.raises(ConfigError, match="nothing that is trained"):
        apply_tuning(case.empty(), Ia3Tuning(inputs=(), outputs=()), case.family)
    with pytest.raises(ConfigError, match="all-linear stands alone"):
        apply_tuning(case.empty(), LoraTuning(targets=("all-linear", "nonsense")), case.family)
    with pytest.raises(ConfigError, match="nothing is left"):
        apply_tuning(case.empty(), FullTuning(frozen=tuple(dict(case.empty().named_children()))), case.family)


@pytest.mark.parametrize(("setting", "dtype"), [("weight", "fp32"), ("weight", "bf16"), ("save", "bf16")])
def test_what_is_frozen_comes_out_as_it_came_in(home: Path, setting: str, dtype: str) -> None:
    """Also of a base whose numbers the arithmetic of the run rounds, unless what is written is to be rounded."""
    changes = ("tuning.method=full", "tuning.frozen=[embedding,decoder_blocks.0]", "train.precision=bf16")
    run, given = home / f"{setting}-{dtype}", f"train.{setting}_dtype={dtype}"
    assert main(["train", *words(home, run.name, "train.steps=2", "train.lr=0.05", *changes, given)]) == 0
    base, last = open_weights(home / "base"), open_weights(run / "last")
    frozen = {name for name in base if name.startswith(("embedding.", "decoder_blocks.0."))}
    if setting == "save":
        assert {last[name].dtype for name in base} == {torch.bfloat16}
        return
    assert {name for name in base if last[name].dtype == base[name].dtype and last[name].equal(base[name])} == frozen
    kept = DTYPES[dtype]  # pyright: ignore[reportArgumentType]
    assert {last[name].dtype for name in base if name not in frozen} == {kept}
    assert main(["generate", str(run), "--record", json.dumps({"source": "山", "target": ""})]) == 0


def test_a_second_stage_trains_the_base_from_the_prompts_of_the_first(home: Path) -> None:
    prompts = ("tuning.method=prompt", "data.shuffle=false")
    first = (*prompts, "tuning.length=4", "tuning.ratios=[0.5,0,0.5]")
    assert main(["train", *words(home, "prompts", *first)]) == 0
    second = (
        "tuning.method=prompt",
        "tuning.trains_model=true",
        f"model.adapter={home / 'prompts'}",
        "data.shuffle=false",
    )
    assert main(["train", *words(home, "both", *second, "train.steps=4", "train.lr=0.01")]) == 0
    assert json.loads((home / "both/last/adapter/adapter.json").read_text())["ratios"] == [0.5, 0, 0.5]
    alone, both = losses(home, "prompts"), losses(home, "both")
    assert both[0] < alone[0]
    assert both[-1] < alone[-1]
    base, last = open_weights(home / "base"), open_weights(home / "both/last")
    assert [name for name in base if last[name].equal(base[name])] == []
    stages = [open_weights(home / path)["soft_prompt.weight"] for path in ("prompts/last", "both/last/adapter")]
    assert (stages[0] - stages[1]).abs().max() < 0.01 * 4 * 1.1
    assert not torch.equal(*stages)
    assert main(["generate", str(home / "both"), "--record", json.dumps({"source": "山", "target": ""})]) == 0
