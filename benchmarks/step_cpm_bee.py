"""Useful tokens per second of a CPM-Bee training step, against the same weights in the original's manner.

python benchmarks/step_cpm_bee.py --vocab bee.txt --ccpm train.jsonl [--out result.json]

CCPM rows packed to 1024, one row a step, fp32, one thread; the real vocabulary, random weights in the small shape. The
two ways take turns on the same rows, the ratio is the median of the rounds' ratios; losses and gradients must agree
before anything is timed. A useful token belongs to a sample (padding does not count).
The original's manner: attention written out over the whole square of the row, the mask applied twice, logits of all
positions, torch's default AdamW; with LoRA the same additions, the base frozen. Its own code computes the cross entropy
a second time for its log and keeps Adam's state in host memory: neither is charged here.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

import torch
from script import read_arguments, report
from torch import nn
from torch.nn import functional
from turns import spread

from hanlin.core.batch import Batch, Sample
from hanlin.models.cpm_bee import SIZES, CpmBeeTokenizer, family
from hanlin.models.cpm_bee.ccpm import ccpm_record
from hanlin.models.cpm_bee.model import (
    RESIDUAL_DIVISOR,
    Attention,
    Block,
    CpmBee,
    Inputs,
    own_mask_inputs,
    relations_between,
    visibility,
)
from hanlin.models.cpm_bee.processor import CpmBeeProcessor
from hanlin.recipe.tuning import TuningMethod
from hanlin.tuning.apply import apply_tuning, trained_parameters
from hanlin.tuning.full import FullTuning
from hanlin.tuning.lora import LoraTuning

Loss = Callable[[CpmBee, Batch], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vocab", type=Path, required=True)
    parser.add_argument("--ccpm", type=Path, required=True, help="CCPM's raw JSON lines")
    parser.add_argument("--size", default="small", choices=sorted(SIZES))
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps of each way in a round")
    parser.add_argument("--out", type=Path)
    args = read_arguments(
        parser,
        "--size tiny --length 256 --rounds 1 --steps 1",
        {"--vocab": "vocab/bee/bee.txt", "--ccpm": "data/ccpm/train.jsonl"},
    )
    torch.set_num_threads(1)
    processor = CpmBeeProcessor(CpmBeeTokenizer.load(args.vocab), SIZES[args.size])
    batches = [
        processor.collate([row], args.length) for row in packed_rows(processor, args.ccpm, args.length, args.steps)
    ]
    result = {
        "model": args.size,
        "useful_tokens_per_row": round(useful_tokens(batches) / len(batches), 1),
        "labels_per_row": sum(batch.loss_tokens for batch in batches) / len(batches),
        "full": compare(args.size, FullTuning(), batches, args.rounds),
        "lora": compare(args.size, LoraTuning(), batches, args.rounds),
    }
    report(result, args.out)


def compare(size: str, settings: TuningMethod, batches: Sequence[Batch], rounds: int) -> dict[str, object]:
    ours, other = (make_model(size, settings) for _ in range(2))
    difference = gradient_difference(ours, other, batches[0])
    assert difference < 1e-4, difference
    our_optimiser = torch.optim.AdamW(trained_parameters(ours).values(), fused=True)
    other_optimiser = torch.optim.AdamW(trained_parameters(other).values())
    seconds: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        seconds.append(
            (
                time_steps(ours, batches, our_loss, our_optimiser),
                time_steps(other, batches, original_loss, other_optimiser),
            )
        )
    timed = seconds[1:]  # the first round warms up
    tokens = useful_tokens(batches)
    return {
        "original_tokens_per_second": round(tokens / median(slow for _, slow in timed), 1),
        "hanlin_tokens_per_second": round(tokens / median(fast for fast, _ in timed), 1),
        "ratio": spread([slow / fast for fast, slow in timed]),
        "largest_relative_gradient_difference": float(f"{difference:.1e}"),
    }


def make_model(size: str, settings: TuningMethod) -> CpmBee:
    generator = torch.Generator().manual_seed(0)
    model = CpmBee(SIZES[size])
    model.init_weights(generator)
    apply_tuning(model, settings, family, generator)
    for name, parameter in trained_parameters(model).items():
        if name.endswith("lora_B"):
            nn.init.normal_(parameter, std=0.02, generator=generator)
    return model.train()


def packed_rows(processor: CpmBeeProcessor, path: Path, length: int, count: int) -> Iterator[list[Sample]]:
    """The first rows of the file in their order, as many in a row as fit."""
    row: list[Sample] = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            sample = processor.sample(ccpm_record(json.loads(line)))
            if sum(s.length for s in row) + sample.length > length:
                yield row
                row, count = [], count - 1
                if count == 0:
                    return
            row.append(sample)


def useful_tokens(batches: Sequence[Batch]) -> int:
    return sum(int(batch.inputs["lengths"].sum()) for batch in batches)


def time_steps(model: CpmBee, batches: Sequence[Batch], loss: Loss, optimizer: torch.optim.Optimizer) -> float:
    start = time.perf_counter()
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        loss(model, batch).backward()
        nn.utils.clip_grad_norm_(trained_parameters(model).values(), 1.0)
        optimizer.step()
    return time.perf_counter() - start


def gradient_difference(ours: CpmBee, other: CpmBee, batch: Batch) -> float:
    our_loss(ours, batch).backward()
    original_loss(other, batch).backward()
    pairs = zip(trained_parameters(ours).values(), trained_parameters(other).values(), strict=True)
    return max(float((a.grad - b.grad).abs().max() / b.grad.abs().max()) for a, b in pairs)  # pyright: ignore


def our_loss(model: CpmBee, batch: Batch) -> torch.Tensor:
    return model(**batch.inputs, labels=batch.labels, weights=batch.weights) / batch.loss_tokens


def original_loss(model: CpmBee, batch: Batch) -> torch.Tensor:
    given = Inputs(**{**batch.inputs, "windows": None})
    columns, _ = own_mask_inputs(given, None)
    relation = relations_between(columns, columns, given.relation_offsets, given.relations)
    bias, mask = model.position_bias(columns, columns, relation), visibility(columns, columns)[:, None]
    hidden = model.embedding(given.tokens, given.subs)
    for block in model.blocks.values():
        assert isinstance(block, Block)
        if block.attention is not None:
            hidden = (hidden + original_attention(block.attention, hidden, bias, mask)) / RESIDUAL_DIVISOR
        if block.ffn is not None:
            hidden = (hidden + block.ffn(hidden)) / RESIDUAL_DIVISOR
    assert model.norm is not None and given.ext_tokens is not None and given.ext_subs is not None  # noqa: PT018
    hidden = model.norm(hidden)
    extra = model.embedding(given.ext_tokens[0], given.ext_subs[0])
    logits = torch.cat(
        [functional.linear(hidden * model.embedding.scale, model.embedding.weight), hidden @ extra.t()], dim=-1
    )
    return functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())


def original_attention(part: Attention, hidden: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    normed = part.norm(hidden)
    query, key, value = (
        linear(normed).unflatten(-1, (-1, part.head_dim)).transpose(1, 2)
        for linear in (part.query, part.key, part.value)
    )
    scores = query @ key.transpose(-1, -2) / math.sqrt(part.head_dim) + bias
    shares = scores.masked_fill(~mask, float("-inf")).softmax(-1).masked_fill(~mask, 0.0)
    return part.output((shares @ value).transpose(1, 2).flatten(2))


if __name__ == "__main__":
    main()
