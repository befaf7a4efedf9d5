"""A head that gives each label one number, for any decoder: what a sample's last token knows decides on its label.

Parameters are kept, and the numbers computed, in fp32 at least, also under autocast: there are few of them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from hanlin.core.labels import at_places, labelled_places
from hanlin.layers.loss import weighted
from hanlin.layers.precision import at_least_fp32

Kind = Literal["one", "several", "number"]


class LabelHead(nn.Module):
    """Hidden states -> a number per label; with bias.

    kind: what the numbers are. one: the logits of labels of which one is right; several: the logit of each label to be
    right; number: the values themselves. dropout: of the hidden state, in training only.
    """

    added: tuple[str, ...] = ()

    def __init__(self, num_labels: int, hidden_size: int, kind: Kind, dropout: float = 0.0) -> None:
        super().__init__()
        self.kind: Kind = kind
        self.dropout = dropout
        self.label_weight = nn.Parameter(torch.empty(num_labels, hidden_size))
        self.label_bias = nn.Parameter(torch.empty(num_labels))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[..., hidden_size]` -> `[..., labels]`, at least fp32."""
        hidden = functional.dropout(at_least_fp32(hidden), self.dropout, self.training)
        with torch.autocast(hidden.device.type, enabled=False):
            return functional.linear(hidden, self.label_weight.to(hidden.dtype), self.label_bias.to(hidden.dtype))

    def loss(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        *,
        weights: torch.Tensor | None = None,
        reduction: Literal["sum", "none"] = "sum",
        targets: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The weighted losses of the labelled positions, each the mean over the labels: their sum, or one per position.

        labels, weights: `[batch, length]`, a label at the last token of each sample; targets: `[batch, length,
        labels]`, what the numbers should be there (1 or 0 with several labels); not read where one label is right.
        """
        places = labelled_places(labels)
        scores = self(at_places(hidden, places))
        if self.kind == "one":
            values = functional.cross_entropy(scores, at_places(labels, places).long(), reduction="none")
        else:
            assert targets is not None, f"a head of the kind {self.kind} needs targets"
            wanted = at_places(targets, places).to(scores.dtype)
            compare = functional.mse_loss if self.kind == "number" else functional.binary_cross_entropy_with_logits
            values = compare(scores, wanted, reduction="none").mean(-1)
        return weighted(values, labels, weights, reduction)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.label_weight, std=0.02, generator=generator)
        nn.init.zeros_(self.label_bias)


def label_parameters(model: nn.Module) -> list[str]:
    """The names of the parameters of a model's head for labels; empty for a language model."""
    return [
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, LabelHead)
        for name, _ in module.named_parameters()
    ]


def train_label_head(model: nn.Module) -> None:
    """Let the head for labels, if there is one, be trained beside a frozen base, and kept with what tuning adds."""
    for module in model.modules():
        if isinstance(module, LabelHead):
            module.added = tuple(name for name, _ in module.named_parameters())
            for parameter in module.requires_grad_(True).parameters():
                parameter.data = at_least_fp32(parameter.data)


def keep_label_head(model: nn.Module) -> None:
    """Let the head for labels be a part of the base, whatever it was trained with."""
    for module in model.modules():
        if isinstance(module, LabelHead):
            module.added = ()
