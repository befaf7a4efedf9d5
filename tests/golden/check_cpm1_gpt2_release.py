"""The released CPM-1: one shard, two, and the hub's form; loss, gradients, cached generation, and all forms back."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from cpm1_case import FAMILY, Arrays, arrays_of, assert_close, check_gradients, facts_of, load_model

from hanlin.core.batch import IGNORED
from hanlin.formats.convert import convert
from hanlin.formats.files import open_weights
from hanlin.formats.source import open_source
from hanlin.generate.sampling import warp
from hanlin.layers.kv_cache import KVCache
from hanlin.models.cpm1.model import Cpm1


def check(case: Path, vocab: Path) -> None:
    del vocab
    facts = facts_of(case)
    atol, shape = facts["measured"]["suggested_atol"], facts["config"]
    heads = shape["num_attention_heads"]
    changes = {"num_heads": heads, "head_dim": shape["hidden_size"] // heads}
    inputs, expected = arrays_of(case / "inputs.npz"), arrays_of(case / "expected.npz")
    for folder in ("ckpt", "ckpt_MP2", "hf"):
        model = load_model(case / folder, changes)
        _check_network(model, inputs, expected, atol)
        _check_generation(model, inputs, expected, facts, atol["logits"])
    _check_filters(inputs["filter_logits"], expected)
    _check_layouts(case, changes)


def _check_filters(logits: torch.Tensor, expected: Arrays) -> None:
    """Top-k and top-p of the original, where 0 switches off either."""
    for name in (name for name in expected if name.startswith("filter_")):
        k, p = (float(part[1:]) for part in name.removeprefix("filter_").split("_"))
        assert warp(logits, 1.0, int(k), p or 1.0).equal(expected[name]), name
        # The original filters first, so the temperature never changes what is left.
        warmed = warp(logits, 0.5, int(k), p or 1.0, temperature_last=True)
        assert warmed.equal(expected[name] / 0.5), name


def _check_network(model: Cpm1, inputs: Arrays, expected: Arrays, atol: dict[str, float]) -> None:
    given = {"tokens": inputs["input_ids"], "positions": inputs["position_ids"]}
    assert_close("logits", model(**given), expected["logits"], atol["logits"])
    labels, weights = inputs["labels"], inputs["loss_mask"]
    # The case holds the loss of every token, also of those that its mask leaves out.
    losses = model(**given, labels=labels, reduction="none")
    assert_close("token_losses", losses, expected["token_losses"], atol["loss"])
    loss = model(**given, labels=labels.masked_fill(weights == 0, IGNORED), weights=weights) / weights.sum()
    assert_close("loss", loss, expected["loss"], atol["loss"])
    rows = (losses * weights).sum(1) / weights.sum(1)
    assert_close("sequence_losses", rows, expected["sequence_losses"], atol["loss"])
    check_gradients(model, loss, "original", expected, atol["grads"])


@torch.no_grad()
def _check_generation(model: Cpm1, inputs: Arrays, expected: Arrays, facts: dict[str, Any], atol: float) -> None:
    kv_cache, ids, steps = KVCache(), inputs["prompt"].tolist(), []
    column = inputs["prompt"][None]
    for _ in range(len(expected["greedy_step_logits"])):
        steps.append(model(tokens=column, kv_cache=kv_cache, logits_to_keep=1)[0, -1])
        ids.append(int(steps[-1].argmax()))
        column = torch.tensor([ids[-1:]])
    end = facts["generation"]["eod_id"]
    stop = ids.index(end, len(inputs["prompt"])) + 1 if end in ids[len(inputs["prompt"]) :] else len(ids)
    assert ids[:stop] == expected["greedy_ids"].tolist()
    assert_close("greedy_step_logits", torch.stack(steps), expected["greedy_step_logits"], atol)


def _check_layouts(case: Path, changes: dict[str, Any]) -> None:
    """One shard -> two, base and hub, and each of them back: the same bits as the original's files."""
    whole, hub = open_source(case / "ckpt", FAMILY).weights, open_weights(case / "hf")
    halves = open_source(case / "ckpt_MP2", FAMILY).weights
    assert all(halves[name].equal(whole[name]) for name in whole)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, layout, ranks in (("two", "original", 2), ("base", "base", 1), ("hub", "huggingface", 1)):
            convert(case / "ckpt", FAMILY, None, layout, folder / name, changes=changes, ranks=ranks)
            convert(folder / name, FAMILY, None, "original", folder / f"{name}_back")
            back = open_source(folder / f"{name}_back", FAMILY).weights
            assert sorted(back) == sorted(whole)
            assert all(back[tensor].equal(whole[tensor]) for tensor in whole)
        written = open_weights(folder / "hub")
        assert all(written[name].equal(hub[name]) for name in written)
        assert set(hub) - set(written) <= {"lm_head.weight"}
        _check_shards(case / "ckpt_MP2", folder / "two")


def _check_shards(theirs: Path, ours: Path) -> None:
    files = sorted(theirs.rglob("mp_rank_*.pt"))
    for file in files:
        [written] = ours.rglob(file.name)
        modules = [torch.load(path, weights_only=False)["module"] for path in (file, written)]
        assert set(modules[0]) == set(modules[1])
        assert all(modules[0][name].equal(modules[1][name]) for name in modules[0])
