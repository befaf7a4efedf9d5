"""P-Tuning v2 against the original, with and without projection: its checkpoint, logits, gradients, decoding."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from glm_case import Arrays, arrays_of, assert_close, facts_of, inputs_of, load_model, mean_loss, real_columns

from hanlin.adapters.adapter import load_adapter
from hanlin.adapters.chatglm2_prefix import PREFIX
from hanlin.adapters.opening import is_adapter, open_adapter
from hanlin.formats.files import open_weights
from hanlin.layers.kv_cache import KVCache
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.model import ChatGlm2
from hanlin.recipe.tuning import TuningMethod
from hanlin.tuning.apply import apply_tuning, trained_parameters


def check(case: Path, vocab: Path) -> None:
    del vocab
    facts = facts_of(case)
    atol, atol_gradient = (facts["tolerance"][f"suggested_{kind}"] for kind in ("fp32_atol_logits", "atol_grad"))
    [checkpoint] = case.glob("checkpoint-*")
    model, settings = load_tuned(case / "base", checkpoint)
    inputs, expected = case / "inputs.npz", arrays_of(case / "expected.npz")

    assert [
        f"transformer.prefix_encoder.{name.removeprefix('prefix.')}" for name in trained_parameters(model)
    ] == facts["trainable"]
    _check_prefix(model, expected, atol)
    for kind in ("train", "left"):
        arrays = arrays_of(inputs, f"{kind}.")
        real = real_columns(arrays)
        assert_close(kind, model(**inputs_of(arrays))[real], expected[f"{kind}.logits"][real], atol)
        loss = mean_loss(model, arrays)
        assert_close(f"{kind}.loss", loss, expected[f"{kind}.loss"], atol)
        model.zero_grad()
        loss.backward()
        for name in facts["trainable"]:
            ours = model.get_parameter(name.replace("transformer.prefix_encoder.", "prefix.")).grad
            assert ours is not None
            assert_close(name, ours, expected[f"{kind}.grad.{name}"], atol_gradient)
            assert_close(name, ours.norm(), expected[f"{kind}.gradnorm.{name}"], atol_gradient)
    with torch.no_grad():
        _check_decoding(model, arrays_of(inputs, "decode."), expected, atol)
    _check_written_back(model, settings, checkpoint)


def load_tuned(base: Path, checkpoint: Path) -> tuple[ChatGlm2, TuningMethod]:
    assert is_adapter(checkpoint)
    assert not is_adapter(base)
    model, adapter = load_model(base), open_adapter(checkpoint, family)
    apply_tuning(model, adapter.settings, family)
    load_adapter(model, adapter)
    return model.eval(), adapter.settings


def _check_prefix(model: ChatGlm2, expected: Arrays, atol: float) -> None:
    assert model.prefix is not None
    prefixes = model.prefix()
    last = str(len(prefixes) - 1)
    for name, ours in (
        ("k_layer0", prefixes["0"].keys),
        ("v_layer0", prefixes["0"].values),
        ("k_last", prefixes[last].keys),
        ("v_last", prefixes[last].values),
    ):
        theirs = expected[f"prefix.{name}"]  # [length, batch, heads, head_dim], the same in every row
        assert_close(name, ours.transpose(0, 1), theirs[:, 0], atol)


def _check_decoding(model: ChatGlm2, arrays: Arrays, expected: Arrays, atol: float) -> None:
    prompt = {
        "input_ids": arrays["prompt_ids"],
        "attention_mask": arrays["prompt_mask"],
        "position_ids": arrays["prompt_position_ids"],
    }
    kv_cache = KVCache()
    steps = [model(**inputs_of(prompt), kv_cache=kv_cache, logits_to_keep=1)]
    keys, _ = kv_cache.update(
        "0", *(torch.empty(len(steps[0]), model.config.num_kv_heads, 0, model.config.head_dim),) * 2
    )
    assert keys.shape[2] == int(expected["decode.cache_len_after_prefill"])
    positions = arrays["prompt_position_ids"][:, -1:]
    for column in arrays["next_ids"].split(1, dim=1):
        positions = positions + 1
        steps.append(model(tokens=column, positions=positions, spans=torch.zeros_like(column), kv_cache=kv_cache))
    assert_close("decode.steps", torch.cat(steps, dim=1), expected["decode.step_logits"], atol)
    _check_greedy(model, prompt, expected["generate.greedy_ids"])


def _check_greedy(model: ChatGlm2, prompt: Arrays, theirs: torch.Tensor) -> None:
    kv_cache, ids = KVCache(), prompt["input_ids"]
    logits = model(**inputs_of(prompt), kv_cache=kv_cache)
    positions = prompt["position_ids"][:, -1:]
    while ids.shape[1] < theirs.shape[1]:
        column, positions = logits[:, -1].argmax(-1, keepdim=True), positions + 1
        ids = torch.cat((ids, column), dim=1)
        logits = model(tokens=column, positions=positions, spans=torch.zeros_like(column), kv_cache=kv_cache)
    assert ids.tolist() == theirs.tolist()


def _check_written_back(model: ChatGlm2, settings: TuningMethod, checkpoint: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        PREFIX.save(model, settings, Path(folder) / "out", family)
        written, original = open_weights(Path(folder) / "out"), open_weights(checkpoint)
        assert list(written) == list(original)
        assert all(written[name].equal(original[name]) for name in original)
        assert open_adapter(Path(folder) / "out", family).settings == settings
