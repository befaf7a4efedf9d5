"""The shape of a CPM-1 (a GPT-2 in two forms), and the published sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Cpm1Config:
    """Plain values; the originals' names are in formats.py. The defaults are the published CPM-1 of 2.6 B."""

    # Rows of the embedding. A model of the pretraining program has some more than the tokenizer has ids; they take part
    # in the softmax.
    vocab_size: int = 30000
    hidden_size: int = 2560
    num_layers: int = 32
    num_heads: int = 32
    # Width of a head; the originals only know hidden_size / num_heads.
    head_dim: int = 80
    # Inner width of the feed-forward; the originals only know 4 * hidden_size.
    ffn_size: int = 10240
    # Rows of the position table: the longest text.
    max_length: int = 1024
    norm_eps: float = 1e-5
    # tanh: the released models' approximation of GELU; erf: the exact form, the default of the pretraining program.
    gelu: Literal["tanh", "erf"] = "tanh"
    # True: the residual is what the norm put out, not what went in.
    residual_after_norm: bool = False
    # Share dropped after the embedding, attention and ffn, in training only.
    dropout: float = 0.1
    # Share of the attention's probabilities that is dropped, in training only.
    attention_dropout: float = 0.1
    # Megatron's form: rows of the embedding are filled up to a multiple of this and the tensor ranks. No effect here.
    vocab_multiple: int = 128
    # Spread of fresh weights; those of attention.output and ffn.down are smaller by sqrt(2 * num_layers).
    init_std: float = 0.02


def shape(hidden_size: int, num_layers: int, num_heads: int, **others: object) -> Cpm1Config:
    """A GPT-2 with the originals' proportions."""
    return Cpm1Config(
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        head_dim=hidden_size // num_heads,
        ffn_size=4 * hidden_size,
        **others,  # pyright: ignore[reportArgumentType]: checked by the dataclass's own names
    )


SIZES = {
    "tiny": shape(128, 2, 4, max_length=256),
    "small": shape(768, 12, 12),
    "medium": shape(1024, 24, 16),
    "large": shape(2560, 32, 32),
}
