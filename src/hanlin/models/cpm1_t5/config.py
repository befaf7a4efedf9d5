"""The shape of the T5 of CPM-1's pretraining program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Cpm1T5Config:
    """Plain values; the original's names are in formats.py. The defaults are those of its example script."""

    # Rows of the embedding: the tokenizer's ids, filled up; all take part in the softmax.
    vocab_size: int = 26240
    hidden_size: int = 128
    # Blocks of the encoder, and again of the decoder.
    num_layers: int = 2
    num_heads: int = 8
    # Width of a head; num_heads * head_dim need not be hidden_size.
    head_dim: int = 16
    ffn_size: int = 256
    # Rows of the position table, which encoder and decoder share.
    max_length: int = 1024
    norm_eps: float = 1e-5
    gelu: Literal["tanh", "erf"] = "erf"
    # True: the residual of self-attention (not of the rest) is what the norm put out.
    residual_after_norm: bool = False
    # Share dropped after the embedding, attention and ffn, in training only.
    dropout: float = 0.1
    # Share of the attention's probabilities that is dropped, in training only.
    attention_dropout: float = 0.1
    # Megatron's form: rows of the embedding are filled up to a multiple of this and the tensor ranks. No effect here.
    vocab_multiple: int = 128
    # Spread of fresh weights; those of output and down are smaller by sqrt(2 * num_layers).
    init_std: float = 0.02


SIZES = {
    # That of the original's example script.
    "script": Cpm1T5Config(),
    "tiny": Cpm1T5Config(max_length=256),
    # The shape of CPM-1's small GPT-2, on both sides.
    "small": Cpm1T5Config(hidden_size=768, num_layers=12, num_heads=12, head_dim=64, ffn_size=3072),
}
