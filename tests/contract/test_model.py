"""Of a network: however rows are fed, packed, cut or made, the numbers are the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from family_cases import Case, summed_loss
from torch.nn import functional

from hanlin.core.batch import IGNORED, Batch
from hanlin.layers.kv_cache import KVCache
from hanlin.models.common.init_weights import init_weights
from hanlin.models.family import family_names
from hanlin.parallel.stages import cut

# The models compute in fp64, but parts of them (angles, losses) may be fp32 by design.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
SEED = 7


# --- in steps ---


def test_columns_fed_in_steps_get_the_logits_of_one_pass(case: Case) -> None:
    model = case.model()
    for record in case.records:
        batch = case.batch([record])
        with torch.no_grad():
            whole, stepwise = model(**batch.inputs), fed_in_steps(case, [model], record)
        torch.testing.assert_close(stepwise, whole, **CLOSE)


def test_columns_fed_in_steps_through_cut_stages_get_them_too(case: Case) -> None:
    record = case.records[0]
    with torch.no_grad():
        stepwise = fed_in_steps(case, stages_of(case, 2), record)
        torch.testing.assert_close(stepwise, case.model()(**case.batch([record]).inputs), **CLOSE)


def test_a_prompt_padded_on_the_left_gets_the_logits_that_it_gets_alone(case: Case) -> None:
    model, prompts = case.model(), [case.processor.prompt(record) for record in case.records]
    assert len({prompt.size for prompt in prompts}) > 1, "records of different length are needed"
    sharded = answered(case, model, prompts)
    for number, prompt in enumerate(prompts):
        torch.testing.assert_close(sharded[number], answered(case, model, [prompt])[0], **CLOSE)


def test_the_last_logits_alone_are_those_of_all(case: Case) -> None:
    model, batch = case.model(), case.batch()
    with torch.no_grad():
        torch.testing.assert_close(model(**batch.inputs, logits_to_keep=2), model(**batch.inputs)[:, -2:], **CLOSE)


def fed_in_steps(case: Case, stages: Sequence[Any], record: Any) -> torch.Tensor:
    """A training row fed as a prompt, and then as its answer in steps of one column and of several."""
    batch, sample, prompt = case.batch([record]), case.processor.sample(record), case.processor.prompt(record)
    columns = prompt.cursor.inputs()
    constant = {
        name: batch.inputs[name]
        for name in case.processor.collate_prompts([prompt]).inputs
        if name not in columns and name in batch.inputs
    }
    given = {name: torch.tensor(array)[None] for name, array in sample.inputs.items()} | batch.inputs
    kv_caches, logits = [KVCache() for _ in stages], []
    for part in pieces(prompt.length, batch.inputs["tokens"].shape[1]):
        step = {name: given[name][:, part] for name in columns if name in given}
        if "positions" in columns and "positions" not in step:
            step["positions"] = inner_positions(given, part)
        logits.append(run_stages(stages, {**step, **constant}, kv_caches))
    return torch.cat(logits, 1)


def inner_positions(given: Mapping[str, torch.Tensor], part: slice) -> torch.Tensor:
    """Positions of a family whose training rows need none: they begin at 0 in each segment."""
    segments = given.get("segments", torch.zeros_like(given["tokens"]))[0].tolist()
    return torch.tensor([[segments[:place].count(one) for place, one in enumerate(segments)]])[:, part]


def pieces(prompt: int, length: int) -> list[slice]:
    """The prompt's columns, if it has any, then two, one, and all others."""
    bounds = sorted({0, *(min(end, length) for end in (prompt, prompt + 2, prompt + 3, length))})
    return [slice(start, end) for start, end in pairwise(bounds)]


def answered(case: Case, model: Any, prompts: Sequence[Any]) -> torch.Tensor:
    """The logits of each prompt's first three answer columns, `[prompts, 3, vocab]`; what is answered is fixed."""
    batch, kv_cache, logits = case.processor.collate_prompts(prompts), KVCache(), []
    constant = {name: tensor for name, tensor in batch.inputs.items() if name not in batch.cursors[0].inputs()}
    cursors = list(batch.cursors)
    with torch.no_grad():
        model(**batch.inputs, kv_cache=kv_cache)
        for token in (5, 4, 5):
            columns = [cursor.inputs() for cursor in cursors]
            step = {
                name: torch.tensor([[column[name]] for column in columns], dtype=batch.inputs[name].dtype)
                for name in columns[0]
            }
            logits.append(model(**step, **constant, kv_cache=kv_cache)[:, -1:, : case.config.vocab_size])
            cursors = [cursor.advance(token) for cursor in cursors]
    return torch.cat(logits, 1)


