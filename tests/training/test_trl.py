"""Learning from preferences beside TRL's own trainer, which `make clients` puts into .clients/."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from family_cases import case_of
from test_dpo import ROWS, record_of, write_rows

import hanlin
from hanlin.formats.load import save_base

CLIENTS = Path(os.environ.get("HANLIN_CLIENTS", Path(__file__).parents[2] / ".clients"))
STEPS, RATE = 4, 0.01
TRL = """
import json, sys
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast
folder, rows, size, end, how = sys.argv[1], *map(json.loads, sys.argv[2:])
words = Tokenizer(models.WordLevel({f"t{n}": n for n in range(size)}, unk_token="t0"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"t{end}", pad_token="t0")
data = Dataset.from_list([{key: " ".join(f"t{n}" for n in ids) + " " for key, ids in row.items()} for row in rows])
if how["loss"] in ("sigmoid", "ipo"):
    from trl import DPOConfig as Config, DPOTrainer as Trainer
    more = {"loss_type": how["loss"]}
elif how["loss"] == "simpo":
    from trl.experimental.cpo import CPOConfig as Config, CPOTrainer as Trainer
    more = {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": how["margin"]}
model = GPT2LMHeadModel.from_pretrained(folder)
config = Config(output_dir=folder + "/trl", max_steps=how["steps"], learning_rate=how["rate"], beta=how["beta"],
    lr_scheduler_type="constant", per_device_train_batch_size=len(rows), logging_steps=1, report_to="none",
    use_cpu=True, bf16=False, max_grad_norm=1e9, adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8, weight_decay=0.0,
    gradient_checkpointing=False, disable_dropout=True, max_length=128, save_strategy="no", **more)
trainer = Trainer(model=model, args=config, train_dataset=data, processing_class=tokenizer)
trainer.train()
print(json.dumps([one for one in trainer.state.log_history if "loss" in one]))
"""


@pytest.mark.parametrize(
    "how",
    [
        {"loss": "sigmoid", "beta": 0.5},
        {"loss": "ipo", "beta": 0.3},
        {"loss": "simpo", "beta": 2.0, "margin": 0.6},
    ],
    ids=lambda how: how["loss"],
)
def test_steps_are_those_of_trl(how: dict[str, Any], tmp_path: Path) -> None:
    if not (CLIENTS / "trl").is_dir():
        pytest.skip(f"needs trl in {CLIENTS}: make clients")
    case = case_of("cpm1", tmp_path)
    base, exported = tmp_path / "base", tmp_path / "exported"
    weights = {key: value.float() for key, value in case.model().named_parameters()}
    save_base(base, case.family, case.config, weights, case.tokenizer)
    hanlin.convert(base, exported, to="huggingface")
    made = {
        "model": {"family": "cpm1", "base": str(base)},
        "data": {"train": [str(write_rows(tmp_path))], "max_length": 128, "cache": str(tmp_path / "cache")},
        "train": {
            "steps": STEPS, "lr": RATE, "schedule": "constant", "batch_size": 1, "clip": None,
            "objective": {"name": "dpo", **how},
            "optimizer": {"name": "adamw", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0},
        },
        "run": {"folder": str(tmp_path / "run"), "threads": 1},
    }  # fmt: skip
    hanlin.train(made)
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text("utf-8").splitlines())
    ours = [line for line in lines if "loss" in line]
    theirs = run_trl(case, exported, {**how, "steps": STEPS, "rate": RATE})
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=2e-3, abs=2e-4)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=5e-3)
        assert mine["margin"] == pytest.approx(other["rewards/margins"], rel=5e-3, abs=1e-3)
        assert mine["accuracy"] == pytest.approx(other["rewards/accuracies"])


def run_trl(case: Any, folder: Path, how: dict[str, Any]) -> list[dict[str, float]]:
    """What TRL's trainer logs of each step, from the ids that our processor makes of the rows."""
    rows = []
    for row in ROWS:
        ids = {}
        for answer in ("chosen", "rejected"):
            sample = case.processor.sample(record_of(case, row["prompt"], row[answer]))
            learned = int((sample.labels >= 0).sum())
            whole = [*sample.inputs["tokens"].tolist(), int(sample.labels[-1])]
            ids[answer], ids["prompt"] = whole[-learned:-1], whole[:-learned]
        rows.append(ids)
    words = [str(folder), *map(json.dumps, (rows, case.config.vocab_size, case.processor.end, how))]
    environment = {**os.environ, "PYTHONPATH": str(CLIENTS / "trl"), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(
        [sys.executable, "-c", TRL, *words], check=False, env=environment, capture_output=True, text=True, timeout=600
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return json.loads(found.stdout.splitlines()[-1])
