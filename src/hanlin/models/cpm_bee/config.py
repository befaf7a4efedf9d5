"""The shape of a CPM-Bee, and the published sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CpmBeeConfig:
    """Plain values; the original's names are in formats.py."""

    # Rows of the embedding.
    vocab_size: int = 86583
    hidden_size: int = 4096
    num_layers: int = 48
    num_heads: int = 32
    # Width of a head; num_heads * head_dim need not be hidden_size.
    head_dim: int = 128
    ffn_size: int = 10240
    # Rows of the position bias table for distances inside a segment.
    num_distance_buckets: int = 256
    # Rows of the position bias table for relations between segments.
    num_relation_buckets: int = 256
    # Distance in tokens; all larger ones share a bucket.
    max_distance: int = 2048
    norm_eps: float = 1e-6
    dropout: float = 0.0
    # Layers of a pruned model whose attention is left out.
    removed_attention: tuple[int, ...] = ()
    # Layers of a pruned model whose feed-forward is left out.
    removed_ffn: tuple[int, ...] = ()
    # True: the rotation frequencies are rounded to fp16, as in every checkpoint that was trained in fp16.
    half_frequencies: bool = True


_KEPT_ATTENTION = (0, 2, 8, 9, 14, 16, 17, 20, 21, 24, 26, 29, 31, 33, 39, 41, 44, 46, 47)
_KEPT_FFN = (0, 1, 2, 3, 5, 8, 9, 11, 12, 14, 16, 18, 20, 24, 26, 29, 31, 33, 35, 39, 41, 44, 46, 47)


def _pruned(**changes: Any) -> CpmBeeConfig:
    # The layers are confirmed for 2B by a public port; 1B and 5B keep the same number, likely the same ones.
    return CpmBeeConfig(
        removed_attention=tuple(layer for layer in range(48) if layer not in _KEPT_ATTENTION),
        removed_ffn=tuple(layer for layer in range(48) if layer not in _KEPT_FFN),
        **changes,
    )


SIZES = {
    "tiny": CpmBeeConfig(hidden_size=128, num_layers=4, num_heads=4, head_dim=32, ffn_size=320, half_frequencies=False),
    "small": CpmBeeConfig(
        hidden_size=256, num_layers=6, num_heads=8, head_dim=32, ffn_size=640, half_frequencies=False
    ),
    "1b": _pruned(num_heads=32, head_dim=40, ffn_size=1024),
    "2b": _pruned(num_heads=32, head_dim=64, ffn_size=5120),
    "3b": CpmBeeConfig(hidden_size=2560, num_layers=32, num_heads=32, head_dim=80, ffn_size=3072, vocab_size=86580),
    "5b": _pruned(),
    "10b": CpmBeeConfig(),
}
