"""BLEU-4 and ROUGE of the original's evaluation: scores of each pair, their means, jieba's words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean

import pytest

from hanlin.evaluate.metrics.bleu import bleu4_characters_method3
from hanlin.evaluate.metrics.rouge import cut_words, rouge_jieba_sets

NAMES = ("rouge-1", "rouge-2", "rouge-l", "bleu-4")


def check(case: Path, vocab: Path) -> None:
    stated = json.loads((case / "case.json").read_text("utf-8"))
    expected = json.loads((case / "expected.json").read_text("utf-8"))
    found_tolerance = re.match(r"[\d.e-]+", stated["tolerance"])
    assert found_tolerance, stated["tolerance"]
    tolerance = float(found_tolerance.group())
    found = [_check_pair(row, tolerance) for row in expected["per_sample"]]
    for name in NAMES:
        mean = fmean(round(scores[name], 4) for scores in found)
        assert mean == pytest.approx(expected["corpus"][name], abs=tolerance)
        assert {**rouge_jieba_sets("", "一句"), "bleu-4": bleu4_characters_method3("", "一句")}[name] == 0


def _check_pair(row: dict, tolerance: float) -> dict[str, float]:
    for side in ("prediction", "reference"):
        assert cut_words(row[side]) == [word for word in row[f"jieba_{side}"] if word.strip()]
    bleu = bleu4_characters_method3(row["prediction"], row["reference"])
    scores = {**rouge_jieba_sets(row["prediction"], row["reference"]), "bleu-4": bleu}
    assert scores == pytest.approx(row["scores"], abs=tolerance), row["prediction"]
    return scores
