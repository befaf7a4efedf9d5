"""Another start in the folder of a run: it goes on, goes on with other settings, begins anew, or is refused."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
from kills import killed_at

from hanlin.checkpoint.saved import SavedSteps
from hanlin.core.errors import CheckpointError, ConfigError
from hanlin.core.locks import held
from hanlin.recipe.reading import make_recipe
from hanlin.recipe.settings import Recipe
from hanlin.run.folder import open_run_folder, refuse_other_run, train_settings, with_run_precision


def recipe(folder: Path, *changes: str) -> Recipe:
    values = {
        "model": {"family": "cpm_bee", "size": "tiny"},
        "data": {"train": ["rows.jsonl"]},
        "train": {"steps": 4, "lr": 1e-3, "precision": "fp32"},
        "run": {"folder": str(folder)},
    }
    return make_recipe(values, changes)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has saved a checkpoint, with a file of the user's beside it."""
    folder = tmp_path / "run"
    open_run_folder(recipe(folder), "resume")
    for name in ("checkpoints/000004", "best", "last", "evaluation"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_text(name)
    SavedSteps((4,), None).write(folder / "checkpoints")
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    (folder / "mine.txt").write_text("mine")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("train.lr=0.01", "train.lr: 0.001 -> 0.01"),
        ("train.precision=bf16", "train.precision: fp32 -> bf16"),
        ("train.optimizer={name: adamw, weight_decay: 0.5}", "train.optimizer.weight_decay: "),
        ("train.optimizer=adafactor", "train.optimizer.name: adamw -> adafactor"),
    ],
)
def test_settings_that_change_the_numbers_are_told_and_change_on_request(run: Path, change: str, told: str) -> None:
    before = contents(run)
    with pytest.raises(ConfigError, match=r"holds a run with other settings .*--change.*--restart") as caught:
        open_run_folder(recipe(run, change), "resume")
    assert told in str(caught.value)
    assert contents(run) == before
    [line] = open_run_folder(recipe(run, change), "change")
    assert line.startswith(told)
    assert open_run_folder(recipe(run, change), "resume") == []


@pytest.mark.parametrize(
    "change", ["model.config.num_layers=1", "run.seed=5", "data.max_length=7", "train.batch_size=2"]
)
def test_what_would_make_another_run_of_it_is_refused_even_on_request(run: Path, change: str) -> None:
    for start in ("resume", "change"):
        with pytest.raises(ConfigError, match="other settings") as caught:
            refuse_other_run(recipe(run, change), start)
        assert "--change" not in str(caught.value)
    refuse_other_run(recipe(run, change), "restart")


@pytest.fixture
def in_bf16(run: Path) -> Path:
    """The run, whose checkpoint says that it began in bf16."""
    settings = train_settings(recipe(run, "train.precision=bf16"))
    (run / "checkpoints/000004/state.json").write_text(json.dumps({"settings": settings}))
    return run


def test_the_checkpoint_counts_where_a_start_with_other_settings_ended_before_its_first(in_bf16: Path) -> None:
    asked = recipe(in_bf16, "train.precision=bf16")
    open_run_folder(recipe(in_bf16, "train.precision=fp16", "train.lr=0.5"), "change")
    with pytest.raises(ConfigError, match=r"train\.lr: 0\.001 -> 0\.5; train\.precision: bf16 -> fp16.*--change"):
        refuse_other_run(recipe(in_bf16, "train.precision=fp16", "train.lr=0.5"), "resume")
    assert with_run_precision(recipe(in_bf16, "train.precision=auto")) == asked
    assert open_run_folder(asked, "resume") == []


def test_a_run_goes_on_with_its_optimizer_after_a_start_with_another_that_ended_early(in_bf16: Path) -> None:
    asked = recipe(in_bf16, "train.precision=bf16")
    open_run_folder(recipe(in_bf16, "train.precision=bf16", "train.optimizer=adafactor"), "change")
    assert open_run_folder(asked, "resume") == []


