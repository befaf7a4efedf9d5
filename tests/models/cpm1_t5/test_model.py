"""The T5 of CPM-1's pretraining program: equal numbers however it is fed or cut."""

from __future__ import annotations

import torch

from hanlin.layers.kv_cache import KVCache
from hanlin.models.cpm1_t5.config import Cpm1T5Config
from hanlin.models.cpm1_t5.model import Cpm1T5

CONFIG = Cpm1T5Config(
    vocab_size=50, hidden_size=32, num_heads=4, head_dim=6, ffn_size=40, max_length=24, dropout=0.0,
    attention_dropout=0.0, init_std=0.2,
)  # fmt: skip


def make() -> Cpm1T5:
    model = Cpm1T5(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    return model.eval()


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = {"tokens": (2, 7), "encoder_tokens": (2, 9)}
    return {name: torch.randint(0, 50, size, generator=generator) for name, size in sizes.items()}


def test_cached_columns_equal_uncached_ones() -> None:
    model, given, kv_cache = make(), inputs(), KVCache()
    read = given["encoder_tokens"]
    parts = [
        model(tokens=part, encoder_tokens=read, kv_cache=kv_cache) for part in given["tokens"].split([3, 1, 3], dim=1)
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(**given))


def test_samples_of_a_packed_row_do_not_see_each_other() -> None:
    model, given = make(), {name: ids[:1] for name, ids in inputs().items()}
    spans = {"spans": torch.tensor([[0] * 3 + [1] * 4]), "encoder_spans": torch.tensor([[0] * 5 + [1] * 4])}
    places = {
        "positions": torch.tensor([[*range(3), *range(4)]]),
        "encoder_positions": torch.tensor([[*range(5), *range(4)]]),
    }
    packed = model(**given, **spans, **places)
    tokens, read = given["tokens"], given["encoder_tokens"]
    first = model(tokens=tokens[:, :3], encoder_tokens=read[:, :5])
    second = model(tokens=tokens[:, 3:], encoder_tokens=read[:, 5:])
    torch.testing.assert_close(packed, torch.cat((first, second), dim=1))


def test_a_cut_model_gives_the_same_loss() -> None:
    whole, first, last, given = make(), make(), make(), inputs()
    for name in ("2", "3"):
        del first.blocks[name]
    for name in ("0", "1"):
        del last.blocks[name]
    first.norm = None
    del last.positions
    labels = given["tokens"].roll(-1, 1)
    state = first(**given)
    assert isinstance(state, tuple)
    torch.testing.assert_close(last(*state, **given, labels=labels), whole(**given, labels=labels))
