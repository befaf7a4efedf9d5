"""P-Tuning v2 against the original, with and without projection: its checkpoint, logits, gradients, decoding."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from glm_case import (
    gradient_atol,
    inputs_of,
    kinds_of,
    load_model,
    logits_atol,
    mean_loss,
    next_positions,
    prompt_of,
    real_columns,
)
from golden_case import Case, Reading, close

from hanlin.adapters.adapter import load_adapter
from hanlin.adapters.chatglm2_prefix import PREFIX
from hanlin.adapters.opening import is_adapter, open_adapter
from hanlin.formats.files import open_weights
from hanlin.layers.kv_cache import KVCache
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.model import ChatGlm2
from hanlin.recipe.tuning import TuningMethod
from hanlin.tuning.apply import apply_tuning, trained_parameters

THEIRS = "transformer.prefix_encoder."


def check(case: Case, vocab: Path) -> None:
    del vocab
    atol = logits_atol(case)
    checkpoint = case.one("checkpoint-*")
    assert checkpoint is not None, "there is no checkpoint-*"
    model, settings = load_tuned(case / "base", checkpoint)
    inputs, expected = case.arrays("inputs.npz"), case.arrays()
    trained = [name.replace("prefix.", THEIRS, 1) for name in trained_parameters(model)]
    assert trained == case.facts.get("trainable", trained)
    _check_prefix(model, expected.under("prefix."), atol)
    for kind in kinds_of(inputs):
        arrays, wanted = inputs.under(f"{kind}."), expected.under(f"{kind}.")
        close("logits", model(**inputs_of(arrays)), wanted, atol, where=real_columns(arrays))
        if "labels" in arrays:
            loss = mean_loss(model, arrays)
            close("loss", loss, wanted, atol)
            model.zero_grad()
            loss.backward()
            for name in trained:
                gradient = model.get_parameter(name.replace(THEIRS, "prefix.")).grad
                assert gradient is not None
                close(f"grad.{name}", gradient, wanted, gradient_atol(case))
                close(f"gradnorm.{name}", gradient.norm(), wanted, gradient_atol(case))
    with torch.no_grad():
        _check_decoding(model, inputs.under("decode."), expected, atol)
    _check_written_back(model, settings, checkpoint)


def load_tuned(base: Path, checkpoint: Path) -> tuple[ChatGlm2, TuningMethod]:
    assert is_adapter(checkpoint)
    assert not is_adapter(base)
    model, adapter = load_model(base), open_adapter(checkpoint, family)
    apply_tuning(model, adapter.settings, family)
    load_adapter(model, adapter)
    return model.eval(), adapter.settings


def _check_prefix(model: ChatGlm2, wanted: Reading, atol: float) -> None:
    """What the encoder puts out for all blocks, and each block's keys and values, the same in every row."""
    assert model.prefix is not None
    prefixes = model.prefix()
    pairs = [(prefixes[block].keys, prefixes[block].values) for block in prefixes]  # [heads, length, head_dim] each
    if "output" in wanted:
        whole = torch.stack([part.transpose(0, 1) for pair in pairs for part in pair], dim=1)
        close("output", whole.flatten(1).expand_as(wanted["output"]), wanted, atol)
    for place, pair in {**{f"layer{i}": pair for i, pair in enumerate(pairs)}, "last": pairs[-1]}.items():
        for kind, ours in zip("kv", pair, strict=True):
            if (name := f"{kind}_{place}") in wanted:  # [length, batch, heads, head_dim]
                close(name, ours.transpose(0, 1)[:, None].expand_as(wanted[name]), wanted, atol)


def _check_decoding(model: ChatGlm2, arrays: Reading, expected: Reading, atol: float) -> None:
    if "prompt_ids" not in arrays:
        return
    prompt, wanted = prompt_of(arrays), expected.under("decode.")
    kv_cache = KVCache()
    steps = [model(**inputs_of(prompt), kv_cache=kv_cache, logits_to_keep=1)]
    empty = torch.empty(len(steps[0]), model.config.num_kv_heads, 0, model.config.head_dim)
    keys, _ = kv_cache.update("0", empty, empty)
    close("cache_len_after_prefill", keys.shape[2], wanted, 0)
    positions = next_positions(prompt)
    for column in arrays["next_ids"].split(1, dim=1) if "next_ids" in arrays else ():
        steps.append(model(tokens=column, positions=positions, spans=torch.zeros_like(column), kv_cache=kv_cache))
        positions = positions + 1
    close("step_logits", torch.cat(steps, dim=1), wanted, atol)
    if "generate.greedy_ids" in expected:
        _check_greedy(model, prompt, expected["generate.greedy_ids"])


def _check_greedy(model: ChatGlm2, prompt: Mapping[str, torch.Tensor], theirs: torch.Tensor) -> None:
    kv_cache, ids = KVCache(), prompt["input_ids"]
    logits, positions = model(**inputs_of(prompt), kv_cache=kv_cache), next_positions(prompt)
    while ids.shape[1] < theirs.shape[1]:
        column = logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat((ids, column), dim=1)
        logits = model(tokens=column, positions=positions, spans=torch.zeros_like(column), kv_cache=kv_cache)
        positions = positions + 1
    assert ids.tolist() == theirs.tolist()


def _check_written_back(model: ChatGlm2, settings: TuningMethod, checkpoint: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        PREFIX.save(model, settings, Path(folder) / "out", family)
        written, original = open_weights(Path(folder) / "out"), open_weights(checkpoint)
        assert list(written) == list(original)
        assert all(written[name].equal(original[name]) for name in original)
        assert open_adapter(Path(folder) / "out", family).settings == settings
