"""Run each golden case through the check of its kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden_case import Case, check_of, kind_of


def test_golden(
    golden_case: Path, vocab_folder: Path, request: pytest.FixtureRequest, record_property: pytest.RecordProperty
) -> None:
    case = Case(golden_case)
    check_of(case)(case, vocab_folder)
    unread = case.unread()
    record_property("unread", unread)
    assert case.was_read(), f"{case.name} holds nothing that check_{kind_of(case)} knows: {unread}"
    # Of other cases it is told at the end of the run (conftest.py); the check of a known one reads everything.
    assert request.config.getoption("--golden") or not unread, unread
