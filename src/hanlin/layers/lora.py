"""Low-rank additions to linears (Hu et al. 2021): the base stays bitwise as it is, two small matrices learn.

In the original CPM-Bee the addition bypasses the linear's factor 1 / sqrt(in_features) (OpenDelta adds it to the
finished output): `form="original"`. With `form="scaled"` the factor stands before the sum of both.

Two things may come to it. DoRA (Liu et al. 2024) learns the length of each row of the sum as well. PiSSA (Meng et al.
2024) lets A and B begin as the principal part of the weight, which is taken out of the base: here the base keeps it,
and what A and B began as is subtracted from what they are, which computes the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from hanlin.core.transfer import to_device
from hanlin.layers.linear import Linear
from hanlin.layers.precision import matmul_dtype
from hanlin.layers.quantised import dense_weight, linear, packing_of, share_weight

LoraForm = Literal["original", "scaled"]

_MORE_COLUMNS, _ROUNDS = 8, 16
"""Of the search for principal parts: columns beside those that are wanted, and products with the weight and back."""


@dataclass(frozen=True)
class Addition:
    """What is added to each linear.

    factor: of the product B A; dropout: share of its input that is dropped in training; has_magnitude: DoRA's lengths
    of rows; begins_as_weight: PiSSA's beginning.
    """

    rank: int
    factor: float
    dropout: float = 0.0
    form: LoraForm = "original"
    has_magnitude: bool = False
    begins_as_weight: bool = False


class LoraLinear(nn.Linear):
    """A linear with an addition; `weight` (and `bias`) keep their names, so the base's checkpoints fit as before.

    The addition is kept in fp32 whatever the base's dtype. join_ranks: adds a tensor of all ranks that have other
    columns of the weight; set where there are such.
    """

    reads_blocks = True

    def __init__(self, base: nn.Linear, addition: Addition) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        share_weight(self, base)  # that of a quantised base stays packed
        self.scale: float = getattr(base, "scale", 1.0)
        self.factor = addition.factor * (self.scale if addition.form == "scaled" else 1.0)
        self.dropout = addition.dropout
        self.join_ranks: Callable[[torch.Tensor], torch.Tensor] | None = None
        rank, rows, columns = addition.rank, base.out_features, base.in_features
        on = {"device": base.weight.device, "dtype": torch.float32}
        self.lora_A = nn.Parameter(torch.empty(rank, columns, **on))
        self.lora_B = nn.Parameter(torch.empty(rows, rank, **on))
        self.added: tuple[str, ...] = ("lora_A", "lora_B")
        if addition.begins_as_weight:
            self.lora_A_start = nn.Parameter(torch.empty(rank, columns, **on), requires_grad=False)
            self.lora_B_start = nn.Parameter(torch.empty(rows, rank, **on), requires_grad=False)
            self.added += ("lora_A_start", "lora_B_start")
        if addition.has_magnitude:
            self.lora_magnitude = nn.Parameter(torch.empty(rows, **on))
            self.added += ("lora_magnitude",)
        self.begins_as_weight, self.has_magnitude = addition.begins_as_weight, addition.has_magnitude
        self.train(base.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        addition = self.addition(input)
        product = linear(self, input, has_bias=not self.has_magnitude)
        product = product if self.scale == 1 else product * self.scale
        found = torch.add(product, addition.to(product.dtype), alpha=self.factor)
        if not self.has_magnitude:
            return found
        # differs: with dropout PEFT also drops from the input of the base's part of the gain; here the base is whole.
        found = found * self._gain().to(found.dtype)
        return found if self.bias is None else found + self.bias.to(found.dtype) * self.scale

    def addition(self, input: torch.Tensor) -> torch.Tensor:
        """What is added to the product, before the factor."""
        dropped = functional.dropout(input, self.dropout, self.training).to(matmul_dtype(self.lora_A))
        addition = functional.linear(functional.linear(dropped, self.lora_A), self.lora_B)
        if self.begins_as_weight:
            addition = addition - functional.linear(functional.linear(dropped, self.lora_A_start), self.lora_B_start)
        return addition

    def _gain(self) -> torch.Tensor:
        """By how much each row is longer than that of base and addition: fp32 `[out]`; the length of the sum is a
        constant to the gradient, as in the paper (4.3).
        """
        return self.lora_magnitude / self._row_lengths()

    @torch.no_grad()
    def _row_lengths(self) -> torch.Tensor:
        """Of the weight with its factor and the addition: fp32 `[out]`."""
        with torch.autocast(self.lora_A.device.type, enabled=False):
            weight = dense_weight(self)
            inner = self.lora_A.to(weight.dtype)
            wide = torch.promote_types(weight.dtype, torch.float32)
            outer, factor = self.lora_B.to(wide), self.factor / self.scale
            # Of the sum without making it: |w|^2 + 2 b A w + b A A' b', with the factor at b.
            squares = torch.linalg.vector_norm(weight, dim=1, dtype=wide).square()
            squares = squares + 2 * factor * ((weight @ inner.t()).to(wide) * outer).sum(1)
            squares = squares + factor**2 * ((outer @ (self.lora_A @ self.lora_A.t()).to(wide)) * outer).sum(1)
        if self.join_ranks is not None:
            squares = self.join_ranks(squares)
        return squares.clamp(min=0).sqrt() * abs(self.scale)

    def init_addition(self, generator: torch.Generator | None = None) -> None:
        """Start as nothing: A uniform within 1 / sqrt(in_features), B zero. See `init_from_base` too."""
        bound = 1 / math.sqrt(self.in_features)
        with torch.no_grad():
            self.lora_A.uniform_(-bound, bound, generator=generator)
            self.lora_B.zero_()

    @property
    def reads_base(self) -> bool:
        """Whether its first values come from the weight."""
        return self.begins_as_weight or self.has_magnitude

    @torch.no_grad()
    def init_from_base(self) -> None:
        """Start as the principal part of the weight, or with the lengths of its rows."""
        if self.begins_as_weight:
            outer, inner = principal_part(dense_weight(self).float(), len(self.lora_A))
            share = math.sqrt(self.factor / self.scale)
            for name, values in (("lora_A", inner / share), ("lora_B", outer / share)):
                self.get_parameter(name).copy_(values)
                self.get_parameter(f"{name}_start").copy_(values)
        if self.has_magnitude:
            self.lora_magnitude.copy_(self._row_lengths())

    def low_rank(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B of one product that is the whole addition, without its factor."""
        if not self.begins_as_weight:
            return self.lora_A.detach(), self.lora_B.detach()
        start, end = (self.get_parameter(f"lora_{name}_start").detach() for name in "AB")
        kind = self.lora_A.dtype
        return (
            torch.cat((self.lora_A.detach(), start.to(kind))),
            torch.cat((self.lora_B.detach(), -end.to(kind)), dim=1),
        )

    def merged(self) -> Linear:
        """A plain linear that computes the same; the base must not be quantised."""
        assert packing_of(self) is None, "what is merged into is read as plain numbers"
        with torch.device("meta"):
            plain = Linear(self.in_features, self.out_features, bias=self.bias is not None, scale=self.scale)
        # The weight is multiplied by `scale` after the product, the addition is not.
        # In fp64 on the CPU: not every device has that.
        inner, outer, weight = (one.detach().cpu().double() for one in (*self.low_rank(), self.weight))
        merged = weight + (outer @ inner) * (self.factor / self.scale)
        if self.has_magnitude:
            length = torch.linalg.vector_norm(merged, dim=1, keepdim=True) * abs(self.scale)
            merged = merged / length * self.lora_magnitude.detach().cpu().double()[:, None]
        plain.weight = nn.Parameter(
            merged.to(self.weight.dtype).to(self.weight.device), requires_grad=self.weight.requires_grad
        )
        plain.bias = self.bias
        return plain.train(self.training)


