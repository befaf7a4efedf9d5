import json
import logging
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from run_tiny import run
from sampled import sampled
from tiny_model import TinyLoader, break_batch, make_batch

from hanlin.core.errors import CheckpointError, DataError, HanlinError
from hanlin.core.manifest import write_manifest
from hanlin.recipe.settings import TrainSettings
from hanlin.training import loop
from hanlin.training.batches_ahead import BatchesAhead
from hanlin.training.loop import EXIT_INTERRUPTED, count_steps
from hanlin.training.metrics import MetricsFile
from hanlin.training.run_checkpoints import TrainProgress
from hanlin.training.signals import StopSignals
from hanlin.training.step import Step

SCRIPT = Path(__file__).with_name("run_tiny.py")
MY_OPTIMIZER = str(Path(__file__).parents[2] / "examples" / "my_optimizer.py")


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses_of(folder: Path) -> dict[int, float]:
    lines = [line for line in lines_of(folder) if "loss" in line]
    assert len({line["step"] for line in lines}) == len(lines), "a step is there twice"
    return {line["step"]: line["loss"] for line in lines}


def state_of(step) -> dict[str, torch.Tensor]:
    weights = {name: weight.detach() for name, weight in step.parallel_model.parameters.items()}
    return {**weights, **step.optimizer.tensors()}


def assert_same_run(first, second) -> None:
    assert first.values() == second.values()
    assert all(tensor.equal(state_of(second)[name]) for name, tensor in state_of(first).items())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_resumed_run_equals_uninterrupted_one_bitwise(tmp_path, precision):
    settings = {"precision": precision, "decay_steps": 12}
    _, whole = run(tmp_path / "whole", steps=12, **settings)
    run(tmp_path / "parts", steps=5, **settings)
    torch.manual_seed(99)  # the random numbers come from the checkpoint
    outcome, parts = run(tmp_path / "parts", steps=12, **settings)
    assert outcome.progress.step == 12
    assert_same_run(whole, parts)
    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "parts")


def test_steps_after_the_checkpoint_are_logged_once(tmp_path):
    run(tmp_path, steps=6, decay_steps=12)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 7, "loss": 1.0}\n{"step": 8, "lo')  # after the checkpoint, then killed
    run(tmp_path, steps=12, decay_steps=12)
    assert sorted(losses_of(tmp_path)) == list(range(1, 13))


def test_a_run_shorter_than_all_intervals_leaves_last_and_best(tmp_path):
    outcome, step = run(tmp_path, steps=2, eval_every=100, save_every=100)
    assert outcome.end == "steps"
    assert outcome.progress.best_step == 2
    for name in ("last", "best"):
        saved = torch.load(tmp_path / name / "model.pt")
        assert saved["head.weight"].equal(step.parallel_model.model.head.weight)
    assert (tmp_path / "checkpoints" / "000002").is_dir()


def test_the_first_step_has_a_limit_of_its_own(tmp_path, monkeypatch):
    class Watched(StopSignals):
        def step(self):
            longest.append(self._longest)
            return super().step()

    longest = []
    monkeypatch.setattr(loop, "StopSignals", Watched)
    run(tmp_path, steps=2)
    assert longest[0] is None
    assert longest[1] > 0


def test_metrics_have_a_line_per_step_and_per_evaluation(tmp_path):
    run(tmp_path, steps=8)
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines if "eval_loss" in line] == [4, 8]
    wanted = {"step", "loss", "lr", "grad_norm", "tokens", "loss_tokens", "tokens_per_second", "seconds", "skipped"}
    assert wanted <= set(lines[0])


def test_a_step_tells_the_cpu_time_of_the_process_which_waiting_does_not_take(tmp_path, monkeypatch):
    slow = lambda *given, run=Step.run: (time.sleep(0.2), run(*given))[1]  # noqa: E731
    monkeypatch.setattr(Step, "run", slow)
    run(tmp_path, steps=3, with_eval=False)
    for line in lines_of(tmp_path):
        assert 0 < line["cpu_seconds"] < 0.2


def test_metrics_tell_the_memory_of_each_step(tmp_path):
    run(tmp_path, steps=3)
    lines = [line for line in lines_of(tmp_path) if "loss" in line]
    assert all(0 < line["memory_gib"] <= line["peak_memory_gib"] + 0.001 for line in lines)  # rounded


def test_weights_and_gradients_are_inspected_every_n_steps(tmp_path, caplog):
    def lines() -> list[dict]:
        return [json.loads(line) for line in (tmp_path / "parameters.jsonl").read_text().splitlines()]

    with caplog.at_level("INFO", "hanlin"):
        run(tmp_path, steps=5, decay_steps=12, inspect_every=2)
    with (tmp_path / "parameters.jsonl").open("a") as stream:
        stream.write('{"step": 6}\n')  # after the checkpoint, then killed
    _, step = run(tmp_path, steps=8, decay_steps=12, inspect_every=2)
    assert [line["step"] for line in lines()] == [2, 4, 6, 8]
    assert set(lines()[0]["weights"]) == set(lines()[0]["gradients"]) == set(step.parallel_model.parameters)
    assert set(lines()[0]["weights"]["head.weight"]) == {"max", "min", "std", "mean"}
    assert "gradient std" in caplog.text


