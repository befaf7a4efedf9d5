"""Rules run in both directions; one of them may relate several tensors."""

from __future__ import annotations

import pytest
import torch

from hanlin.core.errors import CheckpointError
from hanlin.formats.rules import Drop, FirstRows, Rename, SplitHeads, SplitRows, Transposed, find_moves, rename


def test_numbers_in_names_stay() -> None:
    rules = [Rename("layer.{i}.expert.{j}.w", "blocks.{i}.experts.{j}.weight")]
    assert rename(rules, "layer.10.expert.2.w", "to_ours") == "blocks.10.experts.2.weight"
    assert rename(rules, "blocks.10.experts.2.weight", "to_theirs") == "layer.10.expert.2.w"
    assert rename(rules, "layer.x.expert.2.w", "to_ours") is None


def test_a_rule_of_several_tensors_takes_those_of_one_layer() -> None:
    rule = SplitRows("layer.{i}.fused", ("blocks.{i}.gate", "blocks.{i}.up"))
    fused = {f"layer.{i}.fused": torch.arange(4) + i for i in (0, 11)}
    [first, second] = find_moves([rule], fused, "to_ours")
    assert second.targets == ("blocks.11.gate", "blocks.11.up")
    gate, up = second.run((fused["layer.11.fused"],))
    back = find_moves([rule], [*second.targets, "blocks.0.gate"], "to_theirs")
    assert [move.sources for move in back] == [second.targets]  # layer 0 is not complete
    assert back[0].run((gate, up))[0].equal(fused["layer.11.fused"])
    assert first.sources == ("layer.0.fused",)


def test_what_is_dropped_goes_one_way() -> None:
    assert [move.targets for move in find_moves([Drop("lm_head.weight")], ["lm_head.weight"], "to_ours")] == [()]
    assert find_moves([Drop("lm_head.weight")], ["lm_head.weight"], "to_theirs") == []


def test_blocks_of_rows_have_stated_sizes() -> None:
    rule, fused = SplitRows("qkv", ("q", "k", "v"), [4, 2, 2]), torch.arange(16).view(8, 2)
    query, key, value = rule.to_ours((fused,))
    assert (query[0, 0], key[0, 0], value[0, 0]) == (0, 8, 12)
    assert rule.to_theirs((query, key, value))[0].equal(fused)
    with pytest.raises(CheckpointError, match=r"qkv: found \[7, 2\], expected 4 \+ 2 \+ 2 rows"):
        rule.to_ours((fused[1:],))


def test_rows_head_by_head_are_gathered_by_part() -> None:
    rule, fused = SplitHeads("qkv", ("q", "k", "v"), head_dim=2), torch.arange(12)
    parts = rule.to_ours((fused,))
    assert [part.tolist() for part in parts] == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    assert rule.to_theirs(parts)[0].equal(fused)
    with pytest.raises(CheckpointError, match="no multiple of 3 x 2"):
        rule.to_ours((fused[1:],))


def test_a_transposed_rule_cuts_columns() -> None:
    rule = Transposed(SplitRows("fused", ("a", "b")))
    fused = torch.arange(12.0).view(3, 4)
    first, second = rule.to_ours((fused,))
    assert first.equal(fused[:, :2].t())
    assert second.equal(fused[:, 2:].t())
    assert rule.to_theirs((first, second))[0].equal(fused)


def test_surplus_rows_are_cut_and_not_written() -> None:
    rule = FirstRows("theirs", "ours", 2)
    assert rule.to_ours((torch.arange(3),))[0].tolist() == [0, 1]
    assert rule.to_theirs((torch.arange(2),))[0].tolist() == [0, 1]
