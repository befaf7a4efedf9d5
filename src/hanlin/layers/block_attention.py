"""The attention of a block with all that may come to its keys: windows of packed rows, a prefix, a KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from hanlin.layers.attention import (
    AttentionMask,
    Branches,
    attention,
    attention_by_rows,
    branched_causal_mask,
    cached_causal_mask,
    packed_causal_mask,
    packed_sequences,
)
from hanlin.layers.attention_kernels import AttentionUse, kernel_scope
from hanlin.layers.kv_cache import KVCache
from hanlin.layers.prefix import Prefix, PrefixSource
from hanlin.layers.varlen import Sequences, varlen_attention


@dataclass(frozen=True)
class AttentionContext:
    """What the attentions of all blocks share in a forward pass.

    prefixes: by the names of their blocks; none where there is no prefix, or where the KV cache holds it already.
    """

    mask: AttentionMask
    prefixes: Mapping[str, Prefix]
    kv_cache: KVCache | None

    def for_block(self, name: str) -> AttentionContext:
        """See `parallel.compiled`."""
        return replace(self, prefixes={"": self.prefixes[name]}) if name in self.prefixes else self


def make_attention_context(
    mask: AttentionMask,
    tokens: torch.Tensor,
    prefix: PrefixSource | None,
    kv_cache: KVCache | None,
    dtype: torch.dtype,
) -> AttentionContext:
    """mask: of the positions of this call, `tokens` `[batch, length]`, without the prefix; prefix: that of the
    model; dtype: of the scores.
    """
    mask = mask if prefix is None else mask.with_prefix(prefix.length, tokens)
    return _with_prefixes(mask.additive(dtype), prefix, kv_cache)


def _with_prefixes(mask: AttentionMask, prefix: PrefixSource | None, kv_cache: KVCache | None) -> AttentionContext:
    is_kept = kv_cache is not None and kv_cache.has_keys
    return AttentionContext(mask, {} if prefix is None or is_kept else prefix(), kv_cache)


@dataclass(frozen=True)
class CausalRows:
    """The positions of a call of a causal model.

    tokens, spans: `[batch, length]`; see `packed_causal_mask`; spans None: a row is one sample; branches: of its
    positions, never with a cache.
    """

    tokens: torch.Tensor
    spans: torch.Tensor | None = None
    branches: Branches | None = None


def make_causal_context(
    rows: CausalRows, prefix: PrefixSource | None, kv_cache: KVCache | None, use: AttentionUse
) -> AttentionContext:
    """`make_attention_context` under a causal mask within each sample, which is not made where a kernel needs none.

    The positions of this call are added to the KV cache.
    """
    # With a cache only several positions of rows that hold one sample each (no `spans`) stand at the end of their keys.
    is_plain = rows.branches is None and (kv_cache is None or (rows.spans is None and rows.tokens.shape[1] > 1))
    if is_plain and kernel_scope(rows.tokens.device).takes_sequences(use):
        return _with_prefixes(_unmasked(rows, prefix, kv_cache), prefix, kv_cache)
    mask = causal_mask_of_call(rows.tokens, rows.spans, kv_cache, rows.branches)
    return make_attention_context(mask, rows.tokens, prefix, kv_cache, use.dtype)


def _unmasked(rows: CausalRows, prefix: PrefixSource | None, kv_cache: KVCache | None) -> AttentionMask:
    if kv_cache is not None:
        kv_cache.add_positions(spans=torch.zeros_like(rows.tokens))
        return AttentionMask()
    length = 0 if prefix is None else prefix.length
    if rows.spans is not None:
        return packed_sequences(rows.spans, length)
    if not length:
        return AttentionMask()
    count, width = rows.tokens.shape
    return AttentionMask(sequences=Sequences.of_lengths([width] * count, length, rows.tokens.device))


def causal_mask_of_call(
    tokens: torch.Tensor, spans: torch.Tensor | None, kv_cache: KVCache | None, branches: Branches | None = None
) -> AttentionMask:
    """Causal mask within each sample; the positions of this call are added to the KV cache.

    tokens, spans: `[batch, length]`; see `packed_causal_mask`; None: a row is one sample; branches: of its positions,
    never with a cache.
    """
    assert branches is None or kv_cache is None, "branches are for training"
    if kv_cache is None:
        if spans is not None:
            return packed_causal_mask(spans, branches)
        return AttentionMask() if branches is None else branched_causal_mask(branches)
    own = torch.zeros_like(tokens) if spans is None else spans
    return cached_causal_mask(own, kv_cache.add_positions(spans=own)["spans"])


def block_attention(
    context: AttentionContext,
    name: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    dropout: float = 0.0,
) -> torch.Tensor:
    """`attention` of a block's positions, with its prefix and the positions in the KV cache.

    name: the block's; query: `[batch, length, heads, head_dim]`; key, value: `[batch, length, kv_heads, head_dim]`.
    Returns `[batch, length, heads * head_dim]`.
    """
    if context.mask.sequences is not None:
        return _sequence_attention(context, name, query, key, value)
    windows, length = context.mask.windows, query.shape[1]
    if windows is not None:
        query, key, value = (
            windows.group(part.flatten(2)).unflatten(-1, part.shape[2:]) for part in (query, key, value)
        )
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))  # [groups, heads, length, head_dim]
    if name in context.prefixes:
        key, value = context.prefixes[name].before(key, value)
    if context.kv_cache is not None:
        return attention_by_rows(query, context.kv_cache.keys_of_rows(name, key, value), context.mask, dropout=dropout)
    mixed = attention(query, key, value, context.mask, dropout=dropout)
    return mixed if windows is None else windows.ungroup(mixed, length)


def _sequence_attention(
    context: AttentionContext, name: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    sequences = context.mask.sequences
    assert sequences is not None
    key, value = key.flatten(0, 1), value.flatten(0, 1)
    if name in context.prefixes:
        key, value = sequences.with_prefix(context.prefixes[name], key, value)
    mixed = varlen_attention(query.flatten(0, 1), key, value, sequences)
    return mixed.flatten(1).unflatten(0, query.shape[:2])
