"""The network of ChatGLM2 and of the models that share its shape: a causal pre-norm decoder with gated SiLU.

Surprising: only the first half of each head's channels is rotated, in pairs of neighbours; few key and value heads
serve all query heads; the head is not the embedding. A prefix (P-Tuning v2) is neither rotated nor counted in the
positions. What padding computes is never read: here it sees padding, in the original everything. The original's fused
linears are cut by formats.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from hanlin.core.errors import ConfigError
from hanlin.core.plan import Plan
from hanlin.layers.attention import Branches
from hanlin.layers.attention_kernels import AttentionUse
from hanlin.layers.block_attention import AttentionContext, CausalRows, block_attention, make_causal_context
from hanlin.layers.kv_cache import KVCache
from hanlin.layers.label_head import LabelHead
from hanlin.layers.linear import Linear, product
from hanlin.layers.loss import head_loss
from hanlin.layers.norm import LayerNorm, WideRmsNorm
from hanlin.layers.precision import matmul_dtype
from hanlin.layers.prefix import PrefixSource
from hanlin.layers.quantised import QuantisedLinear
from hanlin.layers.rotary import inverse_frequencies, rotate_pairs
from hanlin.layers.soft_prompt import SoftPrompt
from hanlin.models.common.init_weights import init_parameters

from .config import ChatGlm2Config


@dataclass(frozen=True)
class Inputs:
    """The tensors of a forward pass, int `[batch, length]` each.

    positions: they begin at 0 in every sample; None: 0, 1, 2, ... after the positions in the KV cache.
    spans: the samples of a row, which never see each other: one number from 0 on for each run of positions, -1 =
    padding (on any side); None: a row is one sample. With a KV cache: in all calls or in none.
    branches: with positions; of each the column at which its branch begins (layers/attention.py); None: there are none.
    targets: float `[batch, length, labels]`, read only by the loss of a head for labels (layers/label_head.py).
    """

    tokens: torch.Tensor
    positions: torch.Tensor | None = None
    spans: torch.Tensor | None = None
    branches: torch.Tensor | None = None
    targets: torch.Tensor | None = None


@dataclass(frozen=True)
class BlockContext:
    """What all blocks share in a forward pass; cosine, sine: `[batch or 1, length, 1, angles]`."""

    cosine: torch.Tensor
    sine: torch.Tensor
    attention: AttentionContext

    def for_block(self, name: str) -> BlockContext:
        """See `parallel.compiled`."""
        return replace(self, attention=self.attention.for_block(name))


class ChatGlm2(nn.Module):
    """ChatGLM2 of any size, whole or cut (see core/plan.py)."""

    def __init__(self, config: ChatGlm2Config) -> None:
        super().__init__()
        self.config = config
        self.prefix: PrefixSource | None = None
        self.soft_prompt: SoftPrompt | None = None
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleDict({str(i): Block(config) for i in range(config.num_layers)})
        self.norm = make_norm(config) if config.has_final_norm else nn.Identity()
        self.head: LanguageModelHead | LabelHead | None = make_head(config)
        self.plan = Plan(
            first=("embedding",),
            blocks=("blocks",),
            last=("norm", "head"),
            head_dim=config.head_dim,
            tensor={
                "embedding": "vocab",
                **({} if config.labels else {"head": "logits"}),
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
        """Logits `[batch, length, vocab]`, or the loss if there are labels (`core.plan.LanguageModel`).

        With `config.labels` there is a number per label in place of the vocabulary.

        inputs: the fields of `Inputs`.
        """
        given = Inputs(**inputs)
        hidden = state[0] if state else self._embed(given.tokens)
        context = self._context(given, kv_cache)
        for name, block in self.blocks.items():
            hidden = block(hidden, context, name)
        if self.head is None:
            return hidden
        hidden = self.norm(hidden if logits_to_keep is None else hidden[:, -logits_to_keep:])
        if labels is not None:
            return self.head.loss(hidden, labels, weights=weights, reduction=reduction, targets=given.targets)
        return self.head(hidden)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill every parameter that exists as a fresh model has it.

        Raises: ConfigError for quantised weights, which are never fresh.
        """
        if any(isinstance(module, QuantisedLinear) and not module.weight.is_meta for module in self.modules()):
            raise ConfigError(f"model.config.bits is {self.config.bits}: only weights that exist can be quantised")
        init_parameters(self, lambda _: 0.02, generator)

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens) if self.soft_prompt is None else self.soft_prompt(tokens, self.embedding)
        return hidden.float() if self.config.fp32_residual else hidden

    def _context(self, given: Inputs, kv_cache: KVCache | None) -> BlockContext:
        positions, start = given.positions, 0 if kv_cache is None else kv_cache.length
        if positions is None:
            positions = torch.arange(start, start + given.tokens.shape[1], device=given.tokens.device)[None]
        dtype = matmul_dtype(next(self.parameters()))
        cosine, sine = rotation(self.config, positions, dtype)
        branches = None if given.branches is None else Branches.of(given.branches, positions)
        use = AttentionUse(dtype, self.config.head_dim, is_trained=torch.is_grad_enabled())
        rows = CausalRows(given.tokens, given.spans, branches)
        return BlockContext(cosine, sine, make_causal_context(rows, self.prefix, kv_cache, use))


