"""A delta checkpoint of the original on its base: logits, loss, gradients, merged weights, the file written back."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from check_bee_model import gradient_of, load_inputs, load_model
from golden_case import Case, close

from hanlin.adapters.adapter import load_adapter
from hanlin.adapters.cpm_bee_delta import DELTA
from hanlin.adapters.lora_names import their_module
from hanlin.adapters.opening import open_adapter
from hanlin.formats.files import open_weights
from hanlin.layers.lora import merge_lora
from hanlin.models.cpm_bee import family
from hanlin.models.cpm_bee.model import CpmBee
from hanlin.tuning.apply import apply_tuning, trained_parameters


def check(case: Case, vocab: Path) -> None:
    del vocab
    delta = case.one("*.pt")
    assert delta is not None, "there is no delta file"
    expected, (inputs, labels) = case.arrays(), load_inputs(case.arrays("inputs.npz"))
    model, atol = load_model(case.weights()), case.tolerance("logits_atol", default=2e-4)
    close("logits_base", model(**inputs), expected, atol)
    adapter = open_adapter(delta, family)
    settings: Any = adapter.settings
    stated = case.facts.get("lora", {})
    assert stated.get("lora_r", settings.rank) == settings.rank
    # The file does not say it: 16 is what the original's scripts fix.
    settings = settings.model_copy(update={"alpha": float(stated.get("lora_alpha", settings.alpha))})
    apply_tuning(model, settings, family)
    close("logits_base", model(**inputs), expected, atol)  # fresh, it changes nothing
    load_adapter(model, adapter)
    tuned = _check_network(model, inputs, labels, expected, atol)
    assert len(trained_parameters(model)) == len(case.facts.get("keys", trained_parameters(model)))
    if settings.alpha == adapter.settings.alpha:
        check_written_back(model, settings, delta)

    merge_lora(model)
    # The original's own merging differed by merge_max_abs_diff; ours rounds once per weight as well.
    merged_atol = max(10 * case.facts.get("merge_max_abs_diff", 0), 1e-5)
    torch.testing.assert_close(model(**inputs), tuned, rtol=1e-5, atol=merged_atol)


def _check_network(model: CpmBee, inputs: Any, labels: Any, expected: Any, atol: float) -> torch.Tensor:
    hidden: list[torch.Tensor] = []
    assert model.norm is not None
    hook = model.norm.register_forward_hook(lambda _module, _args, output: hidden.append(output))
    tuned = model(**inputs)
    hook.remove()
    close("logits", tuned, expected, atol)
    close("hidden", hidden[0], expected, atol)
    if labels is not None:
        loss = model(**inputs, labels=labels) / (labels != -100).sum()
        close("loss", loss, expected, atol)
        loss.backward()
        for name, weight in trained_parameters(model).items():
            module, _, matrix = name.rpartition(".")
            theirs = f"{their_module(module, family, 'original')}.lora.{matrix}"
            close(f"grad.{theirs}", gradient_of(weight), expected, atol)
    return tuned.detach()


def check_written_back(model: CpmBee, settings: Any, delta: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        DELTA.save(model, settings, Path(folder) / "delta.pt", family)
        written, original = open_weights(Path(folder) / "delta.pt"), open_weights(delta)
        assert list(written) == list(original)
        assert all(written[name].equal(original[name]) for name in original)
