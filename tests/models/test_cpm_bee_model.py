"""The network against itself: two ways to the same numbers. (Equality with the original is in tests/golden.)"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hanlin.layers.kv_cache import KVCache
from hanlin.models.cpm_bee.config import CpmBeeConfig
from hanlin.models.cpm_bee.model import CpmBee

CONFIG = CpmBeeConfig(
    vocab_size=50,
    hidden_size=16,
    num_layers=3,
    num_heads=2,
    head_dim=6,
    ffn_size=24,
    num_distance_buckets=8,
    num_relation_buckets=12,
    max_distance=16,
    removed_attention=(1,),
    removed_ffn=(2,),
    half_frequencies=False,
)
NUM_SEGMENTS = 3
EXACT = {"atol": 1e-12, "rtol": 1e-12}


def make_model(config: CpmBeeConfig = CONFIG) -> CpmBee:
    model = CpmBee(config).double()
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def make_sample(length: int, seed: int) -> dict[str, torch.Tensor]:
    """One sample `[1, length]`: three segments, the last one an answer; a relation table of its own."""
    draw = torch.Generator().manual_seed(seed)
    segments = torch.arange(length) * NUM_SEGMENTS // length
    relations = torch.randint(2, 12, (NUM_SEGMENTS, NUM_SEGMENTS), generator=draw).fill_diagonal_(0)
    return {
        "tokens": torch.randint(0, 50, (1, length), generator=draw),
        "subs": torch.randint(0, 3, (1, length), generator=draw),
        "is_context": (segments < NUM_SEGMENTS - 1)[None],
        "sample_ids": torch.zeros(1, length, dtype=torch.long),
        "num_segments": torch.full((1, length), NUM_SEGMENTS),
        "segments": segments[None],
        "relation_offsets": torch.zeros(1, length, dtype=torch.long),
        "relations": relations.flatten()[None],
        "ext_tokens": torch.tensor([[4, 7]]),
        "ext_subs": torch.tensor([[1, 2]]),
    }


def pack(samples: list[dict[str, torch.Tensor]], padding: int) -> dict[str, torch.Tensor]:
    """The samples as one row, padded with zeros."""
    lengths = [sample["tokens"].shape[1] for sample in samples]
    columns = [name for name in samples[0] if not name.startswith("ext_") and name != "relations"]
    row = {name: torch.cat([*(s[name] for s in samples), zeros(samples[0][name], padding)], 1) for name in columns}
    row["relations"] = torch.cat([sample["relations"] for sample in samples], 1)
    row["relation_offsets"] = spread([number * NUM_SEGMENTS**2 for number in range(len(samples))], lengths, padding)
    row["spans"] = spread(list(range(len(samples))), lengths, padding)
    row["lengths"] = torch.tensor([sum(lengths)])
    return row | {name: samples[0][name] for name in ("ext_tokens", "ext_subs")}


def zeros(like: torch.Tensor, count: int) -> torch.Tensor:
    return torch.zeros(1, count, dtype=like.dtype)


def spread(numbers: list[int], lengths: list[int], padding: int) -> torch.Tensor:
    repeated = torch.repeat_interleave(torch.tensor(numbers), torch.tensor(lengths))
    return torch.cat([repeated, torch.zeros(padding, dtype=torch.long)])[None]


def windows_of(lengths: list[int]) -> torch.Tensor:
    windows = torch.full((1, len(lengths), max(lengths)), -1)
    start = 0
    for number, length in enumerate(lengths):
        windows[0, number, :length] = torch.arange(start, start + length)
        start += length
    return windows


def gradients(model: CpmBee, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs, labels=labels).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


LENGTHS = [7, 11, 5]


@pytest.fixture
def samples() -> list[dict[str, torch.Tensor]]:
    return [make_sample(length, seed) for seed, length in enumerate(LENGTHS)]


def test_windows_change_no_logit_and_no_gradient(samples: list[dict[str, torch.Tensor]]) -> None:
    model, row = make_model(), pack(samples, padding=3)
    inside = row | {"windows": windows_of(LENGTHS)}
    real = slice(sum(LENGTHS))
    torch.testing.assert_close(model(**inside)[:, real], model(**row)[:, real], **EXACT)

    labels = torch.where(row["is_context"], -100, row["tokens"])
    labels[:, sum(LENGTHS) :] = -100
    labels[0, 6] = 51  # an entry of the ext table
    torch.testing.assert_close(gradients(model, inside, labels), gradients(model, row, labels), atol=1e-10, rtol=1e-10)


def test_two_rows_with_windows_equal_the_rows_alone(samples: list[dict[str, torch.Tensor]]) -> None:
    model = make_model()
    rows = [pack(samples, padding=0), pack(samples[::-1], padding=0)]
    windows = [windows_of(LENGTHS), windows_of(LENGTHS[::-1])]
    both = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    sharded = model(**both, windows=torch.cat(windows))
    torch.testing.assert_close(sharded, torch.cat([model(**row) for row in rows]), **EXACT)


def test_packed_samples_do_not_see_each_other(samples: list[dict[str, torch.Tensor]]) -> None:
    model = make_model()
    packed = model(**pack(samples, padding=2), windows=windows_of(LENGTHS))
    alone = torch.cat([model(**sample) for sample in samples], dim=1)
    torch.testing.assert_close(packed[:, : sum(LENGTHS)], alone, **EXACT)


def test_padding_does_not_change_logits(samples: list[dict[str, torch.Tensor]]) -> None:
    model = make_model()
    padded = model(**pack(samples[:1], padding=6))
    assert padded.isfinite().all()
    torch.testing.assert_close(padded[:, : LENGTHS[0]], model(**samples[0]), **EXACT)


def test_answers_fed_one_by_one_equal_one_pass() -> None:
    model, sample = make_model(), make_sample(9, seed=3)
    whole = model(**sample)
    columns = sample | {"positions": torch.arange(9)[None]}
    # Left padding: two columns with no segments that nobody sees.
    padded = {
        n: torch.cat([zeros(t, 2), t], 1) if t.shape[1] == 9 and n != "relations" else t for n, t in columns.items()
    }
    kv_cache, pieces = KVCache(), []
    for part in (slice(0, 8), slice(8, 9), slice(9, 11)):
        cut = {n: t[:, part] if t.shape[1] == 11 else t for n, t in padded.items()}
        pieces.append(model(**cut, kv_cache=kv_cache))
    torch.testing.assert_close(torch.cat(pieces, 1)[:, 2:], whole, **EXACT)


def test_logits_to_keep_are_the_last_ones() -> None:
    model, sample = make_model(), make_sample(9, seed=3)
    torch.testing.assert_close(model(**sample, logits_to_keep=2), model(**sample)[:, -2:], **EXACT)


def test_the_loss_is_the_cross_entropy_of_the_logits() -> None:
    model, sample = make_model(), make_sample(9, seed=3)
    labels = torch.tensor([[-100, 3, -100, 51, 50, 2, -100, 0, 49]])
    weights = torch.linspace(0.5, 2, 9)[None].double()
    losses = torch.nn.functional.cross_entropy(model(**sample)[0], labels[0], reduction="none") * weights[0]
    torch.testing.assert_close(model(**sample, labels=labels, weights=weights), losses.sum(), **EXACT)
    each = model(**sample, labels=labels, weights=weights, reduction="none")
    torch.testing.assert_close(each[0], losses.detach(), **EXACT)


def test_a_cut_model_hands_on_the_hidden_state() -> None:
    model, sample = make_model(), make_sample(9, seed=3)
    whole = model(**sample)
    first, last = make_model(), make_model()
    first.norm = None
    del first.blocks["1"], first.blocks["2"]
    del last.blocks["0"]
    torch.testing.assert_close(last(first(**sample), **sample), whole, **EXACT)


def test_a_pruned_block_has_no_parameters_and_a_name() -> None:
    model = make_model(replace(CONFIG, removed_ffn=(1, 2)))
    assert list(model.blocks) == ["0", "1", "2"]
    assert not [name for name, _ in model.named_parameters() if name.startswith("blocks.1.")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_near_fp32(dtype: torch.dtype, samples: list[dict[str, torch.Tensor]]) -> None:
    model, row = make_model().float(), pack(samples, padding=2) | {"windows": windows_of(LENGTHS)}
    labels = torch.where(row["is_context"], -100, row["tokens"])
    expected = model(**row, labels=labels)
    with torch.autocast("cpu", dtype=dtype):
        loss = model(**row, labels=labels)
    loss.backward()
    # bf16 keeps 8 bits: logits of about 4 are off by a few hundredths.
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0.0)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_a_half_model_stays_near_fp32() -> None:
    model, sample = make_model(replace(CONFIG, half_frequencies=True)).float(), make_sample(9, seed=3)
    expected = model(**sample)
    torch.testing.assert_close(model.half()(**sample).float(), expected, atol=0.1, rtol=0.02)


def test_an_unknown_input_is_refused() -> None:
    with pytest.raises(TypeError, match="segmants"):
        make_model()(**make_sample(9, seed=3), segmants=None)


def test_the_plan_names_what_exists() -> None:
    model = make_model()
    parts = [*model.plan.first, *model.plan.blocks, *model.plan.last, *model.plan.shared]
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == set(parts)
    names = {name for name, _ in model.named_modules()}
    assert {pattern.replace("*", "0") for pattern in model.plan.tensor} <= names