class Block(nn.Module):
    def __init__(self, config: ChatGlm2Config) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.ffn = FeedForward(config)

    def forward(self, hidden: torch.Tensor, context: BlockContext, name: str) -> torch.Tensor:
        return self.ffn(self.attention(hidden, context, name))


class Attention(nn.Module):
    """Norm, attention and residual."""

    def __init__(self, config: ChatGlm2Config) -> None:
        super().__init__()
        has_bias = config.qkv_bias or config.linear_bias
        kv_size = config.num_kv_heads * config.head_dim
        inner = config.num_heads * config.head_dim
        self.head_dim = config.head_dim
        self.dropout = config.dropout
        self.residual_after_norm = config.residual_after_norm
        self.norm = make_norm(config)
        self.query = make_linear(config, config.hidden_size, inner, has_bias)
        self.key = make_linear(config, config.hidden_size, kv_size, has_bias)
        self.value = make_linear(config, config.hidden_size, kv_size, has_bias)
        self.output = make_linear(config, inner, config.hidden_size, config.linear_bias)

    def forward(self, hidden: torch.Tensor, context: BlockContext, name: str) -> torch.Tensor:
        normed = self.norm(hidden)
        query, key, value = (
            linear(normed).unflatten(-1, (-1, self.head_dim)) for linear in (self.query, self.key, self.value)
        )  # [batch, length, heads, head_dim]
        query, key = (rotate_pairs(part, context.cosine, context.sine) for part in (query, key))
        mixed = block_attention(context.attention, name, query, key, value)
        residual = normed if self.residual_after_norm else hidden
        return residual + functional.dropout(self.output(mixed), self.dropout, self.training)


class FeedForward(nn.Module):
    """Norm, gated SiLU and residual."""

    def __init__(self, config: ChatGlm2Config) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.residual_after_norm = config.residual_after_norm
        self.norm = make_norm(config)
        self.gate = make_linear(config, config.hidden_size, config.ffn_size, config.linear_bias)
        self.up = make_linear(config, config.hidden_size, config.ffn_size, config.linear_bias)
        self.down = make_linear(config, config.ffn_size, config.hidden_size, config.linear_bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normed = self.norm(hidden)
        out = self.down(functional.silu(self.gate(normed)) * self.up(normed))
        residual = normed if self.residual_after_norm else hidden
        return residual + functional.dropout(out, self.dropout, self.training)


class LanguageModelHead(nn.Module):
    """Hidden states -> logits; no bias."""

    reads_blocks = True

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return product(hidden.to(self.weight.dtype), self.weight)

    def loss(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        *,
        weights: torch.Tensor | None = None,
        reduction: Literal["sum", "none"] = "sum",
        targets: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `head_loss`; targets: always None, they belong to a head for labels."""
        assert targets is None, "a head for tokens has no targets"
        return head_loss(hidden.to(self.weight.dtype), [(self.weight, 1.0)], labels, weights, reduction)


def make_head(config: ChatGlm2Config) -> LanguageModelHead | LabelHead:
    if not config.labels:
        return LanguageModelHead(config.vocab_size, config.hidden_size)
    return LabelHead(len(config.labels), config.hidden_size, config.label_kind, config.label_dropout)


def make_linear(config: ChatGlm2Config, in_features: int, out_features: int, bias: bool) -> nn.Linear:
    if config.bits:
        return QuantisedLinear(in_features, out_features, bias, "int8" if config.bits == 8 else "int4")
    return Linear(in_features, out_features, bias=bias)


def make_norm(config: ChatGlm2Config) -> nn.Module:
    kind = WideRmsNorm if config.norm == "rms" else LayerNorm
    return kind(config.hidden_size, config.norm_eps)


def rotation(config: ChatGlm2Config, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of the angles at `positions` `[batch, length]`: `[batch, length, 1, angles]` in `dtype`."""
    size = int(config.head_dim * config.rotary_share)
    frequencies = inverse_frequencies(size, positions.device, config.rotary_base)
    # kept: in half precision the original rounds frequencies, positions and their product, which is off by up to 1
    # radian from position 1024 on. All later models of this shape compute in fp32, as we do by default.
    exact = dtype if config.half_rotary else torch.float32
    scaled = (positions / config.position_divisor).to(exact)
    angles = (scaled[..., None] * frequencies.to(exact)).float()[:, :, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)
