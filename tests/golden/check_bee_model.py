"""The network of CPM-Bee against the original: embedding, masks, every layer, logits, loss, gradients."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

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


def check(case: Path, vocab: Path) -> None:
    del vocab
    facts = json.loads((case / "case.json").read_text())
    close = Closeness(facts["tolerance"])
    expected = dict(np.load(case / "expected.npz"))
    model, inputs, labels = load_model(case), *load_inputs(case / "inputs.npz")
    assert labels is not None

    outputs = _forward_with_hooks(model, inputs)
    outputs |= _masks(model, inputs)
    loss = model(**inputs, labels=labels) / (labels != -100).sum()
    loss.backward()
    outputs["loss"] = loss
    gradients = {_original_name(name): gradient_of(parameter) for name, parameter in model.named_parameters()}
    outputs |= {f"grad.{name}": gradient for name, gradient in gradients.items()}
    outputs |= {f"gradnorm.{name}": gradient.norm() for name, gradient in gradients.items()}
    outputs["grad_norm_total"] = torch.stack([g.norm() for g in gradients.values()]).norm()

    assert set(expected) <= set(outputs), f"not compared: {set(expected) - set(outputs)}"
    close.all({name: (outputs[name], value) for name, value in expected.items()})


class Closeness:
    """Collects all differences, so that one run tells everything that is wrong."""

    def __init__(self, tolerance: dict[str, float]) -> None:
        self.atol = tolerance["suggested_atol"]
        self.rtol = tolerance["suggested_rtol"]

    def all(self, pairs: dict[str, tuple[torch.Tensor, np.ndarray]]) -> None:
        wrong = [text for name, (ours, theirs) in pairs.items() if (text := self._difference(name, ours, theirs))]
        assert not wrong, "\n".join(wrong)

    def _difference(self, name: str, ours: torch.Tensor, theirs: np.ndarray) -> str | None:
        found = ours.detach().double().numpy()
        if np.allclose(found, theirs, rtol=self.rtol, atol=self.atol):
            return None
        return f"{name}: differs by up to {np.abs(found - theirs).max():.3g} (atol {self.atol:.3g})"


def load_model(case: Path) -> CpmBee:
    """The case's checkpoint in fp32."""
    with torch.device("meta"):
        model = CpmBee(read_config(case / "pytorch_model.bin", family))
    load_into(model, case / "pytorch_model.bin", family, dtype=torch.float32)
    return model


def load_inputs(path: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """The case's inputs by our names, and its targets."""
    arrays = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    labels = arrays.pop("target", None)
    inputs = {INPUT_NAMES[name]: array for name, array in arrays.items()}
    rows = len(inputs["tokens"])
    for name in ("ext_tokens", "ext_subs"):
        inputs[name] = inputs[name].expand(rows, -1)
    return inputs, labels


def _forward_with_hooks(model: CpmBee, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    outputs: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _module, _args, output, name=name: outputs.update({name: output}))
        for name, module in [*((f"layer{i}", block) for i, block in model.blocks.items()), ("hidden", model.norm)]
    ]
    with torch.no_grad():
        outputs["logits"] = model(**inputs)
        outputs["embedding"] = model.embedding(inputs["tokens"], inputs["subs"])
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
