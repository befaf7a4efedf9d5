"""A whole model in one file: a small GPT over characters; docs/your_own_model.md walks through it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from hanlin.core.plan import Plan
from hanlin.layers.attention import AttentionMask, attention, cached_causal_mask
from hanlin.layers.kv_cache import KVCache
from hanlin.layers.loss import head_logits, head_loss
from hanlin.layers.norm import RmsNorm
from hanlin.models.common.text_processor import TextOptions, TextProcessor
from hanlin.models.family import Family


@dataclass(frozen=True)
class MyConfig:
    """The shape of the model; a recipe may change any value (`model.config: {num_layers: 2}`)."""

    vocab_size: int = 0  # as many as the tokenizer has
    hidden_size: int = 64
    num_layers: int = 4
    num_heads: int = 4
    max_length: int = 64


class Characters:
    """The tokenizer: every character of some text is a token."""

    def __init__(self, text: str) -> None:
        self.tokens = ["<pad>", "<eod>", "<unk>", *sorted(set(text))]
        self.vocab_size, self.fingerprint = len(self.tokens), "".join(self.tokens)
        self.ids = {token: id for id, token in enumerate(self.tokens)}
        self.find = self.ids.get

    @classmethod
    def load(cls, path: Path) -> Characters:
        return cls((path / "characters.txt" if path.is_dir() else path).read_text("utf-8"))

    def save(self, folder: Path) -> None:
        (folder / "characters.txt").write_text("".join(self.tokens[3:]), "utf-8")

    def encode(self, text: str) -> list[int]:
        return [self.ids.get(character, self.ids["<unk>"]) for character in text]

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.tokens[id] for id in ids)


class MyModel(nn.Module):
    """Single-device code, and a plan that says where it may be cut and divided."""

    def __init__(self, config: MyConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_length, config.hidden_size)
        self.blocks = nn.ModuleDict({str(number): Block(config) for number in range(config.num_layers)})
        self.norm = RmsNorm(config.hidden_size, 1e-5)
        self.plan = Plan(
            first=("embedding", "positions"),
            blocks=("blocks",),
            last=("norm", "embedding"),  # the embedding is the head as well
            tensor={"embedding": "vocab", "blocks.*.query": "query", "blocks.*.key": "kv", "blocks.*.value": "kv",
                    "blocks.*.output": "row", "blocks.*.up": "column", "blocks.*.down": "row"},
            head_dim=config.hidden_size // config.num_heads,
        )  # fmt: skip

    def forward(
        self, *state: Tensor, tokens: Tensor, positions: Tensor, spans: Tensor | None = None,
        kv_cache: KVCache | None = None, labels: Tensor | None = None, weights: Tensor | None = None,
        reduction: Literal["sum", "none"] = "sum", logits_to_keep: int | None = None,
    ) -> Tensor:  # fmt: skip
        hidden = state[0] if state else self.embedding(tokens) + self.positions(positions)
        spans = torch.zeros_like(tokens) if spans is None else spans
        mask = cached_causal_mask(spans, spans if kv_cache is None else kv_cache.add_positions(spans=spans)["spans"])
        for name, block in self.blocks.items():
            hidden = block(hidden, mask, kv_cache, name)
        if self.norm is None:  # the last part is on another device
            return hidden
        hidden = self.norm(hidden if logits_to_keep is None else hidden[:, -logits_to_keep:])
        head = [(self.embedding.weight, 1.0)]
        return head_logits(hidden, head) if labels is None else head_loss(hidden, head, labels, weights, reduction)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        for name, weight in self.named_parameters():
            nn.init.ones_(weight) if "norm" in name else nn.init.normal_(weight, std=0.05, generator=generator)


class Block(nn.Module):
    def __init__(self, config: MyConfig) -> None:
        super().__init__()
        size, self.head_dim = config.hidden_size, config.hidden_size // config.num_heads
        self.attention_norm, self.ffn_norm = RmsNorm(size, 1e-5), RmsNorm(size, 1e-5)
        self.query, self.key, self.value, self.output = (nn.Linear(size, size, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(size, 4 * size, bias=False), nn.Linear(4 * size, size, bias=False)

    def forward(self, hidden: Tensor, mask: AttentionMask, kv_cache: KVCache | None, name: str) -> Tensor:
        normed = self.attention_norm(hidden)
        parts = (linear(normed).unflatten(-1, (-1, self.head_dim)) for linear in (self.query, self.key, self.value))
        query, key, value = (part.transpose(1, 2) for part in parts)  # [batch, heads, length, head_dim]
        if kv_cache is not None:
            key, value = kv_cache.update(name, key, value)
        hidden = hidden + self.output(attention(query, key, value, mask))
        return hidden + self.down(nn.functional.gelu(self.up(self.ffn_norm(hidden))))


family = Family(
    name="my_model", title="My model", config=MyConfig, model=lambda: MyModel, tokenizer=Characters.load,
    processor=TextProcessor, options=TextOptions,  # records are texts, or prompts with answers
    lora_targets=("query", "value"),
)  # fmt: skip