def test_auto_is_the_precision_that_a_run_began_with(in_bf16: Path) -> None:
    auto = recipe(in_bf16, "train.precision=auto")
    assert with_run_precision(auto).train.precision == "bf16"
    assert with_run_precision(recipe(in_bf16)).train.precision == "fp32"
    assert with_run_precision(auto, "restart").train.precision == "auto"
    state = in_bf16 / "checkpoints/000004/state.json"
    state.write_text("{}")  # from before settings were kept there
    assert with_run_precision(auto).train.precision == "fp32"
    shutil.rmtree(in_bf16 / "checkpoints")
    assert with_run_precision(auto).train.precision == "auto"


def test_a_frozen_base_stays_in_the_precision_it_was_read_in(tmp_path: Path) -> None:
    lora = recipe(tmp_path, "tuning.method=lora", "model.base=base")
    open_run_folder(lora, "resume")
    (tmp_path / "checkpoints/000004").mkdir(parents=True)
    SavedSteps((4,), None).write(tmp_path / "checkpoints")
    for start in ("resume", "change"):
        with pytest.raises(ConfigError, match=r"train\.precision: fp32 -> bf16") as caught:
            refuse_other_run(recipe(tmp_path, "tuning.method=lora", "model.base=base", "train.precision=bf16"), start)
        assert "--change" not in str(caught.value)


def test_what_does_not_change_the_numbers_so_far_is_only_told(run: Path) -> None:
    assert open_run_folder(recipe(run, "train.steps=9"), "resume") == ["train.steps: 4 -> 9"]


@pytest.mark.parametrize("is_emptied", [True, False])
def test_a_run_without_its_checkpoints_does_not_begin_again_unasked(run: Path, is_emptied: bool) -> None:
    shutil.rmtree(run / "checkpoints")
    if is_emptied:
        (run / "checkpoints").mkdir()
    before = contents(run)
    for start in ("resume", "change"):
        with pytest.raises(CheckpointError, match=r"restore that folder from a copy, or begin anew with --restart"):
            open_run_folder(recipe(run), start)
    assert contents(run) == before
    open_run_folder(recipe(run), "restart")
    open_run_folder(recipe(run), "resume")


def test_nor_does_a_finished_run_that_has_no_word_of_them(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "saved.checkpoints.json").unlink()
    (run / "last").mkdir(exist_ok=True)
    with pytest.raises(CheckpointError, match=r"its run has saved checkpoints \(last says so\)"):
        open_run_folder(recipe(run), "resume")


def test_a_restart_keeps_the_whole_former_run(run: Path) -> None:
    former = contents(run)
    former.pop("mine.txt")
    for number in (1, 2):
        open_run_folder(recipe(run, f"train.lr=0.{number}"), "restart")
        assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "former", "mine.txt"]
    assert contents(run / "former" / "1") == former
    assert list(contents(run / "former" / "2")) == ["config.yaml"]


def test_a_restart_does_not_move_an_evaluation_that_somebody_writes(run: Path) -> None:
    before = contents(run)
    with held(run / "evaluation"), pytest.raises(ConfigError, match=r"run/evaluation: is in use by process \d+ on"):
        open_run_folder(recipe(run), "restart")
    assert contents(run) == before
    assert not (run / "former").exists()
    open_run_folder(recipe(run), "restart")
    assert (run / "former/1/evaluation/file").read_text() == "evaluation"
    assert not list(run.rglob(".lock"))


@pytest.mark.parametrize("then", ["resume", "restart"])
def test_a_restart_that_was_killed_is_brought_to_its_end(
    run: Path, then, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = contents(run)
    former.pop("mine.txt")
    for call in itertools.count(1, 2):
        folder = tmp_path / str(call)
        shutil.copytree(run, folder)
        here = recipe(folder)
        if not killed_at(call, lambda folder=here: open_run_folder(folder, "restart"), monkeypatch):
            break
        open_run_folder(here, then)
        kept = [contents(path) for path in (folder / "former").iterdir()]
        assert {name: content for one in kept for name, content in one.items() if len(one) > 1} == former
        assert not list((folder / "former").glob("*.part"))
        assert not (folder / "checkpoints").exists()
    assert call > 10


def test_a_file_in_the_place_of_the_ranks_logs_is_told(run: Path) -> None:
    (run / "logs").write_text("mine")
    with pytest.raises(ConfigError, match=r"logs is no folder, and what ranks say goes there"):
        refuse_other_run(recipe(run), "resume")
