"""The network of CPM-Bee against the original: embedding, masks, every layer, logits, loss, gradients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from golden_case import Case, Reading, close

from hanlin.formats.load import load_into
from hanlin.formats.rules import rename
from hanlin.formats.source import read_config
from hanlin.models.cpm_bee import family
from hanlin.models.cpm_bee.model import CpmBee, Inputs, own_mask_inputs, relations_between, visibility

INPUT_NAMES = {
    "input": "tokens",
    "input_sub": "subs",
    "length": "lengths",
    "context": "is_context",
    "sample_ids": "sample_ids",
    "num_segments": "num_segments",
    "segment": "segments",
    "segment_rel_offset": "relation_offsets",
    "segment_rel": "relations",
    "span": "spans",
    "ext_table_ids": "ext_tokens",
    "ext_table_sub": "ext_subs",
    "position": "positions",
}


def check(case: Case, vocab: Path) -> None:
    del vocab
    model, (inputs, labels) = load_model(case.weights()), load_inputs(case.arrays("inputs.npz"))
    outputs = _forward_with_hooks(model, inputs) | _masks(model, inputs)
    if labels is not None:
        loss = model(**inputs, labels=labels) / (labels != -100).sum()
        loss.backward()
        outputs |= {"loss": loss, **gradients_of(model)}
    compare(case, outputs, case.arrays())


def gradients_of(model: CpmBee) -> dict[str, torch.Tensor]:
    """Every gradient by the original's name, the length of each, and of all together."""
    found = {_original_name(name): gradient_of(parameter) for name, parameter in model.named_parameters()}
    outputs = {f"grad.{name}": gradient for name, gradient in found.items()}
    outputs |= {f"gradnorm.{name}": gradient.norm() for name, gradient in found.items()}
    return outputs | {"grad_norm_total": torch.stack([gradient.norm() for gradient in found.values()]).norm()}


def compare(case: Case, outputs: Mapping[str, torch.Tensor], expected: Reading) -> None:
    """Tells all differences, so that one run shows everything that is wrong."""
    atol = case.tolerance("suggested_atol", "logits_atol", default=2e-4)
    rtol, wrong = case.tolerance("suggested_rtol", default=1e-4), []
    for name, ours in outputs.items():
        try:
            close(name, ours, expected, atol, rtol)
        except AssertionError as error:
            wrong.append(str(error))
    assert not wrong, "\n".join(wrong)


def load_model(folder: Path) -> CpmBee:
    """The case's checkpoint in fp32."""
    with torch.device("meta"):
        model = CpmBee(read_config(folder / "pytorch_model.bin", family))
    load_into(model, folder / "pytorch_model.bin", family, dtype=torch.float32)
    return model


def load_inputs(arrays: Reading) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """The case's inputs by our names, and its targets."""
    inputs = {ours: arrays[theirs] for theirs, ours in INPUT_NAMES.items() if theirs in arrays}
    rows = len(inputs["tokens"])
    for name in ("ext_tokens", "ext_subs"):
        if name in inputs:
            inputs[name] = inputs[name].expand(rows, -1)
    return inputs, arrays.get("target")


def _forward_with_hooks(model: CpmBee, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    outputs: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _module, _args, output, name=name: outputs.update({name: output}))
        for name, module in [*((f"layer{i}", block) for i, block in model.blocks.items()), ("hidden", model.norm)]
    ]
    with torch.no_grad():
        outputs["logits"] = model(**inputs)
        outputs["embedding"] = model.embedding(inputs["tokens"], inputs["subs"])
        if "ext_tokens" in inputs:
            outputs["ext_table"] = model.embedding(inputs["ext_tokens"][0], inputs["ext_subs"][0])
    for hook in hooks:
        hook.remove()
    return outputs


def _masks(model: CpmBee, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    columns, _ = own_mask_inputs(Inputs(**inputs), None)
    relation = relations_between(columns, columns, inputs["relation_offsets"], inputs["relations"])
    return {
        "attention_mask": visibility(columns, columns),
        "segment_bucket": relation,
        "position_bias_head0": model.position_bias(columns, columns, relation)[:, 0],
    }


def gradient_of(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _original_name(name: str) -> str:
    theirs = rename(family.formats["original"].rules(None), name, "to_theirs")
    assert theirs is not None, name
    return theirs
