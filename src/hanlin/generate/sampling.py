"""From logits to one token: ban, penalise, warm, cut, draw. Pure functions on `[batch, vocab]`.

Their order is that of the original CPM-Ant, of Megatron and of the Hugging Face warpers: penalty, temperature, top-k,
top-p, draw; a bias comes before all of them. The released CPM-1's program takes the temperature last.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch

from hanlin.core.errors import HanlinError
from hanlin.core.transfer import to_device

_LEAST_WARMTH = 1e-6
BANNED = -10000.0
"""The logit of an id that must not be chosen; finite, as the original has it, so that no row is ever all -inf."""


def check_numbers(values: torch.Tensor) -> torch.Tensor:
    """What a model says, if it is numbers.

    Raises: HanlinError for NaN and infinity.
    """
    if not bool(values.isfinite().all()):
        raise no_numbers()
    return values


def no_numbers() -> HanlinError:
    """Where logits are NaN or infinite."""
    return HanlinError(
        "the model's answers are not numbers (NaN or inf): its weights are damaged, or too large for fp16; look at "
        "them with `hanlin inspect --values`, or choose train.precision bf16 or fp32"
    )


def ban_ids(logits: torch.Tensor, banned: Sequence[Sequence[int]]) -> torch.Tensor:
    """Rule out the ids `banned[row]` of each row."""
    if not any(banned):
        return logits
    first = banned[0]
    if isinstance(first, range) and first.step == 1 and all(one == first for one in banned):  # no table of each cell
        kept = logits.clone()
        kept[:, first.start : first.stop] = BANNED
        return kept
    return logits.index_put(_cells(banned, logits.device), logits.new_full((), BANNED))


def add_bias(logits: torch.Tensor, biases: Sequence[Mapping[int, float]]) -> torch.Tensor:
    """Add `biases[row]`, by id, to the logits of each row."""
    if not any(biases):
        return logits
    cells = _cells([list(bias) for bias in biases], logits.device)
    more = [value for bias in biases for value in bias.values()]
    return logits.index_put(cells, logits[cells] + _given(more, logits))


def penalise_used(logits: torch.Tensor, used: Sequence[Iterable[int]], penalty: float) -> torch.Tensor:
    """Make the ids `used[row]` less likely: a positive logit is divided by `penalty`, a negative one multiplied."""
    assert penalty >= 1, penalty
    if penalty == 1:
        return logits
    cells = _cells([sorted(set(ids)) for ids in used], logits.device)
    values = logits[cells]
    return logits.index_put(cells, torch.where(values < 0, values * penalty, values / penalty))


def penalise_counts(
    logits: torch.Tensor, used: Sequence[Sequence[int]], *, presence: float, frequency: float
) -> torch.Tensor:
    """Take `presence` off the logits of the ids `used[row]`, and `frequency` for each time that they stand there."""
    if not (presence or frequency) or not any(used):
        return logits
    counts = [Counter(ids) for ids in used]
    cells = _cells([list(count) for count in counts], logits.device)
    off = [presence + frequency * times for count in counts for times in count.values()]
    return logits.index_put(cells, logits[cells] - _given(off, logits))


def keep_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Rule out (-inf) all ids below the k-th best of their row; 0 keeps all."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    worst_kept = logits.topk(k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < worst_kept, -torch.inf)


def keep_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Rule out (-inf) the ids that are not needed to reach the probability `p`; the best one always stays."""
    if p >= 1:
        return logits
    ordered, ids = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    is_surplus = probabilities.cumsum(dim=-1) - probabilities >= p
    return logits.masked_fill(is_surplus.scatter(-1, ids, is_surplus), -torch.inf)


def keep_min_p(logits: torch.Tensor, share: float) -> torch.Tensor:
    """Rule out (-inf) the ids less likely than this share of the likeliest one's probability."""
    if share == 0:
        return logits
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(share), -torch.inf)


def warp(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, *, temperature_last: bool = False
) -> torch.Tensor:
    """The logits that are drawn from; temperature_last: it does not change what top-p leaves."""
    if temperature_last:
        return _warm(keep_top_p(keep_top_k(logits, top_k), top_p), temperature)
    return keep_top_p(keep_top_k(_warm(logits, temperature), top_k), top_p)


def _warm(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Divided by the temperature, as the originals do it to the bit; below any that means something the likeliest id
    has 0, so that none becomes infinite.
    """
    if temperature < _LEAST_WARMTH:
        return (logits - logits.amax(-1, keepdim=True)) / max(temperature, torch.finfo(logits.dtype).tiny)
    return logits / temperature


def draw(logits: torch.Tensor, uniforms: Sequence[float]) -> torch.Tensor:
    """Draw one id per row `[batch]`; `uniforms[row]` in [0, 1) decides.

    The numbers come from outside, one stream per record, so that an answer depends neither on its neighbours in the
    batch nor on the device's random generator.
    """
    cumulative = running_sums(logits.softmax(dim=-1))
    total = cumulative[:, -1:]
    # A uniform number near 1 rounds to 1 in fp32, which would choose an id after the last possible one.
    below_total = _next_below(total)
    targets = _given(uniforms, total)[:, None] * total
    drawn = torch.searchsorted(cumulative, targets.minimum(below_total), right=True).squeeze(-1)
    return drawn.clamp(max=logits.shape[-1] - 1)  # of what is no number, which is told afterwards


def running_sums(probabilities: torch.Tensor) -> torch.Tensor:
    """Along each row `[batch, vocab]`, the same for the same row.

    CUDA adds up a lone row in an order of chance, with sums that can fall from one id to the next: it is one of two.
    """
    if len(probabilities) == 1 and probabilities.device.type != "cpu":
        return probabilities.expand(2, -1).cumsum(dim=-1)[:1]
    return probabilities.cumsum(dim=-1)


def _next_below(positive: torch.Tensor) -> torch.Tensor:
    """The greatest numbers below these. What nextafter says, which NPUs leave to the CPU: another wait per token."""
    as_whole = torch.int64 if positive.dtype == torch.float64 else torch.int32
    return (positive.view(as_whole) - 1).view(positive.dtype)


def _given(numbers: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """Numbers of the host beside a tensor, for which nothing waits."""
    return to_device({"numbers": torch.tensor(numbers, dtype=like.dtype)}, like.device)["numbers"]


def _cells(ids: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    cells = [(row, id_) for row, some in enumerate(ids) for id_ in some]
    pairs = to_device({"cells": torch.tensor(cells, dtype=torch.int64).view(-1, 2)}, device)["cells"]
    rows, chosen = pairs.unbind(1)
    return rows, chosen
