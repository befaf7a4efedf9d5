"""Recipes that name a script of an original have its numbers: rows, rates, steps, intervals, and lengths of evaluation.

The tables are those of the specifications of the originals' scripts; a card of theirs is a data rank of ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

RECIPES = Path(__file__).parents[2] / "recipes"

# CPM-2, scripts/full_model and scripts/prompt: lr, accumulation, rows, rows of evaluation, epochs, evaluate every.
CPM2_RANKS = 4
CPM2 = {
    "adgen_full": (3e-6, 2, 16, 64, 10, 100),
    "c3_full": (5e-6, 8, 4, None, 10, 50),
    "ccpm_full": (3e-6, 1, 16, None, 10, 50),
    "kdconv_full": (5e-6, 2, 16, None, 5, None),  # every step in the original, which its recipe says
    "lcqmc_full": (2e-6, 1, 32, None, 10, 100),
    "lcsts_full": (3e-6, 2, 16, 64, 10, 100),
    "math_full": (5e-6, 4, 16, None, 20, 50),
    "sogou_full": (5e-6, 8, 8, None, 10, 200),
    "wmt_full": (5e-6, 2, 16, None, 1, None),  # likewise
    "adgen_prompt": (0.005, 2, 16, 64, 20, 100),
    "c3_prompt": (0.1, 2, 16, None, 40, 50),
    "ccpm_prompt": (0.05, 2, 16, None, 40, 50),
    "lcqmc_prompt": (0.005, 1, 32, None, 10, 100),
    "lcsts_prompt": (0.1, 2, 16, 64, 20, 100),
    "math_prompt": (0.1, 1, 32, 64, 40, 100),
    "wmt_prompt": (0.02, 2, 16, None, 5, 100),
}
CPM2_PROMPTS = {"c3": "33_34_33_0", "lcqmc": "5_5_0"}  # the others 10_0_0
CPM2_SHORT_WINDOWS = ("adgen", "c3", "ccpm", "math", "wmt")  # loss_scale_window 200, else 1000

# ChatGLM2, ptuning/*.sh: lengths of training and of evaluation; rate, steps, rows of a card, accumulation, cards.
CHATGLM2 = {
    "chatglm2_adgen_ptuning": {"lengths": (64, 128), "eval": (64, 64), "train": (2e-2, 3000, 1, 16, 1)},
    "chatglm2_adgen_full": {"lengths": (64, 64), "eval": (256, 256), "train": (1e-4, 5000, 4, 1, 4)},
}

# CPM-1: the fine-tuning program's ChID (large) and STC, the pretraining program's run_gpt2.sh and run_t5.sh.
CPM1 = {
    "cpm1_chid_full": {"lr": 1e-5, "epochs": 10, "batch_size": 32, "eval_every": 1000, "warmup_share": 0.1},
    "cpm1_stc_full": {"lr": 1e-5, "epochs": 1, "warmup_share": 0.1},
    "cpm1_gpt2_small_pretrain": {"lr": 1.5e-4, "min_lr": 1e-5, "steps": 320000, "batch_size": 64, "warmup_share": 0.01},
    "cpm1_t5_pretrain": {"lr": 1.5e-4, "min_lr": 1e-5, "steps": 320000, "batch_size": 128, "warmup_share": 0.01},
}


def section(recipe: str, name: str) -> dict[str, Any]:
    values = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text("utf-8"))
    return values.get(name, {})


def number(value: Any) -> float:
    return float(value)  # YAML reads 1e-5 as a text


@pytest.mark.parametrize("name", CPM2)
def test_cpm2(name: str) -> None:
    lr, accumulation, rows, eval_rows, epochs, eval_every = CPM2[name]
    train, data, _, kind = section(f"cpm2_{name}", "train"), section(f"cpm2_{name}", "data"), *name.split("_")
    assert number(train["lr"]) == lr
    assert train["micro_batch_size"] == rows
    assert train["batch_size"] == rows * accumulation * CPM2_RANKS
    assert (train["epochs"], train.get("eval_every")) == (epochs, eval_every)
    assert section(f"cpm2_{name}", "generate")["batch_size"] == (eval_rows or rows)
    task = name.split("_")[0]
    assert train["loss_scale_steps"] == (200 if task in CPM2_SHORT_WINDOWS else 1000)
    assert data.get("train_share", 1) == (0.5 if task in ("lcsts", "sogou") else 1)
    assert train.get("save_every") == (400 if task == "sogou" else None)
    if kind == "prompt":
        tuning = section(f"cpm2_{name}", "tuning")
        assert (tuning["length"], tuning["ratios"]) == (100, CPM2_PROMPTS.get(task, "10_0_0"))
    if task == "adgen":
        generate = section(f"cpm2_{name}", "generate")
        assert (generate["top_p"], generate["top_k"], generate["temperature"]) == (0.9, 40, 1.0)


@pytest.mark.parametrize("name", CHATGLM2)
def test_chatglm2(name: str) -> None:
    stated, options = CHATGLM2[name], section(name, "data")["options"]
    lr, steps, rows, accumulation, cards = stated["train"]
    train, generate = section(name, "train"), section(name, "generate")
    assert (options["prompt_length"], options["answer_length"]) == stated["lengths"]
    assert (options["eval_prompt_length"], options["eval_answer_length"]) == stated["eval"]
    assert (number(train["lr"]), train["steps"], train["micro_batch_size"]) == (lr, steps, rows)
    assert train["batch_size"] == rows * accumulation * cards
    assert train["save_every"] == 1000
    # max_length is both lengths of evaluation and one token more; what the prompt leaves is at least this.
    assert generate["max_new_tokens"] == stated["eval"][1] + 1
    assert (generate["temperature"], generate["top_k"], generate["top_p"]) == (0.95, 50, 0.7)


@pytest.mark.parametrize("name", CPM1)
def test_cpm1(name: str) -> None:
    train = section(name, "train")
    assert {key: number(train[key]) for key in CPM1[name]} == CPM1[name]


def test_no_recipe_that_names_a_script_is_left_out() -> None:
    known = {*(f"cpm2_{name}" for name in CPM2), *CHATGLM2, *CPM1}
    naming = {path.stem for path in RECIPES.glob("*.yaml") if ".sh" in path.read_text("utf-8").split("\nmodel:")[0]}
    # The chat recipe says in which its numbers are others; the larger GPT-2s are the small one's in another size.
    assert naming - known <= {"chatglm2_chat_lora", "cpm1_gpt2_medium_pretrain", "cpm1_gpt2_2_6b_pretrain"}
