"""The cache gives back what it was given, in the order it was asked for."""

from __future__ import annotations

import torch

from hanlin.layers.past import Past


def test_columns_come_back_in_order_beyond_the_first_room() -> None:
    past, keys = Past(), torch.randn(2, 3, 200, 4)
    for start, end in [(0, 50), (50, 51), (51, 130), (130, 200)]:
        facts = past.note(positions=torch.arange(start, end).expand(2, -1))
        found, values = past.append("0", keys[:, :, start:end], -keys[:, :, start:end])
        assert past.length == end
        assert facts["positions"][0].tolist() == list(range(end))
        assert found.equal(keys[:, :, :end])
        assert values.equal(-keys[:, :, :end])


def test_rows_are_reordered_and_repeated_in_every_block() -> None:
    past, keys = Past(), torch.randn(2, 1, 5, 4)
    past.note(positions=torch.arange(5).expand(2, -1))
    past.append("0", keys, keys)
    past.select(torch.tensor([1, 1, 0]))
    facts = past.note(positions=torch.full((3, 1), 5))
    found, _ = past.append("0", torch.zeros(3, 1, 1, 4), torch.zeros(3, 1, 1, 4))
    assert facts["positions"].shape == (3, 6)
    assert found[:, :, :5].equal(keys[[1, 1, 0]])


def test_what_is_cut_off_is_forgotten_and_a_prefix_stays() -> None:
    past, keys = Past(), torch.randn(1, 1, 7, 4)
    past.note(spans=torch.zeros(1, 5))
    past.append("0", keys, keys)  # two of them are a prefix
    past.cut(3)
    new = torch.randn(1, 1, 1, 4)
    past.note(spans=torch.ones(1, 1))
    found, _ = past.append("0", new, new)
    assert past.length == 4
    assert found.equal(torch.cat((keys[:, :, :5], new), dim=2))
