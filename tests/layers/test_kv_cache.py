"""The cache gives back what it was given, in the order it was asked for."""

from __future__ import annotations

import torch

from hanlin.layers.kv_cache import KVCache


def test_columns_come_back_in_order_beyond_the_first_room() -> None:
    kv_cache, keys = KVCache(), torch.randn(2, 3, 200, 4)
    for start, end in [(0, 50), (50, 51), (51, 130), (130, 200)]:
        facts = kv_cache.add_positions(positions=torch.arange(start, end).expand(2, -1))
        found, values = kv_cache.update("0", keys[:, :, start:end], -keys[:, :, start:end])
        assert kv_cache.length == end
        assert facts["positions"][0].tolist() == list(range(end))
        assert found.equal(keys[:, :, :end])
        assert values.equal(-keys[:, :, :end])


def test_keys_are_there_from_the_first_block_on() -> None:
    kv_cache = KVCache()
    kv_cache.add_positions(spans=torch.zeros(1, 2))
    assert not kv_cache.has_keys
    kv_cache.update("0", torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))
    assert kv_cache.has_keys
