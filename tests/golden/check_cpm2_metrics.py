"""CPM-2's scores, cuts of logits, mean of losses, ranking loss, learning rates, and the order of its samples."""

from __future__ import annotations

import json
import math
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from cpm2_case import arrays_of, assert_close, facts_of

from hanlin.core.batch import IGNORED
from hanlin.data.pack import shuffle_once
from hanlin.evaluate.metrics.corpus import corpus_scores, overlap_f1, rouge_l_recall
from hanlin.evaluate.metrics.equation import has_equal_value, share_of_equal_lines
from hanlin.evaluate.metrics.text import share
from hanlin.generate.sampling import warp
from hanlin.layers.loss import head_loss
from hanlin.layers.ranking_loss import pairwise_ranking_loss
from hanlin.models.cpm2.tokenizer import Cpm2Tokenizer
from hanlin.recipe.settings import TrainSettings
from hanlin.train.schedules import learning_rate, standard_rate


def check(case: Path, vocab: Path) -> None:
    tolerance = facts_of(case)["tolerance"]
    expected = json.loads((case / "expected.json").read_text("utf-8"))
    _check_scores(expected, Cpm2Tokenizer.load(vocab / "cpm2" / "cn"), tolerance["metrics"])
    _check_equations(case, expected["eval_math"])
    for row in expected["acc_metric"]:
        assert share([a == b for a, b in zip(row["preds"], row["labels"], strict=True)]) == pytest.approx(row["acc"])
    arrays = arrays_of(case / "numeric.npz")
    _check_numbers(arrays, tolerance["numeric"])
    _check_ranked_examples(arrays, tolerance["numeric"])
    _check_samplers(json.loads((case / "samplers.json").read_text()))
    for row in json.loads((case / "lr_schedules.json").read_text()):
        _check_rates(row, tolerance["metrics"])


def _check_scores(expected: dict[str, Any], tokenizer: Cpm2Tokenizer, atol: float) -> None:
    for row in expected["metric_on_strings"]:
        assert corpus_scores(row["hyps"], row["refs"]) == pytest.approx(row["result"], abs=atol), row["name"]
        for name, score in (("f1", overlap_f1), ("rouge-l", rouge_l_recall)):
            found = [score(*pair) for pair in zip(row["hyps"], row["refs"], strict=True)]
            assert found == pytest.approx(row["per_sample"][name], abs=atol)
    for row in expected["gen_metric_on_ids"]:
        texts = [[list(tokenizer.decode(ids[1:-1])) for ids in row[side]] for side in ("pred_ids", "label_ids")]
        assert corpus_scores(*texts) == pytest.approx(row["result"], abs=atol), row["name"]


def _check_equations(case: Path, expected: dict[str, Any]) -> None:
    for file, rows in expected["per_line"].items():
        for row in rows:
            assert has_equal_value(*row["line"].split(" ", 1)) == row["equal"], row["line"]
        lines = (case / "math_in" / file).read_text("utf-8").splitlines()
        assert share_of_equal_lines(lines) == pytest.approx(expected["stdout"][file])


def _check_numbers(arrays: dict[str, torch.Tensor], atol: float) -> None:
    for name, wanted in arrays.items():
        if name.startswith("topk_") and name != "topk_in":
            _, top_k, top_p = name.split("_")
            found = warp(arrays["topk_in"], 1.0, int(top_k), float(top_p) or 1.0)
            assert_close(name, found, wanted, atol)
    logits, mask = arrays["ce_logits"].requires_grad_(), arrays["ce_mask"]
    labels = torch.where(mask > 0, arrays["ce_target"], IGNORED)
    weights = mask / mask.sum(1, keepdim=True) / len(mask)
    loss = head_loss(logits, [(torch.eye(logits.shape[-1]), 1.0)], labels, weights)
    loss.backward()
    assert logits.grad is not None
    assert_close("ce_loss", loss, arrays["ce_loss"], atol)
    assert_close("ce_grad", logits.grad, arrays["ce_grad"], atol)


def _check_samplers(rows: list[dict[str, Any]]) -> None:
    """The slices that the ranks read of each global batch are the order's next samples; both epochs are the same."""
    for _, of_ranks in groupby(rows, key=lambda row: (row["kind"], row.get("seed"), row["n"], row["drop_last"])):
        ranks = list(of_ranks)
        order = shuffle_once(ranks[0]["n"], ranks[0]["seed"]).tolist() if "seed" in ranks[0] else range(ranks[0]["n"])
        for epoch in ("epoch1", "epoch2"):
            batches = zip_longest(*(rank[epoch] for rank in ranks), fillvalue=())
            read = [number for batch in batches for part in batch for number in part]
            dropped = ranks[0]["n"] % ranks[0]["global_batch"] if ranks[0]["drop_last"] else 0
            assert read == list(order)[: ranks[0]["n"] - dropped], ranks[0]


def _check_ranked_examples(arrays: dict[str, torch.Tensor], atol: float) -> None:
    """A head of one number makes hidden states the scores; the original's gradient lacks the 1 / b of its mean."""
    scores = arrays["rank_score"].clone().requires_grad_()
    labels = torch.tensor([[0, IGNORED]]).expand(len(scores), 2)
    negatives = torch.tensor([[1, -1]]).expand(len(scores), 2)
    loss = pairwise_ranking_loss(scores[..., None], [(torch.ones(1, 1), 1.0)], labels, negatives) / len(scores)
    loss.backward()
    assert scores.grad is not None
    assert_close("rank_loss", loss, arrays["rank_loss"], atol)
    assert_close("rank_grad", scores.grad * len(scores), arrays["rank_grad"], atol)


def _check_rates(row: dict[str, Any], atol: float) -> None:
    if row["style"] == "noam":
        return  # no recipe of the original uses it; ours is the one of CPM-Bee
    warmup = math.floor(row["warmup_fraction"] * row["num_iters"] / row["grad_accum"]) + 1
    assert warmup == row["warmup_iter"]
    end = row["num_iters"] + warmup
    settings = TrainSettings(
        lr=row["start_lr"],
        schedule="constant" if row["style"] == "exponential" else row["style"],
        warmup_steps=warmup,
        decay_steps=end,
        first_step_at_zero=True,
    )
    found = [standard_rate(settings, number, end) for number in range(len(row["lrs"]))]
    inside = found[: end + 1]
    assert [learning_rate(settings, number + 1, len(found)) for number in range(len(inside))] == inside
    # The original's linear rate goes on below zero.
    assert found == pytest.approx([max(rate, 0.0) for rate in row["lrs"]], abs=atol), row["style"]