def add_lora(model: nn.Module, names: Sequence[str], addition: Addition) -> None:
    """Put an (uninitialised) addition on each named linear."""
    for name in names:
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear), (name, base)
        model.set_submodule(name, LoraLinear(base, addition))


def merge_lora(model: nn.Module) -> None:
    """Work every addition into its base weight; the model is as if it had never been tuned this way."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            model.set_submodule(name, module.merged())


def principal_part(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The product `[out, rank] @ [rank, in]` nearest to a matrix, its singular values shared by both factors.

    The matrix is multiplied by a few columns and back some times (Halko et al. 2011), which finds the largest singular
    values to rounding where others are smaller, in much less time than all of them. The columns are always the same.
    """
    rows, columns = weight.shape
    width = min(rank + _MORE_COLUMNS, rows, columns)
    if 4 * width >= min(rows, columns):
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
    else:
        draw = torch.Generator().manual_seed(0)
        basis = weight @ torch.randn(columns, width, generator=draw).to(weight)
        for _ in range(_ROUNDS):
            basis = torch.linalg.qr(weight @ torch.linalg.qr(weight.t() @ basis)[0])[0]
        left, values, right = torch.linalg.svd(basis.t() @ weight, full_matrices=False)
        left = basis @ left
    roots = values[:rank].sqrt()
    return left[:, :rank] * roots, roots[:, None] * right[:rank]


