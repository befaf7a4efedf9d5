from __future__ import annotations

import json

import pytest

from hanlin.core.errors import ConfigError
from hanlin.recipe.deepspeed import parse_hosts, read_deepspeed, translate_deepspeed
from hanlin.recipe.reading import make_recipe
from hanlin.recipe.unused_settings import unused_settings
from hanlin.training.optimizers.adamw import AdamWSettings

# As ChatGLM2's own fine-tuning has it, with numbers for "auto".
CHATGLM2 = {
    "train_micro_batch_size_per_gpu": 4,
    "zero_allow_untested_optimizer": True,
    "fp16": {
        "enabled": True, "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000, "hysteresis": 2,
        "min_loss_scale": 1,
    },
    "zero_optimization": {"stage": 2, "overlap_comm": False, "reduce_bucket_size": 5e8},
}  # fmt: skip
CPM1 = {
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 4,
    "steps_per_print": 1,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 1},
    "optimizer": {"type": "Adam", "params": {"lr": 0.00015, "betas": [0.9, 0.95], "weight_decay": 0.01}},
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {"warmup_max_lr": 1e-4, "warmup_num_steps": 20, "total_num_steps": 320, "warmup_type": "linear"},
    },
    "bf16": {"enabled": True},
    "wall_clock_breakdown": False,
}


def recipe_of(config, data_ranks=None):
    """The recipe with these settings and no others; all must be known and have an effect."""
    settings = translate_deepspeed(config, data_ranks).settings
    values = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    recipe = make_recipe({"model": {"family": "cpm_bee"}, "run": {"folder": "run"}}, values)
    assert not set(unused_settings(recipe)) & set(settings)
    return recipe


def test_the_source_s_configuration_of_chatglm2():
    recipe = recipe_of(CHATGLM2, data_ranks=4)
    train = recipe.train
    assert (train.batch_size, train.micro_batch_size, train.clip) == (16, 4, None)
    assert (train.precision, train.loss_scale, train.loss_scale_steps) == ("fp16", 65536, 1000)
    assert (train.loss_scale_hysteresis, train.loss_scale_min) == (2, 1)
    assert recipe.parallel.shard == "gradients"


def test_optimiser_rate_and_log():
    recipe = recipe_of(CPM1, data_ranks=8)
    train = recipe.train
    assert (train.batch_size, train.micro_batch_size, train.clip, train.precision) == (64, 4, 1.0, "bf16")
    assert train.lr == 1e-4
    assert train.optimizer == AdamWSettings(betas=(0.9, 0.95), weight_decay=0.01, decay_all=True)
    assert (train.schedule, train.warmup_steps, train.decay_steps) == ("linear", 20, 320)
    assert (recipe.run.log_every, recipe.parallel.shard) == (1, "gradients")


def test_stage_3_with_offload():
    zero = {"stage": 3, "offload_param": {"device": "cpu", "pin_memory": True}}
    parallel = recipe_of({"zero_optimization": zero}).parallel
    assert (parallel.shard, parallel.offload) == ("parameters", True)


@pytest.mark.parametrize(
    ("rows", "micro", "steps", "ranks", "expected"),
    [
        (32, 2, 4, None, (32, 2)),
        (32, 2, 4, 4, (32, 2)),
        (32, 2, None, 4, (32, 2)),
        (32, None, 4, 4, (32, 2)),
        (32, None, None, 4, (32, 8)),
        (None, 2, 4, 4, (32, 2)),
        (None, 2, None, 4, (8, 2)),
    ],
)
def test_the_formula_of_the_batch(rows, micro, steps, ranks, expected):
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    config = {name: value for name, value in zip(names, (rows, micro, steps), strict=True) if value is not None}
    train = recipe_of(config, ranks).train
    assert (train.batch_size, train.micro_batch_size) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"train_batch_size": 32, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 5},
            "train_batch_size 32 must be",
        ),
        ({"train_batch_size": 32}, "--data N"),
        ({"train_batch_size": 0}, "train_batch_size: expected a positive"),
        ({"zero_optimization": {"stage": 4}}, "stage: expected 0, 1, 2 or 3"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "nvme"),
        ({"optimizer": {"type": "Lamb"}}, "only AdamW here; found 'Lamb'"),
        ({"fp16": True}, "fp16: expected a JSON object; found True"),
        ({"scheduler": {"type": "OneCycle"}}, "found 'OneCycle'"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "keep one"),
    ],
)
def test_what_cannot_be_had_is_an_error(config, message):
    with pytest.raises(ConfigError, match=message):
        translate_deepspeed(config)


def test_what_is_left_out_is_told():
    config = {
        "wall_clock_breakdown": True,
        "zero_optimization": {"stage": 1, "overlap_comm": True},
        "fp16": {"enabled": True, "auto_cast": True},
        "gradient_clipping": "auto",
        "train_batch": 3,
    }
    notes = "\n".join(translate_deepspeed(config).notes)
    for expected in (
        "wall_clock_breakdown: has no meaning",
        "zero_optimization.overlap_comm",
        "stage 1: shard: gradients",
        "fp16.auto_cast: cannot be had",
        "gradient_clipping: is auto",
        "train_batch: is unknown",
    ):
        assert expected in notes


def test_a_fixed_loss_scale_stays_and_consecutive_hysteresis_is_taken_over():
    fixed = {"fp16": {"enabled": True, "loss_scale": 128, "hysteresis": 2}}
    assert translate_deepspeed(fixed).settings == {
        "train.precision": "fp16", "train.loss_scale": 128.0, "train.loss_scale_steps": None, "parallel.shard": "none",
        "train.clip": None,
    }  # fmt: skip
    counted = {"fp16": {"enabled": True, "consecutive_hysteresis": True, "hysteresis": 3}}
    assert translate_deepspeed(counted).settings["train.loss_scale_consecutive"] is True


def test_what_another_program_fills_in_is_not_set():
    auto = {"fp16": {"enabled": "auto", "hysteresis": 2}, "gradient_clipping": "auto", "optimizer": "auto"}
    assert translate_deepspeed(auto).settings == {"parallel.shard": "none"}


def test_a_file_that_is_not_json_is_named_with_its_line(tmp_path):
    (tmp_path / "ds.json").write_text('{\n "a": 1,\n}')
    with pytest.raises(ConfigError, match=r"ds.json:3: not readable as JSON"):
        read_deepspeed(tmp_path / "ds.json")


def test_hosts_and_their_slots():
    text = "# two machines\nnode0 slots=8\n\n10.0.0.7  slots = 4  # smaller\n"
    assert parse_hosts(text) == {"node0": 8, "10.0.0.7": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [("node0", r"hostfile:1: expected"), ("a slots=1\na slots=2", r"hostfile:2: a stands twice"), ("#", "no host")],
)
def test_a_wrong_hostfile(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_hosts(text)


@pytest.mark.parametrize(
    "section",
    [
        {"amp": {"enabled": True}},
        {"progressive_layer_drop": {"enabled": True, "theta": 0.5}},
        {"compression_training": {"weight_quantization": {"shared_parameters": {"enabled": True}}}},
        {"sparse_attention": {"mode": "fixed"}},
    ],
)
def test_what_changes_the_numbers_and_is_not_had_is_refused(section: dict) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(section))}: changes what is learnt"):
        translate_deepspeed(section)


def test_what_is_switched_off_is_not_refused() -> None:
    translate_deepspeed({"amp": {"enabled": False}, "compression_training": {"x": {"enabled": False}}})
