"""Every operation of the table (npu_operations.py) on small tensors, on a device and on the CPU.

On an accelerator it says which are wrong, which are refused, and which torch hands to the CPU.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.nn import functional

from hanlin.core.device import has_bf16
from hanlin.diagnosis.finding import Finding, first_line
from hanlin.layers.activation import gelu
from hanlin.layers.precision import DTYPES
from hanlin.training.rounding import round_by_chance

__all__ = ["EXAMPLES", "SmallTensors", "operation_findings"]

_BOUNDS = {"fp32": 1e-3, "bf16": 3e-2, "fp16": 5e-3}
_HANDED_OVER = re.compile(r"operator '(?:aten::)?([\w.:]+)' is not currently supported .* fall back to run on the CPU")


@dataclass(frozen=True)
class SmallTensors:
    """Small tensors of one dtype on a device, the same numbers on every device; rows `[4, 6]`."""

    device: torch.device
    dtype: torch.dtype

    def _there(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else tensor.dtype)

    @cached_property
    def x(self) -> torch.Tensor:
        return self._there(torch.linspace(0.3, 2.0, 24).view(4, 6))

    @cached_property
    def y(self) -> torch.Tensor:
        return self._there(torch.linspace(1.7, 0.4, 24).view(4, 6))

    @cached_property
    def weight(self) -> torch.Tensor:
        return self._there(torch.linspace(-1.0, 1.0, 30).view(5, 6))

    @cached_property
    def ids(self) -> torch.Tensor:
        return self._there(torch.arange(24).view(4, 6) * 7 % 4)

    @cached_property
    def order(self) -> torch.Tensor:
        return self._there(torch.tensor([2, 0, 3, 1]))

    @cached_property
    def mask(self) -> torch.Tensor:
        return self._there(torch.tensor([[True, False, True, True, False, False]] * 4))

    @cached_property
    def below(self) -> torch.Tensor:
        return torch.ones(5, 5, dtype=torch.bool, device=self.device).tril()

    @cached_property
    def bytes(self) -> torch.Tensor:
        return self._there(torch.arange(-12, 12, dtype=torch.int8).view(4, 6))


def _with_gradient(run: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> list[torch.Tensor]:
    """What it makes of the tensors, and their gradients."""
    if torch.is_inference_mode_enabled():
        return [run(*tensors)]
    learning = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    made = run(*learning)
    made.backward(torch.ones_like(made))
    return [made.detach(), *(tensor.grad for tensor in learning if tensor.grad is not None)]


def _adamw(t: SmallTensors) -> torch.Tensor:
    weight = torch.nn.Parameter(t.x.float())
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    weight.grad = t.y.float()
    optimizer.step()
    return weight.detach()


def _added(ones: list[torch.Tensor], others: list[torch.Tensor]) -> list[torch.Tensor]:
    torch.ops.aten._foreach_add_.List(ones, others)  # as optimizers call it
    return ones


def _assigned(t: SmallTensors) -> torch.Tensor:
    numbers = t.x.clone()
    numbers[t.order] = t.y
    return numbers


def _rounded(numbers: torch.Tensor) -> torch.Tensor:
    found = torch.empty_like(numbers)
    round_by_chance(numbers, found, found, key=1)
    return found


def _attention(t: SmallTensors, **arguments: Any) -> list[torch.Tensor]:
    heads = t.weight[None, None, :, :4].expand(1, 2, -1, -1)
    return _with_gradient(
        lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, **arguments), heads, heads, heads
    )


def _unary(name: str) -> Callable[[SmallTensors], Any]:
    return lambda t: getattr(torch, name)(t.x)


def _binary(name: str) -> Callable[[SmallTensors], Any]:
    return lambda t: getattr(torch, name)(t.x, t.y)


def _in_place(name: str, *arguments: Any) -> Callable[[SmallTensors], Any]:
    return lambda t: getattr(t.x.clone(), name)(*(arguments or (t.y,)))


_UNARY = "abs cos exp exp2 log neg reciprocal rsqrt sqrt sin square sigmoid erf round frexp"
_BINARY = "add sub rsub mul div maximum minimum eq ne ge gt le lt"

EXAMPLES: dict[str, Callable[[SmallTensors], Any]] = {
    **{name: _unary(name) for name in _UNARY.split()},
    **{name: _binary(name) for name in _BINARY.split()},
    **{name: _in_place(name) for name in ("add_", "sub_", "mul_", "div_", "copy_")},
    "exp_ sqrt_ rsqrt_ clamp_": lambda t: t.x.float().exp_().sqrt_().rsqrt_().clamp_(0.5, 0.9),
    "clamp": lambda t: t.x.clamp(0.5, 1.5),
    "lerp": lambda t: [t.x.float().lerp(t.y.float(), 0.3), t.x.float().lerp_(t.y.float(), 0.3)],
    "pow": lambda t: [t.x**3, 10000.0 ** -t.x.float()],
    "fill_": lambda t: torch.empty_like(t.x).fill_(0.5),
    "new_full": lambda t: [t.x.new_full((3,), 2), t.x.new_zeros(3), torch.ones(3, device=t.device)],
    "zeros": lambda t: [torch.zeros(3, device=t.device), torch.zeros_like(t.x), torch.ones_like(t.x)],
    "where": lambda t: [torch.where(t.mask, t.x, t.y), torch.where(t.mask, t.ids, -1), t.x.where(t.mask, 0)],
    "masked_fill": lambda t: [t.x.masked_fill(t.mask, -1), t.x.clone().masked_fill_(t.mask, 2)],
    "masked_scatter": lambda t: t.ids.masked_scatter(t.mask, t.ids.roll(1, 0)),
    "bool": lambda t: [t.mask & ~t.mask.roll(1, 0), t.mask | t.mask.roll(1, 1), t.mask.all(), t.mask.any(1)],
    "rounding": lambda t: _rounded(t.x.float().clone()),
    "shifts": lambda t: [t.bytes << 4, t.bytes >> 4, (t.bytes << 4).__irshift__(4)],
    "int64": lambda t: [t.ids + 1, t.ids - 1, t.ids * 3, t.ids // 2, -t.ids, t.ids.clamp(min=1), t.ids.amax(1)],
    "casts": lambda t: [t.x.float(), t.x.to(torch.int64), t.ids.to(t.dtype), t.mask.to(t.dtype), t.bytes.to(t.dtype)],
    "arange": lambda t: torch.arange(2, 9, device=t.device),
    "tril": lambda t: t.below,
    "sum mean": lambda t: [t.x.sum(), t.x.sum(0), t.x.float().mean(-1), t.x.sum_to_size(1, 6)],
    "amax max min": lambda t: [t.x.float().amax(1), t.x.max(), t.x.max(1).values, t.x.min(1).values],
    "argmax": lambda t: t.x.argmax(-1),
    "norm": lambda t: torch.linalg.vector_norm(t.x.float()),
    "cumsum": lambda t: t.x.float().cumsum(1),
    "sort": lambda t: [*t.y.float().sort(dim=-1, descending=True), t.order.argsort(stable=True)],
    "topk": lambda t: list(t.x.topk(3, dim=1)),
    "searchsorted": lambda t: torch.searchsorted(t.x.float().cumsum(1), t.y.float()[:, :1], right=True),
    "cat stack": lambda t: [torch.cat((t.x, t.y), 1), torch.stack((t.x, t.y)), torch.cat((t.ids, t.ids))],
    "pad": lambda t: [functional.pad(t.x, (1, 2)), functional.pad(t.mask, (1, 0), value=True)],
    "repeat_interleave": lambda t: t.order.repeat_interleave(3),
    "roll": lambda t: t.ids.roll(2, 0),
    "nonzero": lambda t: t.mask.nonzero(),
    "bincount": lambda t: t.ids.flatten().bincount(minlength=6),
    "gather": lambda t: _with_gradient(lambda x: x.gather(1, t.ids), t.x.float()),
    "scatter": lambda t: [t.x.scatter(1, t.ids[:, :1], 0.0), t.ids.scatter(1, t.ids[:, :1], t.ids[:, 1:2])],
    "scatter_": lambda t: t.x.clone().scatter_(1, t.ids[:, :1], 7.0),
    "scatter_add_": lambda t: t.x.float().scatter_add_(1, t.ids, t.y.float()),
    "index": lambda t: [t.x[t.order], t.x[t.ids[0], t.ids[1]], t.ids[t.order]],
    "index_put": lambda t: t.x.float().index_put((t.order, t.order), t.y.float()[:, 0]),
    "index_put_": lambda t: [*_with_gradient(lambda x: x[t.order], t.x), _assigned(t)],
    "views": lambda t: [t.x.unflatten(1, (2, 3)).movedim(0, 2).contiguous(), t.x.flatten().view_as(t.y)],
    "index_add": lambda t: torch.zeros_like(t.x).index_add(0, t.order, t.x),
    "index_copy": lambda t: t.x.float().index_copy(1, t.order, t.y.float()[:, :4]),
    "index_select": lambda t: _with_gradient(lambda x: x.index_select(0, t.order), t.x),
    "embedding": lambda t: _with_gradient(lambda w: functional.embedding(t.ids, w), t.weight),
    "select slice": lambda t: _with_gradient(lambda x: x[1] + x[2:3, :].sum(0), t.x),
    "mm": lambda t: _with_gradient(functional.linear, t.x, t.weight),
    "addmm": lambda t: _with_gradient(functional.linear, t.x, t.weight, t.weight[:, 0]),
    "addmm_": lambda t: t.x.float()[:, :5].clone().addmm_(t.x.float(), t.weight.float().t()),
    "bmm": lambda t: _with_gradient(torch.matmul, t.x.view(2, 2, 6), t.y.view(2, 6, 2)),
    "layer_norm": lambda t: _with_gradient(lambda x, w: functional.layer_norm(x, (6,), w, w), t.x, t.weight[0]),
    "rms_norm": lambda t: _with_gradient(lambda x, w: functional.rms_norm(x, (6,), w), t.x, t.weight[0]),
    "softmax": lambda t: _with_gradient(lambda x: x.softmax(-1), t.x),
    "log_softmax": lambda t: _with_gradient(lambda x: x.log_softmax(-1), t.x.float()),
    "gelu tanh": lambda t: _with_gradient(lambda x: gelu(x, "tanh"), t.weight),
    "gelu erf": lambda t: _with_gradient(gelu, t.weight),
    "silu": lambda t: _with_gradient(functional.silu, t.weight),
    "log_sigmoid": lambda t: _with_gradient(functional.logsigmoid, t.x.float()),
    "log1p": lambda t: t.x.float().log1p(),
    "dropout": lambda t: functional.dropout(torch.zeros_like(t.x), 0.5),
    "attention": lambda t: _attention(t, is_causal=True),
    "attention, bool mask": lambda t: _attention(t, attn_mask=t.below[None, None]),
    "attention, bias": lambda t: _attention(t, attn_mask=t.weight[:, :5].contiguous()[None, None]),
    "_foreach_add_": lambda t: _added([t.x.float(), t.y.float()], [t.y.float(), t.x.float()]),
    "_fused_adamw_": _adamw,
    "item": lambda t: t.x.sum().item(),
}


def operation_findings(device: torch.device) -> Iterator[Finding]:
    """For each dtype, how many are right; every other one by name."""
    for precision in ("fp32", "bf16" if has_bf16(device) else "fp16"):
        with _told_fallbacks() as fallbacks:
            states = {name: _state(name, device, precision) for name in EXAMPLES}
        handed = sorted(fallbacks)
        odd = {name: state for name, state in states.items() if state != "right"}
        counted = f"{len(states) - len(odd)} of {len(states)} are the CPU's"
        parts = [counted, *(f"{name}: {state}" for name, state in odd.items())]
        if handed:
            parts.append(f"handed to the CPU: {', '.join(handed)}")
        facts = {"states": states, "handed_to_the_cpu": handed}
        yield Finding(f"{device} operations {precision}", "; ".join(parts), not odd, facts)


def _state(name: str, device: torch.device, precision: str) -> str:
    """right, wrong or refused, with what is to be said of it."""
    expected = _flat(EXAMPLES[name](SmallTensors(torch.device("cpu"), DTYPES[precision])))
    try:
        found = _flat(EXAMPLES[name](SmallTensors(device, DTYPES[precision])))
    except Exception as error:  # what a driver raises for what it lacks is not one class
        return f"refused: {first_line(error)}"
    gaps = [_gap(one.cpu(), other) for one, other in zip(found, expected, strict=True)]
    worst = max(gaps, key=lambda gap: gap if gap == gap else float("inf"))
    return "right" if worst < _BOUNDS[precision] else f"wrong by {worst:.1e}"


def _flat(made: Any) -> list[torch.Tensor]:
    if isinstance(made, float):
        return [torch.tensor(made)]
    return [made] if isinstance(made, torch.Tensor) else list(made or ())


def _gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The greatest difference, as a share of the greatest number; of whole numbers 0 or infinite."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if not expected.is_floating_point():
        return 0.0 if found.equal(expected) else float("inf")
    greatest = max(expected.float().abs().max().item(), 1e-6)
    return (found.float() - expected.float()).abs().max().item() / greatest


@contextmanager
def _told_fallbacks() -> Iterator[set[str]]:
    """Names of the operations that torch says it hands to the CPU: as a warning, or on standard error (torch_npu)."""
    names: set[str] = set()
    with tempfile.TemporaryFile("w+b") as file, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield names
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            told = file.read().decode("utf-8", "replace")
            names.update(_HANDED_OVER.findall("\n".join([told, *(str(one.message) for one in warned)])))
