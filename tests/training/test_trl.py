"""Learning from preferences beside TRL's own trainers, and imitating a teacher beside TRL's loss.

`make clients` puts TRL into .clients/.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from family_cases import case_of
from test_distill import larger, recipe, save
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

DISTILLING = """
import json, sys
import torch
from transformers import GPT2LMHeadModel
from trl.experimental.gkd import GKDTrainer
student, teacher = (GPT2LMHeadModel.from_pretrained(path).eval() for path in sys.argv[1:3])
rows, how = map(json.loads, sys.argv[3:])
optimizer = torch.optim.AdamW(student.parameters(), how["rate"], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
for step in range(how["steps"]):
    losses = []
    for ids, learned in rows:
        tokens = torch.tensor([ids])
        labels = tokens.clone()
        labels[:, :-learned] = -100
        with torch.no_grad():
            wanted = teacher(tokens).logits[:, :-1]
        own = student(tokens).logits[:, :-1]
        losses.append(GKDTrainer.generalized_jsd_loss(
            own, wanted, labels[:, 1:], how["beta"], how["temperature"], num_items_in_batch=1))
    loss = sum(losses) / sum(learned for _, learned in rows)
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1e9)
    print(json.dumps([loss.item(), norm.item()]))
    optimizer.step()
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
    return json.loads(run_script(TRL, words).splitlines()[-1])


def run_script(script: str, words: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(CLIENTS / "trl"), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(
        [sys.executable, "-c", script, *words],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_steps_of_a_student_are_those_of_trl(divergence: str, tmp_path: Path) -> None:
    """Of TRL's GKD without its own samples, whose loss is not multiplied by the square of the temperature."""
    if not (CLIENTS / "trl").is_dir():
        pytest.skip(f"needs trl in {CLIENTS}: make clients")
    case, heat = case_of("cpm1", tmp_path), 1.5
    for name, one in (("student", case), ("teacher", larger(case))):
        hanlin.convert(save(one, tmp_path / name), tmp_path / f"{name}_exported", to="huggingface")
    made = recipe(
        (tmp_path / "student", tmp_path / "teacher"), tmp_path, case, share=1, divergence=divergence, temperature=heat
    )
    made["data"] |= {"eval": [], "pack": False}
    made["train"] |= {
        "steps": STEPS, "lr": RATE, "batch_size": len(case.records), "clip": None, "eval_every": None,
        "optimizer": {"name": "adamw", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0},
    }  # fmt: skip
    hanlin.train(made)
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text("utf-8").splitlines())
    ours = [(line["loss"], line["grad_norm"]) for line in lines if "loss" in line]
    rows = []
    for sample in map(case.processor.sample, case.records):
        whole = [*sample.inputs["tokens"].tolist(), int(sample.labels[-1])]
        rows.append((whole, int((sample.labels >= 0).sum())))
    how = {"beta": float(divergence == "reverse"), "temperature": heat, "steps": STEPS, "rate": RATE}
    words = [str(tmp_path / f"{name}_exported") for name in ("student", "teacher")]
    theirs = run_script(DISTILLING, [*words, *map(json.dumps, (rows, how))]).splitlines()[-STEPS:]
    for (loss, norm), line in zip(ours, theirs, strict=True):
        assert [loss / heat**2, norm / heat**2] == pytest.approx(json.loads(line), rel=2e-3)
