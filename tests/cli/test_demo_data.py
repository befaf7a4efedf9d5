from __future__ import annotations

from pathlib import Path

import pytest

from hanlin.cli._demo_data import write_idioms

pytest.importorskip("pypinyin")


def test_idioms_are_lines_of_four_common_characters_in_an_order_of_their_seed(tmp_path: Path) -> None:
    lines = write_idioms(tmp_path / "idioms.txt", characters=300, seed=1)
    assert (tmp_path / "idioms.txt").read_text(encoding="utf-8").splitlines() == lines
    assert len(set(lines)) == len(lines) > 500
    assert all(len(line) == 4 for line in lines)
    assert len({character for line in lines for character in line}) <= 300
    other = write_idioms(tmp_path / "other.txt", characters=300, seed=2)
    assert sorted(other) == sorted(lines)
    assert other != lines
