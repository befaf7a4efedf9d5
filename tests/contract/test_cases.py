"""What a user's file may say to the contract."""

from __future__ import annotations

from pathlib import Path

import pytest
from family_cases import case_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_model.py"


def write(folder: Path, contract: str) -> str:
    """The example with a `contract` at its end, and a vocabulary beside it."""
    (folder / "letters.txt").write_text("abcd", "utf-8")
    path = folder / "own.py"
    path.write_text(EXAMPLE.read_text("utf-8") + f"\ncontract = {contract}\n", "utf-8")
    return str(path)


def test_a_file_may_state_what_its_tests_take(tmp_path: Path) -> None:
    records = [{"text": "ab"}, {"text": "abcd"}, {"text": "dcb"}]
    stated = f'{{"config": {{"num_layers": 2}}, "vocab": "letters.txt", "texts": ["abc"], "records": {records}}}'
    case = case_of(write(tmp_path, stated), tmp_path)
    assert (case.config.num_layers, case.config.vocab_size) == (2, 7)
    assert (case.records, case.texts) == (records, ["abc"])
    assert list(case.tuning) == ["lora", "ia3"]


def test_what_it_states_in_vain_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="'record'"):
        case_of(write(tmp_path, '{"record": []}'), tmp_path)


def test_records_of_another_kind_must_be_stated(tmp_path: Path) -> None:
    path = Path(write(tmp_path, "{}"))
    # Now its records have columns of their own.
    own = "lambda *made: TextProcessor(*made[:2], TextOptions('verse', 'first', 'second'))"
    path.write_text(path.read_text("utf-8").replace("processor=TextProcessor", f"processor={own}"), "utf-8")
    with pytest.raises(AssertionError, match="reads none of the usual records; state some"):
        case_of(str(path), tmp_path)
