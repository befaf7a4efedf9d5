"""The network of CPM-Bee: pre-norm blocks with gated GELU, one position bias table for all blocks, no positions.

Surprising: every linear is divided by sqrt(in_features) at run time; the sum after each residual is divided by 1.05;
the embedding is rotated by the token's subscript (which <option>, which <mask>), not by its position; the output head
is the embedding plus one id per entry of the batch's ext table. The original's names: formats.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from hanlin.core.plan import Plan
from hanlin.layers.activation import gelu
from hanlin.layers.attention import AttentionMask, AttentionWindows, additive_mask
from hanlin.layers.attention_kernels import AttentionUse, kernel_scope
from hanlin.layers.block_attention import AttentionContext, block_attention, make_attention_context
from hanlin.layers.flex import PairScores
from hanlin.layers.kv_cache import KVCache
from hanlin.layers.linear import Linear
from hanlin.layers.loss import HeadPart, head_logits, head_loss
from hanlin.layers.norm import RmsNorm
from hanlin.layers.precision import matmul_dtype
from hanlin.layers.prefix import PrefixSource
from hanlin.layers.relative_position import relative_position_bucket
from hanlin.layers.rotary import inverse_frequencies, rotate_halves
from hanlin.layers.soft_prompt import SoftPrompt
from hanlin.models.common.init_weights import init_parameters

from .config import CpmBeeConfig

RESIDUAL_DIVISOR = 1.05
SUBSCRIPT_DISTANCE = 16
SAME_SEGMENT, OTHER_SAMPLE = 0, 1
"""Relations with a meaning of their own: measured by distance; a sample that is shown as an example."""


@dataclass(frozen=True)
class Inputs:
    """The tensors of a forward pass; integers, batch first.

    Always: tokens, subs, is_context (bool), sample_ids, num_segments, segments, relation_offsets: `[batch, length]`;
    relations `[batch, relations]`; ext_tokens, ext_subs `[batch, entries]`: for logits a row's
    own, with sub 0 as padding; for a loss the same in every row.
    Training: lengths `[batch]`; spans `[batch, length]`, the packed samples of a row; windows `[batch, windows,
    width]`, the positions that attend among themselves (-1 = padding, None = the whole row).
    With a KV cache: positions `[batch, length]` inside the segment's text; padding has num_segments 0.
    """

    tokens: torch.Tensor
    subs: torch.Tensor
    is_context: torch.Tensor
    sample_ids: torch.Tensor
    num_segments: torch.Tensor
    segments: torch.Tensor
    relation_offsets: torch.Tensor
    relations: torch.Tensor
    ext_tokens: torch.Tensor | None = None
    ext_subs: torch.Tensor | None = None
    lengths: torch.Tensor | None = None
    spans: torch.Tensor | None = None
    windows: torch.Tensor | None = None
    positions: torch.Tensor | None = None


@dataclass(frozen=True)
class MaskInputs:
    """What decides who sees whom, per position: `[groups, positions]` each; `exists` is False for padding."""

    positions: torch.Tensor
    is_context: torch.Tensor
    sample_ids: torch.Tensor
    num_segments: torch.Tensor
    segments: torch.Tensor
    spans: torch.Tensor
    exists: torch.Tensor

    def at(self, *place: Any) -> MaskInputs:
        """The same facts at some places, as they are indexed."""
        return MaskInputs(*(getattr(self, field.name)[place] for field in fields(self)))

    @property
    def of_queries(self) -> MaskInputs:
        """`[groups, positions, 1]`"""
        return self.at(slice(None), slice(None), None)

    @property
    def of_keys(self) -> MaskInputs:
        """`[groups, 1, positions]`"""
        return self.at(slice(None), None, slice(None))


class CpmBee(nn.Module):
    """CPM-Bee of any size, whole or cut (see core/plan.py)."""

    def __init__(self, config: CpmBeeConfig) -> None:
        super().__init__()
        self.config = config
        self.prefix: PrefixSource | None = None
        self.soft_prompt: SoftPrompt | None = None
        self.embedding = SubscriptEmbedding(config.vocab_size, config.hidden_size, config.half_frequencies)
        self.position_bias = PositionBias(config)
        self.blocks = nn.ModuleDict({str(i): Block(config, i) for i in range(config.num_layers)})
        self.norm: nn.Module | None = RmsNorm(config.hidden_size, config.norm_eps)
        self.plan = Plan(
            first=("embedding",),
            blocks=("blocks",),
            last=("norm", "embedding"),  # the head is the embedding: it lives on both ends
            shared=("position_bias",),
            head_dim=config.head_dim,
            tensor={
                "embedding": "vocab",
                "position_bias": "heads",
                "blocks.*.attention.query": "query",
                "blocks.*.attention.key": "kv",
                "blocks.*.attention.value": "kv",
                "blocks.*.attention.output": "row",
                "blocks.*.ffn.gate": "column",
                "blocks.*.ffn.up": "column",
                "blocks.*.ffn.down": "row",
            },
        )

    def forward(
        self,
        *state: torch.Tensor,
        kv_cache: KVCache | None = None,
        labels: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        reduction: Literal["sum", "none"] = "sum",
        logits_to_keep: int | None = None,
        **inputs: Any,
    ) -> torch.Tensor:
        """Logits `[batch, length, vocab + ext entries]`, or the loss if there are labels (`core.plan.LanguageModel`).

        inputs: the fields of `Inputs`. Labels and ids of the logits from vocab_size on are entries of the ext table.
        """
        given = Inputs(**inputs)
        hidden = state[0] if state else self._embed(given)
        mask = self._mask(given, kv_cache, matmul_dtype(hidden))
        context = make_attention_context(mask, given.tokens, self.prefix, kv_cache, matmul_dtype(hidden))
        for name, block in self.blocks.items():
            hidden = block(hidden, context, name)
        if self.norm is None:
            return hidden
        hidden = self.norm(hidden if logits_to_keep is None else hidden[:, -logits_to_keep:])
        if labels is None:
            return self._logits(hidden, given)
        return head_loss(hidden, self._head(given), labels, weights, reduction)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill every parameter that exists as a fresh CPM-Bee has it."""
        init_parameters(self, lambda name: 0.02 if name == "embedding" else 1.0, generator)

    def _embed(self, given: Inputs) -> torch.Tensor:
        if self.soft_prompt is None:
            return self.embedding(given.tokens, given.subs)
        return self.soft_prompt(given.tokens, lambda tokens: self.embedding(tokens, given.subs))

    def _mask(self, given: Inputs, kv_cache: KVCache | None, dtype: torch.dtype) -> AttentionMask:
        windows = None if given.windows is None else AttentionWindows.of(given.windows, given.tokens.shape[1])
        queries, keys = own_mask_inputs(given, windows) if kv_cache is None else cached_mask_inputs(given, kv_cache)
        offsets = given.relation_offsets if windows is None else windows.group_numbers(given.relation_offsets)
        shape = (*queries.positions.shape, keys.positions.shape[1])
        dropout = self.config.dropout if self.training else 0.0
        use = AttentionUse(dtype, self.config.head_dim, dropout, is_trained=torch.is_grad_enabled())
        scores = math.prod(shape) * self.position_bias.weight.shape[1]
        is_own = kv_cache is None and self.prefix is None
        if is_own and kernel_scope(offsets.device).takes_pairs(use, scores):
            starts = relation_starts(queries, offsets, given.relations)
            sizes = (self.position_bias.num_buckets, self.position_bias.max_distance)
            rule = PairsOfRow(queries, keys, starts, given.relations.flatten(), *sizes)
            return AttentionMask(windows=windows, pairs=PairScores.of(rule, self.position_bias.weight, shape))
        relation = relations_between(queries, keys, offsets, given.relations)
        return additive_mask(self.position_bias(queries, keys, relation), visibility(queries, keys), windows)

    def _logits(self, hidden: torch.Tensor, given: Inputs) -> torch.Tensor:
        """Those of the vocabulary, and behind them those of each row's own ext table; -inf for its padding."""
        logits = head_logits(hidden, [(self.embedding.weight, self.embedding.scale)])
        if given.ext_tokens is None or given.ext_subs is None or not given.ext_tokens.shape[1]:
            return logits
        quoted = hidden @ self.embedding(given.ext_tokens, given.ext_subs).transpose(1, 2)
        return torch.cat([logits, quoted.masked_fill(given.ext_subs[:, None] == 0, -torch.inf)], dim=-1)

    def _head(self, given: Inputs) -> list[HeadPart]:
        pieces: list[HeadPart] = [(self.embedding.weight, self.embedding.scale)]
        if given.ext_tokens is not None and given.ext_subs is not None and given.ext_tokens.shape[1]:
            pieces.append((self.embedding(given.ext_tokens[0], given.ext_subs[0]), 1.0))
        return pieces


