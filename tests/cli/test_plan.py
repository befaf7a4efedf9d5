from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from family_cases import METHODS, case_of
from sampled import sampled

from hanlin.adapters.folder import save_adapter
from hanlin.cli.main import main
from hanlin.formats.load import save_base
from hanlin.planner.layout import layout_of
from hanlin.recipe.reading import load_recipe

RECIPE = """\
model: {family: chatglm2, size: tiny, config: {vocab_size: 2000}}
data: {max_length: 128}
train: {batch_size: 16, micro_batch_size: 2, precision: fp32}
run: {folder: run}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return str(tmp_path / "recipe.yaml")


def test_the_tables_say_what_fits(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", recipe, "--per-node", "4", "--device", "H200-141"]) == 0
    shown = capsys.readouterr().out
    assert "data 4 x tensor 1 x pipe 1" in shown
    assert "global batch: 16 rows = 2 per forward pass x 2 micro-batches x 4 data ranks" in shown
    assert "fits H200-141" in shown
    assert "recompute" in shown
    assert "'parallel={data: 4}' train.micro_batch_size=" in shown


def test_json_holds_every_number(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--nodes", "2", "--per-node", "2", "--json", "--propose", "2"]
    assert main(["plan", recipe, *arguments, "parallel.pipe=2", "parallel.tensor=2"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["plan"]["layout"]["pipe"] == 2
    assert [rank["rank"] for rank in told["plan"]["ranks"]] == [0, 1]
    assert told["plan"]["peak_bytes"] == max(rank["memory"]["peak"] for rank in told["plan"]["ranks"])
    assert told["plan"]["bubble"] == pytest.approx(1 / 9)
    assert len(told["proposals"]) == 2


def test_what_does_not_fit_is_exit_code_1(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    huge = ["model.config.hidden_size=8192", "model.config.num_layers=64", "model.config.ffn_size=32768"]
    assert main(["plan", recipe, "--device", "V100-16", *huge]) == 1
    shown = capsys.readouterr().out
    assert "does not fit V100-16" in shown
    assert "no layout fits V100-16" in shown


def test_a_card_without_bf16_is_planned_in_fp16_and_refuses_it(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", recipe, "--device", "V100", "train.precision=auto"]) == 2
    assert "'V100' is one of V100-16, V100-32" in capsys.readouterr().err
    assert main(["plan", recipe, "--device", "V100-32", "--propose", "0", "train.precision=auto"]) == 0
    shown = capsys.readouterr().out
    assert "fp16 (train.precision: auto)" in shown
    assert "attention on V100-32: efficient (it has no flash attention)" in shown
    assert main(["plan", recipe, "--device", "V100-32", "train.precision=bf16"]) == 2
    assert "train.precision: V100-32 has no bf16" in capsys.readouterr().err


def test_devices_that_lack_the_precision_do_not_fit(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", recipe, "--propose", "0", "train.precision=bf16"]) == 0
    fitting = capsys.readouterr().out.partition("; fits: ")[2]
    assert "RTX4080-16" in fitting
    assert "V100" not in fitting
    assert "910A" not in fitting


def test_devices_that_compute_in_fp16_do_not_take_bf16_weights(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", recipe, "--propose", "0", "train.precision=auto", "train.weight_dtype=bf16"]) == 0
    fitting = capsys.readouterr().out.partition("; fits: ")[2]
    assert "RTX4080-16" in fitting
    assert "V100" not in fitting
    assert main(["plan", recipe, "--device", "V100-32", "train.precision=auto", "train.weight_dtype=bf16"]) == 2
    assert "and train.precision is fp16" in capsys.readouterr().err


def test_the_time_of_a_step_is_told_by_its_parts(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", recipe, "--propose", "0"]) == 0
    shown = capsys.readouterr().out
    assert "tokens/s" in shown
    assert "of which products" in shown
    assert main(["plan", recipe, "--propose", "0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["plan"]["step_seconds"] == pytest.approx(sum(told["plan"]["seconds"].values()))
    assert told["attention"] == {"efficient": "fp32"}
    assert told["precision"] == "fp32"


def test_wrong_degrees_are_a_message(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", recipe, "--per-node", "4", "parallel.data=3"]) == 2
    assert "which is 4" in capsys.readouterr().err


WIDE = (16, "model.config.num_heads=16", "model.config.ffn_size=384", "train.optimizer=adamw_8bit")
"""Tensor ranks that cut what the optimizer keeps together."""


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (["data.max_length=5000", "model.config.max_length=4096"], "data.max_length: 5000 tokens, but the model reads"),
        (["parallel={offload: true}"], "parallel.offload: only with parallel.shard: parameters"),
        (["parallel.tensor=3"], "parallel.tensor: 4 heads cannot be divided among 3 ranks"),
        (["parallel.tensor=2", "model.quantise=int8", "tuning.method=lora"], "packed weights cannot be divided"),
        (
            [f"parallel.tensor={WIDE[0]}", *WIDE[1:]],
            "train.optimizer: adamw_8bit keeps blocks of 64, and a rank has 32 of",
        ),
    ],
)
def test_what_check_refuses_is_not_planned(
    recipe: str, changes: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", recipe, "--propose", "0", *changes]) == 2
    assert problem in capsys.readouterr().err


def test_only_layouts_that_the_optimizer_takes_are_proposed(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--per-node", "16", "--propose", "20", "--json", "--device", "H200-141"]
    assert main(["plan", recipe, *arguments, *WIDE[1:]]) == 0
    assert max(one["layout"]["tensor"] for one in json.loads(capsys.readouterr().out)["proposals"]) == 8


def test_a_recipe_without_its_files_is_planned_by_the_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "model: {family: cpm_bee, base: nowhere/base}\ntuning: {method: lora}\nrun: {folder: run}\n"
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    assert main(["plan", str(tmp_path / "recipe.yaml"), "--propose", "0", "train.precision=bf16"]) == 0
    shown = capsys.readouterr().out
    assert "nowhere/base is not here" in shown
    assert "9,6" in shown  # 9.6 billion parameters


def test_answers_are_planned_for_one_device(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", recipe, "--serve", "--context", "256", "--device", "T4"]) == 0
    shown = capsys.readouterr().out
    assert "fits T4-16" in shown
    assert "--max-cache-tokens" in shown
    assert "tokens/s" in shown
    assert "attention of answers: efficient (it has no flash attention, fp32, a mask or a bias)" in shown
    assert main(["plan", recipe, "--serve", "--context", "256", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sequences"] > 0
    assert told["peak_bytes"] <= told["device"]["memory_bytes"]
    assert told["sequence_positions"] == 256


def test_what_cannot_answer_is_exit_code_1(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    huge = ["model.config.hidden_size=16384", "model.config.num_layers=64", "model.config.ffn_size=65536"]
    assert main(["plan", recipe, "--serve", "--device", "T4", *huge]) == 1
    assert "does not fit T4-16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--context", "64"], "--context: goes with --serve"),
        (["--serve", "--per-node", "8"], "--per-node: --serve plans one device"),
        (["--serve", "--context", "9999999"], "the model has places for"),
        (["--device", "A100"], "is one of A100-40, A100-80"),
        (["--size", "gigantic"], "gigantic"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    recipe: str, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", recipe, *options]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_weights_is_planned_and_an_adapter_names_its_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder as it is exported, without a recipe."""
    case = case_of("cpm1", tmp_path)
    save_base(tmp_path / "base", case.family, case.config, dict(case.model().float().state_dict()), case.tokenizer)
    assert main(["plan", str(tmp_path / "base"), "--propose", "0", "data.max_length=8", "tuning.method=lora"]) == 0
    assert "parameters trained" in capsys.readouterr().out
    assert main(["plan", str(tmp_path / "base"), "--serve", "--context", "8"]) == 0
    assert "fits A100-80" in capsys.readouterr().out
    model = case.model("lora")
    save_adapter(model, METHODS["lora"], tmp_path / "adapter")
    assert main(["plan", str(tmp_path / "adapter")]) == 2
    assert "an adapter, which is planned with its base" in capsys.readouterr().err
    assert main(["plan", str(tmp_path / "nothing")]) == 2
    assert "there is no such recipe or run folder" in capsys.readouterr().err


