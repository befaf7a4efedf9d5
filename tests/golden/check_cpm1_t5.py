"""The T5 of the pretraining program: all forms of its files, logits, loss, gradients, greedy texts, and back.

The same check serves the case with reset positions and masks, whose documents are samples of their own here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from cpm1_case import (
    T5_FAMILY,
    Arrays,
    arrays_of,
    assert_close,
    check_gradients,
    check_training,
    documents,
    facts_of,
    load_model,
    positions,
)

from hanlin.core.batch import IGNORED
from hanlin.formats.convert import convert
from hanlin.formats.source import open_source
from hanlin.layers.kv_cache import KVCache


def check(case: Path, vocab: Path) -> None:
    del vocab
    facts = facts_of(case)
    flags, atol = facts["argv"], facts["measured"]["suggested_atol"]
    inputs, expected = arrays_of(case / "inputs.npz"), arrays_of(case / "expected.npz")
    heads, size = (int(flags[flags.index(flag) + 1]) for flag in ("--num-attention-heads", "--kv-hidden-size"))
    given = _given(inputs, facts["config"]["eod_id"], flags)
    for name in ("enc", "dec"):
        places = given["encoder_positions" if name == "enc" else "positions"]
        assert places.equal(expected[f"{name}_position_ids"])
    for folder in sorted(path for path in case.iterdir() if path.is_dir()):
        # DeepSpeed's files lack the program's arguments.
        model = load_model(folder, {"num_heads": heads, "head_dim": size} if "ds" in folder.name else {}, T5_FAMILY)
        _check_network(model, given, inputs["labels"], expected, facts, atol)
        _check_generation(model, given, inputs["dec_prompt"], expected, atol["logits"])
    if facts["train"] is not None:
        check_training(load_model(case / "ckpt", {}, T5_FAMILY), _train_batches(inputs, facts), facts, expected)
    _check_layouts(case)


def _train_batches(inputs: Arrays, facts: dict[str, Any]) -> list[Arrays]:
    columns = zip(inputs["train_targets"], inputs["train_contexts"], inputs["train_labels"], strict=True)
    return [
        {"tokens": tokens, "encoder_tokens": contexts, "labels": labels, "weights": _weights(tokens, labels, facts)}
        for tokens, contexts, labels in columns
    ]


def _weights(tokens: torch.Tensor, labels: torch.Tensor, facts: dict[str, Any]) -> torch.Tensor:
    return ((tokens != facts["config"]["eod_id"]) & (labels != facts["config"]["pad_id"])).float()


def _given(inputs: Arrays, eod: int, flags: list[str]) -> Arrays:
    ends = {"encoder_": inputs["ctx_eod_mask"] == 1, "": inputs["targets"] == eod}
    given = {"tokens": inputs["targets"], "encoder_tokens": inputs["contexts"]}
    for side, is_end in ends.items():
        given[f"{side}positions"] = positions(is_end & ("--reset-position-ids" in flags))
        given[f"{side}spans"] = documents(is_end & ("--reset-attention-mask" in flags))
    return given


def _check_network(
    model: Any, given: Arrays, labels: torch.Tensor, expected: Arrays, facts: dict[str, Any], atol: dict[str, float]
) -> None:
    weights = _weights(given["tokens"], labels, facts)
    assert weights.equal(expected["loss_mask"])
    # Padding that no sample of the encoder belongs to averages all of it in the original; nobody reads that.
    real = expected["cross_attention_mask"][:, 0].any(-1)
    assert bool((real | (weights == 0)).all())
    assert_close("logits", model(**given)[real], expected["logits"][real], atol["logits"])
    losses = model(**given, labels=labels, reduction="none")
    assert_close("token_losses", losses[real], expected["token_losses"][real], atol["loss"])
    loss = model(**given, labels=labels.masked_fill(weights == 0, IGNORED), weights=weights) / weights.sum()
    assert_close("loss", loss, expected["loss"], atol["loss"])
    check_gradients(model, loss, "megatron", expected, atol["grads"])


@torch.no_grad()
def _check_generation(model: Any, given: Arrays, prompt: torch.Tensor, expected: Arrays, atol: float) -> None:
    """Greedy decoding with a KV cache; the case was made with positions of documents, but everybody seeing
    everything.
    """
    kv_cache, ids, steps = KVCache(), prompt, []
    read = {name: given[name] for name in ("encoder_tokens", "encoder_positions")}
    for _ in range(expected["greedy_step_logits"].shape[1]):
        steps.append(model(tokens=ids[:, kv_cache.length :], **read, kv_cache=kv_cache, logits_to_keep=1)[:, -1])
        ids = torch.cat((ids, steps[-1].argmax(-1, keepdim=True)), dim=1)
    assert ids.equal(expected["greedy_dec_ids"])
    assert_close("greedy_step_logits", torch.stack(steps, dim=1), expected["greedy_step_logits"], atol)


def _check_layouts(case: Path) -> None:
    """Two shards and our base folder, each written from one shard, come back with the same bits."""
    whole = open_source(case / "ckpt", T5_FAMILY).weights
    halves = open_source(case / "ckpt_mp2", T5_FAMILY).weights
    assert all(halves[name].equal(whole[name]) for name in whole)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, layout, ranks in (("two", "megatron", 2), ("base", "base", 1)):
            convert(case / "ckpt", T5_FAMILY, None, layout, folder / name, ranks=ranks)
            convert(folder / name, T5_FAMILY, None, "megatron", folder / f"{name}_back")
            back = open_source(folder / f"{name}_back", T5_FAMILY).weights
            assert sorted(back) == sorted(whole)
            assert all(back[tensor].equal(whole[tensor]) for tensor in whole)
