"""The T5 of the pretraining program: all forms of its files, logits, loss, gradients, greedy texts, and back.

The same check serves the cases with reset positions and masks, whose documents are samples of their own here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from cpm1_case import (
    T5_FAMILY,
    Arrays,
    check_gradients,
    check_layouts,
    check_training,
    documents,
    load_model,
    models,
    positions,
    tolerances,
)
from golden_case import Case, Reading, close, same

from hanlin.core.batch import IGNORED
from hanlin.layers.attention import causal_mask, same_span
from hanlin.layers.kv_cache import KVCache


def check(case: Case, vocab: Path) -> None:
    del vocab
    inputs, expected = case.arrays("inputs.npz"), case.arrays()
    for folder, model in models(case, T5_FAMILY):
        if "contexts" in inputs:
            batch = _batch(case, inputs)
            _check_masks(batch, expected)
            _check_network(model, batch, inputs.get("labels"), expected, tolerances(case))
            if "dec_prompt" in inputs:
                _check_generation(model, batch, inputs["dec_prompt"], expected, tolerances(case)["logits"])
        if folder.name == "ckpt" and "train_labels" in inputs:
            check_training(load_model(folder, {}, T5_FAMILY), _train_batches(case, inputs), case, expected)
    changes = {"vocab_multiple": case.flag("make-vocab-size-divisible-by", int, 128)}
    check_layouts(case, T5_FAMILY, ("megatron", "base"), changes)
    case.set_aside(r"args\.txt", "case.json holds the same flags")


def _train_batches(case: Case, inputs: Reading) -> list[Arrays]:
    steps = [
        {name: inputs[f"train_{name}"][number] for name in ("contexts", "targets", "labels", "ctx_eod_mask")}
        for number in range(len(inputs["train_contexts"]))
    ]
    return [_batch(case, step) for step in steps]


def _batch(case: Case, arrays: Any) -> Arrays:
    """What the model is called with; documents end at <eod>, those of the encoder where the case says."""
    tokens, labels = arrays["targets"], arrays.get("labels")
    given = {"tokens": tokens, "encoder_tokens": arrays["contexts"]}
    eod = case.facts["config"]["eod_id"]
    for side, is_end in {"encoder_": arrays["ctx_eod_mask"] == 1, "": tokens == eod}.items():
        given[f"{side}positions"] = positions(is_end & bool(case.flag("reset-position-ids", bool)))
        given[f"{side}spans"] = documents(is_end & bool(case.flag("reset-attention-mask", bool)))
    if labels is None:
        return given
    weights = (tokens != eod) & (labels != case.facts["config"]["pad_id"])
    return given | {"labels": labels.masked_fill(~weights, IGNORED), "weights": weights.float()}


def _check_masks(batch: Arrays, expected: Reading) -> None:
    read, own = batch["encoder_spans"], batch["spans"]
    same("enc_position_ids", batch["encoder_positions"], expected)
    same("dec_position_ids", batch["positions"], expected)
    if "weights" in batch:
        same("loss_mask", batch["weights"], expected)
    same("enc_attention_mask", same_span(read, read)[:, None], expected)
    same("dec_attention_mask", (same_span(own, own) & causal_mask(own.shape[1], own.shape[1]))[:, None], expected)
    same("cross_attention_mask", same_span(own, read)[:, None], expected)


def _check_network(
    model: Any, batch: Arrays, labels: torch.Tensor | None, expected: Reading, atol: dict[str, float]
) -> None:
    given = {name: array for name, array in batch.items() if name not in ("labels", "weights")}
    # Padding that no sample of the encoder belongs to averages all of it in the original; nobody reads that.
    real = same_span(given["spans"], given["encoder_spans"]).any(-1)
    close("logits", model(**given), expected, atol["logits"], where=real)
    if labels is None:
        return
    assert bool((real | (batch["weights"] == 0)).all())
    close("token_losses", model(**given, labels=labels, reduction="none"), expected, atol["loss"], where=real)
    loss = model(**batch) / batch["weights"].sum()
    close("loss", loss, expected, atol["loss"])
    check_gradients(model, loss, "megatron", expected, atol["grads"])


@torch.no_grad()
def _check_generation(model: Any, batch: Arrays, prompt: torch.Tensor, expected: Reading, atol: float) -> None:
    """Greedy decoding with a KV cache; the case was made with positions of documents, but everybody seeing
    everything.
    """
    if "greedy_dec_ids" not in expected:
        return
    kv_cache, ids, steps = KVCache(), prompt, []
    read = {name: batch[name] for name in ("encoder_tokens", "encoder_positions")}
    while ids.shape[1] < expected["greedy_dec_ids"].shape[1]:
        steps.append(model(tokens=ids[:, kv_cache.length :], **read, kv_cache=kv_cache, logits_to_keep=1)[:, -1])
        ids = torch.cat((ids, steps[-1].argmax(-1, keepdim=True)), dim=1)
    same("greedy_dec_ids", ids, expected)
    close("greedy_step_logits", torch.stack(steps, dim=1), expected, atol)
