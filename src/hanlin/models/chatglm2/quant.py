"""The rule that turns the original's packed weights (chatglm2-6b-int4) into plain ones, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hanlin.core.errors import CheckpointError
from hanlin.formats.rules import Rule, Tensors

if TYPE_CHECKING:
    from hanlin.layers.packing import Bits


class Quantised:
    """A rule whose one tensor of theirs lies there in 8 or 4 bits, with its scales beside it.

    columns: of the weight; bits: those we write, None = this layout is only read.
    """

    def __init__(self, rule: Rule, columns: int, bits: Bits | None) -> None:
        (name,) = rule.theirs
        self.theirs = (name, f"{name}_scale")
        self.ours = rule.ours
        self._rule = rule
        self._columns = columns
        self._bits: Bits | None = bits

    def to_ours(self, tensors: Tensors) -> Tensors:
        from hanlin.layers.packing import dequantise

        packed, scale = tensors
        return self._rule.to_ours((dequantise(packed, scale.float(), self._columns),))

    def to_theirs(self, tensors: Tensors) -> Tensors:
        from hanlin.layers.packing import quantise

        if self._bits is None:
            raise CheckpointError("the layout quantized is only read; write int8 or int4")
        (weight,) = self._rule.to_theirs(tensors)
        return quantise(weight, self._bits)
