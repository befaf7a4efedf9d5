"""CPM-1's network: equal numbers however it is fed, cut or recomputed."""

from __future__ import annotations

import torch
from torch import nn

from hanlin.layers.kv_cache import KVCache
from hanlin.models.cpm1.config import Cpm1Config, shape
from hanlin.models.cpm1.model import Cpm1, FeedForward

CONFIG = shape(32, 2, 4, vocab_size=50, max_length=24, dropout=0.0, attention_dropout=0.0, init_std=0.2)


def make(config: Cpm1Config = CONFIG) -> Cpm1:
    model = Cpm1(config)
    model.init_weights(torch.Generator().manual_seed(0))
    return model.eval()


def tokens(rows: int = 2, length: int = 10) -> torch.Tensor:
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(1))


def test_cached_columns_equal_uncached_ones() -> None:
    model, ids, kv_cache = make(), tokens(), KVCache()
    parts = [model(tokens=part, kv_cache=kv_cache) for part in ids.split([4, 1, 3, 2], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens=ids))


def test_samples_of_a_packed_row_do_not_see_each_other() -> None:
    model, ids = make(), tokens(1)
    spans = torch.tensor([[0] * 4 + [1] * 6])
    positions = torch.tensor([[*range(4), *range(6)]])
    packed = model(tokens=ids, spans=spans, positions=positions)
    alone = torch.cat((model(tokens=ids[:, :4]), model(tokens=ids[:, 4:])), dim=1)
    torch.testing.assert_close(packed, alone)


def test_a_cut_model_gives_the_same_loss_and_gradients() -> None:
    whole, first, last, ids = make(), make(), make(), tokens()
    del first.blocks["1"], last.blocks["0"]
    first.norm = None
    del last.positions
    labels = ids.roll(-1, 1)
    loss = whole(tokens=ids, labels=labels)
    loss.backward()
    cut = last(first(tokens=ids), tokens=ids, labels=labels)
    cut.backward()
    torch.testing.assert_close(cut, loss)
    tied = [model.embedding.weight.grad for model in (first, last)]
    assert tied[0] is not None
    assert tied[1] is not None
    torch.testing.assert_close(tied[0] + tied[1], whole.embedding.weight.grad)


def test_dropout_acts_in_training_only() -> None:
    config = shape(32, 1, 4, vocab_size=50, max_length=24, dropout=0.0, attention_dropout=0.5, init_std=0.2)
    model, ids = make(config), tokens()
    assert torch.equal(model(tokens=ids), model(tokens=ids))
    model.train()
    assert not torch.equal(model(tokens=ids), model(tokens=ids))


def test_the_residual_may_be_what_the_norm_put_out() -> None:
    for is_after in (False, True):
        config = shape(32, 1, 4, vocab_size=50, max_length=24, residual_after_norm=is_after, init_std=0.2)
        ffn, hidden = FeedForward(config).eval(), torch.randn(1, 3, 32)
        nn.init.zeros_(ffn.down.weight)
        nn.init.zeros_(ffn.down.bias)
        torch.testing.assert_close(ffn(hidden), ffn.norm(hidden) if is_after else hidden)


def test_fresh_weights_have_the_original_spread() -> None:
    model = Cpm1(shape(256, 2, 4, vocab_size=500))
    model.init_weights(torch.Generator().manual_seed(0))
    names = ("embedding.weight", "blocks.0.ffn.up.weight", "blocks.0.ffn.down.weight")
    spreads = [model.get_parameter(name).std().item() for name in names]
    torch.testing.assert_close(torch.tensor(spreads), torch.tensor([0.02, 0.02, 0.01]), rtol=0.02, atol=0)
    assert not model.get_parameter("blocks.0.ffn.up.bias").any()
