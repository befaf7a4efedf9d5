"""The dynamic tree code of 8 bits (Dettmers 2016): NF4 keeps its scales in it, AdamW its running means."""

from __future__ import annotations

import torch


def dynamic_code(*, is_signed: bool) -> torch.Tensor:
    """The 256 numbers of the code, fp32, from least to largest, as `create_dynamic_map` of bitsandbytes makes them.

    In each of seven decades below 1 they stand in equal distances, twice as many in each as in the one below.
    """
    numbers = [0.0, 1.0]
    for decade in range(7):
        bounds = torch.linspace(0.1, 1, (2**decade if is_signed else 2 ** (decade + 1)) + 1)
        means = 10 ** (decade - 6) * ((bounds[:-1] + bounds[1:]) / 2)
        numbers += [*means.tolist(), *(-means).tolist()] if is_signed else means.tolist()
    return torch.tensor(sorted(numbers))
