"""Who sees whom in CPM-Bee, with what relation and what bias, pair by pair against the rules of the original.

The rows hold what no golden case of the network holds: two packed samples (spans), each of a main sample (0) and its
examples (1, 2) with texts and answers, unequal tables of relations, and padding.
"""

from __future__ import annotations

import math

import pytest
import torch

from hanlin.layers.attention import AttentionWindows
from hanlin.layers.kv_cache import KVCache
from hanlin.models.cpm_bee.config import CpmBeeConfig
from hanlin.models.cpm_bee.model import (
    CpmBee,
    Inputs,
    MaskInputs,
    PositionBias,
    cached_mask_inputs,
    own_mask_inputs,
    relations_between,
    visibility,
)

BUCKETS, FURTHEST = 8, 16
CONFIG = CpmBeeConfig(
    vocab_size=20, hidden_size=8, num_layers=2, num_heads=2, head_dim=4, ffn_size=12,
    num_distance_buckets=BUCKETS, num_relation_buckets=12, max_distance=FURTHEST, half_frequencies=False,
)  # fmt: skip

# span: (sample, segment, is it context, tokens)
PARTS = {
    0: [(0, 0, True, 3), (0, 1, True, 2), (0, 2, False, 3), (1, 0, True, 2), (1, 1, False, 2), (2, 0, True, 1),
        (2, 1, False, 3)],
    1: [(0, 0, True, 2), (0, 1, False, 4), (0, 2, True, 2), (1, 0, True, 2), (1, 1, False, 1)],
}  # fmt: skip
PADDING = 3


@pytest.fixture
def row() -> Inputs:
    columns: dict[str, list] = {name: [] for name in ("is_context", "sample_ids", "num_segments", "segments")}
    columns |= {"relation_offsets": [], "spans": []}
    relations: list[int] = []
    draw = torch.Generator().manual_seed(0)
    for span, parts in PARTS.items():
        for sample in sorted({part[0] for part in parts}):
            own = [part for part in parts if part[0] == sample]
            for _, segment, is_context, length in own:
                values = (is_context, sample, len(own), segment, len(relations), span)
                for name, value in zip(columns, values, strict=True):
                    columns[name] += [value] * length
            relations += torch.randint(2, 12, (len(own), len(own)), generator=draw).fill_diagonal_(0).flatten().tolist()
    length = len(columns["spans"])
    tensors = {name: torch.tensor([values + [0] * PADDING]) for name, values in columns.items()}
    tensors["is_context"] = tensors["is_context"].bool()
    tokens = torch.randint(0, 20, (1, length + PADDING), generator=draw)
    return Inputs(
        tokens=tokens, subs=torch.zeros_like(tokens), relations=torch.tensor([relations]),
        lengths=torch.tensor([length]), **tensors,
    )  # fmt: skip


def facts(row: Inputs) -> list[dict[str, int]]:
    """Of each real column its numbers."""
    names = ("is_context", "sample_ids", "num_segments", "segments", "relation_offsets", "spans")
    assert row.lengths is not None
    return [
        {name: int(getattr(row, name)[0, column]) for name in names} | {"column": column}
        for column in range(int(row.lengths[0]))
    ]


def sees(query: dict[str, int], key: dict[str, int]) -> bool:
    """The original's mask: `cpm_live/models/bee_torch.py`, CPMBeeTorch.forward."""
    if query["spans"] != key["spans"]:
        return False
    if query["sample_ids"] not in (0, key["sample_ids"]):
        return False
    return bool(key["is_context"]) or (not query["is_context"] and key["column"] <= query["column"])


def relation_of(query: dict[str, int], key: dict[str, int], table: list[int]) -> int:
    if query["spans"] != key["spans"] or query["sample_ids"] != key["sample_ids"]:
        return 1
    return table[query["relation_offsets"] + query["segments"] * query["num_segments"] + key["segments"]]


def bucket_of(query: dict[str, int], key: dict[str, int], relation: int) -> int:
    """The row of the bias table: relations behind the distances; 0, the same segment, is told by distance."""
    if relation:
        return BUCKETS + relation - 1
    half, exact, offset = BUCKETS // 2, BUCKETS // 4, key["column"] - query["column"]
    distance = abs(offset)
    if distance >= exact:
        far = exact + int(math.log(distance / exact) / math.log(FURTHEST / exact) * (half - exact))
        distance = min(far, half - 1)
    return distance + (half if offset > 0 else 0)


