"""The checks themselves: a case may lack what others have, and a number that is wrong is found.

Each of the committed cases is run with half of its results removed, and with one of those that are left changed.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from golden_case import Case, Reading, check_of, close

from hanlin.models.family import family_names

COMMITTED = Path(__file__).parent / "cases"
RESULTS = ("expected.npz", "numeric.npz", "inference_expected.npz")
INPUTS = (
    "topk_in",
    "ce_logits",
    "ce_mask",
    "ce_target",
    "rank_score",
    "grad_norms",
    "/expert/",
    "centroids",
    "/x",
    "/dy",
)
"""What stands among the results without being one, by a part of its name."""


def with_results() -> list[Path]:
    """Those of CPM-Bee are whole copies of the originals', which test_golden runs."""
    cases = sorted(path.parent for path in COMMITTED.glob("*/case.json"))
    return [case for case in cases if not case.name.startswith("bee") and any((case / r).is_file() for r in RESULTS)]


CASES = with_results()


def test_every_family_has_cases_that_are_committed() -> None:
    starts = {"cpm_bee": "bee_model", "chatglm2": "chatglm2_model", "cpm1": "cpm1_gpt2", "cpm1_t5": "cpm1_t5"}
    starts["cpm2"] = "cpm2_full"
    assert starts.keys() == set(family_names())
    for family, start in starts.items():
        assert list(COMMITTED.glob(f"{start}*/case.json")), family


def test_committed_cases_are_small_and_hold_no_vocabulary() -> None:
    files = [path for path in COMMITTED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6 * 2**20
    vocabularies = [path for path in files if path.suffix == ".model" or "vocab" in path.name]
    assert all(path.stat().st_size < 300 for path in vocabularies)  # the invented ones of some cases


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_case_may_lack_results_and_no_wrong_one_passes(case: Path, tmp_path: Path) -> None:
    draw = random.Random(case.name)
    file = tmp_path / case.name / next(name for name in RESULTS if (case / name).is_file())
    shutil.copytree(case, tmp_path / case.name)
    arrays = dict(np.load(file))
    kept = {name: arrays[name] for name in arrays if draw.random() < 0.5 or any(part in name for part in INPUTS)}
    np.savez(file, **kept)
    wrong = draw.choice(run(file.parent).compared(file.name))
    np.savez(file, **kept | {wrong: spoilt(kept[wrong])})
    with pytest.raises(AssertionError, match=r"differs by|instead of"):
        run(file.parent)


def run(folder: Path) -> Case:
    case = Case(folder)
    check_of(case)(case, folder.parent / "no vocabulary")
    return case


def spoilt(array: np.ndarray) -> np.ndarray:
    """Another value in every place."""
    if array.dtype == bool:
        return ~array
    return array + 1 if array.dtype.kind in "iu" else (array + 1) * 1.5


def test_what_a_check_does_not_ask_for_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    np.savez(folder / "expected.npz", a=np.zeros(2), b=np.ones(2), **{"step.c": np.ones(1), "step.d": np.ones(1)})
    (folder / "case.json").write_text("{}")
    (folder / "rows.json").write_text('[{"x": 1}, {"x": 2, "y": 3}, {"x": 1, "z": {"u": 1}}]')
    (folder / "notes.txt").write_text("")
    case = Case(folder)
    expected, rows = case.arrays(), case.json("rows.json")
    assert close("a", [0.0, 0.0], expected, 0)
    assert not close("missing", [0.0], expected, 0)
    assert expected.under("step.")["c"] == 1
    assert [row["x"] for row in rows] == [1, 2, 1]
    assert case.unread() == [
        "notes.txt",
        "expected.npz: b",
        "expected.npz: step.d",
        "rows.json: [].y",
        "rows.json: [].z",
    ]
    case.set_aside(r"rows\.json: .*|notes\.txt", "of no consequence")
    assert expected == {**expected}
    assert case.unread() == []
    with pytest.raises(AssertionError, match=r"b: differs by up to 1"):
        close("b", [0.0, 1.0], expected, 0)
    assert isinstance(expected, Reading)


def test_flags_are_those_of_a_command_line(tmp_path: Path) -> None:
    (tmp_path / "case.json").write_text('{"cli": ["--bare", "--size", "4", "--kind=a", "--off", "false", "--last"]}')
    case = Case(tmp_path)
    assert (case.flag("bare", bool), case.flag("last", bool), case.flag("off", bool)) == (True, True, False)
    assert (case.flag("size", int), case.flag("kind"), case.flag("none", default="b")) == (4, "a", "b")
