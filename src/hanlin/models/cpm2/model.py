"""The network of CPM-2: an encoder-decoder after T5 1.1, with gated GELU and no bias anywhere.

Surprising: scores are not divided by sqrt(head_dim); each stack has one position bias table for all its blocks, and
cross attention has none; the head is not the embedding and is not scaled. Padding sees nothing here and is zero after
attention; in the original it sees everything, which reaches no loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from hanlin.core.plan import Plan, TensorSplit
from hanlin.layers.activation import gelu
from hanlin.layers.attention import AttentionMask, KeysOfRows, additive_mask, attention_by_rows, same_span
from hanlin.layers.attention_kernels import AttentionUse, kernel_scope
from hanlin.layers.experts import Experts
from hanlin.layers.flex import PairScores
from hanlin.layers.kv_cache import KVCache
from hanlin.layers.linear import Linear
from hanlin.layers.loss import head_loss
from hanlin.layers.norm import RmsNorm
from hanlin.layers.precision import matmul_dtype
from hanlin.layers.prefix import Prefix, PrefixSource
from hanlin.layers.ranking_loss import pairwise_ranking_loss
from hanlin.layers.relative_position import relative_position_bucket
from hanlin.layers.soft_prompt import SoftPrompt
from hanlin.models.common.encoder_decoder import (
    DecoderContext,
    EncoderDecoderInputs,
    join_state,
    prefix_places,
    run_encoder_decoder,
)
from hanlin.models.common.init_weights import init_parameters, std_by_depth

from .config import Cpm2Config


@dataclass(frozen=True)
class Inputs(EncoderDecoderInputs):
    """Tokens of the encoder below 0 are prompts.

    lengths: `[batch]`, the ids of both sides without padding, for whoever counts them.
    negatives: at a labelled position the position whose logit of this label must be smaller; -1 elsewhere. With
    them the loss ranks pairs (layers/ranking_loss.py) and is no cross entropy over the vocabulary.
    """

    lengths: torch.Tensor | None = None
    negatives: torch.Tensor | None = None


class Cpm2(nn.Module):
    """CPM-2 of any size, whole or cut (see core/plan.py); the state is the hidden states of encoder and decoder."""

    encodes_once: ClassVar[bool] = True

    def __init__(self, config: Cpm2Config) -> None:
        super().__init__()
        self.config = config
        self.prefix: PrefixSource | None = None
        numbers = [str(number) for number in range(config.num_layers)]
        self.prefix_places = prefix_places((f"encoder.{number}" for number in numbers), numbers)
        self.soft_prompt: SoftPrompt | None = None
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.encoder_bias = nn.Embedding(config.num_distance_buckets, config.num_heads)
        self.encoder_blocks = nn.ModuleDict({str(i): EncoderBlock(config) for i in range(config.num_layers)})
        self.encoder_norm = RmsNorm(config.hidden_size, config.norm_eps)
        self.decoder_bias = nn.Embedding(config.num_distance_buckets, config.num_heads)
        self.decoder_blocks = nn.ModuleDict({str(i): DecoderBlock(config) for i in range(config.num_layers)})
        self.decoder_norm = RmsNorm(config.hidden_size, config.norm_eps)
        self.head: Linear | None = Linear(config.hidden_size, config.vocab_size)
        self.plan = make_plan(config)

    def forward(
        self,
        *state: torch.Tensor,
        kv_cache: KVCache | None = None,
        labels: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        reduction: Literal["sum", "none"] = "sum",
        logits_to_keep: int | None = None,
        **inputs: Any,
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Logits `[batch, length, vocab]` of the decoder, or the loss if there are labels (`core.plan.LanguageModel`).

        inputs: the fields of `Inputs`. The encoder runs in the first call with a KV cache only; in the others the state
        is the decoder's alone.
        """
        given = Inputs(**inputs)
        encoded, hidden = run_encoder_decoder(self, state, given, kv_cache)
        if self.head is None:
            return join_state(encoded, hidden)
        hidden = self._finish(self.decoder_norm, hidden if logits_to_keep is None else hidden[:, -logits_to_keep:])
        if labels is not None and given.negatives is not None:
            return pairwise_ranking_loss(hidden, [(self.head.weight, 1.0)], labels, given.negatives, weights, reduction)
        if labels is not None:
            return head_loss(hidden, [(self.head.weight, 1.0)], labels, weights, reduction)
        return self.head(hidden)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill every parameter that exists as a fresh model has it."""
        init_parameters(self, self._std, generator)

    def _std(self, name: str) -> float:
        if name in ("encoder_bias", "decoder_bias"):
            return 1.0
        std, num_layers = self.config.init_std, self.config.num_layers
        return std_by_depth(name, std, num_layers) if self.config.scaled_init else std

    def embed_encoder(self, given: Inputs) -> torch.Tensor:
        return self._embed(given.encoder_tokens)

    def embed_decoder(self, given: Inputs, start: int) -> torch.Tensor:
        del start  # there are no positions, but distances
        return self._embed(given.tokens)

    def encode(self, hidden: torch.Tensor, given: Inputs, prefixes: Mapping[str, Prefix]) -> torch.Tensor:
        if not self.encoder_blocks:
            return hidden
        mask = self._encoder_mask(given, matmul_dtype(hidden))
        if self.prefix is not None:
            mask = mask.with_prefix(self.prefix.length, given.encoder_tokens)
        for name, block in self.encoder_blocks.items():
            hidden = block(hidden, mask, prefixes.get(f"encoder.{name}"))
        # The norm stands behind the last block, wherever a cut model has that one.
        is_last = str(self.config.num_layers - 1) in self.encoder_blocks
        return self._finish(self.encoder_norm, hidden) if is_last else hidden

    def existing_decoder_blocks(self) -> dict[str, nn.Module]:
        return dict(self.decoder_blocks.items())

    def decoder_masks(
        self, given: Inputs, known: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[AttentionMask, AttentionMask]:
        dtype, spans = matmul_dtype(hidden), given.own_spans
        no_bias = torch.zeros(1, 1, 1, 1, dtype=dtype, device=hidden.device)
        return self._decoder_mask(spans, known, dtype), additive_mask(no_bias, visible_spans(spans, given.read_spans))

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        embedded = self.embedding(tokens) if self.soft_prompt is None else self.soft_prompt(tokens, self.embedding)
        return functional.dropout(embedded, self.config.dropout, self.training)

    def _finish(self, norm: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        return functional.dropout(norm(hidden), self.config.dropout, self.training)

    def _encoder_mask(self, given: Inputs, dtype: torch.dtype) -> AttentionMask:
        spans = given.read_spans
        if self.soft_prompt is None and (pairs := self._pairs(spans, self.encoder_bias, dtype, is_causal=False)):
            return AttentionMask(pairs=pairs)
        visible = visible_spans(spans, spans)
        if self.soft_prompt is not None:
            visible = self.soft_prompt.restrict(visible, given.encoder_tokens)
        positions = torch.arange(spans.shape[1], device=spans.device)
        buckets = self._buckets(positions[None, :] - positions[:, None], is_causal=False)
        return additive_mask(_bias(self.encoder_bias, buckets, dtype), visible)

    def _decoder_mask(self, spans: torch.Tensor, known: torch.Tensor, dtype: torch.dtype) -> AttentionMask:
        """known: all positions so far, of which those of `spans` are the last; a single one is each row's own last."""
        is_own = known.shape == spans.shape and spans.shape[1] > 1  # nothing stands before them in a cache
        if is_own and (pairs := self._pairs(spans, self.decoder_bias, dtype, is_causal=True)):
            return AttentionMask(pairs=pairs)
        keys = torch.arange(known.shape[1], device=spans.device)
        offsets = keys[None, :] - keys[-spans.shape[1] :, None]
        if spans.shape[1] == 1:
            offsets = keys - ((known >= 0) * keys).amax(dim=1)[:, None, None]  # [batch, 1, keys]
        visible = visible_spans(spans, known) & (offsets <= 0)
        return additive_mask(_bias(self.decoder_bias, self._buckets(offsets, is_causal=True), dtype), visible)

    def _pairs(
        self, spans: torch.Tensor, table: nn.Embedding, dtype: torch.dtype, *, is_causal: bool
    ) -> PairScores | None:
        """Where a kernel computes a bias pair by pair; before a prefix it does not."""
        if self.prefix is not None:
            return None
        dropout = self.config.dropout if self.training else 0.0
        use = AttentionUse(dtype, self.config.head_dim, dropout, is_trained=torch.is_grad_enabled())
        shape = (*spans.shape, spans.shape[1])
        if not kernel_scope(spans.device).takes_pairs(use, math.prod(shape) * table.weight.shape[1]):
            return None
        rule = PairsOfSpans(spans, self.config.num_distance_buckets, self.config.max_distance, is_causal)
        return PairScores.of(rule, table.weight, shape)

    def _buckets(self, offsets: torch.Tensor, *, is_causal: bool) -> torch.Tensor:
        sizes = (self.config.num_distance_buckets, self.config.max_distance)
        return distance_buckets(offsets, *sizes, is_causal=is_causal)


