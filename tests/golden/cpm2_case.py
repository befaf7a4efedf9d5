"""What the checks of CPM-2's network share: the case's model, its inputs by our names, its gradients by theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from golden_case import Case, Reading, close, same

from hanlin.core.batch import IGNORED, Batch
from hanlin.formats.load import load_into
from hanlin.formats.rules import find_moves
from hanlin.formats.source import read_config
from hanlin.layers.kv_cache import KVCache
from hanlin.models.cpm2.config import Cpm2Config
from hanlin.models.cpm2.formats import FORMATS
from hanlin.models.cpm2.model import Cpm2, visible_spans
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


def load_model(case: Case) -> Cpm2:
    """The checkpoint in `cpm2/`; its configuration lies beside."""
    case.set_aside(r"cpm2_config\.json", "read along with the checkpoint where it is")
    folder = case / "cpm2"
    with torch.device("meta"):
        model = Cpm2(read_config(folder, FAMILY))
    load_into(model, folder, FAMILY, dtype=torch.float32)
    return model.eval()


def inputs_of(arrays: Mapping[str, torch.Tensor]) -> Arrays:
    """Whatever has a key in the original's masks is no padding."""
    return {
        "tokens": arrays["dec_input_ids"],
        "encoder_tokens": arrays["enc_input_ids"],
        "spans": spans_of(arrays["dec_attention_mask"]),
        "encoder_spans": spans_of(arrays["enc_attention_mask"]),
    }


def spans_of(mask: torch.Tensor) -> torch.Tensor:
    """0 where somebody looks, -1 elsewhere: `[batch, length]` of the original's `[batch, 1, queries, keys]`."""
    return mask[:, 0].any(1).long() - 1


def check_masks(arrays: Reading) -> None:
    """Who sees whom, made anew from which positions are there; `arrays` are the original's."""
    if "enc_attention_mask" not in arrays or "dec_attention_mask" not in arrays:
        return
    read, own = (spans_of(arrays[f"{side}_attention_mask"]) for side in ("enc", "dec"))
    sights = {
        "enc_attention_mask": visible_spans(read, read),
        "dec_attention_mask": visible_spans(own, own).tril(),
        "cross_attention_mask": visible_spans(own, read),
    }
    for name, seen in sights.items():
        # The original's padding sees what the rest sees; nobody reads that.
        real = (own if name != "enc_attention_mask" else read) >= 0
        same(name, seen[:, None], arrays, where=real[:, None])


def batch_of(arrays: Mapping[str, torch.Tensor]) -> Batch:
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


def check_loss(model: Cpm2, arrays: Reading, expected: Reading, atol: float) -> torch.Tensor:
    """The mean of the means of the rows, and these. `arrays` has labels and loss_mask."""
    batch = batch_of(arrays)
    loss = losses_of(model, batch)
    close("loss", loss, expected, atol, 0)
    close("loss_batch", row_losses_of(model, batch), expected, atol, 0)
    return loss


def gradient_close(name: str, ours: torch.Tensor, expected: Reading, rtol: float) -> None:
    """Relative to the length of the tensor's whole gradient, if the case has it."""
    if name not in expected:
        return
    theirs = expected[name]
    difference = float((ours - theirs).double().norm())
    assert difference <= rtol * float(theirs.double().norm()) + 1e-9, f"{name}: differs by {difference:.3g}"
