"""The shape of a CPM-2, and the published sizes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cpm2Config:
    """Plain values; the original's names are in formats.py."""

    # Rows of the embedding and of the head, which are two tables: 26240 with cn, 51968 with cn_en.
    vocab_size: int = 26240
    hidden_size: int = 4096
    # Blocks of the encoder, and again of the decoder.
    num_layers: int = 24
    num_heads: int = 64
    # Width of a head; num_heads * head_dim need not be hidden_size.
    head_dim: int = 64
    ffn_size: int = 10240
    # Experts of every feed-forward, of which a token passes one. 0: there is just one feed-forward.
    num_experts: int = 0
    # Rows of each of the two position bias tables.
    num_distance_buckets: int = 32
    # Distance in tokens; all larger ones share a bucket.
    max_distance: int = 128
    norm_eps: float = 1e-6
    dropout: float = 0.0
    # Spread of fresh weights.
    init_std: float = 0.001
    # True: fresh weights of attention.output and ffn.down are smaller by sqrt(2 * num_layers).
    scaled_init: bool = True


SIZES = {
    "tiny": Cpm2Config(hidden_size=128, num_layers=2, num_heads=4, head_dim=32, ffn_size=320, init_std=0.02),
    "small": Cpm2Config(hidden_size=256, num_layers=4, num_heads=8, head_dim=32, ffn_size=640, init_std=0.02),
    "11b": Cpm2Config(),
    "11b-cn-en": Cpm2Config(vocab_size=51968),
    "198b": Cpm2Config(vocab_size=51968, num_experts=32),
}