def test_waiting_for_batches_before_and_within_a_step_is_told_apart_from_the_step(tmp_path, monkeypatch):
    waited = count(step=0.25)  # asked before a batch is taken, after that, and after the step
    monkeypatch.setattr(BatchesAhead, "seconds_waited", property(lambda _: next(waited)))
    monkeypatch.setattr(Step, "run", lambda *given, run=Step.run: replace(run(*given), seconds=1.0))
    run(tmp_path, steps=3, with_eval=False)
    lines = [line for line in lines_of(tmp_path) if "loss" in line]
    assert [(line["data_seconds"], line["seconds"]) for line in lines] == [(0.5, 0.75)] * 3


def test_the_position_is_that_of_what_was_trained_on_not_of_what_was_made(tmp_path, monkeypatch):
    """The thread is one batch ahead: the second of two runs must begin with that one."""
    seen, step = [], Step.run
    monkeypatch.setattr(Step, "run", lambda *given: (seen.append(given[1].rows[0]), time.sleep(0.02), step(*given))[2])
    for steps in (2, 4):
        run(tmp_path, steps=steps, decay_steps=12)
    assert seen == [make_batch(number).rows[0] for number in range(4)]


def test_what_goes_wrong_in_the_making_of_a_batch_comes_up_when_its_turn_comes(tmp_path, monkeypatch):
    def broken(self):
        for number in range(3):
            self.number += 1
            yield make_batch(number)
        raise DataError("rows.jsonl:4: was written to")

    monkeypatch.setattr(TinyLoader, "forever", broken)
    with pytest.raises(DataError, match=r"rows.jsonl:4: was written to") as caught:
        run(tmp_path, steps=9, save_every=3)
    assert caught.value.__notes__ == ["step=4"]
    assert list(losses_of(tmp_path)) == [1, 2, 3]
    assert (tmp_path / "checkpoints" / "000003").is_dir()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_training_ends_when_the_evaluation_stops_improving_and_stays_ended(tmp_path):
    settings = {"steps": 200, "lr": 1e-12, "eval_every": 1, "patience": 3, "schedule": "constant", "warmup_steps": 0}
    outcome, _ = run(tmp_path, **settings)
    assert outcome.end == "patience"
    assert outcome.progress.step == (outcome.progress.best_step or 0) + 3  # no evaluation more, none less
    again, _ = run(tmp_path, **settings)
    assert again == outcome


def test_a_better_evaluation_makes_up_for_the_worse_ones_before_it():
    progress = TrainProgress()
    for loss, worse in ((3.0, 0), (4.0, 1), (math.nan, 2), (2.0, 0), (2.0, 1)):
        progress = progress.after_step().after_evaluation(loss)
        assert progress.worse == worse
    assert (progress.best_loss, progress.best_step) == (2.0, 4)


def test_best_is_the_best_evaluation_and_last_the_last(tmp_path):
    settings = {"lr": 0.5, "schedule": "constant", "warmup_steps": 0, "clip": None, "eval_every": 1, "steps": 10}
    outcome, _ = run(tmp_path, **settings)
    losses = {line["step"]: line["eval_loss"] for line in lines_of(tmp_path) if "eval_loss" in line}
    assert outcome.progress.best_loss == min(losses.values())
    assert losses[outcome.progress.best_step] == min(losses.values())


def test_without_evaluation_there_is_no_best(tmp_path):
    run(tmp_path, steps=3, with_eval=False)
    assert (tmp_path / "last").is_dir()
    assert not (tmp_path / "best").exists()


def test_damaged_newest_checkpoint_costs_some_steps_only(tmp_path):
    _, whole = run(tmp_path / "whole", steps=12, decay_steps=12)
    run(tmp_path / "parts", steps=6, decay_steps=12)
    (tmp_path / "parts" / "checkpoints" / "000006" / "state.json").write_text("{}")
    _, parts = run(tmp_path / "parts", steps=12, decay_steps=12)
    assert_same_run(whole, parts)
    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "parts")


def test_broken_numbers_stop_the_run_and_the_checkpoint_stays(tmp_path, monkeypatch):
    run(tmp_path, steps=3, decay_steps=12)
    forever = TinyLoader.forever
    monkeypatch.setattr(TinyLoader, "forever", lambda self: (break_batch(batch) for batch in forever(self)))
    with pytest.raises(HanlinError, match="2 steps in a row"):
        run(tmp_path, steps=12, decay_steps=12, max_skipped=2)
    assert losses_of(tmp_path)[4] is None
    monkeypatch.undo()
    _, resumed = run(tmp_path, steps=12, decay_steps=12)
    _, whole = run(tmp_path / "whole", steps=12, decay_steps=12)
    assert_same_run(whole, resumed)


def test_steps_of_epochs():
    assert count_steps(TrainSettings(epochs=2), TinyLoader()) == 10
    assert count_steps(TrainSettings(epochs=1.5), TinyLoader()) == 8
    assert count_steps(TrainSettings(steps=7), TinyLoader()) == 7


