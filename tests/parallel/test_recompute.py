"""Computing blocks again in the backward pass changes no number, whatever the model and what is trained of it."""

from __future__ import annotations

import weakref
from typing import Any, Literal

import pytest
import torch
from cases import CASES, make_batch, make_model
from layouts import Cell, loader, model_of
from torch.utils._python_dispatch import TorchDispatchMode

from hanlin.layers.nf4 import Nf4
from hanlin.layers.quantised import packed_linears
from hanlin.parallel.parallelize import parallelize
from hanlin.parallel.recompute import HowRecomputed, recompute
from hanlin.recipe.settings import ParallelSettings

METHODS = {"cpm_bee": "prefix", "chatglm2": "prefix", "cpm1": "prompt", "cpm1_t5": "lora", "cpm2": "prompt"}


def gradients(family: str, method: str, how: HowRecomputed | None) -> dict[str, torch.Tensor]:
    model, batch = make_model(CASES[family], method), make_batch(CASES[family])
    if how:
        for blocks in model.plan.blocks:  # pyright: ignore
            for block in model.get_submodule(blocks).children():
                recompute(block, how)
    model(**batch.inputs, labels=batch.labels, weights=batch.weights).backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("how", ["full", "offload", "selective"])
@pytest.mark.parametrize("method", ["full", "adapter"])
@pytest.mark.parametrize("family", CASES)
def test_recomputing_changes_no_gradient(family: str, method: str, how: HowRecomputed) -> None:
    method = METHODS[family] if method == "adapter" else method
    plain = gradients(family, method, None)
    assert plain
    torch.testing.assert_close(gradients(family, method, how), plain, rtol=1e-12, atol=1e-14)


def test_a_recomputed_block_keeps_less_for_the_backward_pass() -> None:
    assert _kept_bytes("full") < _kept_bytes(None)


def _kept_bytes(how: Literal["full"] | None) -> int:
    model, batch = make_model(CASES["chatglm2"], "full"), make_batch(CASES["chatglm2"])
    sizes: dict[int, int] = {}
    if how:
        for block in model.get_submodule("blocks").children():
            recompute(block, how)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            sizes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**batch.inputs, labels=batch.labels, weights=batch.weights)
    return sum(sizes.values())


def _parallel(cell: Cell, how: Any, precision: Any = "fp32") -> Any:
    return parallelize(
        model_of(cell).float(), torch.device("cpu"), precision, ParallelSettings(checkpoint_activations=how)
    )


@pytest.mark.parametrize("how", ["full", "offload", "selective"])
@pytest.mark.parametrize("variant", ["cpm_bee-nf4", "cpm1-nf4", "cpm2-experts-nf4"])
def test_a_packed_weight_is_unpacked_no_more_than_twice_for_a_micro_batch(
    variant: str, how: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for the forward pass, and once for its repetition and the backward pass. A mixture's experts, which
    together would take much memory, are unpacked for each of these.
    """
    unpack, counts = Nf4.unpack, []
    monkeypatch.setattr(Nf4, "unpack", lambda *given: (counts.append(1), unpack(*given))[1])
    cell = Cell(variant, "lora", "single", "none")
    trained = _parallel(cell, how)
    names = packed_linears(trained.model)
    in_experts = sum(".experts." in name for name in names)
    trained.forward_backward([next(iter(loader(cell, 0, 1)))], [1.0])
    assert len(counts) <= 2 * (len(names) - in_experts) + 3 * in_experts


class Casts(TorchDispatchMode):
    """The most bytes of half precision copies of weights that are alive at once."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        super().__init__()
        self.weights = {weight.data_ptr() for weight in weights}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.weights:
            size = found.untyped_storage().nbytes()
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(found.untyped_storage(), self._forget, size)
        return found

    def _forget(self, size: int) -> None:
        self.live -= size


def _most_casts(trained: Any, run: Any) -> int:
    """In bytes."""
    with Casts(list(trained.model.parameters())) as casts:
        run()
    return casts.peak


@pytest.mark.parametrize("how", ["full", "offload", "selective"])
def test_casts_of_recomputed_blocks_are_those_of_one_block(how: Any) -> None:
    """All of them stay where blocks keep what they compute, for the next micro-batches."""
    cell = Cell("cpm1", "full", "single", "none")
    batch = next(iter(loader(cell, 0, 1)))
    kept, again = _parallel(cell, "none", "bf16"), _parallel(cell, how, "bf16")
    blocks = [
        sum(2 * weight.numel() for weight in block.parameters() if weight.dim() == 2)
        for block in kept.model.get_submodule("blocks").children()
    ]
    step = [batch, batch], [1.0, 1.0]
    assert _most_casts(kept, lambda: kept.forward_backward(*step)) >= sum(blocks)
    assert _most_casts(again, lambda: again.forward_backward(*step)) <= 1.5 * max(blocks)
    # Nothing is used a second time in a pass without gradients.
    assert _most_casts(kept, lambda: kept.losses(batch)) < max(blocks)
