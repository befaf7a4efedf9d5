"""GPT-2 of the pretraining program: all forms of its files, logits, loss, gradients, texts, training, and back.

The same check serves the cases with reset positions and masks, whose documents are samples of their own here.
"""

from __future__ import annotations

from pathlib import Path

import torch
from cpm1_case import (
    FAMILY,
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
from hanlin.models.cpm1.model import Cpm1


def check(case: Case, vocab: Path) -> None:
    del vocab
    inputs, expected = case.arrays("inputs.npz"), case.arrays()
    for folder, model in models(case):
        if "text" in inputs:
            _check_network(model, _given(case, inputs["text"]), expected, tolerances(case))
        if "prompts" in inputs:
            for ending in ("", "_recompute"):
                _check_generation(case, model, inputs["prompts"], expected, ending)
        if folder.name == "ckpt" and "train_text" in inputs:
            batches = [_given(case, text) for text in inputs["train_text"]]
            check_training(load_model(folder, {}), batches, case, expected)
    changes = {"vocab_multiple": case.flag("make-vocab-size-divisible-by", int, 128)}
    check_layouts(case, FAMILY, ("megatron", "original", "huggingface"), changes)
    case.set_aside(r"args\.txt", "case.json holds the same flags")


def _given(case: Case, text: torch.Tensor) -> Arrays:
    """What the model is called with: documents end at <eod>, which has no loss if the flags say so."""
    tokens, labels = text[:, :-1], text[:, 1:]
    is_end = tokens == case.facts["config"]["eod_id"]
    weights = ~is_end if case.flag("eod-mask-loss", bool) else torch.ones_like(is_end)
    given = {"tokens": tokens, "positions": positions(is_end & bool(case.flag("reset-position-ids", bool)))}
    if case.flag("reset-attention-mask", bool):
        given["spans"] = documents(is_end)
    return given | {"labels": labels.masked_fill(~weights, IGNORED), "weights": weights.float()}


def _check_network(model: Cpm1, batch: Arrays, expected: Reading, atol: dict[str, float]) -> None:
    given = {name: array for name, array in batch.items() if name not in ("labels", "weights")}
    same("position_ids", given["positions"], expected)
    same("loss_mask", batch["weights"], expected)
    spans = given.get("spans", torch.zeros_like(given["tokens"])[:1])
    seen = same_span(spans, spans) & causal_mask(spans.shape[1], spans.shape[1])
    if "attention_mask_blocked" in expected:
        rows = len(expected["attention_mask_blocked"])
        same("attention_mask_blocked", ~seen[:, None].expand(rows, -1, -1, -1), expected)
    close("logits", model(**given), expected, atol["logits"])
    if "token_losses" in expected:  # also of the tokens that the mask leaves out
        following = batch["tokens"].roll(-1, 1)
        following[:, -1] = torch.where(batch["labels"][:, -1] == IGNORED, 0, batch["labels"][:, -1])
        losses = model(**given, labels=following, reduction="none")
        known = torch.ones_like(losses, dtype=torch.bool)
        known[:, -1] = batch["labels"][:, -1] != IGNORED
        close("token_losses", losses, expected, atol["loss"], where=known)
    loss = model(**batch) / batch["weights"].sum()
    close("loss", loss, expected, atol["loss"])
    check_gradients(model, loss, "megatron", expected, atol["grads"])


@torch.no_grad()
def _check_generation(case: Case, model: Cpm1, prompts: torch.Tensor, expected: Reading, ending: str) -> None:
    """Greedy continuation of each prompt by itself: the rows of the original's batch are independent.

    The original finds documents and positions once, in the prompts padded with <eod>; with its reset flags every new
    column after the first is thus alone at position 0. We feed what it fed; our own generation does not do so.
    """
    if f"greedy_tokens{ending}" not in expected:
        return
    eod, rows = case.facts["config"]["eod_id"], expected[f"greedy_tokens{ending}"].tolist()
    lengths = expected.get(f"greedy_lengths{ending}", torch.tensor([len(row) for row in rows])).tolist()
    for prompt, row, length in zip(prompts, rows, lengths, strict=True):
        ids = prompt[prompt >= 0].tolist()
        # Without an end a text has its full length, which is one less than the array's.
        assert eod in row[len(ids) :] or length == len(row) - 1, f"greedy_lengths{ending}"
        padded = torch.tensor([ids + [eod] * (length - len(ids))])
        is_end = padded == eod
        places = positions(is_end & bool(case.flag("reset-position-ids", bool)))
        spans = documents(is_end & bool(case.flag("reset-attention-mask", bool)))
        while len(ids) < length:
            own = {"tokens": torch.tensor([ids]), "positions": places[:, : len(ids)], "spans": spans[:, : len(ids)]}
            ids.append(int(model(**own, logits_to_keep=1)[0, -1].argmax()))
        assert ids[:length] == row[:length], f"greedy_tokens{ending}"
