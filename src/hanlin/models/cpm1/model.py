"""The network of CPM-1: GPT-2 (Radford et al. 2019), in the released form and in that of the pretraining program.

Surprising: the head is the embedding; rows of the embedding beyond the tokenizer's ids take part in the softmax. The
originals' fused linears are cut by formats.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from hanlin.core.plan import Plan
from hanlin.layers.activation import gelu
from hanlin.layers.attention_kernels import AttentionUse
from hanlin.layers.block_attention import AttentionContext, CausalRows, block_attention, make_causal_context
from hanlin.layers.kv_cache import KVCache
from hanlin.layers.linear import Linear
from hanlin.layers.loss import head_logits, head_loss
from hanlin.layers.norm import LayerNorm
from hanlin.layers.precision import matmul_dtype
from hanlin.layers.prefix import PrefixSource
from hanlin.layers.soft_prompt import SoftPrompt
from hanlin.models.common.init_weights import init_parameters, std_by_depth

from .config import Cpm1Config


@dataclass(frozen=True)
class Inputs:
    """The tensors of a forward pass, int `[batch, length]` each.

    positions: rows of the position table; None: 0, 1, 2, ... after the positions in the KV cache.
    spans: the samples of a row, which never see each other: one number from 0 on for each run of positions, -1 =
    padding (on any side); None: a row is one sample. With a KV cache: in all calls or in none.
    """

    tokens: torch.Tensor
    positions: torch.Tensor | None = None
    spans: torch.Tensor | None = None


class Cpm1(nn.Module):
    """CPM-1 of any size, whole or cut (see core/plan.py)."""

    def __init__(self, config: Cpm1Config) -> None:
        super().__init__()
        self.config = config
        self.prefix: PrefixSource | None = None
        self.soft_prompt: SoftPrompt | None = None
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_length, config.hidden_size)
        self.blocks = nn.ModuleDict({str(i): Block(config) for i in range(config.num_layers)})
        self.norm: nn.Module | None = LayerNorm(config.hidden_size, config.norm_eps)
        self.plan = Plan(
            first=("embedding", "positions"),
            blocks=("blocks",),
            last=("norm", "embedding"),  # the head is the embedding: it lives on both ends
            head_dim=config.head_dim,
            tensor={
                "embedding": "vocab",
                "blocks.*.attention.query": "query",
                "blocks.*.attention.key": "kv",
                "blocks.*.attention.value": "kv",
                "blocks.*.attention.output": "row",
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
        """Logits `[batch, length, vocab]`, or the loss if there are labels (`core.plan.LanguageModel`).

        inputs: the fields of `Inputs`.
        """
        given = Inputs(**inputs)
        hidden = state[0] if state else self._embed(given, kv_cache)
        dropout = self.config.attention_dropout if self.training else 0.0
        use = AttentionUse(matmul_dtype(hidden), self.config.head_dim, dropout, is_trained=torch.is_grad_enabled())
        context = make_causal_context(CausalRows(given.tokens, given.spans), self.prefix, kv_cache, use)
        for name, block in self.blocks.items():
            hidden = block(hidden, context, name)
        if self.norm is None:
            return hidden
        hidden = self.norm(hidden if logits_to_keep is None else hidden[:, -logits_to_keep:])
        pieces = [(self.embedding.weight, 1.0)]
        return head_logits(hidden, pieces) if labels is None else head_loss(hidden, pieces, labels, weights, reduction)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill every parameter that exists as a fresh model has it."""
        init_parameters(self, lambda name: std_by_depth(name, self.config.init_std, self.config.num_layers), generator)

    def _embed(self, given: Inputs, kv_cache: KVCache | None) -> torch.Tensor:
        positions, start = given.positions, 0 if kv_cache is None else kv_cache.length
        if positions is None:
            positions = torch.arange(start, start + given.tokens.shape[1], device=given.tokens.device)[None]
        embedded = (
            self.embedding(given.tokens) if self.soft_prompt is None else self.soft_prompt(given.tokens, self.embedding)
        )
        hidden = embedded + self.positions(positions)
        return functional.dropout(hidden, self.config.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config: Cpm1Config) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.ffn = FeedForward(config)

    def forward(self, hidden: torch.Tensor, context: AttentionContext, name: str) -> torch.Tensor:
        return self.ffn(self.attention(hidden, context, name))


class Attention(nn.Module):
    """Norm, attention and residual."""

    def __init__(self, config: Cpm1Config) -> None:
        super().__init__()
        inner = config.num_heads * config.head_dim
        self.head_dim = config.head_dim
        self.dropout = config.dropout
        self.attention_dropout = config.attention_dropout
        self.residual_after_norm = config.residual_after_norm
        self.norm = LayerNorm(config.hidden_size, config.norm_eps)
        self.query = Linear(config.hidden_size, inner, bias=True)
        self.key = Linear(config.hidden_size, inner, bias=True)
        self.value = Linear(config.hidden_size, inner, bias=True)
        self.output = Linear(inner, config.hidden_size, bias=True)

    def forward(self, hidden: torch.Tensor, context: AttentionContext, name: str) -> torch.Tensor:
        normed = self.norm(hidden)
        query, key, value = (
            linear(normed).unflatten(-1, (-1, self.head_dim)) for linear in (self.query, self.key, self.value)
        )  # [batch, length, heads, head_dim]
        dropout = self.attention_dropout if self.training else 0.0
        mixed = block_attention(context, name, query, key, value, dropout=dropout)
        residual = normed if self.residual_after_norm else hidden
        return residual + functional.dropout(self.output(mixed), self.dropout, self.training)


class FeedForward(nn.Module):
    """Norm, GELU and residual."""

    def __init__(self, config: Cpm1Config) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.residual_after_norm = config.residual_after_norm
        self.approximate = "tanh" if config.gelu == "tanh" else "none"
        self.norm = LayerNorm(config.hidden_size, config.norm_eps)
        self.up = Linear(config.hidden_size, config.ffn_size, bias=True)
        self.down = Linear(config.ffn_size, config.hidden_size, bias=True)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normed = self.norm(hidden)
        out = self.down(gelu(self.up(normed), approximate=self.approximate))
        residual = normed if self.residual_after_norm else hidden
        return residual + functional.dropout(out, self.dropout, self.training)
