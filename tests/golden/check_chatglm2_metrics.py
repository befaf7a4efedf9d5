"""BLEU-4 and ROUGE of the original's evaluation: scores of each pair, their means, jieba's words, texts of the ids."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from glm_case import tokenizer_folder
from golden_case import Case

from hanlin.evaluation.metrics.bleu import bleu4_characters_method3
from hanlin.evaluation.metrics.rouge import cut_words, rouge_jieba_sets
from hanlin.models.chatglm2.tokenizer import ChatGlm2Tokenizer


def check(case: Case, vocab: Path) -> None:
    del vocab
    expected, tolerance = case.json("expected.json"), case.tolerance("scores", default=1e-3)
    rows = expected.get("per_sample", [])
    found = [_check_pair(row, tolerance) for row in rows]
    for name, wanted in dict(expected.get("corpus", {})).items():
        if found:
            mean = fmean(round(scores[name], 4) for scores in found)
            assert mean == pytest.approx(wanted, abs=tolerance)
        assert _scores("", "一句")[name] == 0
    if (folder := tokenizer_folder(case)) is not None:
        _check_texts(case, ChatGlm2Tokenizer.load(folder), rows)
    case.set_aside(r"inputs\.npz.*", "texts are made of the ids where the tokenizer is here")


def _check_texts(case: Case, tokenizer: ChatGlm2Tokenizer, rows: list[dict[str, Any]]) -> None:
    """Padding (0) and what has no loss (-100) have no text."""
    arrays = case.arrays("inputs.npz")
    for name, side in (("predictions", "prediction"), ("labels", "reference")):
        if name in arrays:
            kept = [[id for id in row if id > 0] for row in arrays[name].tolist()]
            assert [tokenizer.decode(ids) for ids in kept] == [row[side] for row in rows]


def _scores(prediction: str, reference: str) -> dict[str, float]:
    return {**rouge_jieba_sets(prediction, reference), "bleu-4": bleu4_characters_method3(prediction, reference)}


def _check_pair(row: dict[str, Any], tolerance: float) -> dict[str, float]:
    for side in ("prediction", "reference"):
        if f"jieba_{side}" in row:
            assert cut_words(row[side]) == [word for word in row[f"jieba_{side}"] if word.strip()]
    scores = _scores(row["prediction"], row["reference"])
    for name, wanted in dict(row.get("scores", {})).items():
        assert scores[name] == pytest.approx(wanted, abs=tolerance), (name, row["prediction"])
    return scores
