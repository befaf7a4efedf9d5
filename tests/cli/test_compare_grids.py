"""The grids of `examples`: rows and bases are made as their pages say, but tiny; then every cell is checked."""

from __future__ import annotations

import json
from pathlib import Path
from runpy import run_path

import pytest
from safetensors.torch import load_file

from hanlin.cli import demo
from hanlin.cli.main import main

pytest.importorskip("pypinyin")

ROOT = Path(__file__).parents[2]
SHORT = ("train.steps=2", "train.warmup_steps=1", "train.batch_size=2", "train.save_every=2", "train.eval_every=2")
POEM = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"
CHOICE = "[翻译]抬头看着明月。[0]举头望明月[1]低头思故乡[2]床前明月光[3]疑是地上霜[答案]"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("recipes", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_methods_on_ccpm_and_tones(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = home / "raw"
    raw.mkdir()
    (raw / "poems.jsonl").write_text((json.dumps({"text": POEM}, ensure_ascii=False) + "\n") * 1100, encoding="utf-8")
    for part in ("train", "eval"):
        (raw / f"{part}.jsonl").write_text(json.dumps({"target": "0", "input": CHOICE}) + "\n", encoding="utf-8")
    make_data = run_path("examples/comparing/make_data.py")
    make_data["main"](raw / "poems.jsonl", raw, Path("runs/comparing/data"))
    texts = "runs/comparing/data/texts.jsonl"
    assert main(["tokenizer", "train", texts, "--out", "runs/comparing/cpm2.txt", "--size", "100"]) == 0
    for family in ("cpm2", "chatglm2"):
        assert main(["train", f"recipes/{family}_reading_pretrain.yaml", *SHORT, "model.config.vocab_size=256"]) == 0
    make_copying = run_path("examples/comparing/make_copying.py")
    make_copying["main"](Path("runs/comparing/data"), raw / "poems.jsonl", Path("runs/comparing/cpm2_fresh"))
    first = ("model.base=runs/comparing/cpm2_fresh", "data.train=[runs/comparing/data/copies.jsonl]")
    for changes in ((*first, "run.folder=runs/comparing/cpm2_copies"), ()):
        assert main(["train", "recipes/cpm2_copying_pretrain.yaml", *SHORT, *changes, "data.train_limit=8"]) == 0
    fresh = load_file("runs/comparing/cpm2_fresh/model.safetensors")
    assert fresh["head.weight"].equal(fresh["embedding.weight"])
    capsys.readouterr()
    for name in ("ccpm", "tones"):
        assert main(["compare", f"examples/compare_{name}.yaml", "--dry-run"]) == 0
        said = capsys.readouterr().out.splitlines()
        assert len({line.partition(":")[0].rpartition("/")[0] for line in said[:-1]}) == 10
        assert said[-1] == "30 cells, 0 done"


def test_methods_on_the_demo_which_make_compare_small_runs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo._write_files(home / "demo", is_quick=True)
    few = Path("demo/data/pinyin_eval.jsonl")
    few.write_text("".join(few.read_text(encoding="utf-8").splitlines(keepends=True)[:4]), encoding="utf-8")
    words = ("demo/data/pinyin_train.jsonl", "demo/data/tone_train.jsonl", "--out", "demo/vocab.txt")
    assert main(["tokenizer", "build", *words]) == 0
    assert main(["train", "demo/pinyin.yaml", *SHORT, "data.train_limit=4"]) == 0
    capsys.readouterr()
    target = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ncompare-small:")[2].partition("\n\n")[0]
    [command] = [line for line in target.splitlines() if "hanlin compare" in line]
    assert main([*command.split("hanlin ")[1].replace("'", "").split(), "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "6 cells, 0 done"
