"""Ranking: the scores are the logits of the label, and equal ones leave the better competitor first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cpm2_tiny import RANKING, ROWS, make_tokenizer

from hanlin.core.errors import DataError
from hanlin.evaluation.run import evaluate
from hanlin.evaluation.tasks import rank
from hanlin.generate.engine import Engine
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.models.cpm2.config import Cpm2Config
from hanlin.models.cpm2.model import Cpm2
from hanlin.models.cpm2.processor import Cpm2Processor
from hanlin.models.cpm2.record import Cpm2Options

OPTIONS = GreedySettings(batch_size=2)
PAIRS = [ROWS["sogou-log"][0], ROWS["sogou-log"][3]]


def make_engine(dataset: str = "sogou-log") -> Engine:
    tokenizer = make_tokenizer()
    config = Cpm2Config(tokenizer.vocab_size, 8, 1, num_heads=2, head_dim=4, ffn_size=8, init_std=0.3)
    model = Cpm2(config)
    model.init_weights(torch.Generator().manual_seed(0))
    processor = Cpm2Processor(tokenizer, config, Cpm2Options(dataset=dataset))  # pyright: ignore[reportArgumentType]
    return Engine(model.eval(), processor)


def test_a_title_s_score_is_the_logit_of_the_label(tmp_path: Path) -> None:
    engine = make_engine()
    ranked_example = engine.processor.ranked_example(RANKING[0])  # pyright: ignore[reportAttributeAccessIssue]
    label = engine.processor.tokenizer.find("相关")  # pyright: ignore[reportAttributeAccessIssue]
    expected = {}
    for name, sample in zip(ranked_example.names, ranked_example.samples, strict=True):
        inputs = {key: torch.from_numpy(array)[None].long() for key, array in sample.inputs.items()}
        expected[name] = engine.model(**inputs)[0, -1, label].item()
    [(_, row)] = rank.predict(engine, [(0, RANKING[0])], OPTIONS, 0)
    assert row["scores"] == pytest.approx(expected, abs=1e-6)
    assert list(row["scores"]) == sorted(expected, key=lambda name: -expected[name])
    assert row["gold"] is None
    assert evaluate(engine, RANKING, ["rank"], OPTIONS, tmp_path)["rank"] == {"records": 2, "ranked": 2}


def test_a_tie_is_right(tmp_path: Path) -> None:
    engine = make_engine()
    with torch.no_grad():
        engine.model.head.weight.zero_()
    found = evaluate(engine, PAIRS, ["rank"], OPTIONS, tmp_path)["rank"]
    assert found == {"records": 2, "rank_accuracy": 1.0, "mrr": 1.0}


def test_the_second_of_two_has_half_a_rank() -> None:
    rows = [{"rank": 1}, {"rank": 2}, {"rank": None}]
    assert rank.summarise(rows) == {"rank_accuracy": 0.5, "mrr": 0.75}


def test_answers_cannot_be_ranked() -> None:
    with pytest.raises(DataError, match="record 1: records of this data set have nothing to rank"):
        list(rank.predict(make_engine("math"), [(0, ROWS["math"][0])], OPTIONS, 0))
