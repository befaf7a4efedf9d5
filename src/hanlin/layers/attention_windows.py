"""Positions of packed rows taken into windows that attend among themselves, and put back."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class AttentionWindows:
    """Positions of packed rows `[batch, length]` grouped into windows `[groups, width]` that attend among themselves.

    positions: `[groups, width]`, number of the position in the flattened batch, -1 = padding;
    slots: `[batch * length]`, number of the slot in the flattened windows, -1 = in no window.
    """

    positions: torch.Tensor
    slots: torch.Tensor

    @staticmethod
    def of(windows: torch.Tensor, length: int) -> AttentionWindows:
        """windows: `[batch, windows, width]` positions inside the row, -1 = padding; none stands in two windows."""
        num_rows = windows.shape[0]
        starts = torch.arange(num_rows, device=windows.device)[:, None, None] * length
        positions = torch.where(windows >= 0, windows + starts, -1).flatten(0, 1)
        slots = positions.new_full((num_rows * length + 1,), -1)
        # All padding writes to the extra last entry.
        slots[positions.flatten().where(positions.flatten() >= 0, num_rows * length)] = torch.arange(
            positions.numel(), device=positions.device
        )
        return AttentionWindows(positions, slots[:-1])

    def group_numbers(self, numbers: torch.Tensor) -> torch.Tensor:
        """Numbers `[batch, length]` -> `[groups, width]`; padding gets those of the first position."""
        return numbers.flatten()[self.positions.clamp(min=0)]

    def group(self, vectors: torch.Tensor) -> torch.Tensor:
        """`[batch, length, size]` -> `[groups, width, size]`; padding is 0."""
        grouped = Regroup.apply(vectors.flatten(0, 1), self.positions.flatten(), self.slots)
        return grouped.unflatten(0, self.positions.shape)

    def ungroup(self, vectors: torch.Tensor, length: int) -> torch.Tensor:
        """`[groups, width, size]` -> `[batch, length, size]`; positions in no window are 0."""
        ungrouped = Regroup.apply(vectors.flatten(0, 1), self.slots, self.positions.flatten())
        return ungrouped.unflatten(0, (-1, length))


class Regroup(torch.autograd.Function):
    """Take rows by `index` (-1 = zeros); `inverse` says where each row went, so the gradient is a taking as well."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor, index: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        return _take(rows, index)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        (inverse,) = ctx.saved_tensors
        return _take(gradient, inverse), None, None


def _take(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return rows.index_select(0, index.clamp(min=0)).masked_fill_((index < 0)[:, None], 0)
