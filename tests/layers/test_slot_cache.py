"""Slots come and go within a bound, and nobody's entries move but their own."""

from __future__ import annotations

import torch

from hanlin.layers.slot_cache import Budget, Slot, SlotCache, SlotView


def write(cache: SlotCache, slots: list[Slot], keys: torch.Tensor) -> torch.Tensor:
    """Keys of new positions `[rows, positions]`; returns the keys of all positions so far."""
    view = SlotView(cache, slots)
    view.add_positions(spans=torch.zeros(keys.shape, dtype=torch.int64))
    found, _ = view.update("0", keys[:, None, :, None], keys[:, None, :, None])
    view.commit()
    return found[:, 0, :, 0]


def test_positions_never_pass_the_bound() -> None:
    cache = SlotCache(Budget(1000))
    slots = cache.take(4, cache.width_for(60))
    assert slots is not None
    assert cache.take(1, cache.width_for(900)) is None
    assert cache.positions <= 1000
    cache.give_back(slots)
    assert cache.take(1, cache.width_for(900)) is not None  # room of another width is given up
    assert cache.width_for(900) <= cache.positions <= 1000
    assert cache.take(1, cache.width_for(60)) is None or cache.positions <= 1000


def test_caches_share_a_budget_and_what_one_only_remembers_goes_for_another() -> None:
    budget = Budget(256)
    first, second = SlotCache(budget), SlotCache(budget)
    kept = first.take(2, 128) or []
    assert second.take(1, 64) is None
    first.forget = lambda: bool(kept) and first.give_back([kept.pop()]) is None
    assert second.ask_others()
    assert second.ask_others()
    assert not second.ask_others()
    assert second.take(4, 64) is not None
    assert budget.left == 0
    second.close()
    assert budget.left == 256


def test_a_cache_may_join_a_budget_while_another_one_asks_for_room() -> None:
    """Several threads make caches."""
    budget, joined = Budget(256), []
    caches = [SlotCache(budget) for _ in range(3)]
    for cache in caches[:2]:
        cache.forget = lambda: joined.append(SlotCache(budget)) is not None
    assert not caches[2].ask_others()
    assert len(joined) == 2


def test_who_joins_or_leaves_moves_nobody() -> None:
    cache, rows = SlotCache(Budget(4096)), torch.arange(1.0, 13).view(3, 4)
    first, second, third = cache.take(3, 64) or []
    for slot, row in zip((first, second, third), rows, strict=True):
        write(cache, [slot], row[None])
    rooms = {name: (room.data_ptr(), room.clone()) for name, room in first.arena.keys.items()}
    cache.give_back([second])
    [other] = cache.take(1, 64) or []
    assert other.place == 1
    for name, (address, before) in rooms.items():
        room = first.arena.keys[name]
        assert room.data_ptr() == address
        assert room[[0, 2]].equal(before[[0, 2]])
    known = write(cache, [first, third], torch.tensor([[50.0], [60.0]]))  # no neighbours
    assert known.tolist() == [[1, 2, 3, 4, 50], [9, 10, 11, 12, 60]]


def test_rows_of_several_lengths_stand_side_by_side_and_padding_is_told() -> None:
    cache = SlotCache()
    slots = cache.take(2, 64) or []
    view = SlotView(cache, slots, [3, 1])
    spans = torch.tensor([[0, 0, 0], [0, -1, -1]])
    assert view.add_positions(spans=spans)["spans"].equal(spans)
    view.update("0", *(torch.arange(1.0, 7).view(2, 1, 3, 1),) * 2)
    view.commit()
    view = SlotView(cache, slots)
    assert view.add_positions(spans=torch.zeros(2, 1, dtype=torch.int64))["spans"].tolist() == [[0] * 4, [0, 0, -1, -1]]
    keys, _ = view.update("0", *(torch.tensor([8.0, 9]).view(2, 1, 1, 1),) * 2)
    assert keys[0, 0, :, 0].tolist() == [1, 2, 3, 8]
    assert keys[1, 0, :2, 0].tolist() == [4, 9]


def test_a_short_row_read_beside_a_long_one_needs_no_longer_slot() -> None:
    cache, keys = SlotCache(), torch.arange(1.0, 201).view(2, 1, 100, 1)
    slots = [*(cache.take(1, 64) or []), *(cache.take(1, 128) or [])]
    view = SlotView(cache, slots, [5, 100])
    view.add_positions(spans=torch.zeros(2, 100, dtype=torch.int64))
    assert view.update("0", keys, keys)[0].equal(keys)
    view.commit()
    known = write(cache, slots, torch.tensor([[7.0], [8.0]]))
    assert known[0, :6].tolist() == [1, 2, 3, 4, 5, 7]
    assert known[1].tolist() == [*range(101, 201), 8]


def test_a_call_that_fails_leaves_the_slots_as_they_were() -> None:
    cache = SlotCache()
    [slot] = cache.take(1, 64) or []
    write(cache, [slot], torch.tensor([[1.0, 2]]))
    SlotView(cache, [slot]).add_positions(spans=torch.zeros(1, 1, dtype=torch.int64))
    assert write(cache, [slot], torch.tensor([[3.0]])).tolist() == [[1, 2, 3]]


def test_what_is_taken_over_stands_behind_the_same_prefix() -> None:
    cache, keys = SlotCache(), torch.arange(1.0, 6).view(1, 1, 5, 1)
    source, target = cache.take(2, 64) or []
    view = SlotView(cache, [source])
    view.add_positions(spans=torch.zeros(1, 3, dtype=torch.int64))
    view.update("0", keys, keys)  # two of them are a prefix
    view.commit()
    cache.copy(target, source, 2)
    assert write(cache, [target], torch.tensor([[9.0]])).tolist() == [[1, 2, 3, 4, 9]]
