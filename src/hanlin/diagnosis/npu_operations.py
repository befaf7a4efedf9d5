"""Every operation that Hanlin calls on a device, and what Huawei's lists say of it on Ascend NPUs.

From the lists of torch 2.12 for Atlas A2 and A3 (Ascend/pytorch, docs/zh/native_apis/pytorch_2-12-0: torch.md,
torch-Tensor.md, torch-nn.md, torch-nn-functional.md, torch-optim.md). An operation of ATen counts as listed with a
dtype if a function that ends in it is. The lists hold what was verified; what they lack may work all the same, which
`hanlin doctor --npu` finds out. tests/accelerator lets every family train and answer on a stand-in that knows this
table, so nothing else is called.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["is_listed", "known_operations"]

_SHORT = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    **{name: name for name in ("int8", "int16", "int32", "int64", "uint8", "bool")},
}
_GROUPS = {
    "float": "bf16 fp16 fp32",
    "half": "fp16 fp32",
    "whole": "int8 int16 int32 int64 uint8",
    "all": "bf16 fp16 fp32 int8 int16 int32 int64 uint8 bool",
}

# Operations | dtypes in the lists | by which entries, where their names differ.
_LISTED = """
abs add add_ cos div eq ge gt le lt ne maximum minimum mul mul_ reciprocal rsqrt sin square | all
__and__ __or__ bitwise_and bitwise_not bitwise_or | whole bool | torch.bitwise_and, ...
sub sub_ rsub sqrt | float whole
all any cat stack tril where clone copy_ _to_copy to scatter scatter_ scatter_add scatter_add_ | all
masked_scatter sum | all
dropout native_dropout native_dropout_backward | all | torch.nn.functional.dropout
empty_like new_empty_strided fill_ zeros ones zeros_like ones_like new_full new_zeros | all | torch.full, ...
scalar_tensor arange | all
constant_pad_nd pad | all | torch.nn.ConstantPad2d
flatten unflatten movedim view_as select_backward slice_backward | all | views, and copies of their gradients
_local_scalar_dense | all | Tensor.item
addmm bmm mm linear matmul | float | torch.nn.functional.linear, Tensor.matmul
addmm_ lerp lerp_ rsqrt_ | half
scaled_dot_product_attention | float bool | bool masks in one kernel, others by matrix products
_safe_softmax softmax _softmax log_softmax _log_softmax | float | torch.nn.Softmax, torch.nn.LogSoftmax
_softmax_backward_data _log_softmax_backward_data | float | their gradients
gelu gelu_backward | float | approximate="tanh" only
silu silu_backward sigmoid | float | torch.nn.SiLU, torch.nn.Sigmoid
log_sigmoid_forward log_sigmoid_backward | half | torch.nn.LogSigmoid
layer_norm native_layer_norm native_layer_norm_backward | float
embedding embedding_dense_backward | float int32 int64
linalg_vector_norm | float | torch.norm
mean div_ exp_ sqrt_ | float
amax | half whole bool
argmax clamp topk | float whole | topk: sorted only
bincount | whole
cumsum | half whole bool
erf exp exp2 log | float int64 bool
log1p | half whole bool
floor_divide searchsorted sort argsort index_copy | half whole
gather roll repeat_interleave | half int16 int32 int64 bool | repeat_interleave: below 4 million numbers
index_select masked_fill masked_fill_ | float int8 int16 int32 int64 bool
index_add | half int64 bool
index_put index_put_ | int64
max min | float int64 bool
neg | float int8 int32 int64
nonzero | half whole bool
pow | float int16 int64
round | float
_foreach_add_ _fused_adamw_ | float | torch.optim.AdamW
"""

# What the lists do not have, and why it can be expected to work.
_UNLISTED = """
index | all int64 | op-plugin has a kernel; subscripts with tensors
index_put index_put_ | float bool | op-plugin has a kernel; the list tells of int64 only
index_add | bf16 | aclnnIndexAdd takes it on Atlas A2
__lshift__ __rshift__ __irshift__ | int8 uint8 | op-plugin has kernels; unpacks int4
__rshift__ bitwise_xor_ | int32 | op-plugin has kernels; rounds bf16 weights
rms_norm | float | torch makes it of listed operations
clamp_ | float | the list says that it may go by the CPU; clamp does not
frexp | float | experts with balanced shares only
"""


def is_listed(operation: str, dtype: torch.dtype) -> bool:
    """Whether the lists name an operation of ATen, without its overload, with a dtype of its tensors, or this table
    says why it is called without.
    """
    known = _table().get(operation, frozenset())
    return str(dtype).removeprefix("torch.") in known


def known_operations() -> frozenset[str]:
    return frozenset(_table())


@cache
def _table() -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for line in (_LISTED + _UNLISTED).strip().splitlines():
        if "|" not in line:
            continue
        names, dtypes = line.split("|")[:2]
        words = " ".join(_GROUPS.get(word, word) for word in dtypes.split()).split()
        for name in names.split():
            found.setdefault(name, set()).update(_SHORT[word] for word in words)
    return {name: frozenset(dtypes) for name, dtypes in found.items()}
