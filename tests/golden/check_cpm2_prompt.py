"""CPM-2's prompt tuning against the original: ids, masks, logits, the prompts' gradient, eight steps, first values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cpm2_case import (
    Arrays,
    arrays_of,
    assert_close,
    assert_gradient,
    batch_of,
    facts_of,
    inputs_of,
    load_model,
    losses_of,
)

from hanlin.models.cpm2 import family
from hanlin.models.cpm2.datasets.lcqmc import make_items
from hanlin.models.cpm2.formats import PROMPTS
from hanlin.models.cpm2.model import Cpm2
from hanlin.models.cpm2.pieces import source_of, target_of
from hanlin.models.cpm2.tokenizer import Cpm2Tokenizer
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import TrainSettings
from hanlin.train.optimizer import build_optimizer
from hanlin.train.optimizers.adamw import AdamWSettings
from hanlin.train.step import Step
from hanlin.tuning.apply import apply_tuning
from hanlin.tuning.prompt import PromptTuning, first_tokens, init_from_tokens


def check(case: Path, vocab: Path) -> None:
    del vocab
    facts, tokenizer = facts_of(case), Cpm2Tokenizer.load(case / "vocab.txt")
    samples = json.loads((case / "samples.json").read_text())
    inputs, expected = arrays_of(case / "inputs.npz"), arrays_of(case / "expected.npz")
    for name, file in facts["prompt_configs"].items():
        settings = PromptTuning.model_validate({"file": case / file})
        if name in samples:
            _check_ids(case / facts["data"], settings, tokenizer, samples[name])
            own, wanted = (_under(name, arrays) for arrays in (inputs, expected))
            _check_network(_tuned(case, settings), own, wanted, facts["tolerance"])
        else:
            _check_start(case, settings, tokenizer, _under(name, expected))
    main = PromptTuning.model_validate({"file": case / facts["prompt_configs"]["main"]})
    _check_tuning(_tuned(case, main), _under("main", inputs), _under("tune", expected), facts)


def _check_ids(data: Path, settings: PromptTuning, tokenizer: Cpm2Tokenizer, expected: list[dict[str, Any]]) -> None:
    records = [json.loads(line) for line in data.read_text("utf-8").splitlines()]
    for record, wanted in zip(records, expected, strict=True):
        [item] = make_items(record, settings)
        target = target_of(item, tokenizer)
        assert source_of(item, tokenizer) == wanted["enc_input_ids"]
        assert (target[:-1], target[1:]) == (wanted["dec_input_ids"], wanted["label_ids"])


def _check_network(model: Cpm2, arrays: Arrays, expected: Arrays, tolerance: dict[str, float]) -> None:
    inputs, batch = inputs_of(arrays), batch_of(arrays)
    assert model.soft_prompt is not None
    embedded = model.soft_prompt(inputs["encoder_tokens"], model.embedding)
    assert_close("input_embeds", embedded, expected["input_embeds"], 0.0)
    logits = model(**inputs)
    assert isinstance(logits, torch.Tensor)
    assert_close("logits", logits, expected["lm_logits"], tolerance["logits_atol"])
    assert logits[:, 1].argmax(-1).tolist() == expected["preds"].tolist()
    loss = losses_of(model, batch)
    assert_close("loss", loss, expected["loss"], tolerance["logits_atol"])
    loss.backward()
    assert model.soft_prompt.weight.grad is not None
    assert_gradient("prompts", model.soft_prompt.weight.grad, expected[f"grad/{PROMPTS}"], tolerance["grad_rtol"])


def _check_start(case: Path, settings: PromptTuning, tokenizer: Cpm2Tokenizer, expected: Arrays) -> None:
    tokens = first_tokens(settings, tokenizer)
    assert tokens == expected["init_ids"].tolist()
    if "prompt_weight" in expected:
        model = load_model(case)
        settings.add_to(model, family)
        init_from_tokens(model, tokens)
        assert_close("prompt_weight", model.get_parameter("soft_prompt.weight"), expected["prompt_weight"], 0.0)


def _check_tuning(model: Cpm2, arrays: Arrays, expected: Arrays, facts: dict[str, Any]) -> None:
    stated, atol = facts["tune"], facts["tolerance"]["tune_atol"]
    settings = TrainSettings(
        lr=stated["lr"],
        schedule="constant",
        warmup_steps=1,
        first_step_at_zero=True,
        optimizer=AdamWSettings(weight_decay=stated["weight_decay"]),
        clip=stated["clip"],
    )
    parallel_model = parallelize(model, torch.device("cpu"))
    assert list(parallel_model.parameters) == ["soft_prompt.weight"]
    counted = _CountsOldGradients(parallel_model, float(expected["grad_norms"][0]))
    optimizer = build_optimizer(parallel_model.parameters, settings.optimizer)
    step = Step(counted, optimizer, settings, stated["steps"])  # pyright: ignore
    for loss, rate, norm in zip(*(expected[name].tolist() for name in ("losses", "lrs", "grad_norms")), strict=True):
        ours = step.run(batch_of(arrays))
        assert ours.lr == pytest.approx(rate)
        assert ours.loss == pytest.approx(loss, abs=atol)
        assert ours.grad_norm == pytest.approx(norm, rel=1e-3)
    assert model.soft_prompt is not None
    assert_close("prompt_after", model.soft_prompt.weight, expected["prompt_after"], atol)


class _CountsOldGradients:
    """A parallel model whose norm counts what the recording left in the frozen weights.

    There the frozen weights still had the gradients of an earlier pass. They were clipped along, but never dropped, so
    that the first norm is 56.6 for prompts of 3.1, and the second is one of sqrt(3.1^2 + 1).
    """

    def __init__(self, parallel_model: Any, first_norm: float) -> None:
        self._parallel_model, self._first_norm = parallel_model, first_norm
        self._old: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parallel_model, name)

    def grad_norm(self) -> float:
        own = self._parallel_model.grad_norm()
        if self._old is None:
            self._old = (self._first_norm**2 - own**2) ** 0.5
        return (own**2 + self._old**2) ** 0.5

    def scale_grads(self, factor: float) -> None:
        assert self._old is not None
        self._old *= float(factor)
        self._parallel_model.scale_grads(factor)


def _tuned(case: Path, settings: PromptTuning) -> Cpm2:
    model = apply_tuning(load_model(case), settings, family)
    with torch.no_grad():
        model.soft_prompt.weight.copy_(arrays_of(case / "prompt_embeds.npz")[PROMPTS])
    return model.eval()


def _under(name: str, arrays: Arrays) -> Arrays:
    start = f"{name}/"
    return {key.removeprefix(start): array for key, array in arrays.items() if key.startswith(start)}
