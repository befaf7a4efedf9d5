"""Keys and values that stand before those of an attention and are seen by every query (P-Tuning v2, Liu et al. 2021).

A decoder has an attention in each block. An encoder-decoder has three kinds of them, each with a prefix of its own, as
in Li & Liang 2021: that of the encoder's blocks, that of the decoder's, and the decoder's look at the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Prefix:
    """One attention's prefix: `[kv_heads, length, head_dim]`, any dtype; dropout: share that each row drops anew."""

    keys: torch.Tensor
    values: torch.Tensor
    dropout: float = 0.0

    def before(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the prefix before keys and values `[batch, kv_heads, length, head_dim]`."""
        return self._joined(self.keys, keys), self._joined(self.values, values)

    def of_rows(self, rows: int, part: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Its keys or values for each of some rows: `[rows, kv_heads, length, head_dim]`."""
        repeated = part.to(dtype).expand(rows, -1, -1, -1)
        return functional.dropout(repeated, self.dropout) if self.dropout else repeated

    def _joined(self, part: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.of_rows(own.shape[0], part, own.dtype), own), dim=2)


class PrefixSource(nn.Module):
    """What a model holds as its `prefix`: called without arguments, it gives each attention's `Prefix` by its name."""

    length: int

    def forward(self) -> dict[str, Prefix]:
        raise NotImplementedError

    def own_part(
        self, prefixes: dict[str, Prefix], rank: int, size: int, enter: Callable[[torch.Tensor], torch.Tensor]
    ) -> dict[str, Prefix]:
        """The keys and values of the heads of one of `size` tensor ranks; see `parallel.tensor.HasOwnPart`."""

        def own(heads: torch.Tensor) -> torch.Tensor:
            count = max(len(heads) // size, 1)
            first = rank * len(heads) // size
            return enter(heads)[first : first + count]

        return {name: replace(one, keys=own(one.keys), values=own(one.values)) for name, one in prefixes.items()}


class PrefixEncoder(PrefixSource):
    """A table of `length` entries, each the keys and values of all places; or, with `projection`, their reduced form.

    With `projection` a table row goes through two linears with a tanh between them: width -> hidden_size -> width.
    Parameters have the shapes and the order of ChatGLM2's original, so its checkpoints fit. They are kept in fp32.
    """

    def __init__(
        self,
        length: int,
        places: Sequence[str],
        num_heads: int,
        head_dim: int,
        *,
        hidden_size: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        """places: the names of the attentions; hidden_size: that of the projection, None = no projection; num_heads: of
        keys and values.
        """
        super().__init__()
        self.length = length
        self.dropout = dropout
        self.head_dim = head_dim
        self.places = tuple(places)
        width = 2 * len(places) * num_heads * head_dim
        self.embedding = nn.Embedding(length, width)
        self.trans = None
        if hidden_size is not None:
            self.trans = nn.Sequential(nn.Linear(width, hidden_size), nn.Tanh(), nn.Linear(hidden_size, width))
        self.added = tuple(name for name, _ in self.named_parameters())

    def forward(self) -> dict[str, Prefix]:
        """The prefix of each attention by its name."""
        with torch.autocast(self.embedding.weight.device.type, enabled=False):
            table = self.embedding.weight if self.trans is None else self.trans(self.embedding.weight)
        slots = table.unflatten(-1, (2 * len(self.places), -1, self.head_dim)).permute(1, 2, 0, 3)
        dropout = self.dropout if self.training else 0.0
        return {
            place: Prefix(slots[2 * number], slots[2 * number + 1], dropout) for number, place in enumerate(self.places)
        }

    def init_addition(self, generator: torch.Generator | None = None) -> None:
        """As torch initialises these modules, which the original leaves as it is."""
        with torch.no_grad():
            self.embedding.weight.normal_(generator=generator)
            for module in self.trans or ():
                if isinstance(module, nn.Linear):
                    bound = module.in_features**-0.5
                    module.weight.uniform_(-bound, bound, generator=generator)
                    module.bias.uniform_(-bound, bound, generator=generator)
