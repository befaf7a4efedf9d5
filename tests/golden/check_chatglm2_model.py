"""The network of ChatGLM2 against the original: padding on either side, every layer, gradients, cached decoding."""

from __future__ import annotations

from pathlib import Path

import torch
from glm_case import (
    Arrays,
    arrays_of,
    assert_close,
    facts_of,
    inputs_of,
    load_model,
    mean_loss,
    real_columns,
)

from hanlin.formats.load import base_parameters
from hanlin.formats.rules import find_moves
from hanlin.layers.kv_cache import KVCache
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.model import ChatGlm2, rotation


def check(case: Path, vocab: Path) -> None:
    del vocab
    tolerance = facts_of(case)["tolerance"]
    atol, atol_gradient = tolerance["suggested_fp32_atol_logits"], tolerance["suggested_atol_grad"]
    model = load_model(case)
    inputs, expected = case / "inputs.npz", arrays_of(case / "expected.npz")

    for kind in ("right", "train", "left", "nomask"):
        arrays = arrays_of(inputs, f"{kind}.")
        # The mask of the training script is all ones; its padding stands on the right and disturbs nobody.
        real = real_columns(arrays)
        logits = model(**inputs_of(arrays))
        assert_close(f"{kind}.logits", logits[real], expected[f"{kind}.logits"][real], atol)
        if f"{kind}.loss" in expected:
            loss = mean_loss(model, arrays)
            assert_close(f"{kind}.loss", loss, expected[f"{kind}.loss"], atol)
            _check_gradients(model, loss, kind, expected, atol_gradient)
    _check_inside(model, arrays_of(inputs, "right."), expected, atol)
    _check_decoding(model, arrays_of(inputs, "decode."), expected, atol)


def _check_gradients(model: ChatGlm2, loss: torch.Tensor, kind: str, expected: Arrays, atol: float) -> None:
    model.zero_grad()
    loss.backward()
    ours = {name: parameter.grad for name, parameter in base_parameters(model).items()}
    gradients = {name: gradient for name, gradient in ours.items() if gradient is not None}
    rules = family.formats["original"].rules(model.config)
    for move in find_moves(rules, gradients, "to_theirs"):
        [name], [gradient] = move.targets, move.run(tuple(gradients[source] for source in move.sources))
        if f"{kind}.grad.{name}" in expected:
            assert_close(f"{kind}.grad.{name}", gradient, expected[f"{kind}.grad.{name}"], atol)
        if f"{kind}.gradnorm.{name}" in expected:
            assert_close(f"{kind}.gradnorm.{name}", gradient.norm(), expected[f"{kind}.gradnorm.{name}"], atol)
        gradients = {rest: tensor for rest, tensor in gradients.items() if rest not in move.sources}
    assert not gradients, f"not compared: {list(gradients)}"


def _check_inside(model: ChatGlm2, arrays: Arrays, expected: Arrays, atol: float) -> None:
    hidden: dict[str, torch.Tensor] = {}
    for name, module in [("hidden0", model.embedding), *((f"hidden{int(i) + 1}", b) for i, b in model.blocks.items())]:
        module.register_forward_hook(lambda _module, _args, output, name=name: hidden.update({name: output}))
    kv_cache, real = KVCache(), real_columns(arrays)
    model(**inputs_of(arrays), kv_cache=kv_cache)
    hidden["hidden_last_prenorm"] = hidden[f"hidden{len(model.blocks)}"]
    for name in ("hidden0", "hidden1", "hidden_last_prenorm"):
        assert_close(name, hidden[name][real], expected[f"right.{name}"][real], atol)
    empty = torch.empty(len(real), model.config.num_kv_heads, 0, model.config.head_dim)
    keys, values = kv_cache.update("0", empty, empty)
    for name, ours in (("k", keys), ("v", values)):
        theirs = expected[f"right.cache_{name}_layer0"].permute(1, 0, 2, 3)  # the length comes first there
        assert_close(f"cache_{name}", ours.transpose(1, 2)[real], theirs[real], atol)
    table = expected["rope_cache"]
    for part, ours in enumerate(rotation(model.config, torch.arange(len(table))[None], torch.float32)):
        assert_close("rope_cache", ours[0, :, 0], table[..., part], atol)


def _check_decoding(model: ChatGlm2, arrays: Arrays, expected: Arrays, atol: float) -> None:
    prompt = {
        "input_ids": arrays["prompt_ids"],
        "attention_mask": arrays["prompt_mask"],
        "position_ids": arrays["prompt_position_ids"],
    }
    kv_cache, real = KVCache(), real_columns(prompt)
    logits = model(**inputs_of(prompt), kv_cache=kv_cache)
    assert_close("decode.prefill", logits[real], expected["decode.prefill_logits"][real], atol)
    steps, positions = [logits[:, -1:]], arrays["prompt_position_ids"][:, -1:]
    for column in arrays["next_ids"].split(1, dim=1):
        positions = positions + 1
        spans = torch.zeros_like(column)
        steps.append(model(tokens=column, positions=positions, spans=spans, kv_cache=kv_cache, logits_to_keep=1))
    assert_close("decode.steps", torch.cat(steps, dim=1), expected["decode.step_logits"], atol)
    _check_chunk(model, prompt, arrays["next_ids"], expected["decode.chunk_logits_without_position_ids"], atol)


def _check_chunk(model: ChatGlm2, prompt: Arrays, tokens: torch.Tensor, theirs: torch.Tensor, atol: float) -> None:
    """Several positions on a KV cache; the original counts them from 0 when positions are left out, we go on
    counting.
    """
    kv_cache = KVCache()
    model(**inputs_of(prompt), kv_cache=kv_cache)
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    logits = model(tokens=tokens, positions=positions, spans=torch.zeros_like(tokens), kv_cache=kv_cache)
    assert_close("decode.chunk", logits, theirs, atol)
