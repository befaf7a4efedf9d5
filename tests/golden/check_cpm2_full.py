"""The network of CPM-2 against the original: hidden states, logits, loss, gradients, decoding, training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cpm2_case import (
    as_original,
    assert_greedy,
    batch_of,
    check_loss,
    check_masks,
    gradient_close,
    greedy_logits,
    inputs_of,
    load_model,
    norms_of,
)
from golden_case import Case, Reading, close, same

from hanlin.core.batch import Prompt, PromptBatch
from hanlin.generate.engine import Engine
from hanlin.generate.methods.beam import BeamSettings
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.models.cpm2 import family
from hanlin.models.cpm2.model import Cpm2
from hanlin.models.cpm2.processor import AnswerCursor
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import GenerateSettings, TrainSettings
from hanlin.training.optimizer import build_optimizer
from hanlin.training.step import Step


def check(case: Case, vocab: Path) -> None:
    del vocab
    inputs, expected = case.arrays("inputs.npz"), case.arrays()
    model, atol = load_model(case), case.tolerance("logits_atol", default=5e-5)
    _check_positions(model, expected, atol)
    if "enc_input_ids" not in inputs:
        return
    check_masks(inputs)
    _check_forward(model, inputs, expected, atol)
    if "labels" in inputs and "loss_mask" in inputs:
        _check_gradients(case, model, inputs, expected)
    if "greedy_ids" in expected or expected.names("beam"):
        _check_greedy(case, model, inputs, expected, atol)
        _check_searches(case, model, inputs, expected)
    if "train_losses" in expected and "labels" in inputs:
        _check_training(case, load_model(case), inputs, expected)
    case.set_aside(r"inputs\.npz: idx", "the rows' numbers")


def _check_positions(model: Cpm2, expected: Reading, atol: float) -> None:
    if "relpos" in expected:
        for name, is_causal in (("bucket_bidirectional", False), ("bucket_causal", True)):
            same(name, model._buckets(expected["relpos"], is_causal=is_causal), expected)
    for name, table, is_causal in (("enc", model.encoder_bias, False), ("dec", model.decoder_bias, True)):
        for key in expected.names(f"{name}_position_bias"):
            columns = torch.arange(expected[key].shape[-1])
            buckets = model._buckets(columns[None, :] - columns[:, None], is_causal=is_causal)
            close(key, table(buckets).permute(2, 0, 1)[None], expected, atol, 0)


def _check_forward(model: Cpm2, arrays: Reading, expected: Reading, atol: float) -> None:
    inputs, hidden = inputs_of(arrays), {}
    real, read = inputs["spans"] >= 0, inputs["encoder_spans"] >= 0
    norms = {"encoder_last_hidden_state": model.encoder_norm, "decoder_last_hidden_state": model.decoder_norm}
    for name, norm in norms.items():
        norm.register_forward_hook(lambda _module, _args, output, name=name: hidden.update({name: output}))
    close("lm_logits", model(**inputs), expected, atol, 0, where=real)
    close("decoder_last_hidden_state", hidden["decoder_last_hidden_state"], expected, atol, 0, where=real)
    close("encoder_last_hidden_state", hidden["encoder_last_hidden_state"], expected, atol, 0, where=read)


def _check_gradients(case: Case, model: Cpm2, arrays: Reading, expected: Reading) -> None:
    rtol = case.tolerance("grad_rtol", default=1e-4)
    model.zero_grad()
    check_loss(model, arrays, expected, case.tolerance("loss_atol", "logits_atol", default=1e-5)).backward()
    ours = as_original(model, {name: weight.grad for name, weight in model.named_parameters()})
    for name, gradient in ours.items():
        gradient_close(f"grad/{name}", gradient, expected, rtol)
    norms = norms_of(ours)
    if "grad_norms_per_param" in expected:
        wanted = expected["grad_norms_per_param"].sort().values
        torch.testing.assert_close(norms, wanted.double(), atol=0, rtol=rtol)
    close("grad_norm", norms.norm(), expected, 0, rtol)


def _check_greedy(case: Case, model: Cpm2, arrays: Reading, expected: Reading, atol: float) -> None:
    """Ids, and the logits that they were chosen from, as far as the answers go."""
    if "greedy_ids" not in expected:
        return
    facts, ids = case.facts, expected["greedy_ids"]
    logits = greedy_logits(model, inputs_of(arrays), ids.shape[1], facts["bos_id"])
    assert_greedy(logits.argmax(-1), ids, facts["sentinel1"], facts["pad_id"])
    if "greedy_step_logits" in expected:
        length = min(ids.shape[1], expected["greedy_step_logits"].shape[1])
        answered = torch.zeros(expected["greedy_step_logits"].shape[:2], dtype=torch.bool)
        answered[:, :length] = ids[:, :length] >= 0
        close("greedy_step_logits", logits[:, : answered.shape[1]], expected, atol, 0, where=answered)


def _check_searches(case: Case, model: Cpm2, arrays: Reading, expected: Reading) -> None:
    """Greedy and beam search of the engine, all rows at once; with beams the original counts its start token."""
    facts = case.facts
    length, engine = facts["out_seq_length"], Engine(model, Rows(arrays, facts), family=family)
    runs: dict[str, GenerateSettings] = {"greedy_ids": GreedySettings(max_new_tokens=length)}
    for name in expected.names("beam"):  # beam4_ids
        beams = int(name.removeprefix("beam").removesuffix("_ids"))
        runs[name] = BeamSettings(beams=beams, max_new_tokens=length - 1)
    for name in (name for name in runs if name in expected):
        answers = engine.generate(range(len(arrays["dec_input_ids"])), runs[name])
        for found, wanted in zip(answers, expected[name], strict=True):
            cut = found[: found.index(facts["pad_id"])] if facts["pad_id"] in found else found
            assert cut == [token for token in wanted.tolist() if token >= 0], name


class Rows:
    """Processor whose records are the numbers of the case's rows; their answers are ids."""

    def __init__(self, arrays: Reading, facts: dict[str, Any]) -> None:
        self._inputs = inputs_of(arrays)
        self._cursor = AnswerCursor(facts["bos_id"], facts["sentinel1"], left=None)

    def prompt(self, record: int) -> Prompt:
        return Prompt(record, {"tokens": np.zeros(0)}, self._cursor)

    def collate_prompts(self, prompts: Sequence[Prompt]) -> PromptBatch:
        chosen = [prompt.record for prompt in prompts]
        inputs = {name: self._inputs[name][chosen] for name in ("encoder_tokens", "encoder_spans")}
        inputs["tokens"] = torch.zeros(len(prompts), 0, dtype=torch.int64)
        return PromptBatch(inputs, [self._cursor for _ in prompts], [[] for _ in prompts])

    def answer(self, prompt: Prompt, tokens: Sequence[int]) -> list[int]:
        return list(tokens)


