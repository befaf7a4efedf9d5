"""A CPM-2 in four files: merged bit for bit, run, divided again over 1, 2 and 4 ranks bit for bit."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from cpm2_case import (
    FAMILY,
    Arrays,
    arrays_of,
    as_original,
    assert_close,
    assert_gradient,
    assert_greedy,
    batch_of,
    facts_of,
    greedy,
    inputs_of,
    load_model,
    losses_of,
    row_losses_of,
)

from hanlin.formats.convert import convert
from hanlin.formats.ranks import RankWeights, find_ranks
from hanlin.formats.source import open_source


def check(case: Path, vocab: Path) -> None:
    del vocab
    facts, inputs, expected = facts_of(case), arrays_of(case / "inputs.npz"), arrays_of(case / "expected.npz")
    merged = arrays_of(case / "merged_weights.npz")
    _assert_same(case / "cpm2", merged)
    _check_division(case / "cpm2", merged)

    model = load_model(case)
    batch, real = batch_of(inputs), inputs_of(inputs)["spans"] >= 0
    logits = model(**batch.inputs)
    assert_close("logits", logits[real], expected["lm_logits"][real], facts["tolerance"]["logits_atol"])
    loss = losses_of(model, batch)
    assert_close("loss", loss, expected["loss"], facts["tolerance"]["logits_atol"])
    assert_close("losses", row_losses_of(model, batch), expected["loss_batch"], facts["tolerance"]["logits_atol"])
    loss.backward()
    gradients = as_original(model, {name: weight.grad for name, weight in model.named_parameters()})
    for name, theirs in expected.items():
        if name.startswith("grad/"):
            ours = gradients[name.removeprefix("grad/")]
            assert_gradient(name, ours, theirs, facts["tolerance"]["grad_rtol"])
    norm = sum(float(weight.grad.double().square().sum()) for weight in model.parameters() if weight.grad is not None)
    assert norm**0.5 == pytest.approx(float(expected["single_rank_grad_norm"]), rel=facts["tolerance"]["grad_rtol"])
    ids = greedy(model, inputs_of(inputs), facts["out_seq_length"])
    assert_greedy(ids, expected["greedy_ids"], facts["sentinel0"] + 1, facts["pad_id"])


def _check_division(four: Path, merged: Arrays) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source = four
        for ranks in (1, 2, 4):
            target = Path(scratch) / str(ranks)
            convert(source, FAMILY, None, "original", target, ranks=ranks)
            assert len(find_ranks(target)) == ranks
            _assert_same(target, merged)
            source = target
        for ours, theirs in zip(find_ranks(source), find_ranks(four), strict=True):
            _assert_same(ours, dict(RankWeights([theirs], {}, whole=False)), one_rank=True)


def _assert_same(path: Path, wanted: Arrays, *, one_rank: bool = False) -> None:
    weights = RankWeights([path], {}, whole=False) if one_rank else open_source(path, FAMILY).weights
    assert weights.keys() - wanted.keys() <= {"encoder.prompt_embeds.weight"}
    for name, tensor in wanted.items():
        assert weights[name].equal(tensor), name
        assert weights[name].dtype == tensor.dtype, name
