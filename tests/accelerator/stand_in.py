"""A stand-in accelerator: tensors that say they are on `npu:0` and hold CPU values.

It computes what the CPU computes, refuses tensors of two devices in one operation, and counts what costs time on a
real device: copies from the host, waits for a result (`item`, `nonzero`, boolean indices, copies to the host), kernel
launches and, where a profile knows, which kernel attention would get. It notes what hanlin's table of operations
(diagnosis/npu_operations.py) lacks. A profile says what a device refuses. Importing this module changes torch for the
whole process: the tests run it in processes of their own (run.py).

Fake tensors on "cuda" would not do instead: a torch that is built without CUDA has no guard of its devices, and ends
the process when autograd asks for one.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import hanlin
from hanlin.diagnosis.npu_operations import is_listed
from hanlin.layers import attention_kernels
from hanlin.layers.attention_kernels import AttentionKernel, KernelScope
from hanlin.layers.varlen import varlen_attention

NAME = "npu"
aten = torch.ops.aten

_PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "addbmm", "mv", "addmv"}
_VIEWS = {
    *("view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze"),
    *("alias", "detach", "split", "split_with_sizes", "unbind", "as_strided", "narrow", "diagonal", "chunk"),
    *("lift_fresh", "_reshape_alias", "unfold"),
}
_WAITS = {
    "_local_scalar_dense": "item",
    "nonzero": "nonzero",
    "masked_select": "masked_select",
    "_unique2": "unique",
    "unique_dim": "unique",
    "bincount": "bincount",
    "is_nonzero": "is_nonzero",
    "equal": "equal",
    "repeat_interleave": "repeat_interleave",
}
"""Operations whose result's size or value the host has to know."""
_COPIES = {"_to_copy", "to"}
"""The second one reaches us in inference mode, where it is not taken apart."""
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
_MAY_MIX = {"copy_", *_COPIES, "_local_scalar_dense", "set_", "resize_", *_INDEXING}


class MixedDevicesError(RuntimeError):
    """Tensors of two devices in one operation."""


class UnsupportedError(RuntimeError):
    """An operation that the device of the profile does not have."""


@dataclass(frozen=True)
class Profile:
    """refused: dtypes that the device cannot hold; attention: the kernel for what it is given, "fused" or "plain"
    (matrix products), None: not known; capability: of CUDA, which masks are made for (attention_kernels.py).
    """

    name: str
    refused: frozenset[torch.dtype] = frozenset()
    attention: Callable[..., str] | None = None
    has_tanh_gelu_only: bool = False
    capability: int = 0


def npu_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> str:
    """The kernel that torch_npu takes on an Atlas A2 or later (op-plugin, ScaledDotProductAttentionKernelNpuOpApi.cpp).

    Raises: UnsupportedError for what it cannot take at all.
    """
    del value, dropout_p, scale
    if attn_mask is not None and attn_mask.dtype not in (torch.bool, query.dtype):
        raise UnsupportedError(f"npu: a mask of {attn_mask.dtype} for {query.dtype} at {_site()}")
    if attn_mask is not None and is_causal:
        raise UnsupportedError(f"npu: is_causal with a mask at {_site()}")
    groups, heads, queries, head_dim = query.shape
    is_bool = attn_mask is None or attn_mask.dtype == torch.bool
    fits = heads <= 2048 and head_dim <= 512 and heads % key.shape[1] == 0
    if not (is_bool and fits and query.dtype in (torch.float32, torch.bfloat16, torch.float16)):
        return plain_attention(enable_gqa=enable_gqa)
    # Other masks are expanded by the newest versions only.
    taken = [(one, other) for one, other in ((groups, heads), (groups, 1), (1, 1))]
    if attn_mask is not None and (
        tuple(attn_mask.shape[:-2]) not in [*taken, ()] or attn_mask.shape[-2:] != (queries, key.shape[2])
    ):
        raise UnsupportedError(f"npu: a mask of {tuple(attn_mask.shape)} for {tuple(query.shape)} at {_site()}")
    return "fused"


def plain_attention(*args: Any, enable_gqa: bool = False, **kwargs: Any) -> str:
    """torch_npu's before Atlas A2: matrix products.

    Raises: UnsupportedError for fewer heads of keys than of queries.
    """
    if enable_gqa:
        raise UnsupportedError(f"npu: its plain attention takes no enable_gqa at {_site()}")
    return "plain"