class Block(nn.Module):
    """Attention and feed-forward, each with its norm and residual; a pruned model lacks either or both."""

    def __init__(self, config: CpmBeeConfig, layer: int) -> None:
        super().__init__()
        self.attention = None if layer in config.removed_attention else Attention(config)
        self.ffn = None if layer in config.removed_ffn else FeedForward(config)

    def forward(self, hidden: torch.Tensor, context: AttentionContext, name: str) -> torch.Tensor:
        if self.attention is not None:
            hidden = (hidden + self.attention(hidden, context, name)) / RESIDUAL_DIVISOR
        if self.ffn is not None:
            hidden = (hidden + self.ffn(hidden)) / RESIDUAL_DIVISOR
        return hidden


class Attention(nn.Module):
    def __init__(self, config: CpmBeeConfig) -> None:
        super().__init__()
        inner = config.num_heads * config.head_dim
        self.head_dim = config.head_dim
        self.dropout = config.dropout
        self.norm = RmsNorm(config.hidden_size, config.norm_eps)
        self.query = _scaled_linear(config.hidden_size, inner)
        self.key = _scaled_linear(config.hidden_size, inner)
        self.value = _scaled_linear(config.hidden_size, inner)
        self.output = _scaled_linear(inner, config.hidden_size)

    def forward(self, hidden: torch.Tensor, context: AttentionContext, name: str) -> torch.Tensor:
        normed = self.norm(hidden)
        query, key, value = (
            linear(normed).unflatten(-1, (-1, self.head_dim)) for linear in (self.query, self.key, self.value)
        )  # [batch, length, heads, head_dim]
        dropout = self.dropout if self.training else 0.0
        return self.output(block_attention(context, name, query, key, value, dropout=dropout))