class EncoderBlock(nn.Module):
    def __init__(self, config: Cpm2Config) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.ffn = make_ffn(config)

    def forward(self, hidden: torch.Tensor, mask: AttentionMask, prefix: Prefix | None) -> torch.Tensor:
        return self.ffn(self.attention(hidden, mask, prefix))


class DecoderBlock(nn.Module):
    def __init__(self, config: Cpm2Config) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.cross_attention = CrossAttention(config)
        self.ffn = make_ffn(config)

    def forward(self, hidden: torch.Tensor, context: DecoderContext, name: str) -> torch.Tensor:
        hidden = self.attention(hidden, context.self_mask, context.own_prefix(name), context.kv_cache, name)
        return self.ffn(self.cross_attention(hidden, context, name))


class Attention(nn.Module):
    """Norm, attention and residual."""

    def __init__(self, config: Cpm2Config) -> None:
        super().__init__()
        inner = config.num_heads * config.head_dim
        self.head_dim = config.head_dim
        self.dropout = config.dropout
        self.norm = RmsNorm(config.hidden_size, config.norm_eps)
        self.query = Linear(config.hidden_size, inner)
        self.key = Linear(config.hidden_size, inner)
        self.value = Linear(config.hidden_size, inner)
        self.output = Linear(inner, config.hidden_size)

    def forward(
        self,
        hidden: torch.Tensor,
        mask: AttentionMask,
        prefix: Prefix | None,
        kv_cache: KVCache | None = None,
        name: str = "",
    ) -> torch.Tensor:
        normed = self.norm(hidden)
        key, value = self.keys_and_values(normed)
        if prefix is not None:
            key, value = prefix.before(key, value)
        if kv_cache is None:
            return self._mixed(hidden, normed, [KeysOfRows(slice(None), key, value)], mask)
        return self._mixed(hidden, normed, kv_cache.keys_of_rows(name, key, value), mask)

    def keys_and_values(self, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._heads(self.key(source)), self._heads(self.value(source))

    def _heads(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [batch, heads, length, head_dim]

    def _mixed(
        self, hidden: torch.Tensor, normed: torch.Tensor, parts: Sequence[KeysOfRows], mask: AttentionMask
    ) -> torch.Tensor:
        dropout = self.dropout if self.training else 0.0
        mixed = attention_by_rows(self._heads(self.query(normed)), parts, mask, dropout=dropout, scale=1.0)
        # kept: the original drops twice here.
        return hidden + functional.dropout(functional.dropout(self.output(mixed), dropout), dropout)


class CrossAttention(Attention):
    """`Attention` of the decoder to what the encoder made; its keys and values are computed once."""

    def forward(self, hidden: torch.Tensor, context: DecoderContext, name: str) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]: other keys
        parts = context.cross_attention_kv(name, self.keys_and_values)
        return self._mixed(hidden, self.norm(hidden), parts, context.cross_mask)


class FeedForward(nn.Module):
    """Norm, gated GELU (tanh form) and residual."""

    def __init__(self, config: Cpm2Config) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.norm = RmsNorm(config.hidden_size, config.norm_eps)
        self.gate = Linear(config.hidden_size, config.ffn_size)
        self.up = Linear(config.hidden_size, config.ffn_size)
        self.down = Linear(config.ffn_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normed = self.norm(hidden)
        inner = gelu(self.gate(normed), approximate="tanh") * self.up(normed)
        out = self.down(functional.dropout(inner, self.dropout, self.training))
        return hidden + functional.dropout(out, self.dropout, self.training)


def make_ffn(config: Cpm2Config) -> nn.Module:
    if not config.num_experts:
        return FeedForward(config)
    return Experts(lambda: FeedForward(config), config.num_experts, config.hidden_size)


def make_plan(config: Cpm2Config) -> Plan:
    """Where a CPM-2 may be cut and split."""
    projections: dict[str, TensorSplit] = {"query": "query", "key": "kv", "value": "kv", "output": "row"}
    ffn: dict[str, TensorSplit] = {"gate": "column", "up": "column", "down": "row"}
    if config.num_experts:
        ffn = {"experts": "experts", **{f"experts.*.{linear}": split for linear, split in ffn.items()}}
    parts = {
        "encoder_blocks.*.attention": projections,
        "encoder_blocks.*.ffn": ffn,
        "decoder_blocks.*.attention": projections,
        "decoder_blocks.*.cross_attention": projections,
        "decoder_blocks.*.ffn": ffn,
    }
    linears: dict[str, TensorSplit] = {
        f"{part}.{linear}": cut for part, cuts in parts.items() for linear, cut in cuts.items()
    }
    return Plan(
        first=("embedding",),
        blocks=("encoder_blocks", "decoder_blocks"),
        last=("decoder_norm", "head"),
        shared=("encoder_bias", "encoder_norm", "decoder_bias"),
        tensor={"embedding": "vocab", "head": "logits", "encoder_bias": "heads", "decoder_bias": "heads", **linears},
        head_dim=config.head_dim,
        whole=("decoder_blocks.*.cross_attention.key", "decoder_blocks.*.cross_attention.value"),
    )


def visible_spans(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Which keys belong to the query's sample: bool `[batch, queries, keys]`; padding sees nothing."""
    return same_span(queries, keys) & (queries >= 0)[:, :, None]


@dataclass(frozen=True)
class PairsOfSpans:
    """A bias by distance within each sample, a pair at a time (`layers.flex.PairRule`).

    spans: `[batch, length]`, below 0 is padding, which sees nothing.
    """

    spans: torch.Tensor
    num_buckets: int
    max_distance: int
    is_causal: bool

    def sees(self, group: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        own = self.spans[group, query]
        visible = (own == self.spans[group, key]) & (own >= 0)
        return visible & (key <= query) if self.is_causal else visible

    def row(self, group: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        del group
        return distance_buckets(key - query, self.num_buckets, self.max_distance, is_causal=self.is_causal)


def distance_buckets(offsets: torch.Tensor, num_buckets: int, max_distance: int, *, is_causal: bool) -> torch.Tensor:
    """Rows of a bias table for key minus query positions; a decoder has all its buckets behind the query."""
    if is_causal:
        return relative_position_bucket(offsets.clamp(max=0), 2 * num_buckets, max_distance)
    return relative_position_bucket(offsets, num_buckets, max_distance)


def _bias(table: nn.Module, buckets: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`[batch or 1, heads, queries, keys]`; buckets: `[queries, keys]`, or with a batch."""
    bias = table(buckets).movedim(-1, -3).to(dtype)
    return bias if bias.dim() == 4 else bias[None]
