"""The network of ChatGLM2 and of the models that share its shape: a causal pre-norm decoder with gated SiLU.

Surprising: only the first half of each head's channels is rotated, in pairs of neighbours; few key and value heads serve
all query heads; the head is not the embedding. A prefix (P-Tuning v2) is neither rotated nor counted in the positions.
What padding computes is never read, so it may look anywhere; in the original it looks everywhere. The original's fused
linears are cut by formats.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from hanlin.core.plan import Plan
from hanlin.layers.attention import Windows, attend_grouped, sees_earlier
from hanlin.layers.linear import Linear
from hanlin.layers.loss import head_loss
from hanlin.layers.norm import LayerNorm, WideRmsNorm
from hanlin.layers.past import Past
from hanlin.layers.precision import matmul_dtype
from hanlin.layers.prefix import Prefix, seen_before
from hanlin.layers.rotary import inverse_frequencies, rotate_pairs

from .config import ChatGlm2Config


@dataclass(frozen=True)
class Inputs:
    """The tensors of a forward pass; batch first.

    tokens, positions: `[batch, length]` int; None as positions: 0, 1, 2, ... after those of the past.
    is_padding: `[batch, length]` bool, columns that nobody looks at; padding on the right needs no saying, since
    nobody looks ahead. With a past: in all calls or in none.
    spans: `[batch, length]` int, the packed samples of a row, which never see each other.
    windows: `[batch, windows, width]`, the columns that attend among themselves (-1 = padding at the end, None = the
    whole row); where each window holds one sample, spans may be left out.
    """

    tokens: torch.Tensor
    positions: torch.Tensor | None = None
    is_padding: torch.Tensor | None = None
    spans: torch.Tensor | None = None
    windows: torch.Tensor | None = None


@dataclass(frozen=True)
class Scene:
    """What all blocks share in a forward pass.

    cosine, sine: of the rotation, `[batch or 1, length, 1, angles]`; visible, windows: see layers/attention.py.
    """

    cosine: torch.Tensor
    sine: torch.Tensor
    visible: torch.Tensor | None
    windows: Windows | None


class ChatGlm2(nn.Module):
    """ChatGLM2 of any size, whole or cut (see core/plan.py).

    `checkpoint_activations = True` keeps only the input of each block for the backward pass. `prefix` is None or a
    module that yields a `Prefix` for each block (tuning/prefix.py).
    """

    def __init__(self, config: ChatGlm2Config) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        self.prefix: nn.Module | None = None
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleDict({str(i): Block(config) for i in range(config.num_layers)})
        self.norm = make_norm(config) if config.has_final_norm else nn.Identity()
        self.head: Head | None = Head(config.vocab_size, config.hidden_size)
        self.plan = Plan(
            first=("embedding",),
            blocks=("blocks",),
            last=("norm", "head"),
            tensor={
                "embedding": "vocab",
                "head": "logits",
                "blocks.*.attention.query": "column",
                "blocks.*.attention.key": "column",
                "blocks.*.attention.value": "column",
                "blocks.*.attention.output": "row",
                "blocks.*.ffn.gate": "column",
                "blocks.*.ffn.up": "column",
                "blocks.*.ffn.down": "row",
            },
        )

    def forward(
        self,
        *state: torch.Tensor,
        past: Past | None = None,
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
        # The past holds the prefix from its first call on.
        prefixes = {} if self.prefix is None or (past is not None and past.length) else self.prefix()
        hidden = state[0] if state else self._embed(given.tokens)
        scene = self._scene(given, past, hidden)
        for name, block in self.blocks.items():
            hidden = self._run(block, hidden, scene, prefixes.get(name), past, name)
        if self.head is None:
            return hidden
        hidden = self.norm(hidden if logits_to_keep is None else hidden[:, -logits_to_keep:])
        hidden = hidden.to(self.head.weight.dtype)
        if labels is not None:
            return head_loss(hidden, [(self.head.weight, 1.0)], labels, weights, reduction)
        return self.head(hidden)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill every parameter that exists as a fresh model has it."""
        for module in self.modules():
            if isinstance(module, (nn.Embedding, nn.Linear, Head)):
                nn.init.normal_(module.weight, std=0.02, generator=generator)
            elif isinstance(module, (WideRmsNorm, LayerNorm)):
                nn.init.ones_(module.weight)
            if isinstance(module, (nn.Linear, LayerNorm)) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens)
        return hidden.float() if self.config.fp32_residual else hidden

    def _run(
        self, block: nn.Module, hidden: torch.Tensor, scene: Scene, prefix: Prefix | None, past: Past | None, name: str
    ) -> torch.Tensor:
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(block, hidden, scene, prefix, past, name, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return block(hidden, scene, prefix, past, name)

    def _scene(self, given: Inputs, past: Past | None, hidden: torch.Tensor) -> Scene:
        positions = given.positions
        if positions is None:
            start = 0 if past is None else past.length
            positions = torch.arange(start, start + given.tokens.shape[1], device=given.tokens.device)[None]
        windows = None if given.windows is None else Windows.of(given.windows, given.tokens.shape[1])
        visible = own_sight(given, windows) if past is None else past_sight(given, past)
        if self.prefix is not None:
            visible = self._with_prefix(visible, given if windows is None else windows.columns)
        dtype = matmul_dtype(self.head.weight if False else hidden)
        cosine, sine = rotation(self.config, positions, dtype)
        return Scene(cosine, sine, visible, windows)
