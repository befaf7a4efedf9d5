import json
import logging
from pathlib import Path

import pytest
from rich.console import Console

from hanlin.core.errors import ConfigError
from hanlin.training.metrics import MetricsFile
from hanlin.training.run_logger import RunLogger
from hanlin.training.step import StepReport
from hanlin.training.trackers import check_trackers, open_trackers


def report(loss: float = 2.0, data_seconds: float = 0.0) -> StepReport:
    return StepReport(loss, 0.1, 1.5, 60, 12.0, False, 1.0, 0.5, data_seconds)


def test_a_missing_package_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"wandb is not installed; pip install 'hanlin\[wandb\]'"):
        check_trackers(["wandb"])


def test_later_and_torn_lines_go_when_a_run_is_resumed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "eval_loss": 3}\n{"step": 3}\n{"st')
    file = MetricsFile(path, last_step=2)
    file.write(3, {"loss": float("inf"), "lr": 0.5})
    file.close()
    steps = [json.loads(line) for line in path.read_text().splitlines()]
    assert steps == [{"step": 1}, {"step": 2, "eval_loss": 3}, {"step": 3, "loss": None, "lr": 0.5}]


def test_redirected_output_gets_a_line_every_few_steps(tmp_path, caplog):
    logger = RunLogger(tmp_path, log_every=2, console=Console(file=(tmp_path / "screen").open("w")))
    with caplog.at_level(logging.INFO, "hanlin"), logger.open(0, 5):
        for number in range(1, 6):
            logger.step(number, report())
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "step=2/5 loss=2.0000 lr=0.1 grad_norm=1.5 tokens/s=120 eta=0:00:02"
    assert [line.split()[0] for line in lines] == ["step=2/5", "step=4/5", "step=5/5"]
    assert (tmp_path / "screen").read_text() == ""


def test_terminal_shows_a_live_line(tmp_path):
    screen = tmp_path / "screen"
    with screen.open("w") as stream:
        logger = RunLogger(tmp_path, log_every=100, console=Console(file=stream, force_terminal=True, width=120))
        with logger.open(0, 5):
            logger.step(1, report())
            logger._live.refresh()
    assert "loss=2.0000" in screen.read_text()


def write_some(name: str, folder: Path) -> None:
    for first in (0, 1):  # the second time as a resumed run
        (tracker,) = open_trackers([name], folder, first)
        tracker.write(first + 1, {"loss": 2.0 - first})
        tracker.close()


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is optional")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_some("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.0), (2, 1.0)]


@pytest.mark.parametrize(("name", "variable"), [("wandb", "WANDB_MODE"), ("swanlab", "SWANLAB_MODE")])
def test_services_work_without_a_network(tmp_path, monkeypatch, name, variable):
    pytest.importorskip(name, reason=f"{name} is optional")
    monkeypatch.setenv(variable, "offline")
    write_some(name, tmp_path)
    assert any((tmp_path / name).iterdir())


@pytest.mark.parametrize(("data_seconds", "speed", "left", "shown"), [(0.7, 50, 6, "0.7"), (0.01, 118, 3, None)])
def test_speed_and_remaining_time_count_the_making_of_batches(tmp_path, caplog, data_seconds, speed, left, shown):
    logger = RunLogger(tmp_path, log_every=1, console=Console(file=(tmp_path / "screen").open("w")))
    with caplog.at_level(logging.INFO, "hanlin"), logger.open(0, 6):
        logger.step(1, report(data_seconds=data_seconds))
    [row] = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert row["tokens_per_second"] == round(60 / (0.5 + data_seconds), 1)
    assert (row["seconds"], row["data_seconds"]) == (0.5, data_seconds)
    facts = dict(word.split("=") for word in caplog.messages[-1].split())
    assert (facts["tokens/s"], facts["eta"], facts.get("data_seconds")) == (str(speed), f"0:00:0{left}", shown)
