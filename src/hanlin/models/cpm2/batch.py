"""CPM-2's samples and prompts -> the tensors of a batch; see `models.common.encoder_decoder_batch`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from hanlin.core.batch import NO_SPAN, Batch, Sample
from hanlin.models.common import encoder_decoder_batch

if TYPE_CHECKING:
    import torch

_FILLERS = {"spans": NO_SPAN, "encoder_spans": NO_SPAN, "negatives": NO_SPAN}


def collate(rows: Sequence[Sequence[Sample]], length: int, pad: int) -> Batch:
    """Pack samples: tokens, encoder_tokens, their spans, lengths (ids of both sides), negatives where there are any."""
    import torch

    batch = encoder_decoder_batch.collate(rows, length, _fillers(pad))
    sizes = [
        sum(len(sample.inputs[f"{side}tokens"]) for sample in row for side in encoder_decoder_batch.SIDES)
        for row in rows
    ]
    return replace(batch, inputs={**batch.inputs, "lengths": torch.tensor(sizes)})


def pad_prompts(prompts: Sequence[Mapping[str, np.ndarray]], pad: int) -> dict[str, torch.Tensor]:
    """The encoder's side is padded on the right; the decoder's sides are equally long."""
    spans = [np.zeros(len(prompt["encoder_tokens"]), np.int64) for prompt in prompts]
    rows = [{**prompt, "encoder_spans": own} for prompt, own in zip(prompts, spans, strict=True)]
    return encoder_decoder_batch.pad_right(rows, _fillers(pad))


def _fillers(pad: int) -> dict[str, int]:
    return {"tokens": pad, "encoder_tokens": pad, **_FILLERS}
