"""ChatGLM2's network: packing, padding, the KV cache and the prefix change no number."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hanlin.layers.kv_cache import KVCache
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.config import ChatGlm2Config
from hanlin.models.chatglm2.model import ChatGlm2, rotation
from hanlin.recipe.tuning import TUNING_METHODS
from hanlin.tuning.apply import apply_tuning

CONFIG = ChatGlm2Config(
    vocab_size=50, hidden_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, ffn_size=32, max_length=64
)
LENGTHS = [[5, 9, 3, 4], [12, 6]]


def make_model(config: ChatGlm2Config = CONFIG, tuning: str = "full", **settings) -> ChatGlm2:
    model, generator = ChatGlm2(config).double(), torch.Generator().manual_seed(0)
    model.init_weights(generator)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3, generator=generator)
    more = {"length": 3} if tuning == "prefix" else {}
    apply_tuning(model, TUNING_METHODS.make({"method": tuning, **more, **settings}), family, generator)
    return model.double()


def packed_rows(length: int = 24) -> dict[str, torch.Tensor]:
    tokens = torch.randint(CONFIG.vocab_size, (len(LENGTHS), length), generator=torch.Generator().manual_seed(1))
    positions, spans = torch.zeros_like(tokens), torch.full_like(tokens, -1)
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for span, count in enumerate(lengths):
            positions[row, start : start + count] = torch.arange(count)
            spans[row, start : start + count] = span
            start += count
    return {"tokens": tokens, "positions": positions, "spans": spans}


@pytest.mark.parametrize("tuning", ["full", "prefix"])
def test_packed_samples_get_the_logits_they_get_alone(tuning: str) -> None:
    model, rows = make_model(tuning=tuning), packed_rows()
    packed = model(**rows)
    for row, lengths in enumerate(LENGTHS):
        for span in range(len(lengths)):
            own = rows["spans"][row] == span
            torch.testing.assert_close(packed[row, own], model(tokens=rows["tokens"][row, own][None])[0])


@pytest.mark.parametrize("tuning", ["full", "prefix"])
def test_gradients_of_packed_samples_are_those_of_each_alone(tuning: str) -> None:
    model, rows = make_model(tuning=tuning), packed_rows()
    labels = torch.where(rows["spans"] < 0, -100, rows["tokens"])
    model(**rows, labels=labels).backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for row, lengths in enumerate(LENGTHS):
        for span in range(len(lengths)):
            own = rows["spans"][row] == span
            model(tokens=rows["tokens"][row, own][None], labels=labels[row, own][None]).backward()
    assert packed
    for name, gradient in packed.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad)


@pytest.mark.parametrize("tuning", ["full", "prefix"])
def test_a_cache_filled_in_pieces_with_padding_on_the_left_changes_nothing(tuning: str) -> None:
    model, tokens = make_model(tuning=tuning), torch.randint(50, (1, 9), generator=torch.Generator().manual_seed(2))
    whole, kv_cache, pieces = model(tokens=tokens), KVCache(), []
    padded = torch.cat((torch.zeros(1, 3, dtype=torch.long), tokens), dim=1)
    positions = (torch.arange(12) - 3).clamp(min=0)[None]
    spans = (torch.arange(12)[None] >= 3).long() - 1
    for part in (slice(0, 5), slice(5, 6), slice(6, 10), slice(10, 11), slice(11, 12)):
        given = {"tokens": padded[:, part], "positions": positions[:, part], "spans": spans[:, part]}
        pieces.append(model(**given, kv_cache=kv_cache))
    torch.testing.assert_close(torch.cat(pieces, dim=1)[:, 3:], whole)


def test_positions_go_on_after_a_cache_and_a_prefix_does_not_count() -> None:
    model, tokens, kv_cache = make_model(tuning="prefix"), torch.arange(7)[None], KVCache()
    pieces = [model(tokens=tokens[:, :4], kv_cache=kv_cache), model(tokens=tokens[:, 4:], kv_cache=kv_cache)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens=tokens))


def test_stages_in_a_row_are_the_whole_model() -> None:
    whole, first, last, rows = make_model(), make_model(), make_model(), packed_rows()
    del first.blocks["1"], last.blocks["0"], last.embedding
    first.norm, first.head = torch.nn.Identity(), None
    torch.testing.assert_close(last(first(**rows), **rows), whole(**rows), rtol=0, atol=0)


def test_the_last_logits_alone_are_the_last_of_all() -> None:
    model, tokens = make_model(), torch.arange(6)[None]
    torch.testing.assert_close(model(tokens=tokens, logits_to_keep=2), model(tokens=tokens)[:, -2:])


def test_the_divisor_interpolates_positions() -> None:
    stretched = replace(CONFIG, position_divisor=4.0)
    torch.testing.assert_close(
        rotation(stretched, torch.tensor([[8]]), torch.float32), rotation(CONFIG, torch.tensor([[2]]), torch.float32)
    )


def test_only_the_legacy_switch_rounds_angles() -> None:
    config, positions = replace(CONFIG, head_dim=32), torch.tensor([[1000]])
    exact = rotation(config, positions, torch.float32)[1]
    plain, legacy = (
        rotation(replace(config, half_rotary=half), positions, torch.float16)[1].float() for half in (False, True)
    )
    torch.testing.assert_close(plain, exact, rtol=0, atol=1e-3)
    # As the original computes its table in fp16: theta, position and product are rounded.
    theta = 1.0 / (10000 ** (torch.arange(0, 16, 2, dtype=torch.float16) / 16))
    angles = torch.outer(torch.tensor([1000.0]).half(), theta).float()
    torch.testing.assert_close(legacy[0, :, 0], angles.sin().half().float(), rtol=0, atol=2e-2)
    assert (legacy - exact).abs().max() > 0.01


def test_a_wide_residual_runs_on_half_weights() -> None:
    for norm in ("rms", "layer"):
        model = ChatGlm2(replace(CONFIG, fp32_residual=True, norm=norm))
        model.init_weights(torch.Generator().manual_seed(0))
        tokens = torch.arange(6)[None]
        exact, half = model(tokens=tokens), model.bfloat16()(tokens=tokens)
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), exact, rtol=0, atol=5e-3)


def test_a_fresh_model_learns_nothing_about_its_prefix() -> None:
    model = make_model(tuning="prefix")
    before = model.get_parameter("prefix.embedding.weight").clone()
    model.init_weights()
    assert model.get_parameter("prefix.embedding.weight").equal(before)
