"""The variants of tuning methods under layouts against one process, few of each: numbers, and what the base gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import METHODS
from family_cases import case_of
from ranks import run_ranks
from test_layouts import LAYOUTS, compare
from test_own_method import losses, words, write_recipe

from hanlin.checking import check_file
from hanlin.cli.main import main
from hanlin.formats.files import open_weights
from hanlin.run.assemble import assemble
from hanlin.tuning.ia3 import Ia3Tuning
from hanlin.tuning.lora import LoraTuning

VARIANTS = {
    "dora": LoraTuning(rank=2, dora=True, targets=("all-linear",)),
    "pissa": LoraTuning(rank=2, init="pissa", targets=("all-linear",)),
    "ia3": Ia3Tuning(),
}
CHOSEN: dict[str, dict[str, Any]] = {
    "sharded pipe": LAYOUTS["2x1x2"],
    "shared heads": {"tensor": 4},
    "along the text": {"tensor": 2, "sequence_parallel": True},
}
MATRIX = [("chatglm2", "shared heads"), ("cpm_bee", "along the text"), ("cpm2", "sharded pipe")]


@pytest.mark.parametrize(("family", "layout"), MATRIX)
def test_a_layout_changes_no_number(family: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, method in VARIANTS.items():
        monkeypatch.setitem(METHODS, name, method)
    compare(family, list(VARIANTS), CHOSEN[layout], torch.float64, 1e-10)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_recipe(case_of("cpm2", folder), folder)
    return folder


@pytest.mark.parametrize(("variant", "layout"), [("dora=true", "tensor=2"), ("init=pissa", "shard=parameters")])
def test_what_comes_from_the_base_is_the_same(variant: str, layout: str, home: Path) -> None:
    def recipe(run: str, *changes: str) -> list[str]:
        tuning = ("tuning.method=lora", "tuning.targets=all-linear", "tuning.rank=2", f"tuning.{variant}")
        # The first steps of AdamW are as long for a gradient of rounding errors as for any other.
        optimizer = "train.optimizer={name: adamw, eps: 1e-3}"
        return words(home, f"{variant}-{run}", "train.steps=3", optimizer, *tuning, *changes)

    assert main(["train", *recipe("alone")]) == 0
    path, *changes = recipe(layout, f"parallel.{layout}")
    made = check_file(path, changes, "train")
    codes: list[Any] = run_ranks(2, lambda: assemble(made).train().exit_code)
    assert set(codes) == {0}
    run, alone = f"{variant}-{layout}", f"{variant}-alone"
    assert losses(home, run) == pytest.approx(losses(home, alone), rel=1e-5)
    ours, theirs = (open_weights(home / name / "last") for name in (run, alone))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=5e-5)
