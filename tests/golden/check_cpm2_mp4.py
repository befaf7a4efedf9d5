"""A CPM-2 in several files: merged bit for bit, run, divided again over 1, 2 and 4 ranks bit for bit."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from cpm2_case import (
    FAMILY,
    as_original,
    assert_greedy,
    check_loss,
    check_masks,
    gradient_close,
    greedy,
    inputs_of,
    load_model,
)
from golden_case import Case, close

from hanlin.formats.convert import convert
from hanlin.formats.ranks import RankWeights, find_ranks
from hanlin.formats.source import open_source


def check(case: Case, vocab: Path) -> None:
    del vocab
    inputs, expected, merged = case.arrays("inputs.npz"), case.arrays(), case.arrays("merged_weights.npz")
    weights = dict(merged.items()) or dict(open_source(case / "cpm2", FAMILY).weights)
    _assert_same(case / "cpm2", weights)
    _check_division(case / "cpm2", weights)

    model, atol, rtol = load_model(case), case.tolerance("logits_atol", default=5e-5), 1e-3
    check_masks(inputs)
    given = inputs_of(inputs)
    close("lm_logits", model(**given), expected, atol, 0, where=given["spans"] >= 0)
    if "labels" in inputs and "loss_mask" in inputs:
        check_loss(model, inputs, expected, atol).backward()
    rtol = case.tolerance("grad_rtol", default=rtol)
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    if found:
        for name, gradient in as_original(model, found).items():
            gradient_close(f"grad/{name}", gradient, expected, rtol)
        norm = torch.stack([gradient.norm() for gradient in found.values()]).norm()
        close("single_rank_grad_norm", norm, expected, 0, rtol)
    case.set_aside(r"inputs\.npz: idx", "the rows' numbers")
    case.set_aside(r".*mp4_grad_norm", "the original's clipping counts the position bias of rank 0 only")
    if "greedy_ids" in expected:
        ids = greedy(model, given, case.facts["out_seq_length"])
        assert_greedy(ids, expected["greedy_ids"], case.facts["sentinel0"] + 1, case.facts["pad_id"])


def _check_division(divided: Path, weights: Mapping[str, torch.Tensor]) -> None:
    own = len(find_ranks(divided))
    with tempfile.TemporaryDirectory() as scratch:
        source = divided
        for ranks in sorted({1, 2, own}):
            target = Path(scratch) / str(ranks)
            convert(source, FAMILY, None, "original", target, ranks=ranks)
            assert len(find_ranks(target)) == ranks
            _assert_same(target, weights)
            source = target
        for ours, theirs in zip(find_ranks(Path(scratch) / str(own)), find_ranks(divided), strict=True):
            _assert_same(ours, dict(RankWeights([theirs], {}, whole=False)), one_rank=True)


def _assert_same(path: Path, wanted: Mapping[str, torch.Tensor], *, one_rank: bool = False) -> None:
    weights = RankWeights([path], {}, whole=False) if one_rank else open_source(path, FAMILY).weights
    assert weights.keys() - wanted.keys() <= {"encoder.prompt_embeds.weight"}
    for name, tensor in wanted.items():
        assert weights[name].equal(tensor), name
        assert weights[name].dtype == tensor.dtype, name
