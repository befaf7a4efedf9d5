"""The identity of weights: every byte counts, order and ranks do not."""

from __future__ import annotations

import pytest
import torch

from hanlin.core.errors import CheckpointError
from hanlin.formats.fingerprint import Fingerprint, weights_fingerprint

WEIGHTS = {"a": torch.arange(40_000.0).view(200, 200), "b": torch.ones(3, dtype=torch.bfloat16)}


def test_one_changed_number_is_another_identity() -> None:
    whole = weights_fingerprint(WEIGHTS.items())
    changed = {**WEIGHTS, "a": WEIGHTS["a"].clone()}
    changed["a"][77, 3] += 1
    assert weights_fingerprint(changed.items()) != whole
    assert weights_fingerprint({**WEIGHTS, "b": WEIGHTS["b"].float()}.items()) != whole
    assert weights_fingerprint({**WEIGHTS, "a": WEIGHTS["a"].view(100, 400)}.items()) != whole
    assert weights_fingerprint(reversed(WEIGHTS.items())) == whole


def test_ranks_that_hold_some_weights_each_agree_with_one_that_holds_all() -> None:
    first, last = Fingerprint(), Fingerprint()
    assert dict(first.passing([("a", WEIGHTS["a"])])) == {"a": WEIGHTS["a"]}
    for name, tensor in WEIGHTS.items():  # a tensor may lie on both
        last.add(name, tensor)
    every = [first.digests, last.digests]
    assert first.value(every) == last.value(every) == weights_fingerprint(WEIGHTS.items())
    some = Fingerprint()
    assert [name for name, _ in some.passing(WEIGHTS.items(), {"b"})] == ["a", "b"]
    assert some.digests == {"b": last.digests["b"]}


def test_ranks_that_have_read_other_weights_are_told() -> None:
    first, other = Fingerprint(), Fingerprint()
    first.add("a", WEIGHTS["a"])
    other.add("a", WEIGHTS["a"] + 1)
    with pytest.raises(CheckpointError, match="a: not all ranks have read the same weights"):
        first.value([first.digests, other.digests])
