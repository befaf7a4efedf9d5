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
from hanlin.layers.attention import AttentionMask, attention, cached_causal_mask, packed_causal_mask
from hanlin.layers.kv_cache import KVCache
from hanlin.layers.linear import Linear
from hanlin.layers.loss import head_logits, head_loss
from hanlin.layers.norm import LayerNorm
from hanlin.layers.prefix import Prefix, PrefixSource
from hanlin.layers.soft_prompt import SoftPrompt

from .config import Cpm1Config


@dataclass(frozen=True)
class Inputs:
    """The tensors of a forward pass, int `[batch, length]` each.

    positions: rows of the position table; None: 0, 1, 2, ... after the positions in the KV cache.
    spans: the samples of a row, which never see each other: one number from 0 on for each run of columns, -1 = padding
    (on any side); None: a row is one sample. With a KV cache: in all calls or in none.
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
        # The KV cache holds the prefix from its first call on.
        prefixes = {} if self.prefix is None or (kv_cache is not None and kv_cache.length) else self.prefix()
        hidden = state[0] if state else self._embed(given, kv_cache)
        mask = self._mask(given, kv_cache)
        for name, block in self.blocks.items():
            hidden = block(hidden, mask, prefixes.get(name), kv_cache, name)
        if self.norm is None:
            return hidden
        hidden = self.norm(hidden if logits_to_keep is None else hidden[:, -logits_to_keep:])
        pieces = [(self.embedding.weight, 1.0)]
        return head_logits(hidden, pieces) if labels is None else head_loss(hidden, pieces, labels, weights, reduction)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill every parameter that exists as a fresh model has it; the prefix is none of them."""
        std = self.config.init_std
        of_prefix = set() if self.prefix is None else set(self.prefix.modules())
        for name, module in self.named_modules():
            if module in of_prefix:
                continue
            if isinstance(module, nn.Embedding | nn.Linear):
                is_last = name.endswith((".output", ".down"))
                spread = std / (2 * self.config.num_layers) ** 0.5 if is_last else std
                nn.init.normal_(module.weight, std=spread, generator=generator)
            elif isinstance(module, LayerNorm):
                nn.init.ones_(module.weight)
            if isinstance(module, nn.Linear | LayerNorm) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def _embed(self, given: Inputs, kv_cache: KVCache | None) -> torch.Tensor:
        positions, start = given.positions, 0 if kv_cache is None else kv_cache.length
        if positions is None:
            positions = torch.arange(start, start + given.tokens.shape[1], device=given.tokens.device)[None]
        embedded = (
            self.embedding(given.tokens) if self.soft_prompt is None else self.soft_prompt(given.tokens, self.embedding)
        )
        hidden = embedded + self.positions(positions)
        return functional.dropout(hidden, self.config.dropout, self.training)

    def _mask(self, given: Inputs, kv_cache: KVCache | None) -> AttentionMask:
        if kv_cache is None:
            mask = AttentionMask() if given.spans is None else packed_causal_mask(given.spans)
        else:
            spans = torch.zeros_like(given.tokens) if given.spans is None else given.spans
            mask = cached_causal_mask(spans, kv_cache.add_positions(spans=spans)["spans"])
        return mask if self.prefix is None else mask.with_prefix(self.prefix.length, given.tokens)


class Block(nn.Module):
    def __init__(self, config: Cpm1Config) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.ffn = FeedForward(config)

    def forward(
        self, hidden: torch.Tensor, mask: AttentionMask, prefix: Prefix | None, kv_cache: KVCache | None, name: str
    ) -> torch.Tensor:
        return self.ffn(self.attention(hidden, mask, prefix, kv_cache, name))


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

    def forward(
        self, hidden: torch.Tensor, mask: AttentionMask, prefix: Prefix | None, kv_cache: KVCache | None, name: str
    ) -> torch.Tensor:
        normed = self.norm(hidden)
        mixed = self._mix(normed, mask, prefix, kv_cache, name)
        residual = normed if self.residual_after_norm else hidden
        return residual + functional.dropout(self.output(mixed), self.dropout, self.training)

    def _mix(
        self, normed: torch.Tensor, mask: AttentionMask, prefix: Prefix | None, kv_cache: KVCache | None, name: str
    ) -> torch.Tensor:
        windows = mask.windows
        query, key, value = (linear(normed) for linear in (self.query, self.key, self.value))
        length = query.shape[1]  # of the whole text, also where `normed` is only a rank's share of it
        if windows is not None:
            query, key, value = (windows.group(part) for part in (query, key, value))
        query, key, value = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in (query, key, value)
        )  # [groups, heads, columns, head_dim]
        if prefix is not None:
            key, value = prefix.before(key, value)
        if kv_cache is not None:
            key, value = kv_cache.update(name, key, value)
        dropout = self.attention_dropout if self.training else 0.0
        mixed = attention(query, key, value, mask, dropout=dropout)
        return mixed if windows is None else windows.ungroup(mixed, length)


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
        out = self.down(functional.gelu(self.up(normed), approximate=self.approximate))
        residual = normed if self.residual_after_norm else hidden
        return residual + functional.dropout(out, self.dropout, self.training)
