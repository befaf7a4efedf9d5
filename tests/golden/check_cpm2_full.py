"""The network of CPM-2 against the original: hidden states, logits, loss, gradients, decoding, training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from cpm2_case import (
    Arrays,
    arrays_of,
    as_original,
    assert_close,
    assert_gradient,
    assert_greedy,
    batch_of,
    facts_of,
    greedy_logits,
    inputs_of,
    load_model,
    losses_of,
    norms_of,
    row_losses_of,
)

from hanlin.core.batch import Prompt, PromptBatch
from hanlin.generate.engine import Engine
from hanlin.generate.methods.beam import BeamSettings
from hanlin.generate.methods.greedy import GreedySettings
from hanlin.models.cpm2 import family
from hanlin.models.cpm2.model import Cpm2
from hanlin.models.cpm2.processor import AnswerCursor
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import TrainSettings
from hanlin.train.optimizer import build_optimizer
from hanlin.train.step import Step


def check(case: Path, vocab: Path) -> None:
    del vocab
    facts, inputs, expected = facts_of(case), arrays_of(case / "inputs.npz"), arrays_of(case / "expected.npz")
    model = load_model(case)
    _check_positions(model, expected, facts["tolerance"]["logits_atol"])
    _check_forward(model, inputs, expected, facts["tolerance"]["logits_atol"])
    _check_gradients(model, inputs, expected, facts["tolerance"])
    logits = greedy_logits(model, inputs_of(inputs), facts["out_seq_length"], facts["bos_id"])
    assert_greedy(logits.argmax(-1), expected["greedy_ids"], facts["sentinel1"], facts["pad_id"])
    answered = expected["greedy_ids"] >= 0
    wanted = expected["greedy_step_logits"][answered]
    assert_close("greedy", logits[answered], wanted, facts["tolerance"]["logits_atol"])
    _check_searches(model, inputs, expected, facts)
    _check_training(load_model(case), inputs, expected, facts)


def _check_positions(model: Cpm2, expected: Arrays, atol: float) -> None:
    for name, is_causal in (("bucket_bidirectional", False), ("bucket_causal", True)):
        assert model._buckets(expected["relpos"], is_causal=is_causal).tolist() == expected[name].tolist(), name
    for name, table, is_causal in (("enc", model.encoder_bias, False), ("dec", model.decoder_bias, True)):
        theirs = expected[f"{name}_position_bias_6x6"][0]
        columns = torch.arange(theirs.shape[-1])
        buckets = model._buckets(columns[None, :] - columns[:, None], is_causal=is_causal)
        assert_close(f"{name} bias", table(buckets).permute(2, 0, 1), theirs, atol)


def _check_forward(model: Cpm2, arrays: Arrays, expected: Arrays, atol: float) -> None:
    hidden: Arrays = {}
    for name, norm in (("encoder", model.encoder_norm), ("decoder", model.decoder_norm)):
        norm.register_forward_hook(lambda _module, _args, output, name=name: hidden.update({name: output}))
    inputs = inputs_of(arrays)
    logits, real = model(**inputs), inputs["spans"] >= 0
    assert isinstance(logits, torch.Tensor)
    assert_close("logits", logits[real], expected["lm_logits"][real], atol)
    assert_close("decoder", hidden["decoder"][real], expected["decoder_last_hidden_state"][real], atol)
    read = inputs["encoder_spans"] >= 0
    assert_close("encoder", hidden["encoder"][read], expected["encoder_last_hidden_state"][read], atol)


def _check_gradients(model: Cpm2, arrays: Arrays, expected: Arrays, tolerance: dict[str, float]) -> None:
    loss = losses_of(model, batch_of(arrays))
    assert_close("loss", loss, expected["loss"], tolerance["loss_atol"])
    assert_close("losses", row_losses_of(model, batch_of(arrays)), expected["loss_batch"], tolerance["loss_atol"])
    loss.backward()
    ours = as_original(model, {name: weight.grad for name, weight in model.named_parameters()})
    theirs = {name.removeprefix("grad/"): tensor for name, tensor in expected.items() if name.startswith("grad/")}
    for name, gradient in theirs.items():
        assert_gradient(name, ours[name], gradient, tolerance["grad_rtol"])
    assert_close("norms", norms_of(ours), expected["grad_norms_per_param"].sort().values, 0.0, tolerance["grad_rtol"])


def _check_searches(model: Cpm2, arrays: Arrays, expected: Arrays, facts: dict) -> None:
    """Greedy and beam search of the engine, all rows at once; with beams the original counts its start token."""
    length, engine = facts["out_seq_length"], Engine(model, Rows(arrays, facts), beam_variant=family.beam_variant)
    for name, options in (
        ("greedy_ids", GreedySettings(max_new_tokens=length)),
        ("beam4_ids", BeamSettings(beams=4, max_new_tokens=length - 1)),
    ):
        for found, wanted in zip(engine.generate(range(len(arrays["idx"])), options), expected[name], strict=True):
            cut = found[: found.index(facts["pad_id"])] if facts["pad_id"] in found else found
            assert cut == [token for token in wanted.tolist() if token >= 0], name


class Rows:
    """Processor whose records are the numbers of the case's rows; their answers are ids."""

    def __init__(self, arrays: Arrays, facts: dict) -> None:
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


def _check_training(model: Cpm2, arrays: Arrays, expected: Arrays, facts: dict) -> None:
    settings = TrainSettings(
        lr=float(expected["train_lrs"][-1]), schedule="constant", first_step_at_zero=True, warmup_steps=1
    )
    parallel_model = parallelize(model, torch.device("cpu"))
    optimizer = build_optimizer(parallel_model.parameters, settings.optimizer)
    step = Step(parallel_model, optimizer, settings, len(expected["train_losses"]))
    for theirs in zip(*(expected[f"train_{name}"].tolist() for name in ("losses", "lrs", "grad_norms")), strict=True):
        ours = step.run(batch_of(arrays))
        assert ours.loss == pytest.approx(theirs[0], abs=facts["tolerance"]["train_loss_atol"])
        assert ours.lr == pytest.approx(theirs[1])
        assert ours.grad_norm == pytest.approx(theirs[2], rel=1e-3)
    weights = as_original(model, {name: weight.detach() for name, weight in model.named_parameters()})
    for name, theirs in expected.items():
        if name.startswith("trained/"):
            assert_close(name, weights[name.removeprefix("trained/")], theirs, facts["tolerance"]["train_loss_atol"])
    wanted = expected["trained_param_norms"].sort().values
    assert_close("trained norms", norms_of(weights), wanted, facts["tolerance"]["train_loss_atol"])
