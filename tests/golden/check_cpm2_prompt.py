"""CPM-2's prompt tuning against the original: ids, masks, logits, the prompts' gradient, eight steps, first values."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cpm2_case import batch_of, check_loss, gradient_close, inputs_of, load_model
from golden_case import Case, Reading, close

from hanlin.models.cpm2 import family
from hanlin.models.cpm2.datasets.lcqmc import make_items
from hanlin.models.cpm2.formats import PROMPTS
from hanlin.models.cpm2.model import Cpm2
from hanlin.models.cpm2.pieces import source_of, target_of
from hanlin.models.cpm2.tokenizer import Cpm2Tokenizer
from hanlin.parallel.parallel_model import BackwardResult
from hanlin.parallel.parallelize import parallelize
from hanlin.recipe.settings import TrainSettings
from hanlin.training.optimizer import build_optimizer
from hanlin.training.optimizers.adamw import AdamWSettings
from hanlin.training.step import Step
from hanlin.tuning.apply import apply_tuning
from hanlin.tuning.prompt import PromptTuning, first_tokens, init_from_tokens


def check(case: Case, vocab: Path) -> None:
    del vocab
    tokenizer = Cpm2Tokenizer.load(case / "vocab.txt") if case.holds("vocab.txt") else None
    samples, inputs, expected = case.json("samples.json", {}), case.arrays("inputs.npz"), case.arrays()
    for name, file in case.facts["prompt_configs"].items():
        if not case.holds(file):
            continue
        settings = PromptTuning.model_validate({"file": case / file})
        if name in samples and tokenizer is not None and case.holds(case.facts["data"]):
            _check_ids(case / case.facts["data"], settings, tokenizer, samples[name])
        own, wanted = inputs.under(f"{name}/"), expected.under(f"{name}/")
        if own:
            _check_network(_tuned(case, settings), own, wanted, case)
        if "init_ids" in wanted and tokenizer is not None:
            _check_start(case, settings, tokenizer, wanted)
    tuned = expected.under("tune/")
    if "grad_norms" in tuned and "main/labels" in inputs and case.holds("prompt_main.json"):
        main = PromptTuning.model_validate({"file": case / case.facts["prompt_configs"]["main"]})
        _check_tuning(_tuned(case, main), inputs.under("main/"), tuned, case)
    if tokenizer is None:
        case.set_aside(r"expected\.npz: init_.*", "ids of words, for which the vocabulary is needed")
    case.set_aside(r"inputs\.npz: .*(/idx|attention_mask)", "the rows' numbers; the masks decide what is padding")


def _check_ids(data: Path, settings: PromptTuning, tokenizer: Cpm2Tokenizer, expected: list[dict[str, Any]]) -> None:
    records = [json.loads(line) for line in data.read_text("utf-8").splitlines()]
    for number, (record, wanted) in enumerate(zip(records, expected, strict=True)):
        [item] = make_items(record, settings)
        target = target_of(item, tokenizer)
        found = {
            "enc_input_ids": source_of(item, tokenizer),
            "dec_input_ids": target[:-1],
            "label_ids": target[1:],
            "idx": number,
        }
        for name, ours in found.items():
            assert ours == wanted.get(name, ours), (number, name)


def _check_network(model: Cpm2, arrays: Reading, wanted: Reading, case: Case) -> None:
    inputs, atol = inputs_of(arrays), case.tolerance("logits_atol", default=2e-5)
    assert model.soft_prompt is not None
    close("input_embeds", model.soft_prompt(inputs["encoder_tokens"], model.embedding), wanted, 0, 0)
    logits = model(**inputs)
    assert isinstance(logits, torch.Tensor)
    close("lm_logits", logits, wanted, atol, 0)
    preds = logits[:, 1].argmax(-1)
    close("preds", preds, wanted, 0, 0)
    if "labels" not in arrays or "loss_mask" not in arrays:
        return
    words = arrays["labels"][:, 1]
    close("labels_word", words, wanted, 0, 0)
    close("acc", (preds == words).float().mean(), wanted, 1e-6, 0)
    check_loss(model, arrays, wanted, atol).backward()
    assert model.soft_prompt.weight.grad is not None
    gradient_close(f"grad/{PROMPTS}", model.soft_prompt.weight.grad, wanted, case.tolerance("grad_rtol", default=1e-4))


def _check_start(case: Case, settings: PromptTuning, tokenizer: Cpm2Tokenizer, wanted: Reading) -> None:
    tokens = first_tokens(settings, tokenizer)
    assert tokens == wanted["init_ids"].tolist()
    if "prompt_weight" in wanted:
        model = load_model(case)
        settings.add_to(model, family)
        init_from_tokens(model, tokens)
        close("prompt_weight", model.get_parameter("soft_prompt.weight"), wanted, 0, 0)


def _check_tuning(model: Cpm2, arrays: Reading, expected: Reading, case: Case) -> None:
    stated, atol = case.facts["tune"], case.tolerance("tune_atol", default=1e-3)
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
    reports = [step.run(batch_of(arrays)) for _ in range(stated["steps"])]
    close("losses", [report.loss for report in reports], expected, atol, 0)
    close("lrs", [report.lr for report in reports], expected, 0, 1e-6)
    close("grad_norms", [report.grad_norm for report in reports], expected, 0, 1e-3)
    assert model.soft_prompt is not None
    close("prompt_after", model.soft_prompt.weight, expected, atol, 0)


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

    def forward_backward(self, *arguments: Any, **settings: Any) -> BackwardResult:
        found: BackwardResult = self._parallel_model.forward_backward(*arguments, **settings)
        own = found.grad_norm
        if self._old is None:
            self._old = (self._first_norm**2 - own**2) ** 0.5
        return replace(found, grad_norm=(own**2 + self._old**2) ** 0.5)

    def scale_grads(self, factor: float) -> None:
        assert self._old is not None
        self._old *= float(factor)
        self._parallel_model.scale_grads(factor)


def _tuned(case: Case, settings: PromptTuning) -> Cpm2:
    model = apply_tuning(load_model(case), settings, family)
    with torch.no_grad():
        model.soft_prompt.weight.copy_(case.arrays("prompt_embeds.npz")[PROMPTS])
    return model.eval()