# --- packed ---


def test_packed_samples_have_the_losses_that_they_have_alone(case: Case) -> None:
    model, samples = case.model(), [case.processor.sample(record) for record in case.records]
    by_length = sorted(samples, key=lambda sample: sample.length)
    for row in (samples, [by_length[-1], by_length[0]]):
        packed = case.processor.collate([row], sum(sample.length for sample in row) + 3)
        alone = [case.processor.collate([[sample]], sample.length) for sample in row]
        expected = torch.cat([labelled_losses(model, one) for one in alone])
        torch.testing.assert_close(labelled_losses(model, packed), expected, **CLOSE)
        with torch.no_grad():
            total = sum(summed_loss(model, one) for one in alone)
            torch.testing.assert_close(summed_loss(model, packed), total, **CLOSE)


def test_padding_changes_no_loss(case: Case) -> None:
    model, samples = case.model(), [case.processor.sample(record) for record in case.records]
    longest = max(sample.length for sample in samples)
    short, long = (case.processor.collate([[sample] for sample in samples], longest + more) for more in (0, 5))
    torch.testing.assert_close(labelled_losses(model, long), labelled_losses(model, short), **CLOSE)


def labelled_losses(model: Any, batch: Batch) -> torch.Tensor:
    """The weighted loss of each labelled position, in their order."""
    return summed_loss(model, batch, reduction="none")[batch.labels != IGNORED]


