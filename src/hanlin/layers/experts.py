"""A feed-forward that is one of many experts for each token (BASE layers, Lewis et al. 2021), as CPM-2's 198B has it.

In training every expert gets equally many tokens: they are dealt into as many groups as there are experts (in the
original each group is a process), and in each group a balanced assignment is found by auction. In inference a token
goes to the expert that likes it best. There is no gate: an expert's output is taken as it is, and the centroids that
decide get no gradient.

Several processes assign the tokens of all of them together, so that their number changes nothing (`Peers`); each may
hold some of the experts only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.func import functional_call

from hanlin.layers.quantised import computed_again

# Rounds of the auction in which winners keep what they won; then a rule that ends soon.
_STRICT_ROUNDS = 100
_LEAST_STEP = 1e-4
# Of the span of all scores; with the prices that an auction adds up they stay within the digits of fp32.
_SCORE_BITS = 20

ExpertRun = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
"""The experts of a process: tokens `[tokens, hidden_size]`, the first expert's first, and how many each has."""


class Peers(Protocol):
    """The processes that assign their tokens together. All of them call the same methods in the same order."""

    @property
    def rank(self) -> int:
        """This process's place among them, which is that of its tokens among all."""
        ...

    def sizes(self, own: int) -> list[int]:
        """How many tokens each process has."""
        ...

    def join_scores(self, scores: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """The scores `[tokens, experts]` of all processes' tokens."""
        ...

    def join_norms(self, weights: torch.Tensor) -> torch.Tensor:
        """The norm weights `[experts, hidden_size]` of all experts from those of this process's experts."""
        ...

    def own_groups(self, count: int) -> Iterable[int]:
        """Which of so many groups of tokens this process assigns."""
        ...

    def add(self, numbers: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' whole numbers."""
        ...

    def visit(self, tokens: torch.Tensor, counts: torch.Tensor, run: ExpertRun) -> torch.Tensor:
        """What the experts make of this process's tokens, which stand in the experts' order; counts: of each expert."""
        ...


class Alone:
    """The `Peers` of one process, which has all experts."""

    rank = 0

    def sizes(self, own: int) -> list[int]:
        return [own]

    def join_scores(self, scores: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        del sizes
        return scores

    def join_norms(self, weights: torch.Tensor) -> torch.Tensor:
        return weights

    def own_groups(self, count: int) -> Iterable[int]:
        return range(count)

    def add(self, numbers: torch.Tensor) -> torch.Tensor:
        return numbers

    def visit(self, tokens: torch.Tensor, counts: torch.Tensor, run: ExpertRun) -> torch.Tensor:
        return run(tokens, counts.tolist())


class Experts(nn.Module):
    """Experts that each have a `norm` in front; its output scores tokens by their products with the centroids."""

    def __init__(self, make_expert: Callable[[], nn.Module], num_experts: int, hidden_size: int) -> None:
        super().__init__()
        self.experts = nn.ModuleDict({str(number): make_expert() for number in range(num_experts)})
        self.centroids = nn.Parameter(torch.empty(num_experts, hidden_size), requires_grad=False)
        self.peers: Peers = Alone()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: `[..., hidden_size]`."""
        tokens = hidden.flatten(0, -2)
        chosen = self._balanced(tokens) if self.training else self._best(tokens)
        order = chosen.argsort(stable=True)
        out = self.peers.visit(tokens[order], chosen.bincount(minlength=len(self.centroids)), self._run)
        return out[order.argsort()].view_as(hidden)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        nn.init.orthogonal_(self.centroids, gain=0.1, generator=generator)

    def _run(self, tokens: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        pieces = zip(self.experts.values(), tokens.split(list(counts)), strict=True)
        with computed_again(False):  # the experts of a block, unpacked, would be too much at once
            # Idle ones take part in training, so that all have a gradient.
            return torch.cat([expert(own) for expert, own in pieces if self.training or len(own)] or [tokens])

    @torch.no_grad()
    def _best(self, tokens: torch.Tensor) -> torch.Tensor:
        """The number of the expert that likes each token best (the first one, if several do)."""
        return self._scores(tokens, self._norms()[0]).argmax(-1)

    @torch.no_grad()
    def _balanced(self, tokens: torch.Tensor) -> torch.Tensor:
        """The number of each token's expert; each gets equally many of all processes' tokens, up to the padding."""
        count, sizes = len(self.centroids), self.peers.sizes(len(tokens))
        first, total = sum(sizes[: self.peers.rank]), sum(sizes)
        own, padded = slice(first, first + len(tokens)), -(-total // count**2) * count**2
        numbers = deal(padded, count, tokens.device)
        group = torch.empty_like(numbers.flatten())
        group[numbers] = torch.arange(count, device=tokens.device)[:, None]
        # kept (cpm2_moe): a process of the original scores its group with the norm of the expert that it holds.
        scores = self.peers.join_scores(self._scores(tokens, self._norms()[group[own]]), sizes)
        scores = nn.functional.pad(scores, (0, 0, 0, padded - total))  # the padding is assigned too, and then forgotten
        experts = torch.arange(count, device=tokens.device).repeat_interleave(padded // count**2)
        chosen = torch.zeros_like(group)
        for number in self.peers.own_groups(count):
            chosen[numbers[number][assign_balanced(scores[numbers[number]])]] = experts
        return self.peers.add(chosen)[own]

    def _norms(self) -> torch.Tensor:
        """The norm weights of all experts, `[experts, hidden_size]`."""
        # Not by get_parameter: while a block runs under tensor parallelism, its weights are plain tensors.
        norms: list[Any] = [expert.get_submodule("norm").weight for expert in self.experts.values()]
        return self.peers.join_norms(torch.stack(norms))

    def _scores(self, tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """How well each expert likes each token, `[tokens, experts]`; weights: of a norm, for all or for each token."""
        norm = next(iter(self.experts.values())).get_submodule("norm")
        return functional_call(norm, {"weight": weights}, (tokens,)) @ self.centroids.t()


def deal(total: int, groups: int, device: torch.device | None = None) -> torch.Tensor:
    """Tokens' numbers `[groups, total / groups]`: group g gets part g of every g'th run, turned left by g' parts.

    So neighbours, which are alike, are not assigned against each other.
    """
    parts = torch.arange(total, device=device).view(groups, groups, -1)  # run, part, place
    turned = [run.flatten().roll(-number * run.shape[1]).view_as(run) for number, run in enumerate(parts)]
    return torch.stack(turned).transpose(0, 1).flatten(1)


def assign_balanced(scores: torch.Tensor) -> torch.Tensor:
    """Tokens' numbers `[tokens]`, the first expert's first; each has tokens / experts of them, and the sum is large.

    scores: `[tokens, experts]`. An auction (Bertsekas 1992) as in fairseq's BASE layers, so that ties fall alike.
    """
    tokens, experts = scores.shape
    share = tokens // experts
    assert share * experts == tokens, (tokens, experts)
    if experts == 1:
        return torch.arange(tokens, device=scores.device)
    scores = scores.detach().t()
    # The bits of a bf16 or fp16 number are too few: bids would no longer rise, and the auction never end.
    scores = scores if scores.dtype == torch.float64 else scores.float()
    liking, step = _in_whole_steps(scores.contiguous())
    values, cost, won, rounds = liking.clone(), liking.new_zeros(tokens), None, 0
    while True:
        best, chosen = values.topk(share + 1, dim=1)
        bids = torch.zeros_like(values).scatter_(1, chosen[:, :share], best[:, :share] - best[:, share:] + step)
        if won is not None and rounds < _STRICT_ROUNDS:
            bids.view(-1)[won] = step  # the least bid keeps what was won, if nobody else bids
        highest, bidders = bids.max(0)
        has_bid = highest > 0
        if bool(has_bid.all()):
            return _without_repeats(chosen[:, :share].flatten())
        cost += highest
        values = liking - cost
        won = (bidders * tokens + torch.arange(tokens, device=scores.device))[has_bid]
        values.view(-1)[won] = liking.max() if rounds < _STRICT_ROUNDS else liking.view(-1)[won]
        rounds += 1


def _in_whole_steps(liking: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and the least raise of a bid, both multiples of one power of two, so that sums of them are exact.

    An auction makes ties by itself. Exact ones fall by the order of the tokens, others by the last digit of a score,
    which depends on how many tokens were multiplied at once.
    """
    span = liking.max() - liking.min()
    unit = torch.exp2(torch.frexp(span.clamp(min=_LEAST_STEP)).exponent.to(liking.dtype) - _SCORE_BITS)
    return (liking / unit).round() * unit, ((span / 50).clamp(min=_LEAST_STEP) / unit).round() * unit


def _without_repeats(assigned: torch.Tensor) -> torch.Tensor:
    """Give the places of tokens that were assigned twice to those that were not."""
    # differs: where scores tie at the very top, the original ends its auction too early and loses these tokens.
    count = torch.bincount(assigned, minlength=len(assigned))
    if bool((count == 1).all()):
        return assigned
    order = assigned.argsort(stable=True)
    is_repeat = torch.zeros_like(assigned, dtype=torch.bool)
    is_repeat[order[1:]] = assigned[order[1:]] == assigned[order[:-1]]
    return assigned.masked_scatter(is_repeat, (count == 0).nonzero().flatten())
