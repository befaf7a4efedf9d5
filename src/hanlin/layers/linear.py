"""A linear layer whose output may carry a constant factor; how matrices lie in memory where a CPU only answers."""

from __future__ import annotations

import platform
from collections.abc import Collection

import torch
from torch import nn
from torch.nn import functional

from hanlin.layers.half_weight import HalfWeight, fits_half

_LEAST_ROWS = 4
"""With fewer rows oneDNN takes another kernel, which is slower than this one with more rows."""

_USUAL_ROWS = 32
"""That blocks are chosen for; those for 8 to 64 rows are the same or nearly as fast."""


class Linear(nn.Linear):
    """`nn.Linear` whose output is multiplied by `scale` after the product (CPM-Bee: 1 / sqrt(in_features)).

    The factor stands outside the weight, so weights and low-rank additions keep the original's values.
    """

    reads_blocks = True

    def __init__(self, in_features: int, out_features: int, bias: bool = False, scale: float = 1.0) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.scale = scale

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        found = product(input, self.weight, self.bias)
        return found if self.scale == 1.0 else found * self.scale


def product(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`functional.linear`, also by a weight that lies in blocks or is packed as half precision, through which no
    gradient goes."""
    if type(weight) is HalfWeight:
        return weight.multiply(input, bias)
    if not weight.is_mkldnn:
        return functional.linear(input, weight, bias)
    multiply, how = torch.ops.mkldnn._linear_pointwise.default, ("none", [], "")
    count = input.numel() // input.shape[-1]
    if not 0 < count < _LEAST_ROWS:
        return multiply(input, weight, bias, *how)
    rows = torch.cat([input.flatten(0, -2)] * -(-_LEAST_ROWS // count))  # a quarter of the time of zeros
    return multiply(rows, weight, bias, *how)[:count].view(*input.shape[:-1], -1)


@torch.no_grad()
def store_by_columns(model: nn.Module) -> None:
    """Lay frozen fp32 matrices that are wider than their input out column by column in memory; shapes and numbers stay.

    A CPU multiplies a single row (decoding) by such a matrix up to twice as fast: it reads and adds in one order.
    Products of many rows take as long as before. Only the rounding of sums changes.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            continue
        for weight in module.parameters(recurse=False):
            if _is_plain(weight) and len(weight) >= weight.shape[1]:
                weight.data = weight.data.t().contiguous().t()


@torch.no_grad()
def store_as_half(model: nn.Module, tables: Collection[str] = ()) -> None:
    """Pack frozen fp32 matrices whose numbers half precision has (layers/half_weight.py), where there is a kernel.

    They take half the memory, and one row to some are multiplied in half to a third of the time; many take as long as
    before. Only the rounding of sums changes. Weights of layers that say `reads_blocks`, and the embeddings `tables`
    of which the model also makes its logits; those keep their rows beside it, and take what they took. As with
    `store_in_blocks`, each is still a parameter, but can neither be trained nor copied.
    """
    for name, module in model.named_modules():
        is_table = name in tables and type(module) is nn.Embedding
        if not (is_table or vars(type(module)).get("reads_blocks")):
            continue
        weight = module.get_parameter("weight")
        if _is_plain(weight) and fits_half(weight):
            packed = nn.Parameter(HalfWeight.of(weight, has_rows=is_table), requires_grad=False)
            module.register_parameter("weight", packed)


@torch.no_grad()
def store_in_blocks(model: nn.Module) -> None:
    """Lay frozen fp32 matrices out in memory as oneDNN's kernels read them, where there are such kernels.

    torch's own product of some rows with a matrix copies the matrix into blocks each time, which takes as long as the
    product itself; a lone row takes up to a quarter longer. What comes of a row is the same to the bit, whatever rows
    stand beside it. Only weights of layers that say `reads_blocks` move; each is still a parameter of its name, its
    shape and its numbers (`to_dense`), but can neither be trained nor copied.
    """
    is_known = platform.machine() in ("x86_64", "AMD64")  # others were not measured
    if not (is_known and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return
    for module in model.modules():
        # Of the class itself: one that is made out of it may use the weight in a way of its own.
        if vars(type(module)).get("reads_blocks") and _is_plain(weight := module.get_parameter("weight")):
            blocks = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _USUAL_ROWS)
            module.register_parameter("weight", nn.Parameter(blocks, requires_grad=False))


def _is_plain(weight: torch.Tensor) -> bool:
    """Whether it may be laid out otherwise."""
    is_frozen = weight.dtype == torch.float32 and not weight.requires_grad and type(weight) is not HalfWeight
    return is_frozen and weight.dim() == 2 and weight.device.type == "cpu" and not weight.is_mkldnn