PROFILES = {
    "cuda-sm90": Profile("cuda-sm90", capability=90),
    "cuda-sm70": Profile("cuda-sm70", frozenset({torch.bfloat16}), capability=70),
    "npu": Profile("npu", frozenset({torch.float64}), npu_attention, has_tanh_gelu_only=True),
    "npu-910a": Profile(
        "npu-910a", frozenset({torch.float64, torch.bfloat16}), plain_attention, has_tanh_gelu_only=True
    ),
    "mps": Profile("mps", frozenset({torch.float64})),
}


@dataclass
class Costs:
    """What was counted, by kind ("copy", "wait") and by the line of our code that asked for it."""

    kinds: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)
    attention: Counter[str] = field(default_factory=Counter)
    unlisted: Counter[str] = field(default_factory=Counter)
    products: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        for counter in (self.kinds, self.places, self.launches, self.attention, self.unlisted, self.products):
            counter.clear()

    def note(self, kind: str, what: str) -> None:
        self.kinds[kind] += 1
        self.places[f"{kind} {what} {_site()}"] += 1


_SOURCE = f"{Path(hanlin.__file__).parent}/"

COSTS = Costs()
_profile = PROFILES["cuda-sm90"]


def _site() -> str:
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_SOURCE):  # a checkout may be called hanlin too
            return f"{file.removeprefix(_SOURCE)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside"