EXPERTS = """\
model:
  family: cpm2
  config: {hidden_size: 64, num_layers: 2, num_heads: 2, head_dim: 32, ffn_size: 128, vocab_size: 200, num_experts: 2}
data: {max_length: 64}
train: {batch_size: 4}
parallel: {schedule: interleaved, pipe: 2, micro_batches: 2, checkpoint_activations: selective}
run: {folder: run}
"""


def test_a_proposal_is_settings_that_a_recipe_takes_and_that_mean_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Experts too, and where the recipe's own section has other settings."""
    (tmp_path / "recipe.yaml").write_text(EXPERTS, encoding="utf-8")
    arguments = ["plan", str(tmp_path / "recipe.yaml"), "--per-node", "4", "--propose", "30", "--json"]
    assert main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    proposals = told["proposals"]
    assert any(proposal["layout"]["expert"] > 1 for proposal in proposals)
    for proposal in (told["plan"], *proposals):
        layout = proposal["layout"]
        assert layout["data"] * layout["tensor"] * layout["pipe"] == 4
        recipe = load_recipe(tmp_path / "recipe.yaml", proposal["settings"])
        assert asdict(layout_of(recipe, 4)) == layout


def test_a_path_that_is_not_there_says_where_it_was_looked_for(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chatglm2-6b").mkdir()
    assert main(["plan", "chatglm2-6"]) == 2
    said = capsys.readouterr().err
    assert f"chatglm2-6 (that is {tmp_path / 'chatglm2-6'}): there is no such" in said
    assert "did you mean 'chatglm2-6b'?" in said
    assert main(["plan", "recip.yaml"]) == 2
    assert "did you mean recipe.yaml?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("model.config.num_heads=0", "model.config.num_heads: must be greater than 0"),
        ("model.config.hidden_size=-8", "model.config.hidden_size: must be greater than 0"),
        ("model.config.num_layers=100000", "no model has more than 10,000"),
        ("model.config.headz=2", "chatglm2 has no such value"),
        ("train.micro_batch_size=3", "16 is not a multiple of train.micro_batch_size 3"),
    ],
)
def test_sizes_that_no_model_has_are_refused(
    recipe: str, change: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", recipe, change]) == 2
    assert told in capsys.readouterr().err
    if "config" in change:
        assert main(["plan", recipe, "--serve", change]) == 2
        assert told in capsys.readouterr().err


def test_a_card_of_another_memory_is_told_by_its_own(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", recipe, "--device", "4090", "--propose", "0", "--json"]
    assert main([*arguments, "--memory", "48"]) == 0
    assert json.loads(capsys.readouterr().out)["device"]["memory_bytes"] == 48 * 2**30
    assert main([*arguments, "--memory", "0.01"]) == 1
    capsys.readouterr()
    assert main(["plan", recipe, "--serve", "--context", "64", "--memory", "0.01"]) == 1
    assert "take a larger device, a shorter --context, or pack the weights" in capsys.readouterr().out
    assert main(["plan", recipe, "--serve", "--context", "64", "--memory", "0.01", "model.quantise=nf4"]) == 1
    assert "pack" not in capsys.readouterr().out


ADVISED = [("chatglm2", "8", ""), ("cpm2", "4", "tuning.method=lora"), ("cpm_bee", "2", "train.objective=dpo")]


@pytest.mark.parametrize(("family", "ranks", "change"), sampled(ADVISED, ADVISED[-1:]))
def test_what_is_advised_plans_and_fits_itself(
    family: str, ranks: str, change: str, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", recipe, "--per-node", ranks, "--json", f"model.family={family}", *filter(None, [change])]
    main([*words, "--propose", "3"])
    told = json.loads(capsys.readouterr().out)
    assert told["proposals"]
    for proposal in told["proposals"]:
        assert main([*words, "--propose", "0", *proposal["settings"]]) == 0
        again = json.loads(capsys.readouterr().out)["plan"]
        for name in ("layout", "peak_bytes", "step_seconds", "fits"):
            assert again[name] == proposal[name]
