from __future__ import annotations

import pytest
from measure import tiny_recipe

from hanlin.planner.devices import find_device
from hanlin.planner.estimate import estimate
from hanlin.planner.job import PlannedModel, SequenceLengths
from hanlin.planner.layout import Layout
from hanlin.planner.search import fitting_devices, propose
from hanlin.planner.weights import cut_stages


def test_proposals_fit_and_keep_the_batch() -> None:
    recipe = tiny_recipe("chatglm2", "train.batch_size=64", "model.config.num_layers=8")
    device = find_device("V100-16")
    found = propose(PlannedModel(recipe, SequenceLengths(128)), device, nodes=1, per_node=4, network_bytes=25e9)
    assert found
    assert all(each.estimate.fits(device) for each in found)
    assert {(each.estimate.layout.world, each.estimate.layout.batch_size) for each in found} == {(4, 64)}
    assert [each.step_seconds for each in found] == sorted(each.step_seconds for each in found)


def test_tensor_ranks_divide_the_heads() -> None:
    recipe = tiny_recipe("cpm1", "train.batch_size=48", "model.config.num_heads=3", "model.config.head_dim=32")
    found = propose(
        PlannedModel(recipe, SequenceLengths(128)), find_device("V100-16"), nodes=1, per_node=6, network_bytes=25e9
    )
    assert {each.estimate.layout.tensor for each in found} <= {1, 3}


def test_the_198b_model_is_sized() -> None:
    recipe = tiny_recipe("cpm2", "model.size=198b", "model.config.vocab_size=51968", "train.precision=bf16")
    job = PlannedModel(recipe, SequenceLengths(256, encoder_length=512))
    assert sum(weight.whole_elements(Layout()) for weight in job.weights) == 198_543_978_496
    # Weights, gradients and AdamW alone are 16 bytes each: 3.2 TB, which 32 devices of 80 GB do not hold; 128 do.
    few, many = (
        Layout(tensor=8, pipe=pipe, micro_batches=32, checkpoint_activations="full", data=2) for pipe in (4, 16)
    )
    device = find_device("A100-80")
    assert not estimate(job, few).fits(device)
    assert estimate(job, many).fits(device)
    state = sum(
        rank.memory.parameters + rank.memory.gradients + rank.memory.optimizer for rank in estimate(job, many).ranks
    )
    assert state * 8 == pytest.approx(16 * 198_543_978_496, rel=0.01)  # tensor ranks hold norms and biases alike


def test_experts_are_divided_over_their_ranks() -> None:
    job = PlannedModel(tiny_recipe("cpm2", "model.config.num_experts=4"), SequenceLengths(128))
    whole, quarter = (estimate(job, Layout(data=4, expert=ranks)).ranks[0] for ranks in (1, 4))
    experts = sum(weight.whole_elements(Layout()) for weight in job.weights if weight.num_experts)
    assert whole.memory.parameters - quarter.memory.parameters == experts * 4 * 3 // 4
    assert whole.traffic.expert == 0
    assert quarter.traffic.expert > 0


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_stages_hold_every_weight(stages: int) -> None:
    job = PlannedModel(tiny_recipe("chatglm2", "model.config.num_layers=8"), SequenceLengths(128))
    cut = cut_stages(job.weights, Layout(pipe=stages))
    assert [block for stage in cut for block in stage.blocks] == list(range(8))
    assert {weight.name for stage in cut for weight in stage.weights} == {weight.name for weight in job.weights}


@pytest.mark.parametrize("family", ["cpm2", "cpm_bee"])
def test_a_pass_is_the_same_whatever_was_traced_before(family: str) -> None:
    recipe, device = tiny_recipe(family, "train.precision=bf16"), find_device("A100-80")
    used, fresh = (PlannedModel(recipe, SequenceLengths(128), device=device) for _ in range(2))
    for rows in (1, 4):
        used.trace(Layout(micro_batch_size=rows))
    ours, theirs = (vars(job.trace(Layout(micro_batch_size=2))) for job in (used, fresh))
    assert ours == theirs


def test_devices_that_fit_are_those_whose_own_plan_fits() -> None:
    recipe, lengths = tiny_recipe("chatglm2", "train.precision=auto", "model.size=6b"), SequenceLengths(128)
    layout, devices = Layout(data=4, shard="parameters"), [find_device(name) for name in ("V100-16", "H200", "910B-64")]
    found = fitting_devices(PlannedModel(recipe, lengths, device=find_device("H200")), layout)
    own = [estimate(PlannedModel(recipe, lengths, device=device), layout).fits(device) for device in devices]
    assert [device in found for device in devices] == own
    assert own == [False, True, True]
