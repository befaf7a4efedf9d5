"""Run each golden case through the check of its kind."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

CHECKS = {path.stem.removeprefix("check_"): path for path in Path(__file__).parent.glob("check_*.py")}


def test_golden(golden_case: Path, vocab_folder: Path) -> None:
    kinds = [kind for kind in CHECKS if golden_case.name.startswith(kind)]
    if not kinds:
        pytest.skip(f"no check for the kind of {golden_case.name}")
    _load(CHECKS[max(kinds, key=len)]).check(golden_case, vocab_folder)


def _load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
