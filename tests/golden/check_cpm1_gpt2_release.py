"""The released CPM-1: one shard, two, and the hub's form; loss, gradients, cached generation, and all forms back."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from cpm1_case import FAMILY, check_gradients, load_model, tolerances
from golden_case import Case, Reading, close, same

from hanlin.core.batch import IGNORED
from hanlin.formats.convert import convert
from hanlin.formats.files import open_weights
from hanlin.formats.source import open_source
from hanlin.generate.sampling import warp
from hanlin.layers.attention import causal_mask
from hanlin.layers.kv_cache import KVCache
from hanlin.models.cpm1.model import Cpm1


def check(case: Case, vocab: Path) -> None:
    del vocab
    atol, shape = tolerances(case), case.facts["config"]
    heads = shape["num_attention_heads"]
    changes = {"num_heads": heads, "head_dim": shape["hidden_size"] // heads}
    inputs, expected = case.arrays("inputs.npz"), case.arrays()
    for folder in case.folders():
        model = load_model(folder, changes)
        if "input_ids" in inputs:
            _check_network(model, inputs, expected, atol)
        if "prompt" in inputs:
            _check_generation(model, inputs["prompt"], expected, case.facts["generation"], atol["logits"])
    if "filter_logits" in inputs:
        _check_filters(inputs["filter_logits"], expected)
    _check_layouts(case, changes)
    case.set_aside(r"model_args\.json", "case.json holds the same sizes")


def _check_filters(logits: torch.Tensor, expected: Reading) -> None:
    """Top-k and top-p of the original, where 0 switches off either."""
    for name in expected.names("filter_"):
        k, p = (float(part[1:]) for part in name.removeprefix("filter_").split("_"))
        assert warp(logits, 1.0, int(k), p or 1.0).equal(expected[name]), name
        # The original filters first, so the temperature never changes what is left.
        warmed = warp(logits, 0.5, int(k), p or 1.0, temperature_last=True)
        assert warmed.equal(expected[name] / 0.5), name


def _check_network(model: Cpm1, inputs: Reading, expected: Reading, atol: dict[str, float]) -> None:
    tokens = inputs["input_ids"]
    given = {"tokens": tokens}
    if "position_ids" in inputs:
        given["positions"] = inputs["position_ids"]
    if "attention_mask" in inputs:
        seen = causal_mask(tokens.shape[1], tokens.shape[1])
        same("attention_mask", seen.expand_as(inputs["attention_mask"]), inputs)
    close("logits", model(**given), expected, atol["logits"])
    if "labels" not in inputs:
        return
    labels, weights = inputs["labels"], inputs.get("loss_mask", torch.ones(tokens.shape))
    # The case holds the loss of every token, also of those that its mask leaves out.
    losses = model(**given, labels=labels, reduction="none")
    close("token_losses", losses, expected, atol["loss"])
    loss = model(**given, labels=labels.masked_fill(weights == 0, IGNORED), weights=weights) / weights.sum()
    close("loss", loss, expected, atol["loss"])
    close("sequence_losses", (losses * weights).sum(1) / weights.sum(1), expected, atol["loss"])
    check_gradients(model, loss, "original", expected, atol["grads"])


@torch.no_grad()
def _check_generation(
    model: Cpm1, prompt: torch.Tensor, expected: Reading, stated: dict[str, Any], atol: float
) -> None:
    """Both arrays may end at the first <eod>, or go on behind it."""
    wanted = expected.get("greedy_ids", prompt).tolist()
    steps_told = len(expected.get("greedy_step_logits", ()))
    kv_cache, ids, steps, column = KVCache(), prompt.tolist(), [], prompt[None]
    for _ in range(max(len(wanted) - len(prompt), steps_told)):
        steps.append(model(tokens=column, kv_cache=kv_cache, logits_to_keep=1)[0, -1])
        ids.append(int(steps[-1].argmax()))
        column = torch.tensor([ids[-1:]])
    assert ids[: len(wanted)] == wanted
    if "greedy_ids" in expected and len(wanted) < len(prompt) + stated.get("gen_tokens", 0):
        assert wanted[-1] == stated["eod_id"]
    if steps_told:
        close("greedy_step_logits", torch.stack(steps)[:steps_told], expected, atol)


def _check_layouts(case: Case, changes: dict[str, Any]) -> None:
    """One shard -> several, base and hub, and each of them back: the same bits as the original's files."""
    shards = {folder: len(list(folder.rglob("mp_rank_*.pt"))) for folder in case.folders()}
    ranked = sorted((folder for folder in shards if shards[folder]), key=lambda folder: shards[folder])
    first = (ranked or case.folders())[0]
    whole = open_source(first, FAMILY).weights
    for folder in ranked:
        weights = open_source(folder, FAMILY).weights
        assert all(weights[name].equal(whole[name]) for name in whole), folder.name
    with tempfile.TemporaryDirectory() as temporary:
        written = Path(temporary)
        layouts = {("original", shards[folder]) for folder in ranked} | {("base", 1), ("huggingface", 1)}
        for layout, ranks in sorted(layouts):
            there, back = (written / f"{layout}{ranks}{end}" for end in ("", "_back"))
            convert(first, FAMILY, None, layout, there, changes=changes, ranks=ranks)
            if ranked:
                convert(there, FAMILY, None, "original", back)
                found = open_source(back, FAMILY).weights
                assert sorted(found) == sorted(whole), layout
                assert all(found[tensor].equal(whole[tensor]) for tensor in whole), layout
        for folder in ranked:
            _check_shards(folder, written / f"original{shards[folder]}")
        for folder in (folder for folder in shards if not shards[folder]):
            ours, hub = open_weights(written / "huggingface1"), open_weights(folder)
            assert all(ours[name].equal(hub[name]) for name in ours)
            assert set(hub) - set(ours) <= {"lm_head.weight"}


def _check_shards(theirs: Path, ours: Path) -> None:
    for file in sorted(theirs.rglob("mp_rank_*.pt")):
        [written] = ours.rglob(file.name)
        modules = [torch.load(path, weights_only=False)["module"] for path in (file, written)]
        assert set(modules[0]) == set(modules[1])
        assert all(modules[0][name].equal(modules[1][name]) for name in modules[0])
