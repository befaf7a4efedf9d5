"""The network that CPM-1's pretraining program calls T5: an encoder-decoder of Megatron's blocks.

It is not Google's. Surprising: positions are learned and absolute, one table for both sides; a decoder block uses one
norm twice, before cross-attention and before its ffn; what the encoder puts out is not normalised; the head is the
embedding. Linears have no bias, norms have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from hanlin.core.plan import Plan
from hanlin.layers.activation import gelu
from hanlin.layers.attention import AttentionMask, KeysOfRows, attention_by_rows, causal_mask, same_span
from hanlin.layers.kv_cache import KVCache
from hanlin.layers.linear import Linear
from hanlin.layers.loss import head_logits, head_loss
from hanlin.layers.norm import LayerNorm
from hanlin.layers.precision import matmul_dtype
from hanlin.layers.prefix import Prefix, PrefixSource
from hanlin.layers.soft_prompt import SoftPrompt
from hanlin.models.common.encoder_decoder import (
    DecoderContext,
    EncoderDecoderInputs,
    join_state,
    prefix_places,
    run_encoder_decoder,
)
from hanlin.models.common.init_weights import init_parameters, std_by_depth

from .config import Cpm1T5Config


@dataclass(frozen=True)
class Inputs(EncoderDecoderInputs):
    """positions, encoder_positions: rows of the position table; None: 0, 1, 2, ... (after those in the KV cache)."""

    positions: torch.Tensor | None = None
    encoder_positions: torch.Tensor | None = None


class Cpm1T5(nn.Module):
    """The T5 of any size, whole or cut (see core/plan.py); the state is the encoder's and the decoder's hidden states.

    As in the original, one list holds the encoder's blocks and then the decoder's.
    """

    encodes_once: ClassVar[bool] = True

    def __init__(self, config: Cpm1T5Config) -> None:
        super().__init__()
        self.config = config
        self.prefix: PrefixSource | None = None
        self.soft_prompt: SoftPrompt | None = None
        names = [str(number) for number in range(2 * config.num_layers)]
        self.prefix_places = prefix_places(names[: config.num_layers], names[config.num_layers :])
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_length, config.hidden_size)
        kinds = [EncoderBlock] * config.num_layers + [DecoderBlock] * config.num_layers
        self.blocks = nn.ModuleDict({str(i): kind(config) for i, kind in enumerate(kinds)})
        self.norm: nn.Module | None = LayerNorm(config.hidden_size, config.norm_eps)
        attentions = ("attention", "cross_attention")
        self.plan = Plan(
            first=("embedding", "positions"),
            blocks=("blocks",),
            last=("norm", "embedding"),  # the head is the embedding: it lives on both ends
            tensor={
                "embedding": "vocab",
                **{f"blocks.*.{name}.query": "query" for name in attentions},
                **{f"blocks.*.{name}.{part}": "kv" for name in attentions for part in ("key", "value")},
                **{f"blocks.*.{name}.output": "row" for name in attentions},
                "blocks.*.ffn.up": "column",
                "blocks.*.ffn.down": "row",
            },
            head_dim=config.head_dim,
            whole=("blocks.*.cross_attention.key", "blocks.*.cross_attention.value"),
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
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Logits `[batch, length, vocab]` of the decoder, or the loss if there are labels (`core.plan.LanguageModel`).

        inputs: the fields of `Inputs`. The encoder runs in the first call with a KV cache only; in the others the state
        is the decoder's alone.
        """
        given = Inputs(**inputs)
        encoded, hidden = run_encoder_decoder(self, state, given, kv_cache)
        if self.norm is None:
            return join_state(encoded, hidden)
        hidden = self.norm(hidden if logits_to_keep is None else hidden[:, -logits_to_keep:])
        pieces = [(self.embedding.weight, 1.0)]
        return head_logits(hidden, pieces) if labels is None else head_loss(hidden, pieces, labels, weights, reduction)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill every parameter that exists as a fresh model has it."""
        init_parameters(self, lambda name: std_by_depth(name, self.config.init_std, self.config.num_layers), generator)

    def embed_encoder(self, given: Inputs) -> torch.Tensor:
        return self._embed(given.encoder_tokens, given.encoder_positions, 0)

    def embed_decoder(self, given: Inputs, start: int) -> torch.Tensor:
        return self._embed(given.tokens, given.positions, start)

    def encode(self, hidden: torch.Tensor, given: Inputs, prefixes: Mapping[str, Prefix]) -> torch.Tensor:
        encoder = {name: block for name, block in self.blocks.items() if isinstance(block, EncoderBlock)}
        if not encoder:
            return hidden
        visible = same_span(given.read_spans, given.read_spans)
        if self.soft_prompt is not None:
            visible = self.soft_prompt.restrict(visible, given.encoder_tokens)
        mask = AttentionMask(visible[:, None]).additive(matmul_dtype(hidden))
        if self.prefix is not None:
            mask = mask.with_prefix(self.prefix.length, given.encoder_tokens)
        for name, block in encoder.items():
            hidden = block(hidden, mask, prefixes.get(name))
        return hidden

    def existing_decoder_blocks(self) -> dict[str, nn.Module]:
        return {name: block for name, block in self.blocks.items() if isinstance(block, DecoderBlock)}

    def decoder_masks(
        self, given: Inputs, known: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[AttentionMask, AttentionMask]:
        dtype, spans = matmul_dtype(hidden), given.own_spans
        own = same_span(spans, known) & causal_mask(spans.shape[1], known.shape[1], spans.device)
        across = same_span(spans, given.read_spans)
        # Padding behind the last sample finds nothing to look at; no kernel takes that, and its result is never read.
        across = across | ~across.any(-1, keepdim=True)
        return AttentionMask(own[:, None]).additive(dtype), AttentionMask(across[:, None]).additive(dtype)

    def _embed(self, tokens: torch.Tensor, positions: torch.Tensor | None, start: int) -> torch.Tensor:
        if positions is None:
            positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]
        embedded = self.embedding(tokens) if self.soft_prompt is None else self.soft_prompt(tokens, self.embedding)
        hidden = embedded + self.positions(positions)
        return functional.dropout(hidden, self.config.dropout, self.training)


class EncoderBlock(nn.Module):
    def __init__(self, config: Cpm1T5Config) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.ffn = FeedForward(config)

    def forward(self, hidden: torch.Tensor, mask: AttentionMask, prefix: Prefix | None) -> torch.Tensor:
        return self.ffn(self.attention(hidden, mask, prefix))


class DecoderBlock(nn.Module):
    def __init__(self, config: Cpm1T5Config) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.cross_attention = Attention(config)
        self.ffn = FeedForward(config)

    def forward(self, hidden: torch.Tensor, context: DecoderContext, name: str) -> torch.Tensor:
        hidden = self.attention(hidden, context.self_mask, context.own_prefix(name), context.kv_cache, name)
        # kept: the norm of the ffn serves here as well (golden case cpm1_t5).
        normed = self.ffn.norm(hidden)
        parts = context.cross_attention_kv(name, self.cross_attention.keys_and_values)
        hidden = hidden + self.cross_attention(normed, parts, context.cross_mask)
        return self.ffn(hidden)


class Attention(nn.Module):
    """From queries' positions to the mixed values, without norm and residual."""

    def __init__(self, config: Cpm1T5Config) -> None:
        super().__init__()
        inner = config.num_heads * config.head_dim
        self.head_dim = config.head_dim
        self.dropout = config.dropout
        self.attention_dropout = config.attention_dropout
        self.query = Linear(config.hidden_size, inner)
        self.key = Linear(config.hidden_size, inner)
        self.value = Linear(config.hidden_size, inner)
        self.output = Linear(inner, config.hidden_size)

    def forward(self, normed: torch.Tensor, parts: Sequence[KeysOfRows], mask: AttentionMask) -> torch.Tensor:
        dropout = self.attention_dropout if self.training else 0.0
        mixed = attention_by_rows(self._heads(self.query(normed)), parts, mask, dropout=dropout)
        return functional.dropout(self.output(mixed), self.dropout, self.training)

    def keys_and_values(self, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._heads(self.key(source)), self._heads(self.value(source))

    def _heads(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [batch, heads, length, head_dim]


class SelfAttention(Attention):
    """`Attention` of positions to each other, with norm and residual."""

    def __init__(self, config: Cpm1T5Config) -> None:
        super().__init__(config)
        self.residual_after_norm = config.residual_after_norm
        self.norm = LayerNorm(config.hidden_size, config.norm_eps)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]: its keys are its own
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
        parts = [KeysOfRows(slice(None), key, value)] if kv_cache is None else kv_cache.keys_of_rows(name, key, value)
        return (normed if self.residual_after_norm else hidden) + super().forward(normed, parts, mask)


class FeedForward(nn.Module):
    """Norm, GELU and residual."""

    def __init__(self, config: Cpm1T5Config) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.approximate = "tanh" if config.gelu == "tanh" else "none"
        self.norm = LayerNorm(config.hidden_size, config.norm_eps)
        self.up = Linear(config.hidden_size, config.ffn_size)
        self.down = Linear(config.ffn_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        inner = gelu(self.up(self.norm(hidden)), approximate=self.approximate)
        return hidden + functional.dropout(self.down(inner), self.dropout, self.training)
