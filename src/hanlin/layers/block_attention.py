"""The attention of a block with all that may come to its keys: windows of packed rows, a prefix, a KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hanlin.layers.attention import (
    AttentionMask,
    Branches,
    attention,
    attention_by_rows,
    branched_causal_mask,
    cached_causal_mask,
    packed_causal_mask,
)
from hanlin.layers.kv_cache import KVCache
from hanlin.layers.prefix import Prefix, PrefixSource


@dataclass(frozen=True)
class AttentionContext:
    """What the attentions of all blocks share in a forward pass.

    prefixes: by the names of their blocks; none where there is no prefix, or where the KV cache holds it already.
    """

    mask: AttentionMask
    prefixes: Mapping[str, Prefix]
    kv_cache: KVCache | None


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
    if prefix is None:
        return AttentionContext(mask.additive(dtype), {}, kv_cache)
    is_kept = kv_cache is not None and kv_cache.has_keys
    mask = mask.with_prefix(prefix.length, tokens).additive(dtype)
    return AttentionContext(mask, {} if is_kept else prefix(), kv_cache)


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
