"""`hanlin reproduce`: every published number is measured by its recipe, on tiny weights and rows in the raw form."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cpm2_tiny import write_original as write_cpm2
from cpm2_tiny import write_raw
from data_files import write_rows
from sampled import sampled
from small_bee import write_base as write_bee
from suite_files import FEWCLUE, write_ceval, write_clue, write_mmlu
from tiny_folder import write_original as write_chatglm2
from tiny_pieces import small_tokenizer

from hanlin.cli.main import main
from hanlin.evaluation.suites.run import SUITES
from hanlin.formats.convert import convert
from hanlin.formats.load import save_base
from hanlin.models.cpm1 import family as cpm1
from hanlin.models.cpm1.config import shape
from hanlin.recipe.published import Published, read_published
from hanlin.recipe.reading import load_recipe
from hanlin.recipe.shipped import shipped_file

KNOWN = read_published()
BY_RECIPES = [name for name, wanted in KNOWN.items() if wanted.runs]
BY_SUITES = [name for name, wanted in KNOWN.items() if wanted.suite]
QUICK = ("cpm2-math-two-stages", "cpm2-lcqmc-prompt-middle", "cpm1-chid-full-small", "cpm1-chid-zero-shot-large",
         "chatglm2-adgen-full-gpu")  # fmt: skip
TINY = ("train.precision=fp32", "run.threads=1", "parallel.tensor=1", "parallel.shard=none",
        "generate.max_new_tokens=4")  # fmt: skip
TRAINED = ("train.epochs=null", "train.steps=2", "train.batch_size=2", "train.micro_batch_size=1",
           "train.eval_every=null", "train.save_every=null", "data.train_share=1.0", "data.eval_share=1.0",
           "parallel.checkpoint_activations=none")  # fmt: skip
LENGTHS = {"cpm2": ("data.max_length=256",), "cpm1": ("data.max_length=64",), "chatglm2": ()}
ADGEN = [{"content": "类型#裤*颜色#黑色", "summary": "黑色九分裤"}, {"content": "颜色#黑色", "summary": "黑色百搭。"}]
CHID = {"content": ["举头#idiom1#，低头#idiom2#。"], "candidates": ["明月", "故乡", "地上"]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny weights of a family, as its authors released them."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = WEIGHTS[family](tmp_path_factory.mktemp(family))
        return made[family]

    return make


def write_cpm1(folder: Path) -> Path:
    tokenizer = small_tokenizer()
    config = shape(32, 2, 4, vocab_size=tokenizer.vocab_size + tokenizer.vocab_size % 2, max_length=64, init_std=0.2)
    model = cpm1.model()(config)
    model.init_weights(torch.Generator().manual_seed(1))
    save_base(folder / "base", cpm1, config, dict(model.named_parameters()), tokenizer)
    convert(folder / "base", cpm1, None, "original", folder / "released", tokenizer=tokenizer, ranks=2)
    return folder / "released"


EXAM_FILES = {"ceval": write_ceval, "mmlu": write_mmlu}
WEIGHTS = {"cpm2": write_cpm2, "cpm1": write_cpm1, "chatglm2": lambda folder: write_chatglm2(folder / "original")}


def write_files(wanted: Published, folder: Path) -> None:
    """The data set as its authors' files hold it."""
    for one in wanted.prepared:
        (folder / one.source).write_text(json.dumps(CHID) + "\n", "utf-8")
        answers = folder / f"{Path(one.source).stem}_answer.json"
        answers.write_text(json.dumps({"#idiom1#": 0, "#idiom2#": 1}), "utf-8")
    for run in wanted.runs if not wanted.prepared else ():
        recipe = load_recipe(shipped_file(run.recipe))
        dataset = recipe.data.options.get("dataset")
        rows = write_rows(folder / "rows.json", ADGEN) if dataset is None else write_raw(folder, dataset)
        for path in (*recipe.data.train, *recipe.data.eval, *recipe.evaluate.data):
            shutil.copy(rows, folder / path.name)


