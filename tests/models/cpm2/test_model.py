"""CPM-2's network: packing, padding, the KV cache, cutting and recomputing change no number."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hanlin.layers.kv_cache import KVCache
from hanlin.layers.soft_prompt import SoftPrompt
from hanlin.models.cpm2.config import SIZES, Cpm2Config
from hanlin.models.cpm2.model import Cpm2

CONFIG = Cpm2Config(vocab_size=50, hidden_size=24, num_layers=2, num_heads=3, head_dim=4, ffn_size=32, init_std=0.3)


def make_model(prompts: SoftPrompt | None = None) -> Cpm2:
    model, generator = Cpm2(CONFIG), torch.Generator().manual_seed(0)
    model.init_weights(generator)
    if prompts is not None:
        prompts.init_addition(generator)
        model.soft_prompt = prompts
    return model.double().eval()


def tokens_of(rows: int, length: int, seed: int) -> torch.Tensor:
    return torch.randint(CONFIG.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def packed_row() -> dict[str, torch.Tensor]:
    """Two samples and padding: 5 + 7 columns read, 3 + 4 written."""
    spans = torch.tensor([[0] * 3 + [1] * 4 + [-1] * 2])
    encoder_spans = torch.tensor([[0] * 5 + [1] * 7 + [-1]])
    tokens = {"tokens": tokens_of(1, 9, 1), "encoder_tokens": tokens_of(1, 13, 2)}
    return {**tokens, "spans": spans, "encoder_spans": encoder_spans}


def test_packed_samples_get_the_logits_they_get_alone() -> None:
    model, row = make_model(), packed_row()
    packed = model(**row)
    for span in range(2):
        own, read = row["spans"][0] == span, row["encoder_spans"][0] == span
        alone = model(tokens=row["tokens"][:, own], encoder_tokens=row["encoder_tokens"][:, read])
        torch.testing.assert_close(packed[0, own], alone[0])


def test_padding_gets_no_gradient() -> None:
    model, row = make_model(), packed_row()
    row["tokens"][row["spans"] < 0] = 49
    row["encoder_tokens"][row["encoder_spans"] < 0] = 49
    row["tokens"][row["spans"] >= 0] %= 49
    row["encoder_tokens"][row["encoder_spans"] >= 0] %= 49
    model(**row, labels=torch.where(row["spans"] < 0, -100, 3)).backward()
    assert model.embedding.weight.grad is not None
    assert not model.embedding.weight.grad[49].any()
    assert all(bool(weight.grad.isfinite().all()) for weight in model.parameters() if weight.grad is not None)


def test_the_cache_does_not_change_logits() -> None:
    model = make_model()
    tokens, read = tokens_of(2, 6, 3), tokens_of(2, 8, 4)
    encoder_spans = torch.tensor([[0] * 8, [0] * 5 + [-1] * 3])
    whole = model(tokens=tokens, encoder_tokens=read, encoder_spans=encoder_spans)
    kv_cache, parts = KVCache(), []
    for piece in tokens.split([0, 3, 1, 1, 1], dim=1):
        parts.append(model(tokens=piece, encoder_tokens=read, encoder_spans=encoder_spans, kv_cache=kv_cache))
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_a_cut_model_yields_the_whole_ones_logits() -> None:
    row = packed_row()
    wanted, state = make_model()(**row), ()
    # The cuts stand inside the encoder, behind it, and inside the decoder.
    stages = [({"0"}, set()), ({"1"}, set()), (set(), {"0"}), (set(), {"1"})]
    for number, kept in enumerate(stages):
        stage = make_model()
        for name, keep in zip(stage.plan.blocks, kept, strict=True):
            blocks = stage.get_submodule(name)
            for block in set(dict(blocks.named_children())) - keep:
                del blocks[block]  # pyright: ignore
        if number < len(stages) - 1:
            stage.head = None
        state = stage(*state, **row)
    torch.testing.assert_close(state, wanted)


def test_prompts_are_looked_up_below_zero_and_hide_as_asked() -> None:
    read = torch.tensor([[-1, 7, -3, 8]])
    for sees_tokens, is_seen, hidden in ((True, True, []), (False, True, [(0, 1)]), (True, False, [(1, 0)])):
        prompts = SoftPrompt(3, CONFIG.hidden_size, sees_tokens=sees_tokens, is_seen=is_seen)
        torch.nn.init.normal_(prompts.weight, generator=torch.Generator().manual_seed(1))
        visible = prompts.restrict(torch.ones(1, 4, 4, dtype=torch.bool), read)[0]
        for query in range(4):
            for key in range(4):
                kinds = (int(read[0, query] > 0), int(read[0, key] > 0))
                assert bool(visible[query, key]) == (kinds not in hidden)
        embedding = make_model().float().embedding
        vectors = prompts(read, embedding)[0]
        assert vectors[0].equal(prompts.weight[0])
        assert vectors[2].equal(prompts.weight[2])
        assert vectors[1].equal(embedding.weight[7])


def test_a_mixture_of_experts_trains_every_expert() -> None:
    model, row = Cpm2(replace(CONFIG, num_experts=2)), packed_row()
    model.init_weights(torch.Generator().manual_seed(0))
    model.train()(**row, labels=row["tokens"].where(row["spans"] >= 0, -100)).backward()
    for name, weight in model.named_parameters():
        assert (weight.grad is None) == name.endswith("centroids"), name


def test_the_198b_has_the_reports_number_of_parameters() -> None:
    with torch.device("meta"):
        small = Cpm2(replace(SIZES["198b"], num_layers=1))
    in_blocks = [sum(w.numel() for w in blocks.parameters()) for blocks in (small.encoder_blocks, small.decoder_blocks)]
    tables = small.embedding.weight.numel() * 2
    assert (24 * sum(in_blocks) + tables) / 1e9 == pytest.approx(198.5, abs=0.1)
