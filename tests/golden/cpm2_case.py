"""What the checks of CPM-2's network share: the case's model, its inputs by our names, its gradients by theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hanlin.core.batch import IGNORED, Batch
from hanlin.formats.load import load_into
from hanlin.formats.rules import find_moves
from hanlin.formats.source import read_config
from hanlin.layers.kv_cache import KVCache
from hanlin.models.cpm2.config import Cpm2Config
from hanlin.models.cpm2.formats import FORMATS
from hanlin.models.cpm2.model import Cpm2
from hanlin.models.family import Family

Arrays = dict[str, torch.Tensor]

FAMILY = Family(
    name="cpm2",
    title="CPM-2",
    config=Cpm2Config,
    model=lambda: Cpm2,
    tokenizer=lambda path: path,
    processor=lambda *_: None,
    formats=FORMATS,
)


def facts_of(case: Path) -> dict[str, Any]:
    return json.loads((case / "case.json").read_text())


def arrays_of(path: Path, prefix: str = "") -> Arrays:
    """The arrays of a file whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): torch.from_numpy(np.asarray(array))
        for name, array in np.load(path).items()
        if name.startswith(prefix)
    }


def load_model(case: Path) -> Cpm2:
    with torch.device("meta"):
        model = Cpm2(read_config(case / "cpm2", FAMILY))
    load_into(model, case / "cpm2", FAMILY, dtype=torch.float32)
    return model.eval()


def inputs_of(arrays: Arrays) -> Arrays:
    """Whatever has a key in the original's masks is no padding."""
    encoder = arrays["enc_attention_mask"][:, 0].any(1)
    decoder = arrays["dec_attention_mask"][:, 0].any(1)
    return {
        "tokens": arrays["dec_input_ids"],
        "encoder_tokens": arrays["enc_input_ids"],
        "spans": decoder.long() - 1,
        "encoder_spans": encoder.long() - 1,
    }


def batch_of(arrays: Arrays) -> Batch:
    """The loss is the mean over the rows of the means over their labels."""
    mask = arrays["loss_mask"]
    labels = torch.where(mask > 0, arrays["labels"], IGNORED)
    return Batch(inputs_of(arrays), labels, mask / mask.sum(1, keepdim=True) / len(mask))


def losses_of(model: Cpm2, batch: Batch) -> torch.Tensor:
    return model(**batch.inputs, labels=batch.labels, weights=batch.weights)  # pyright: ignore[reportReturnType]


def row_losses_of(model: Cpm2, batch: Batch) -> torch.Tensor:
    """The mean loss of each row's labels `[rows]`."""
    losses = model(**batch.inputs, labels=batch.labels, weights=batch.weights, reduction="none")
    assert isinstance(losses, torch.Tensor)
    return losses.sum(1) * len(losses)


def norms_of(tensors: Arrays) -> torch.Tensor:
    """The lengths of tensors by the original's names, ascending, since the case does not tell their order.

    The embedding counts once, which the original has under three names.
    """
    once = [tensor for name, tensor in tensors.items() if not name.endswith("coder.word_embeds.weight")]
    return torch.stack([tensor.double().norm() for tensor in once]).sort().values


def as_original(model: Cpm2, ours: Mapping[str, Any]) -> Arrays:
    """Tensors by the original's names; those of the embedding under all three of them."""
    moves = find_moves(FORMATS["original"].rules(model.config), ours, "to_theirs")
    return {
        name: tensor
        for move in moves
        for name, tensor in zip(move.targets, move.run(tuple(ours[n] for n in move.sources)), strict=True)
    }


def greedy(model: Cpm2, inputs: Arrays, length: int, start: int = 1) -> torch.Tensor:
    """Ids chosen one by one with a KV cache: `[batch, length]`; nothing stops at the end."""
    return greedy_logits(model, inputs, length, start).argmax(-1)


def greedy_logits(model: Cpm2, inputs: Arrays, length: int, start: int = 1) -> torch.Tensor:
    """The logits from which `greedy` chooses: `[rows, length, vocab]`."""
    kv_cache, tokens, columns = KVCache(), torch.full_like(inputs["encoder_tokens"][:, :1], start), []
    for _ in range(length):
        logits = model(
            tokens=tokens,
            encoder_tokens=inputs["encoder_tokens"],
            encoder_spans=inputs["encoder_spans"],
            kv_cache=kv_cache,
        )
        assert isinstance(logits, torch.Tensor)
        columns.append(logits[:, -1])
        tokens = columns[-1].argmax(-1, keepdim=True)
    return torch.stack(columns, 1)


def assert_greedy(ours: torch.Tensor, theirs: torch.Tensor, end: int, pad: int) -> None:
    """Equal up to the end of the answer; the original cuts at the first pad and fills with -1."""
    for found, wanted in zip(ours.tolist(), theirs.tolist(), strict=True):
        assert _cut(found, end, pad) == [token for token in wanted if token >= 0], (found, wanted)


def _cut(tokens: list[int], end: int, pad: int) -> list[int]:
    answer = tokens[: tokens.index(end) + 1] if end in tokens else tokens
    return answer[: answer.index(pad)] if pad in answer else answer


def assert_close(name: str, ours: torch.Tensor, theirs: torch.Tensor, atol: float, rtol: float = 0.0) -> None:
    torch.testing.assert_close(
        ours.detach().double(), theirs.double(), atol=atol, rtol=rtol, msg=lambda text: f"{name}: {text}"
    )


def assert_gradient(name: str, ours: torch.Tensor, theirs: torch.Tensor, rtol: float) -> None:
    """Relative to the length of the tensor's whole gradient."""
    difference = float((ours - theirs).double().norm())
    assert difference <= rtol * float(theirs.double().norm()) + 1e-9, f"{name}: differs by {difference:.3g}"