@pytest.mark.parametrize("name", sampled(BY_RECIPES, QUICK))
def test_a_published_number_is_measured_again(
    name: str, weights: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted, data = KNOWN[name], tmp_path / "data"
    family = load_recipe(shipped_file(wanted.runs[0].recipe)).model.family
    data.mkdir()
    write_files(wanted, data)
    small = [
        *TINY,
        f"data.cache={tmp_path / 'cache'}",
        *LENGTHS[family],
        *(TRAINED if wanted.runs[0].is_trained else ()),
    ]
    small += ["tuning.length=20"] if "prompt" in name else []
    words = ["--weights", str(weights(family)), "--data", str(data), "--folder", str(tmp_path / "out")]
    assert main(["reproduce", name, *words, *small]) == 0
    told = json.loads((tmp_path / "out/reproduced.json").read_text("utf-8"))
    assert told["published"] == wanted.numbers
    assert told["here"].keys() == wanted.numbers.keys()
    assert all(0 <= value <= 100 for value in told["here"].values())
    assert wanted.source in " ".join(capsys.readouterr().out.split())
    done = sorted(path.parent.name for path in tmp_path.glob("out/run*/last"))
    assert done == [f"run{number}" for number, run in enumerate(wanted.runs, start=1) if run.is_trained]


def write_long_chatglm2(folder: Path) -> Path:
    """One that reads C-Eval's introductions, whose characters are bytes to its small vocabulary."""
    written = write_chatglm2(folder / "original")
    path = written / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "seq_length": 2048}), "utf-8")
    return written


@pytest.mark.parametrize("name", BY_SUITES)
def test_a_published_number_of_a_suite_is_measured_again(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hanlin.evaluation.suites.run._THOUGHT_TOKENS", 2)
    wanted, data = KNOWN[name], tmp_path / "data"
    if wanted.suite[0] in EXAM_FILES:
        weights = write_long_chatglm2(tmp_path)
        EXAM_FILES[wanted.suite[0]](data, *SUITES[wanted.suite[0]].subjects, rows=1)
    else:
        weights = write_bee(tmp_path / "bee", "".join(filter(str.isalnum, str(FEWCLUE))))
        write_clue(data, FEWCLUE, "test_public")
    words = ["--weights", str(weights), "--data", str(data), "--folder", str(tmp_path / "out"), "run.device=cpu"]
    assert main(["reproduce", name, *words, "train.precision=fp32", "run.threads=1"]) == 0
    told = json.loads((tmp_path / "out/reproduced.json").read_text("utf-8"))
    assert told["here"].keys() == told["published"].keys() == wanted.numbers.keys()
    assert all(0 <= value <= 100 for value in told["here"].values())
    assert wanted.source in " ".join(capsys.readouterr().out.split())


def test_the_data_of_a_suite_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "chatglm2-ceval"]) == 2
    assert "--data the folder of ceval" in capsys.readouterr().err


@pytest.mark.parametrize("name", BY_RECIPES)
def test_the_recipes_of_the_catalogue_are_there(name: str) -> None:
    wanted = KNOWN[name]
    for run in wanted.runs:
        changes = {key: "before" if value == "{run}" else value for key, value in run.changes.items()}
        recipe = load_recipe(shipped_file(run.recipe), changes)
        assert recipe.evaluate.data or recipe.data.eval
    assert {metric.partition("/")[0] for metric in wanted.numbers} <= {*recipe.evaluate.tasks}
    assert set(wanted.what) == {"en", "zh"}


def test_a_share_is_told_as_it_was_printed() -> None:
    assert KNOWN["cpm2-ccpm-full"].as_printed("generate/exact_match", 0.9) == 90
    assert KNOWN["cpm1-chid-full-small"].as_printed("likelihood/accuracy", 0.6) == 0.6
    assert KNOWN["cpm2-wmt-full"].as_printed("generate/bleu-4 original", 26.0) == 26


def test_what_is_missing_is_told_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> Any:
        assert main(["reproduce", *words]) == 2
        return capsys.readouterr().err

    assert "did you mean 'cpm2-ccpm-full'" in said("cpm2-ccpm-fulll")
    assert "name the weights (the released CPM-2 of 11B (Chinese))" in said("cpm2-ccpm-full")
    here = str(tmp_path)
    assert "--weights: there is no" in said("cpm2-ccpm-full", "--weights", f"{here}/gone", "--data", here)
    assert "there is no train.jsonl (data.train), dev.jsonl (data.eval), test.jsonl (evaluate.data) in" in said(
        "cpm2-ccpm-full", "--weights", here, "--data", here
    )
    assert main(["reproduce"]) == 0
    assert "91.63" in capsys.readouterr().out


def test_the_commands_are_told_and_none_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(KNOWN["cpm2-lcqmc-two-stages"], tmp_path)
    words = ["--weights", str(tmp_path), "--data", str(tmp_path), "--folder", str(tmp_path / "out"), "--dry-run"]
    assert main(["reproduce", "cpm2-lcqmc-two-stages", *words, "train.lr=1e-3", "--nproc", "4"]) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("hanlin train ")
    assert "cpm2_lcqmc_prompt.yaml" in first
    assert f'model.adapter="{tmp_path}/out/run1"' in second
    assert last.startswith("hanlin evaluate ")
    assert all(line.endswith("train.lr=1e-3 --nproc 4") for line in (first, second, last))
    assert not (tmp_path / "out").exists()
