"""A feed-forward that is one of many experts for each token (BASE layers, Lewis et al. 2021), as CPM-2's 198B has it.

In training every expert gets equally many tokens: they are dealt into as many groups as there are experts (in the
original each group is a process), and in each group a balanced assignment is found by auction. In inference a token
goes to the expert that likes it best. There is no gate: an expert's output is taken as it is, and the centroids that
decide get no gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

# Rounds of the auction in which winners keep what they won; then a rule that ends soon.
_STRICT_ROUNDS = 100
_LEAST_STEP = 1e-4


class Experts(nn.Module):
    """Experts that each have a `norm` in front; its output scores tokens by their products with the centroids."""

    def __init__(self, make_expert: Callable[[], nn.Module], num_experts: int, hidden_size: int) -> None:
        super().__init__()
        self.experts = nn.ModuleDict({str(number): make_expert() for number in range(num_experts)})
        self.centroids = nn.Parameter(torch.empty(num_experts, hidden_size), requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: `[..., hidden_size]`."""
        flat = hidden.flatten(0, -2)
        chosen = self._balanced(flat) if self.training else self._best(flat)
        order = torch.cat(chosen)
        pieces = [expert(flat[own]) for expert, own in zip(self.experts.values(), chosen, strict=True)]
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order), device=order.device)
        return torch.cat(pieces)[places].view_as(hidden)

    def init_centroids(self, generator: torch.Generator | None = None) -> None:
        nn.init.orthogonal_(self.centroids, gain=0.1, generator=generator)

    @torch.no_grad()
    def _best(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """For each expert its tokens' numbers: those that it likes best of all (the first one, if several do)."""
        best = self._scores(tokens, 0).argmax(-1)
        return [(best == number).nonzero().flatten() for number in range(len(self.experts))]

    @torch.no_grad()
    def _balanced(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """For each expert its tokens' numbers, equally many up to the rest of a division."""
        count, total = len(self.experts), len(tokens)
        padded = -(-total // count**2) * count**2  # the padding is dealt out too, and then forgotten
        numbers = deal(padded, count, tokens.device)
        filled = nn.functional.pad(tokens, (0, 0, 0, padded - total))
        assigned = [
            group[assign_balanced(self._scores(filled[group], number))].view(count, -1)
            for number, group in enumerate(numbers)
        ]
        return [own[own < total] for own in torch.stack(assigned, dim=1).flatten(1)]

    def _scores(self, tokens: torch.Tensor, number: int) -> torch.Tensor:
        """How well each expert likes each token, `[tokens, experts]`, by the norm of expert `number`."""
        # kept (cpm2_moe): a process of the original scores with the norm of the expert that it holds.
        norm = self.experts.get_submodule(f"{number}.norm")
        return norm(tokens) @ self.centroids.t()


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
    liking = scores.detach().t().contiguous()
    step = ((liking.max() - liking.min()) / 50).clamp(min=_LEAST_STEP)
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