class FeedForward(nn.Module):
    def __init__(self, config: CpmBeeConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.norm = RmsNorm(config.hidden_size, config.norm_eps)
        self.gate = _scaled_linear(config.hidden_size, config.ffn_size)
        self.up = _scaled_linear(config.hidden_size, config.ffn_size)
        self.down = _scaled_linear(config.ffn_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normed = self.norm(hidden)
        inner = gelu(self.gate(normed)) * self.up(normed)
        return self.down(functional.dropout(inner, self.dropout, self.training))


class SubscriptEmbedding(nn.Module):
    """Token vectors divided by sqrt(size) and turned by the token's subscript; subscript 0 turns nothing."""

    def __init__(self, vocab_size: int, size: int, half_frequencies: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, size))
        self.scale = 1 / math.sqrt(size)
        self.half_frequencies = half_frequencies

    def forward(self, tokens: torch.Tensor, subs: torch.Tensor) -> torch.Tensor:
        vectors = functional.embedding(tokens, self.weight) * self.scale
        return rotate_halves(vectors, self._angles(subs))

    def _angles(self, subs: torch.Tensor) -> torch.Tensor:
        frequencies = inverse_frequencies(self.weight.shape[1], subs.device)
        if self.half_frequencies:
            frequencies = frequencies.half()  # kept: golden bee_model_half
        # In a fp16 model the original's product is rounded to fp16 as well.
        dtype = torch.float16 if self.weight.dtype == torch.float16 else torch.float32
        return (subs * SUBSCRIPT_DISTANCE).to(dtype)[..., None] * frequencies.to(dtype)


class PositionBias(nn.Module):
    """The score's bias by distance (inside a segment) or by relation (between segments), one number per head."""

    def __init__(self, config: CpmBeeConfig) -> None:
        super().__init__()
        self.num_buckets = config.num_distance_buckets
        self.max_distance = config.max_distance
        self.weight = nn.Parameter(torch.empty(self.num_buckets + config.num_relation_buckets, config.num_heads))

    def forward(self, queries: MaskInputs, keys: MaskInputs, relation: torch.Tensor) -> torch.Tensor:
        """`[groups, heads, queries, keys]` in the dtype of the attention."""
        rows = bias_rows(queries.of_queries, keys.of_keys, relation, self.num_buckets, self.max_distance)
        # The cast comes last: the gradient of a row is a sum over many pairs, too many for half precision.
        bias = functional.embedding(rows, self.weight).to(matmul_dtype(self.weight))
        return bias.permute(0, 3, 1, 2)


def bias_rows(
    query: MaskInputs, key: MaskInputs, relation: torch.Tensor, num_buckets: int, max_distance: int
) -> torch.Tensor:
    """The row of the bias table of each pair, whose facts have shapes that fit together."""
    distance = relative_position_bucket(key.positions - query.positions, num_buckets, max_distance)
    return torch.where(relation == SAME_SEGMENT, distance, num_buckets + relation - 1)


@dataclass(frozen=True)
class PairsOfRow:
    """Who sees whom with which bias, a pair at a time (`layers.flex.PairRule`).

    starts: `[groups, queries]`, where the query's relations begin in `relations`, those of all rows; num_buckets,
    max_distance: of `PositionBias`.
    """

    queries: MaskInputs
    keys: MaskInputs
    starts: torch.Tensor
    relations: torch.Tensor
    num_buckets: int
    max_distance: int

    def sees(self, group: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return sees(self.queries.at(group, query), self.keys.at(group, key))

    def row(self, group: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        one, other = self.queries.at(group, query), self.keys.at(group, key)
        relation = relation_of(one, other, self.starts[group, query], self.relations)
        return bias_rows(one, other, relation, self.num_buckets, self.max_distance)


def visibility(queries: MaskInputs, keys: MaskInputs) -> torch.Tensor:
    """Which keys a query may look at: `[groups, queries, keys]`.

    Context is seen by all, an answer by itself from left to right; an example (sample 1, 2, ...) sees itself only, the
    main sample (0) sees its examples; packed samples (spans) never see each other.
    """
    return sees(queries.of_queries, keys.of_keys)


def sees(query: MaskInputs, key: MaskInputs) -> torch.Tensor:
    """`visibility` of pairs whose facts have shapes that fit together."""
    by_role = key.is_context | (~query.is_context & (key.positions <= query.positions))
    by_sample = (query.sample_ids == 0) | (query.sample_ids == key.sample_ids)
    return by_role & by_sample & (query.spans == key.spans) & query.exists & key.exists


def relations_between(
    queries: MaskInputs, keys: MaskInputs, offsets: torch.Tensor, relations: torch.Tensor
) -> torch.Tensor:
    """The relation of the query's segment to the key's: `[groups, queries, keys]`.

    offsets: `[groups, queries]`, where the query's table starts in its row of `relations` `[rows, relations]`.
    """
    starts = relation_starts(queries, offsets, relations)[:, :, None]
    return relation_of(queries.of_queries, keys.of_keys, starts, relations.flatten())


def relation_starts(queries: MaskInputs, offsets: torch.Tensor, relations: torch.Tensor) -> torch.Tensor:
    """Where the relations of the query's segment begin among those of all rows: `[groups, queries]`."""
    starts = queries.segments * queries.num_segments + offsets
    groups_per_row = len(starts) // len(relations)
    rows = torch.arange(len(starts), device=relations.device) // groups_per_row * relations.shape[1]
    return starts.long() + rows[:, None]


def relation_of(query: MaskInputs, key: MaskInputs, start: torch.Tensor, relations: torch.Tensor) -> torch.Tensor:
    """`relations_between` of pairs whose facts have shapes that fit together; relations: of all rows, one behind the
    other."""
    is_same = (query.sample_ids == key.sample_ids) & (query.spans == key.spans)
    places = torch.where(is_same, start + key.segments, 0)
    return torch.where(is_same, relations[places].long(), OTHER_SAMPLE)


def own_mask_inputs(given: Inputs, windows: AttentionWindows | None) -> tuple[MaskInputs, MaskInputs]:
    """The positions of a training row; queries and keys are the same."""
    positions = torch.arange(given.tokens.shape[1], device=given.tokens.device).expand(given.tokens.shape)
    exists = torch.ones_like(positions, dtype=torch.bool)
    if given.lengths is not None:
        exists = positions < given.lengths[:, None]
    spans = torch.zeros_like(given.segments) if given.spans is None else given.spans
    facts = (positions, given.is_context, given.sample_ids, given.num_segments, given.segments, spans, exists)
    if windows is not None:
        facts = [windows.group_numbers(fact) for fact in facts]
        facts[-1] = facts[-1] & (windows.positions >= 0)
    inputs = MaskInputs(*facts)
    return inputs, inputs


def cached_mask_inputs(given: Inputs, kv_cache: KVCache) -> tuple[MaskInputs, MaskInputs]:
    """The new positions as queries, all positions so far as keys."""
    assert given.positions is not None, "a KV cache needs positions"
    facts = {
        "positions": given.positions,
        "is_context": given.is_context,
        "sample_ids": given.sample_ids,
        "num_segments": given.num_segments,
        "segments": given.segments,
        "spans": torch.zeros_like(given.segments),
    }
    # kept: padding is hidden as a key only; as a query it sees the context (golden bee_generate).
    queries = MaskInputs(**facts, exists=torch.ones_like(given.is_context))
    known = kv_cache.add_positions(**facts)
    return queries, MaskInputs(**known, exists=known["num_segments"] != 0)


def _scaled_linear(in_features: int, out_features: int) -> Linear:
    return Linear(in_features, out_features, scale=1 / math.sqrt(in_features))