def _check_training(case: Case, model: Cpm2, arrays: Reading, expected: Reading) -> None:
    """At the rate of the last step from the second one on; the first has rate 0."""
    atol, steps = case.tolerance("train_loss_atol", default=1e-3), len(expected["train_losses"])
    rates = expected.get("train_lrs", torch.tensor([0.003])).tolist()
    settings = TrainSettings(lr=rates[-1], schedule="constant", first_step_at_zero=True, warmup_steps=1)
    parallel_model = parallelize(model, torch.device("cpu"))
    step = Step(parallel_model, build_optimizer(parallel_model.parameters, settings.optimizer), settings, steps)
    reports = [step.run(batch_of(arrays)) for _ in range(steps)]
    given = expected.under("train_")
    close("losses", [report.loss for report in reports], given, atol, 0)
    close("lrs", [report.lr for report in reports], given, 0, 1e-6)
    close("grad_norms", [report.grad_norm for report in reports], given, 0, 1e-3)
    weights = as_original(model, {name: weight.detach() for name, weight in model.named_parameters()})
    for name, weight in weights.items():
        close(f"trained/{name}", weight, expected, atol, 0)
    if "trained_param_norms" in expected:
        wanted = expected["trained_param_norms"].sort().values.double()
        torch.testing.assert_close(norms_of(weights), wanted, atol=atol, rtol=0)
