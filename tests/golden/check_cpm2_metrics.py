"""CPM-2's scores, cuts of logits, mean of losses, ranking loss, learning rates, and the order of its samples."""

from __future__ import annotations

import math
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_case import Case, Reading, close

from hanlin.core.batch import IGNORED
from hanlin.data.pack import shuffle_once
from hanlin.evaluation.metrics.corpus import corpus_scores, overlap_f1, rouge_l_recall
from hanlin.evaluation.metrics.equation import has_equal_value, share_of_equal_lines
from hanlin.evaluation.metrics.text import share
from hanlin.generate.sampling import warp
from hanlin.layers.loss import head_loss
from hanlin.layers.ranking_loss import pairwise_ranking_loss
from hanlin.models.cpm2.tokenizer import Cpm2Tokenizer
from hanlin.recipe.settings import TrainSettings
from hanlin.training.schedules import learning_rate, standard_rate


def check(case: Case, vocab: Path) -> None:
    metrics, numeric = case.tolerance("metrics", default=1e-9), case.tolerance("numeric", default=1e-6)
    expected, words = case.json("expected.json", {}), vocab / "cpm2" / "cn"
    _check_scores(expected, metrics)
    if words.is_dir():
        _check_scores_of_ids(expected, Cpm2Tokenizer.load(words), metrics)
    case.set_aside(r"expected\.json: gen_metric_on_ids.*", "compared where the vocabulary is here")
    if "eval_math" in expected:
        _check_equations(case, expected["eval_math"])
    for row in expected.get("acc_metric", ()):
        assert share([a == b for a, b in zip(row["preds"], row["labels"], strict=True)]) == pytest.approx(row["acc"])
    arrays = case.arrays("numeric.npz")
    _check_filters(arrays, numeric)
    _check_loss(arrays, numeric)
    _check_ranking(arrays, numeric)
    _check_samplers(case.json("samplers.json", []))
    case.set_aside(r".*\.(name|rank|world)", "which rows belong together")
    for row in case.json("lr_schedules.json", []):
        _check_rates(row, metrics)


def _check_scores(expected: dict[str, Any], atol: float) -> None:
    for row in expected.get("metric_on_strings", ()):
        _check_result(corpus_scores(row["hyps"], row["refs"]), row, atol)
        for name, score in (("f1", overlap_f1), ("rouge-l", rouge_l_recall)):
            found = [score(*pair) for pair in zip(row["hyps"], row["refs"], strict=True)]
            assert found == pytest.approx(row.get("per_sample", {}).get(name, found), abs=atol)


def _check_scores_of_ids(expected: dict[str, Any], tokenizer: Cpm2Tokenizer, atol: float) -> None:
    for row in expected.get("gen_metric_on_ids", ()):
        texts = [[list(tokenizer.decode(ids[1:-1])) for ids in row[side]] for side in ("pred_ids", "label_ids")]
        _check_result(corpus_scores(*texts), row, atol)


def _check_result(found: dict[str, float], row: dict[str, Any], atol: float) -> None:
    for name, wanted in row["result"].items():
        assert found[name] == pytest.approx(wanted, abs=atol), (row.get("name"), name)


def _check_equations(case: Case, expected: dict[str, Any]) -> None:
    for rows in dict(expected.get("per_line", {})).values():
        for row in rows:
            left, _, right = row["line"].partition(" ")
            assert has_equal_value(left, right) == row["equal"], row["line"]
            # What the original made of a line, percents rewritten, has the same value.
            assert has_equal_value(row.get("left", left), row.get("right", right)) == row["equal"]
    case.set_aside(r"math_in/.*", "a file without a score")
    for file, wanted in dict(expected.get("stdout", {})).items():
        if case.holds(f"math_in/{file}"):
            lines = (case / f"math_in/{file}").read_text("utf-8").splitlines()
            assert share_of_equal_lines(lines) == pytest.approx(wanted)


def _check_filters(arrays: Reading, atol: float) -> None:
    """Names such as topk_5_0.9: both numbers, where 0 switches off either."""
    for name in (name for name in arrays.names("topk_") if name != "topk_in"):
        _, top_k, top_p = name.split("_")
        close(name, warp(arrays["topk_in"], 1.0, int(top_k), float(top_p) or 1.0), arrays, atol, 0)


def _check_loss(arrays: Reading, atol: float) -> None:
    """Cross entropy of each position, the mean of the rows' means, and its gradient."""
    if "ce_logits" not in arrays:
        return
    logits, mask = arrays["ce_logits"].clone().requires_grad_(), arrays["ce_mask"]
    head = [(torch.eye(logits.shape[-1]), 1.0)]
    close("ce_losses", head_loss(logits, head, arrays["ce_target"], torch.ones_like(mask), "none"), arrays, 1e-5, 0)
    labels = torch.where(mask > 0, arrays["ce_target"], IGNORED)
    loss = head_loss(logits, head, labels, mask / mask.sum(1, keepdim=True) / len(mask))
    loss.backward()
    assert logits.grad is not None
    close("ce_loss", loss, arrays, atol, 0)
    close("ce_grad", logits.grad, arrays, atol, 0)


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


def _check_ranking(arrays: Reading, atol: float) -> None:
    """A head of one number makes hidden states the scores; the original's gradient lacks the 1 / b of its mean."""
    if "rank_score" not in arrays:
        return
    scores = arrays["rank_score"].clone().requires_grad_()
    labels = torch.tensor([[0, IGNORED]]).expand(len(scores), 2)
    negatives = torch.tensor([[1, -1]]).expand(len(scores), 2)
    loss = pairwise_ranking_loss(scores[..., None], [(torch.ones(1, 1), 1.0)], labels, negatives) / len(scores)
    loss.backward()
    assert scores.grad is not None
    close("rank_loss", loss, arrays, atol, 0)
    close("rank_grad", scores.grad * len(scores), arrays, atol, 0)


def _check_rates(row: dict[str, Any], atol: float) -> None:
    style, steps = row["style"], row["num_iters"]
    warmup = math.floor(row["warmup_fraction"] * steps / row.get("grad_accum", 1)) + 1
    assert warmup == row.get("warmup_iter", warmup)
    if "state" in row:
        told = {"start_lr": row["start_lr"], "warmup_iter": warmup, "decay_style": style, "end_iter": steps}
        assert told == {name: row["state"][name] for name in told}
        assert len(row["lrs"]) in (row["state"]["num_iters"], row["state"]["num_iters"] + 1)
    settings = TrainSettings(
        lr=row["start_lr"],
        schedule="constant" if style == "exponential" else style,
        warmup_steps=warmup,
        decay_steps=steps + warmup,
        first_step_at_zero=True,
    )
    # Behind the warm-up the original's noam counts one step more than BMTrain's, which is ours.
    numbers = [number + (style == "noam" and number > warmup) for number in range(len(row["lrs"]))]
    found = [standard_rate(settings, number, steps + warmup) for number in numbers]
    inside = numbers[: steps + warmup + 1]
    assert [learning_rate(settings, number + 1, len(found) + 1) for number in inside] == found[: len(inside)]
    # The original's linear rate goes on below zero.
    assert found == pytest.approx([max(rate, 0.0) for rate in row["lrs"]], abs=atol), style
