"""The network of ChatGLM2 against the original: padding on either side, every layer, gradients, cached decoding."""

from __future__ import annotations

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

from hanlin.formats.load import base_parameters
from hanlin.formats.rules import find_moves
from hanlin.layers.kv_cache import KVCache
from hanlin.models.chatglm2 import family
from hanlin.models.chatglm2.model import ChatGlm2, rotation


def check(case: Case, vocab: Path) -> None:
    del vocab
    model, atol = load_model(case.weights()), logits_atol(case)
    inputs, expected = case.arrays("inputs.npz"), case.arrays()
    for kind in kinds_of(inputs):
        arrays, wanted = inputs.under(f"{kind}."), expected.under(f"{kind}.")
        # The mask of the training script is all ones; its padding stands on the right and disturbs nobody.
        close("logits", model(**inputs_of(arrays)), wanted, atol, where=real_columns(arrays))
        if "labels" in arrays and "loss" in wanted:
            loss = mean_loss(model, arrays)
            close("loss", loss, wanted, atol)
            if wanted.names("grad"):
                _check_gradients(model, loss, wanted, gradient_atol(case))
        _check_inside(model, arrays, wanted, atol)
    if "rope_cache" in expected:
        table = rotation(model.config, torch.arange(len(expected["rope_cache"]))[None], torch.float32)
        close("rope_cache", torch.stack([part[0, :, 0] for part in table], dim=-1), expected, atol)
    if inputs.names("decode."):
        _check_decoding(model, inputs.under("decode."), expected.under("decode."), atol)
    case.set_aside(r"inputs\.npz: \w+\.labels", "labels without a loss in the case")


def _check_gradients(model: ChatGlm2, loss: torch.Tensor, wanted: Reading, atol: float) -> None:
    model.zero_grad()
    loss.backward()
    ours = {name: parameter.grad for name, parameter in base_parameters(model).items()}
    gradients = {name: gradient for name, gradient in ours.items() if gradient is not None}
    rules = family.formats["original"].rules(model.config)
    for move in find_moves(rules, gradients, "to_theirs"):
        [name], [gradient] = move.targets, move.run(tuple(gradients[source] for source in move.sources))
        close(f"grad.{name}", gradient, wanted, atol)
        close(f"gradnorm.{name}", gradient.norm(), wanted, atol)


@torch.no_grad()
def _check_inside(model: ChatGlm2, arrays: Reading, wanted: Reading, atol: float) -> None:
    """States between the blocks, and what the KV cache keeps of each."""
    hidden: dict[str, torch.Tensor] = {}
    states = [("hidden0", model.embedding), *((f"hidden{int(i) + 1}", block) for i, block in model.blocks.items())]
    hooks = [
        module.register_forward_hook(lambda _module, _args, output, name=name: hidden.update({name: output}))
        for name, module in states
    ]
    kv_cache, real = KVCache(), real_columns(arrays)
    model(**inputs_of(arrays), kv_cache=kv_cache)
    for hook in hooks:
        hook.remove()
    hidden["hidden_last_prenorm"] = hidden[states[-1][0]]
    for name, state in hidden.items():
        close(name, state, wanted, atol, where=real)
    empty = torch.empty(len(real), model.config.num_kv_heads, 0, model.config.head_dim)
    for block in model.blocks:
        for kind, ours in zip("kv", kv_cache.update(block, empty, empty), strict=True):
            # The length comes first there.
            close(f"cache_{kind}_layer{block}", ours.permute(2, 0, 1, 3), wanted, atol, where=real.T)


@torch.no_grad()
def _check_decoding(model: ChatGlm2, arrays: Reading, wanted: Reading, atol: float) -> None:
    prompt = prompt_of(arrays)
    kv_cache, real = KVCache(), real_columns(prompt)
    logits = model(**inputs_of(prompt), kv_cache=kv_cache)
    close("prefill_logits", logits, wanted, atol, where=real)
    steps, positions = [logits[:, -1:]], next_positions(prompt)
    tokens = arrays.get("next_ids", prompt["input_ids"][:, :0])
    for column in tokens.split(1, dim=1) if tokens.shape[1] else ():
        spans = torch.zeros_like(column)
        steps.append(model(tokens=column, positions=positions, spans=spans, kv_cache=kv_cache, logits_to_keep=1))
        positions = positions + 1
    close("step_logits", torch.cat(steps, dim=1), wanted, atol)
    # Several positions on a KV cache: the original counts them from 0 when positions are left out, we go on counting.
    kv_cache = KVCache()
    model(**inputs_of(prompt), kv_cache=kv_cache)
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    if "chunk_logits_without_position_ids" in wanted:
        logits = model(tokens=tokens, positions=positions, spans=torch.zeros_like(tokens), kv_cache=kv_cache)
        close("chunk_logits_without_position_ids", logits, wanted, atol)