class DeviceTensor(torch.Tensor):
    """A tensor of the stand-in; `held` is its CPU tensor."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor, requires_grad: bool = False):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(NAME, 0),
            requires_grad=requires_grad,
        )

    def __init__(self, held: torch.Tensor, requires_grad: bool = False) -> None:
        self.held = held

    def tolist(self) -> Any:
        COSTS.note("wait", "tolist")
        return self.held.tolist()

    def __repr__(self) -> str:
        return f"DeviceTensor({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and to say so to every operation takes time

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        wanted = kwargs.get("device")
        is_ours = wanted is not None and torch.device(wanted).type == NAME
        if is_ours or any(isinstance(one, DeviceTensor) for one in _tensors((args, kwargs))):
            return _run(func, args, kwargs)
        return func(*args, **kwargs)


class _Attention(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is varlen_attention and _profile.capability and isinstance(args[0], DeviceTensor):
            COSTS.attention["varlen"] += 1
        is_attention = getattr(func, "__name__", "") == "scaled_dot_product_attention"
        if is_attention and _profile.attention is not None and isinstance(args[0], DeviceTensor):
            COSTS.attention[_profile.attention(*args, **kwargs)] += 1
        return func(*args, **kwargs)


def _is_host(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, DeviceTensor) and value.device.type == "cpu"


def _tensors(given: Any) -> Iterator[torch.Tensor]:
    """Among the arguments of an operation (torch's own walk through trees takes longer than what it computes)."""
    if isinstance(given, torch.Tensor):
        yield given
    elif isinstance(given, (tuple, list, dict)):
        for one in given.values() if isinstance(given, dict) else given:
            yield from _tensors(one)


def _held(given: Any) -> Any:
    if isinstance(given, DeviceTensor):
        return given.held
    if isinstance(given, dict):
        return {name: _held(one) for name, one in given.items()}
    return type(given)(map(_held, given)) if type(given) in (tuple, list) else given


def _run(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.split("::")[1]
    tensors = list(_tensors((args, kwargs)))
    ours = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    wanted = kwargs.get("device")
    to_ours = None if wanted is None else torch.device(wanted).type == NAME
    if _profile.has_tanh_gelu_only and name == "gelu" and ours and kwargs.get("approximate") != "tanh":
        raise UnsupportedError(f"{_profile.name} has gelu with tanh only: {_site()}")
    _count(name, args, ours, to_ours)
    if ours and name not in _MAY_MIX and (hosts := [one for one in tensors if _is_host(one) and one.dim()]):
        raise MixedDevicesError(f"{func}: {NAME}:0 and cpu {[tuple(one.shape) for one in hosts]} at {_site()}")
    held = _held(kwargs)
    if to_ours:
        held["device"] = torch.device("cpu")
    if "pin_memory" in held:
        held["pin_memory"] = False
    found = func(*_held(args), **held)
    stays = name == "_local_scalar_dense" or (name == "copy_" and _is_host(args[0]))
    if stays or not (bool(ours) if to_ours is None else to_ours):
        return found
    known = {id(tensor.held): tensor for tensor in ours}
    # In inference mode a view of what was made outside is no tensor of inference.
    is_inference = torch.is_inference_mode_enabled() and all(one.is_inference() for one in ours)
    with torch.inference_mode(is_inference):
        return tree_map(lambda value: _ours(value, known, func), found)


def _ours(value: Any, known: dict[int, DeviceTensor], func: Any) -> Any:
    if not isinstance(value, torch.Tensor) or isinstance(value, DeviceTensor):
        return value
    if value.dtype in _profile.refused:
        raise UnsupportedError(f"{_profile.name} has no {value.dtype}: {func} at {_site()}")
    return known.get(id(value)) if id(value) in known else DeviceTensor(value)


def _count(name: str, args: tuple, ours: list[DeviceTensor], to_ours: bool | None) -> None:
    if name in _COPIES and to_ours is not None:
        if to_ours and _is_host(args[0]):
            COSTS.note("copy", "to")
        if not to_ours and ours:
            COSTS.note("wait", "to")
    elif name == "copy_":
        if ours and args[0] is ours[0] and _is_host(args[1]) and args[1].dim():
            COSTS.note("copy", "copy_")
        if _is_host(args[0]) and ours and not (args[2:] and args[2]):
            COSTS.note("wait", "copy_")
    elif name in _WAITS and ours:
        COSTS.note("wait", _WAITS[name])
    elif name in _INDEXING and ours:
        indices = [one for one in args[1] or [] if isinstance(one, torch.Tensor)]
        if any(one.dtype in (torch.bool, torch.uint8) for one in indices):
            COSTS.note("wait", "boolean index")
        if any(_is_host(one) and one.dim() for one in indices):
            COSTS.note("copy", "index")
    if name in _VIEWS or not (ours or to_ours):
        return
    COSTS.launches[name] += 1
    if name in _PRODUCTS:
        COSTS.products[f"{str(ours[-1].dtype).removeprefix('torch.')} {_site()}"] += 1
    for dtype in {one.dtype for one in ours}:
        if not is_listed(name, dtype):
            COSTS.unlisted[f"{name} {str(dtype).removeprefix('torch.')}"] += 1


@contextmanager
def stand_in(profile: str = "cuda-sm90") -> Iterator[Costs]:
    """The accelerator is there, and its costs are counted from 0."""
    global _profile  # noqa: PLW0603
    _profile = PROFILES[profile]
    COSTS.clear()
    with patch.object(attention_kernels, "_scope_of", _scope), _Mode(), _Attention():
        yield COSTS


def _scope(device: torch.device, choice: AttentionKernel) -> KernelScope:
    """Of CUDA's kernels those that take no masks are planned with, and computed by plain products."""
    if device.type == NAME and _profile.capability:
        return KernelScope("cuda", choice, None, _profile.capability)
    return KernelScope(device.type, choice, device)


# --- what torch has to know of the device ---

_setup_privateuseone_for_python_backend(NAME)
torch._C._set_only_lift_cpu_tensors(True)  # pyright: ignore[reportAttributeAccessIssue]
_numbers = torch.Generator()
for _name, _value in {
    "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16],
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "is_available": lambda: True,
    "is_bf16_supported": lambda: torch.bfloat16 not in _profile.refused,
    "is_initialized": lambda: True,
    "get_rng_state": lambda device=None: _numbers.get_state(),
    "set_rng_state": lambda state, device=None: _numbers.set_state(state),
    "manual_seed": _numbers.manual_seed,
    "manual_seed_all": _numbers.manual_seed,
    "_is_in_bad_fork": lambda: False,
    "synchronize": lambda device=None: None,
    "default_generators": [_numbers],
}.items():
    setattr(getattr(torch, NAME), _name, _value)

_fallback = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
_fallback.fallback(torch.library.fallthrough_kernel)
_casts = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
_CAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)


def _casting(operation: Any, dtype: Callable[[], torch.dtype]) -> Callable[..., Any]:
    def cast(value: Any) -> Any:
        is_ours = isinstance(value, torch.Tensor) and value.device.type == NAME
        is_cast = is_ours and value.is_floating_point() and value.dtype != torch.float64
        return value.to(dtype()) if is_cast else value

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_CAST):
            return operation(*tree_map(cast, args), **tree_map(cast, kwargs))

    return run


for _name in ("linear", "matmul", "mm", "bmm", "addmm", "scaled_dot_product_attention"):
    _casts.impl(_name, _casting(getattr(aten, _name).default, lambda: torch.get_autocast_dtype(NAME)))
for _name in ("layer_norm", "rsqrt", "softplus", "log"):
    _casts.impl(_name, _casting(getattr(aten, _name).default, lambda: torch.float32))
