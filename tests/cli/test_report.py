from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hanlin.cli.main import main
from hanlin.core.errors import DataError
from hanlin.training.report import watch_report

PNG = b"\x89PNG"


def write_run(folder: Path, lr: float, losses: list[float]) -> Path:
    folder.mkdir()
    rows = [
        {"step": step, "loss": loss, "lr": lr, "grad_norm": 1.0, "tokens_per_second": 100.0 + step}
        for step, loss in enumerate(losses, start=1)
    ]
    lines = [json.dumps(row) for row in [*rows, {"step": len(losses), "eval_loss": losses[-1] + 1}]]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 99, "lo', encoding="utf-8")
    (folder / "config.yaml").write_text(f"train:\n  lr: {lr}\n  steps: 3\n", encoding="utf-8")
    return folder


def test_the_page_holds_its_picture_and_the_settings_that_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(tmp_path / "full", 0.001, [3.0, 2.0, 1.5]), write_run(tmp_path / "lora", 0.01, [3.0, 2.5, 2.0])]
    page = tmp_path / "out" / "compare.html"
    assert main(["report", *map(str, runs), "--output", str(page)]) == 0
    assert capsys.readouterr().out.split() == [str(page), str(page.with_suffix(".png"))]
    text = page.read_text(encoding="utf-8")
    assert "data:image/png;base64," in text
    assert 'src="http' not in text
    assert "<td>full</td><td>3</td><td>1.5</td><td>2.5</td><td>102</td>" in text
    assert "<td>train.lr</td><td>0.001</td><td>0.01</td>" in text
    assert "train.steps" not in text.partition("All settings")[0]
    assert page.with_suffix(".png").read_bytes()[:4] == PNG


@pytest.mark.filterwarnings("error")
def test_names_that_no_font_can_show_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanlin.training.report._installed_fonts", list)
    page = tmp_path / "page.html"
    assert main(["report", str(write_run(tmp_path / "全量", 0.001, [3.0])), "--output", str(page)]) == 0
    assert "<td>全量 (run 1)</td>" in page.read_text(encoding="utf-8")


def test_a_resumed_run_counts_a_repeated_step_once(tmp_path: Path) -> None:
    from hanlin.training.report import read_run

    run = write_run(tmp_path / "run", 0.1, [3.0, 2.0])
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('\n{"step": 2, "loss": 1.0}\n')
    assert read_run(run).curves["loss"] == ([1, 2], [3.0, 1.0])


def test_a_folder_without_metrics_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "no metrics.jsonl" in capsys.readouterr().err


def test_damage_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    run = write_run(tmp_path / "run", 0.1, [3.0, 2.0, 1.0])
    lines = (run / "metrics.jsonl").read_bytes().split(b"\n")
    (run / "metrics.jsonl").write_bytes(b"\n".join([b"\xff" + lines[0], *lines[1:]]))
    assert main(["report", str(run)]) == 0
    assert "metrics.jsonl:1: 1 of 5 lines cannot be read and are left out" in caplog.text
    for content in (b"\xff", b"bad_ro", b"a: [", b"a: &a [*a]"):
        (run / "config.yaml").write_bytes(content)
        assert main(["report", str(run)]) == 2
        assert "config.yaml: no recipe can be read from it" in capsys.readouterr().err


def test_a_run_that_is_removed_ends_the_watch_on_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 0.1, [3.0, 2.0])
    (run / "gone.jsonl").symlink_to("nowhere")
    pages = watch_report([run], tmp_path / "page.html", 0.01)
    assert next(pages) == tmp_path / "page.html"
    shutil.rmtree(run)
    with pytest.raises(DataError, match="no run folder"):
        next(pages)
