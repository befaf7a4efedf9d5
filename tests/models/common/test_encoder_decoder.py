"""The pass of encoder-decoders: what is computed once, and what a stage without its blocks still does."""

from __future__ import annotations

import pytest
import torch

from hanlin.layers.attention import AttentionMask
from hanlin.layers.kv_cache import KVCache
from hanlin.models.common.encoder_decoder import DecoderContext, join_state
from hanlin.models.cpm1_t5.config import Cpm1T5Config
from hanlin.models.cpm1_t5.model import Cpm1T5

TOKENS = {"tokens": torch.tensor([[1, 2, 3]]), "encoder_tokens": torch.tensor([[4, 5]])}


def test_keys_and_values_of_the_encoders_output_are_projected_once() -> None:
    calls, mask, kv_cache = [], AttentionMask(), KVCache()

    def project(encoded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(encoded)
        return encoded + 1, encoded + 2

    first = DecoderContext(mask, mask, torch.zeros(1, 1, 1, 2), kv_cache, {}, 1).cross_attention_kv("0", project)
    later = DecoderContext(mask, mask, None, kv_cache, {}, 1).cross_attention_kv("0", project)
    assert len(calls) == 1
    for one, other in zip(first, later, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


@pytest.mark.parametrize("kept", [("0", "1"), ("2", "3")])
def test_a_stage_of_one_side_counts_the_columns(kept: tuple[str, ...]) -> None:
    model = Cpm1T5(Cpm1T5Config(vocab_size=8, hidden_size=8, num_heads=2, head_dim=4, ffn_size=8))
    model.init_weights(torch.Generator().manual_seed(0))
    model.norm = None
    for name in set(model.blocks) - set(kept):
        del model.blocks[name]
    kv_cache = KVCache()
    state = model(kv_cache=kv_cache, **TOKENS)
    assert [tuple(part.shape) for part in state] == [(1, 2, 8), (1, 3, 8)]
    assert kv_cache.length == 3
    assert len(model(kv_cache=kv_cache, **TOKENS)) == 1  # the encoder has run
    assert kv_cache.length == 6


def test_the_state_of_a_later_call_is_the_decoders_alone() -> None:
    hidden = torch.zeros(1)
    assert join_state(None, hidden) == (hidden,)
    assert len(join_state(hidden, hidden)) == 2