@pytest.mark.parametrize("family", family_names())  # of a model of one's own nobody asks it
def test_no_kernel_has_to_copy_a_mask_in_each_block(
    family: str, make_case: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA's make a float mask of a bool one, and copy one whose rows are not aligned; both are kept for gradients."""
    case, masks = make_case(family), []

    def spy(*parts: torch.Tensor, attn_mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
        if attn_mask is not None:
            masks.append((attn_mask, parts[0].dtype))
        return computed(*parts, attn_mask=attn_mask, **options)

    computed = functional.scaled_dot_product_attention
    monkeypatch.setattr(functional, "scaled_dot_product_attention", spy)
    samples = [case.processor.sample(record) for record in case.records]
    with torch.no_grad():
        summed_loss(case.model(), case.processor.collate([samples, samples[:1]], sum(one.length for one in samples)))
    for mask, dtype in masks:
        assert mask.dtype == dtype
        assert mask.stride(-1) == 1
        assert all(stride % 16 == 0 for stride in mask.stride()[:-1])
    assert len({mask.untyped_storage().data_ptr() for mask, _ in masks}) <= 3  # of encoder, decoder and between them


# --- the batch and its loss ---


def test_every_input_has_the_batch_as_its_first_dimension(case: Case) -> None:
    batch = case.batch()
    tensors = {**batch.inputs, "labels": batch.labels, "weights": batch.weights}
    assert {name: len(tensor) for name, tensor in tensors.items()} == dict.fromkeys(tensors, len(case.records))
    with torch.no_grad():
        logits, own = case.model()(**batch.inputs), case.model()(**batch.part(1, 2).inputs)
    torch.testing.assert_close(logits[1:2], own, **CLOSE)


def test_the_losses_of_two_halves_add_up_to_that_of_the_whole(case: Case) -> None:
    model, batch = case.model(), case.batch()
    with torch.no_grad():
        halves = [summed_loss(model, batch.part(0, 1)), summed_loss(model, batch.part(1, batch.size))]
        torch.testing.assert_close(summed_loss(model, batch), sum(halves), **CLOSE)


def test_the_loss_is_the_sum_of_the_positions_losses_by_their_weights(case: Case) -> None:
    model, batch = case.model(), case.batch()
    heavier = Batch(batch.inputs, batch.labels, batch.weights * 3)
    with torch.no_grad():
        loss = summed_loss(model, batch)
        torch.testing.assert_close(labelled_losses(model, batch).sum().to(loss.dtype), loss, **CLOSE)
        torch.testing.assert_close(summed_loss(model, heavier), 3 * loss, **CLOSE)
    assert loss.ndim == 0
    assert loss.dtype in (torch.float32, torch.float64)


def test_gradients_reach_every_weight(case: Case) -> None:
    model = case.model().train()
    summed_loss(model, case.batch()).backward()
    found = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert [name for name in found if not any(part in name for part in case.unreached)] == []


def test_bf16_autocast_gives_nearly_the_same_loss_and_whole_gradients(case: Case) -> None:
    model, batch = case.model().float(), case.batch()
    with torch.no_grad():
        exact = summed_loss(model, batch).item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = summed_loss(model, batch)
    loss.backward()
    assert math.isclose(loss.item(), exact, rel_tol=0.05)
    assert loss.dtype == torch.float32
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())


# --- cut ---


def test_cut_stages_give_the_logits_of_the_whole(case: Case) -> None:
    batch = case.batch()
    with torch.no_grad():
        whole = case.model()(**batch.inputs)
        for count in stage_counts(case):
            torch.testing.assert_close(run_stages(stages_of(case, count), batch.inputs), whole, **CLOSE)


def test_cut_stages_give_the_loss_and_the_gradients_of_the_whole(case: Case) -> None:
    batch, whole = case.batch(), case.model()
    loss = summed_loss(whole, batch)
    loss.backward()
    given = {**batch.inputs, "labels": batch.labels, "weights": batch.weights}
    for count in stage_counts(case):
        stages = stages_of(case, count)
        parted = run_stages(stages, given)
        parted.backward()
        torch.testing.assert_close(parted, loss, **CLOSE)
        torch.testing.assert_close(gradients(stages), gradients([whole]), **CLOSE)


def stage_counts(case: Case) -> list[int]:
    """Two stages, and one for each block."""
    model = case.empty()
    return sorted({2, sum(len(getattr(model, name)) for name in model.plan.blocks)})


def stages_of(case: Case, count: int) -> list[Any]:
    return [cut(case.model(), number, count) for number in range(count)]


def run_stages(
    stages: Sequence[Any], inputs: Mapping[str, Any], kv_caches: Sequence[KVCache] | None = None
) -> torch.Tensor:
    state: tuple[torch.Tensor, ...] = ()
    for number, stage in enumerate(stages):
        remembers = {} if kv_caches is None else {"kv_cache": kv_caches[number]}
        out = stage(*state, **inputs, **remembers)
        state = out if isinstance(out, tuple) else (out,)
    return state[0]


def gradients(stages: Sequence[Any]) -> dict[str, torch.Tensor]:
    """By name; what several stages hold is added."""
    found: dict[str, torch.Tensor] = {}
    for stage in stages:
        for name, weight in stage.named_parameters():
            if weight.grad is not None:
                found[name] = found.get(name, 0) + weight.grad
    return found


# --- made ---


def test_a_model_on_the_meta_device_has_the_names_and_shapes_of_a_real_one(case: Case) -> None:
    empty, real = case.empty(), case.family.model()(case.config)
    assert all(weight.is_meta for weight in empty.parameters())
    assert shapes(empty) == shapes(real)
    assert {name: tuple(one.shape) for name, one in empty.named_buffers()} == {
        name: tuple(one.shape) for name, one in real.named_buffers()
    }


def test_fresh_weights_are_whole_and_depend_on_the_seed_alone(case: Case) -> None:
    first = dict(init_weights(case.empty, SEED))
    torch.manual_seed(1)
    again, other = dict(init_weights(case.empty, SEED)), dict(init_weights(case.empty, SEED + 1))
    assert {name: tuple(weight.shape) for name, weight in first.items()} == shapes(case.empty())
    assert all(weight.equal(again[name]) for name, weight in first.items())
    assert any(not weight.equal(other[name]) for name, weight in first.items())


def test_a_stage_draws_the_fresh_weights_that_the_whole_draws(case: Case) -> None:
    whole = dict(init_weights(case.empty, SEED))
    for number in range(2):
        own = dict(init_weights(lambda number=number: cut(case.empty(), number, 2), SEED))
        assert own
        assert [name for name, weight in own.items() if not weight.equal(whole[name])] == []


def test_init_weights_fills_every_parameter_from_its_generator(case: Case) -> None:
    made = []
    for global_seed in (1, 2):
        model = case.family.model()(case.config)
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(torch.nan)
        torch.manual_seed(global_seed)
        model.init_weights(torch.Generator().manual_seed(SEED))
        assert [name for name, weight in model.named_parameters() if weight.isnan().any()] == []
        made.append(dict(model.named_parameters()))
    assert [name for name, weight in made[0].items() if not weight.equal(made[1][name])] == []


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}