class AdapterRows:
    """Which adapter each row of a call of the model is for; the additions of all of them look here."""

    def __init__(self) -> None:
        self.places: dict[str, torch.Tensor] = {}

    @contextmanager
    def of(self, adapters: Sequence[str], device: torch.device) -> Iterator[None]:
        """Around a call; adapters: by their names, in the order of the rows; empty: the base alone."""
        places: dict[str, list[int]] = {}
        for place, name in enumerate(adapters):
            places.setdefault(name, []).append(place)
        self.places = to_device({name: torch.tensor(some) for name, some in places.items() if name}, device)
        try:
            yield
        finally:
            self.places = {}


class AdditionsByRow(nn.Module):
    """A linear of the base with the additions of several adapters, each for the rows that are its own."""

    def __init__(self, base: nn.Linear, rows: AdapterRows) -> None:
        super().__init__()
        self.base, self.rows = base, rows
        self.additions: dict[str, LoraLinear] = {}  # whose tensors are those of the adapters' own models

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.base.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input: `[batch, ...]`."""
        product = self.base(input)
        for name, places in self.rows.places.items():
            if (own := self.additions.get(name)) is None:
                continue
            if len(places) == len(input):
                product = torch.add(product, own.addition(input).to(product.dtype), alpha=own.factor)
            else:
                addition = own.addition(input.index_select(0, places)).to(product.dtype)
                product = product.index_add(0, places, addition, alpha=own.factor)
        return product


def only_adds(base: nn.Module, adapted: nn.Module) -> bool:
    """Whether a model is another one, whose tensors it shares, with additions to some linears."""
    held = {id(tensor) for tensor in (*base.parameters(), *base.buffers())}
    own = [module for module in adapted.modules() if isinstance(module, LoraLinear)]
    added = {id(weight) for module in own for weight in (module.lora_A, module.lora_B)}
    return {id(tensor) for tensor in (*adapted.parameters(), *adapted.buffers())} - held == added


def additions_by_row(base: nn.Module, adapted: Mapping[str, nn.Module]) -> AdapterRows:
    """Let a model answer for several others by row which are it with additions (`only_adds`); its modules change."""
    rows = AdapterRows()
    for adapter, model in adapted.items():
        for name, module in model.named_modules():
            if not isinstance(module, LoraLinear):
                continue
            linear_of_all = base.get_submodule(name)
            if not isinstance(linear_of_all, AdditionsByRow):
                assert isinstance(linear_of_all, nn.Linear), name
                linear_of_all = AdditionsByRow(linear_of_all, rows)
                base.set_submodule(name, linear_of_all)
            linear_of_all.additions[adapter] = module
    return rows