# --- ended from outside ---


def start(folder: Path, steps: int, held: int, optimizer: str = "adamw") -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), str(steps), str(held), optimizer], stderr=subprocess.DEVNULL
    )


def wait_for_step(folder: Path, number: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        path = folder / "metrics.jsonl"
        if path.is_file() and path.read_text().count('"loss"') >= number:
            return
        assert process.poll() is None, f"the run ended early with {process.returncode}"
        time.sleep(0.01)
    raise AssertionError(f"step {number} was not reached")


@pytest.mark.slow
@pytest.mark.parametrize("number", sampled([signal.SIGTERM, signal.SIGINT], [signal.SIGTERM]))
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, number):
    process = start(tmp_path, steps=12, held=7)
    wait_for_step(tmp_path, 4, process)
    process.send_signal(number)
    (tmp_path / "go_on").touch()
    assert process.wait(timeout=60) == EXIT_INTERRUPTED
    done = max(losses_of(tmp_path))
    assert 4 <= done < 12
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == f"{done:06}"
    outcome, resumed = run(tmp_path, steps=12)
    assert outcome.progress.step == 12
    assert_same_run(run(tmp_path / "whole", steps=12)[1], resumed)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", sampled(["adamw", MY_OPTIMIZER], ["adamw"]))
def test_killed_again_and_again_the_run_ends_as_if_nothing_had_happened(tmp_path, optimizer):
    for step in (4, 9):
        process = start(tmp_path / "killed", steps=12, held=step + 1, optimizer=optimizer)
        wait_for_step(tmp_path / "killed", step, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    _, resumed = run(tmp_path / "killed", steps=12, optimizer=optimizer)
    assert_same_run(run(tmp_path / "whole", steps=12, optimizer=optimizer)[1], resumed)
    losses = losses_of(tmp_path / "killed")
    assert losses_of(tmp_path / "whole") == losses
    assert losses[12] < losses[1]


def test_a_shortened_or_damaged_metrics_file_is_told_and_kept(tmp_path, caplog):
    run(tmp_path, steps=6, decay_steps=12)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = b"".join([*lines[:1], b"\0\xff not a line\n", *lines[4:]])
    path.write_bytes(damaged)
    with caplog.at_level(logging.ERROR, "hanlin"):
        run(tmp_path, steps=8, decay_steps=12)
    assert "lines of steps are missing: 2-4" in caplog.text
    assert "damaged lines are left out (2)" in caplog.text
    assert (tmp_path / "metrics.damaged.jsonl").read_bytes() == damaged
    assert sorted(losses_of(tmp_path)) == [1, 5, 6, 7, 8]


def test_a_metrics_file_that_an_editor_replaced_is_followed(tmp_path, caplog):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    file.write(1, {})
    (tmp_path / "new").write_bytes((tmp_path / "metrics.jsonl").read_bytes())
    (tmp_path / "new").replace(tmp_path / "metrics.jsonl")
    with caplog.at_level(logging.ERROR, "hanlin"):
        file.write(2, {})
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2]
    assert "was removed or replaced" in caplog.text
    file.close()


def test_a_metrics_file_that_cannot_grow_is_named(tmp_path):
    """As on a full disk; the system's error has no name."""
    file, limits = MetricsFile(tmp_path / "metrics.jsonl", 0), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        with pytest.raises(OSError, match=r"metrics\.jsonl"):
            file.write(1, {"loss": 1.0, "lr": 0.1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("is_made_again", [True, False])
def test_a_run_whose_folder_is_removed_ends_at_the_next_write(tmp_path, is_made_again, monkeypatch):
    def removing(self, step, values, real=MetricsFile.write):
        if step == 3:
            shutil.rmtree(tmp_path / "run")
            if is_made_again:
                (tmp_path / "run").mkdir()
        real(self, step, values)

    monkeypatch.setattr(MetricsFile, "write", removing)
    with pytest.raises(CheckpointError, match="run: was removed or replaced while the run was writing there"):
        run(tmp_path / "run", steps=6)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert (tmp_path / "run").exists() == is_made_again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values["progress"].update(newer=1), "has progress.newer"),
        (lambda values: values["step"].pop("updates"), "lacks step.updates"),
        (lambda values: values["loader"].update(number="x"), "loader.number. is a str"),
        (lambda values: values["random"][0].pop("torch"), "lacks torch"),
        (lambda values: values["random"][0].update(torch="xy"), "not states of random numbers"),
        (lambda values: values.pop("random"), "lacks random"),
    ],
)
def test_a_checkpoint_of_another_version_is_refused_by_what_differs(tmp_path, change, message):
    run(tmp_path, steps=3)
    folder = tmp_path / "checkpoints" / "000003"
    state = json.loads((folder / "state.json").read_text())
    change(state["values"])
    (folder / "state.json").write_text(json.dumps(state))
    write_manifest(folder)
    with pytest.raises(CheckpointError, match=rf"state\.json: .*{message}"):
        run(tmp_path, steps=6)
