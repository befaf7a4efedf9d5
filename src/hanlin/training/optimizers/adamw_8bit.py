"""AdamW whose two running means are kept in 8 bits each (Dettmers et al. 2022, block-wise dynamic quantisation).

On plain torch, so it runs on every device; one weight after the other is computed in fp32, in pieces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from hanlin.core.device import has_bf16
from hanlin.recipe.settings import Fraction, OptimizerSettings
from hanlin.training.optimizer import OptimizerSpec, WeightByWeight, WeightShape

if TYPE_CHECKING:
    import torch
    from torch import nn

_BLOCK = 256
_LEAST = 4096  # elements: what is smaller is kept in fp32, as bitsandbytes does it
_LEAST_BLOCK = 16  # shorter ones would take more bytes for their sizes than they save
_LAYOUT_RANKS = 8  # that may divide the last dimension of a matrix without cutting a block
_PIECE = 2**22  # elements computed at once: it bounds the fp32 copies
_STEP_NUMBERS = 5  # of four bytes, for each of these


class AdamW8bitSettings(OptimizerSettings):
    name: Literal["adamw_8bit"] = "adamw_8bit"
    # Share of the old value in each step's running mean of gradients, and in that of their squares.
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    # Added to the root of the mean square, by which a step is divided.
    eps: float = Field(default=1e-8, gt=0)
    # Decoupled weight decay, on matrices and embeddings only.
    weight_decay: float = Field(default=0.01, ge=0)


class AdamW8bit(WeightByWeight):
    """p -= rate * mean / (sqrt(square) + eps) + rate * decay * p, with bias-corrected mean and square.

    Of a matrix each running mean is codes (uint8, in its shape) and the largest size in each block of a row (fp32).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: AdamW8bitSettings) -> None:
        import torch

        from hanlin.parallel.mesh import like, local

        super().__init__(parameters, ("mean", "square", "mean_size", "square_size"))
        self.settings = settings
        self.codes: dict[tuple[str, torch.device], _Code] = {}
        for name, weight in parameters.items():
            part, block = local(weight), _block(weight.shape)
            for kind in ("mean", "square"):
                dtype = torch.float32 if block is None else torch.uint8
                self.state[kind][name] = torch.zeros_like(weight, dtype=dtype)
                if block is not None:
                    sizes = part.new_zeros(*part.shape[:-1], part.shape[-1] // block, dtype=torch.float32)
                    whole = [*weight.shape[:-1], weight.shape[-1] // block]
                    self.state[f"{kind}_size"][name] = like(weight, sizes, whole)

    def update(self, name: str, weight: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        from hanlin.parallel.mesh import local

        settings, count = self.settings, self.steps[name]
        early, late = settings.betas
        size = rate / (1 - early**count)
        root = (1 - late**count).rsqrt()
        decay = 1 - rate * (settings.weight_decay if weight.ndim > 1 else 0.0)
        state = {kind: local(named[name]) for kind, named in self.state.items() if name in named}
        mine, mine_grad = local(weight), local(gradient)
        for piece in _pieces(mine):
            part = {kind: tensor[piece] for kind, tensor in state.items()}
            grad = mine_grad[piece].float()
            mean = self._read(part, "mean").lerp_(grad, 1 - early)
            square = self._read(part, "square").lerp_(grad.square(), 1 - late)
            self._write(part, "mean", mean)
            self._write(part, "square", square)
            update = mean.div_(square.sqrt_().mul_(root).add_(settings.eps)).mul_(size)
            mine[piece].mul_(decay).sub_(update)

    def _read(self, state: Mapping[str, torch.Tensor], kind: str) -> torch.Tensor:
        """A running mean in fp32; not the state's own tensor."""
        sizes = state.get(f"{kind}_size")
        return state[kind].clone() if sizes is None else self._code(kind, sizes.device).read(state[kind], sizes)

    def _write(self, state: Mapping[str, torch.Tensor], kind: str, numbers: torch.Tensor) -> None:
        sizes = state.get(f"{kind}_size")
        if sizes is None:
            state[kind].copy_(numbers)
        else:
            self._code(kind, sizes.device).write(numbers, state[kind], sizes)

    def _code(self, kind: str, device: torch.device) -> _Code:
        if (kind, device) not in self.codes:
            self.codes[kind, device] = _Code(kind, device)
        return self.codes[kind, device]


class _Code:
    """The numbers that the codes of a running mean stand for; the nearest code of every bf16 number, by its bits (of
    every fp16 number where there is no bf16).
    """

    def __init__(self, kind: str, device: torch.device) -> None:
        import torch

        from hanlin.layers.dynamic_code import dynamic_code

        is_signed = kind == "mean"
        self.numbers = dynamic_code(is_signed=is_signed).to(device)
        self.dtype = torch.bfloat16 if has_bf16(device) else torch.float16
        every = torch.arange(-(2**15), 2**15).to(torch.int16).view(self.dtype).float().nan_to_num(0)
        middles = (self.numbers[1:] + self.numbers[:-1]).cpu() / 2
        # No square becomes 0: an update is divided by its root.
        nearest = torch.bucketize(every, middles).clamp(min=0 if is_signed else 1)
        self.nearest = nearest.to(torch.uint8).to(device)

    def read(self, codes: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """codes: `[..., elements]`; sizes: `[..., blocks]`."""
        numbers = self.numbers.index_select(0, codes.flatten().int()).view(codes.shape)
        return numbers.unflatten(-1, (sizes.shape[-1], -1)).mul_(sizes[..., None]).flatten(-2)

    def write(self, numbers: torch.Tensor, codes: torch.Tensor, sizes: torch.Tensor) -> None:
        import torch

        blocks = numbers.unflatten(-1, (sizes.shape[-1], -1))
        sizes.copy_(blocks.abs().amax(-1))
        shares = blocks / sizes.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
        bits = shares.to(self.dtype).view(torch.int16).int() + 2**15
        codes.copy_(self.nearest.index_select(0, bits.flatten()).view(codes.shape))


def _block(shape: Sequence[int]) -> int | None:
    """Elements of a row that share a size; None: the running means stay in fp32.

    The same under every layout: a power of two that the ranks' parts of a row are multiples of.
    """
    if len(shape) < 2 or math.prod(shape) < _LEAST:
        return None
    block = math.gcd(shape[-1] // _LAYOUT_RANKS if shape[-1] % _LAYOUT_RANKS == 0 else shape[-1], _BLOCK)
    return block if block >= _LEAST_BLOCK else None


def _part_problem(weight: WeightShape) -> str:
    whole, part, block = weight.whole, weight.part, _block(weight.whole)
    if block is None or part[-1] % block == 0:
        return ""
    return f"keeps blocks of {block}, and a rank has {part[-1]} of each row of {whole[-1]}"


def _pieces(part: torch.Tensor) -> Iterator[slice | EllipsisType]:
    """Of the first dimension."""
    if not part.ndim:
        yield ...
        return
    rows = max(1, _PIECE * len(part) // max(part.numel(), 1))
    for start in range(0, len(part), rows):
        yield slice(start, start + rows)


def _state_bytes(settings: AdamW8bitSettings, weight: WeightShape) -> int:
    """Two codes per element and two fp32 sizes per block, or two fp32 numbers per element; a count of steps."""
    numbers, block = math.prod(weight.part), _block(weight.whole)
    return 4 + (8 * numbers if block is None else 2 * numbers + 8 * numbers // block)


def _step_bytes(settings: AdamW8bitSettings, weight: WeightShape) -> int:
    """Of a piece: gradient, both means and, while one is written, its shares of the largest and their places; one of
    the piece before is there too.
    """
    numbers, block = math.prod(weight.part), _block(weight.whole)
    copies = 3 if block is None else _STEP_NUMBERS + (numbers > _PIECE)
    return 4 * copies * min(_PIECE, numbers)


optimizer = OptimizerSpec(AdamW8bitSettings, AdamW8bit, _state_bytes, _part_problem, _step_bytes)
