"""Rules run in both directions; one of them may relate several tensors."""

from __future__ import annotations

import torch

from hanlin.formats.rules import Drop, Rename, find_moves, rename


class Join:
    """A rule of two tensors of ours in one of theirs, as a family with fused weights will bring it."""

    theirs = ("layer.{i}.fused",)
    ours = ("blocks.{i}.gate", "blocks.{i}.up")

    def to_ours(self, tensors):
        return tensors[0].chunk(2)

    def to_theirs(self, tensors):
        return (torch.cat(tensors),)


def test_numbers_in_names_stay() -> None:
    rules = [Rename("layer.{i}.expert.{j}.w", "blocks.{i}.experts.{j}.weight")]
    assert rename(rules, "layer.10.expert.2.w", "to_ours") == "blocks.10.experts.2.weight"
    assert rename(rules, "blocks.10.experts.2.weight", "to_theirs") == "layer.10.expert.2.w"
    assert rename(rules, "layer.x.expert.2.w", "to_ours") is None


def test_a_rule_of_several_tensors_takes_those_of_one_layer() -> None:
    fused = {f"layer.{i}.fused": torch.arange(4) + i for i in (0, 11)}
    [first, second] = find_moves([Join()], fused, "to_ours")
    assert second.targets == ("blocks.11.gate", "blocks.11.up")
    gate, up = second.run((fused["layer.11.fused"],))
    back = find_moves([Join()], [*second.targets, "blocks.0.gate"], "to_theirs")
    assert [move.sources for move in back] == [second.targets]  # layer 0 is not complete
    assert back[0].run((gate, up))[0].equal(fused["layer.11.fused"])
    assert first.sources == ("layer.0.fused",)


def test_what_is_dropped_goes_one_way() -> None:
    assert [move.targets for move in find_moves([Drop("lm_head.weight")], ["lm_head.weight"], "to_ours")] == [()]
    assert find_moves([Drop("lm_head.weight")], ["lm_head.weight"], "to_theirs") == []
