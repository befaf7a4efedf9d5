"""`examples/my_model.py`, a model in one file named by its path: trained under every layout, asked, tuned with LoRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks
from sampled import sampled

from hanlin.checking import check_file
from hanlin.cli.main import main
from hanlin.recipe.reading import load_recipe
from hanlin.run.assemble import assemble

ROOT = Path(__file__).parents[1]
LAYOUTS = {
    "data": ["data=2"],
    "tensor": ["tensor=2"],
    "pipe": ["pipe=2"],
    "sequence": ["tensor=2", "sequence_parallel=true", "checkpoint_activations=full"],
    "interleaved": ["data=2", "pipe=2", "schedule=interleaved", "shard=gradients"],
    "sharded": ["data=2", "shard=parameters"],
    "all": ["data=2", "tensor=2", "pipe=2", "shard=parameters"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("my_model")


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the recipe names its files from there


def changes(home: Path, run: str, *more: str) -> list[str]:
    few = ["train.steps=4", "train.warmup_steps=1", "run.log_every=1", "run.threads=1", "run.device=cpu"]
    return [*few, f"run.folder={home / run}", f"data.cache={home / 'cache'}", *more]


def losses(home: Path, run: str, *more: str, layout: str | None = None) -> list[float]:
    """Those of the steps of a training run; it ends well on all ranks."""
    settings = [f"parallel.{setting}" for setting in LAYOUTS[layout]] if layout else []
    recipe = check_file("examples/my_model.yaml", changes(home, run, *settings, *more), "train")
    asked = recipe.parallel
    world = (asked.data or 1) * asked.tensor * asked.pipe
    codes: list[Any] = (
        run_ranks(world, lambda: assemble(recipe).train().exit_code) if layout else [assemble(recipe).train().exit_code]
    )
    assert set(codes) == {0}
    lines = (home / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def test_the_file_is_as_short_as_promised() -> None:
    assert len((ROOT / "examples" / "my_model.py").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.fixture(scope="module")
def alone(home: Path) -> dict[str, list[float]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return {"full": losses(home, "alone"), "lora": losses(home, "alone lora", "tuning.method=lora")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_changes_no_loss(home: Path, alone: dict[str, list[float]], layout: str) -> None:
    assert losses(home, layout, layout=layout) == pytest.approx(alone["full"], rel=1e-5)


@pytest.mark.parametrize("layout", sampled(["sequence", "all"], ["sequence"]))
def test_nor_with_lora(home: Path, alone: dict[str, list[float]], layout: str) -> None:
    assert losses(home, f"lora {layout}", "tuning.method=lora", layout=layout) == pytest.approx(alone["lora"], rel=1e-5)


@pytest.mark.parametrize("layout", sampled(["sharded", "all"], ["sharded"]))
def test_an_optimizer_in_a_file_of_its_own_works_under_a_layout(home: Path, layout: str) -> None:
    lion = ("train.optimizer={name: examples/my_optimizer.py, weight_decay: 0.1}", "train.lr=1e-4")
    alone = losses(home, f"lion alone {layout}", *lion)
    assert losses(home, f"lion {layout}", *lion, layout=layout) == pytest.approx(alone, rel=1e-4)


def test_it_learns_its_poems_and_writes_them(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses(home, "long", "train.steps=50")
    base = home / "long" / "last"
    recipe = load_recipe("examples/my_model.yaml", changes(home, "long", f"model.base={base}"))
    assert assemble(recipe).evaluate()["generate"]["exact_match"] > 0.9
    capsys.readouterr()
    assert main(["inspect", str(base)]) == 0
    assert "my_model" in capsys.readouterr().out
    assert main(["inspect", str(base), "--family", "examples/my_model.py"]) == 0
    assert "family       my_model, layout base" in capsys.readouterr().out


def test_it_is_pretrained_on_texts_as_they_are(home: Path) -> None:
    texts = "".join(f'{{"text": "床前明月光，疑是地上霜。{number}"}}\n' for number in range(40))
    (home / "texts.jsonl").write_text(texts, encoding="utf-8")
    assert len(losses(home, "texts", f"data.train={home / 'texts.jsonl'}", "data.split='8,1,1'")) == 4


def test_its_memory_can_be_planned(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "examples/my_model.yaml", "--trust-code", "--per-node", "2", "--json", "parallel.tensor=2"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)