def numbered_bias() -> PositionBias:
    """A table whose entries are their own row numbers."""
    bias = PositionBias(CONFIG)
    with torch.no_grad():
        bias.weight.copy_(torch.arange(len(bias.weight))[:, None].expand_as(bias.weight))
    return bias


def test_masks_relations_and_buckets_are_those_of_every_pair(row: Inputs) -> None:
    queries, keys = own_mask_inputs(row, None)
    relation = relations_between(queries, keys, row.relation_offsets, row.relations)
    _check_pairs(row, visibility(queries, keys)[0], relation[0], queries, keys)
    seen = visibility(queries, keys)[0]
    length = int(row.lengths[0])  # type: ignore[index]
    assert not seen[length:].any()
    assert not seen[:, length:].any()


def _check_pairs(
    row: Inputs, seen: torch.Tensor, relation: torch.Tensor, queries: MaskInputs, keys: MaskInputs
) -> None:
    table, columns = row.relations[0].tolist(), facts(row)
    length = len(columns)
    assert seen[:length, :length].tolist() == [[sees(query, key) for key in columns] for query in columns]
    wanted = [[relation_of(query, key, table) for key in columns] for query in columns]
    assert relation[:length, :length].tolist() == wanted
    found = numbered_bias()(queries, keys, relation[None])[0, :, :length, :length]
    buckets = [[bucket_of(q, k, wanted[i][j]) for j, k in enumerate(columns)] for i, q in enumerate(columns)]
    assert found.long().tolist() == [buckets, buckets]  # one table for each head


def test_examples_are_seen_by_the_main_sample_alone(row: Inputs) -> None:
    """In words: the main sample reads its examples' texts, they read nothing of it, nor of each other."""
    seen = visibility(*own_mask_inputs(row, None))[0]
    samples, spans = row.sample_ids[0], row.spans[0]  # type: ignore[index]
    here = torch.arange(len(samples)) < int(row.lengths[0])  # type: ignore[index]
    for query in (0, 1, 2):
        for key in (0, 1, 2):
            mine = here & (samples == query) & (spans == 0)
            theirs = here & (samples == key) & (spans == 0)
            assert bool(seen[mine][:, theirs].any()) == (query in (0, key)), (query, key)


def test_windows_see_what_the_row_sees(row: Inputs) -> None:
    model = CpmBee(CONFIG).double()
    model.init_weights(torch.Generator().manual_seed(0))
    spans, length = row.spans[0].tolist(), int(row.lengths[0])  # type: ignore[index]
    first = spans.index(1)
    columns = [list(range(first)), [*range(first, length), *[-1] * (2 * first - length)]]
    windows = torch.tensor([columns])
    queries, keys = own_mask_inputs(row, AttentionWindows.of(windows, row.tokens.shape[1]))
    whole = visibility(*own_mask_inputs(row, None))[0]
    for number, places in enumerate(columns):
        real = [place for place in places if place >= 0]
        assert visibility(queries, keys)[number][: len(real), : len(real)].equal(whole[real][:, real])
    given = vars(row)
    with torch.no_grad():
        apart, together = model(**{**given, "windows": windows}), model(**given)
    torch.testing.assert_close(apart[:, :length], together[:, :length])


def test_a_kv_cache_sees_what_the_row_sees(row: Inputs) -> None:
    """The first span alone, column by column; padding is a column without segments."""
    length = row.spans[0].tolist().index(1)  # type: ignore[index]
    names = ("tokens", "subs", "is_context", "sample_ids", "num_segments", "segments", "relation_offsets")
    whole = visibility(*own_mask_inputs(row, None))[0]
    kv_cache, seen = KVCache(), []
    for column in range(-1, length):
        one = {name: getattr(row, name)[:, max(column, 0)][:, None] for name in names}
        if column < 0:
            one["num_segments"] = torch.zeros_like(one["num_segments"])
        given = Inputs(**one, relations=row.relations, positions=torch.tensor([[column]]))
        queries, keys = cached_mask_inputs(given, kv_cache)
        seen.append(visibility(queries, keys)[0, 0].tolist())
        if column >= 0:
            relation = relations_between(queries, keys, given.relation_offsets, row.relations)[0, 0].tolist()
            columns, table = facts(row), row.relations[0].tolist()
            assert relation[1:] == [relation_of(columns[column], columns[key], table) for key in range(column + 1)]
    for column, found in enumerate(seen[1:]):
        assert found[0] is False
        assert found[1:] == whole[column, : column + 1].tolist()
