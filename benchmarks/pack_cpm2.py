"""Real tokens per second of CPM-2's training on CCPM: packed rows against rows that are padded.

python benchmarks/pack_cpm2.py --vocab vocab.txt --ccpm train.jsonl [--out result.json]

The first 32 records, the small shape with random weights, fp32, one thread; a step is forward, backward, clipping and
fused AdamW. padded: one record a row, each row filled up to 512, as in the original. longest: one record a row, 8 of
similar length a batch, filled up to its longest (data.pack: false). packed: as many records in a row of 512 as fit
(data.pack: true). The ways take turns, CPU time counts; before that, all ways must have the same loss over the
records. A real token is one that the encoder or the decoder reads of a record.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from script import read_arguments, report
from torch import nn
from torch.nn import functional
from turns import take_turns

from hanlin.core.batch import Batch, Sample
from hanlin.data.pack import plan_rows, pool_rows
from hanlin.models.common.decoder_batch import NO_SPAN
from hanlin.models.cpm2.config import SIZES
from hanlin.models.cpm2.model import Cpm2
from hanlin.models.cpm2.processor import Cpm2Processor
from hanlin.models.cpm2.record import Cpm2Options
from hanlin.models.cpm2.tokenizer import Cpm2Tokenizer

LENGTH, ROWS = 512, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vocab", type=Path, required=True)
    parser.add_argument("--ccpm", type=Path, required=True, help="CCPM's JSON lines, raw or not")
    parser.add_argument("--size", default="small", choices=sorted(SIZES))
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = read_arguments(
        parser,
        "--size tiny --records 3 --rounds 1",
        {"--vocab": "vocab/cpm2/cn/vocab.txt", "--ccpm": "data/ccpm/train.jsonl"},
    )
    torch.set_num_threads(1)
    samples = Cpm2Processor(Cpm2Tokenizer.load(args.vocab), SIZES[args.size], Cpm2Options(dataset="ccpm"))
    made = read_samples(samples, args.ccpm, args.records)
    ways = batches_of(samples, made)
    model = Cpm2(SIZES[args.size])
    model.init_weights(torch.Generator().manual_seed(0))
    losses = {name: sum(loss(model, batch).item() for batch in batches) for name, batches in ways.items()}
    assert np.allclose(list(losses.values()), losses["padded"], rtol=1e-4), losses
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    turns = take_turns({name: lambda b=b: train(model, optimizer, b) for name, b in ways.items()}, args.rounds)
    tokens = sum(int(batch.inputs["lengths"].sum()) for batch in ways["packed"])
    read = sum(len(sample.inputs["encoder_tokens"]) for sample in made)
    report(
        {
            "records": len(made),
            "real_tokens": tokens,
            "rows": {name: sum(batch.size for batch in batches) for name, batches in ways.items()},
            "real_share_of_the_encoder": {name: round(read / columns(batches), 3) for name, batches in ways.items()},
            "real_tokens_per_second": {name: turns.per_second(name, tokens) for name in ways},
            "packed_against_padded": turns.ratio("padded", "packed"),
            "longest_against_padded": turns.ratio("padded", "longest"),
        },
        args.out,
    )


def read_samples(processor: Cpm2Processor, path: Path, count: int) -> list[Sample]:
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
    return [processor.sample(record) for row in rows for record in processor.data_set.records(row)]


def batches_of(processor: Cpm2Processor, made: Sequence[Sample]) -> dict[str, list[Batch]]:
    lengths, order = np.array([sample.length for sample in made]), np.arange(len(made))
    singles = [[number] for number in order.tolist()]
    pooled = pool_rows(lengths, order, ROWS, np.random.default_rng(0))[:]
    packed = plan_rows(lengths, order, LENGTH)

    def batches(rows: Sequence[Sequence[int]]) -> list[Batch]:
        groups = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
        return [processor.collate([[made[number] for number in row] for row in group], LENGTH) for group in groups]

    return {
        "padded": [filled_up(batch, processor.tokenizer.pad_id) for batch in batches(singles)],
        "longest": batches(pooled),
        "packed": batches(packed),
    }


def filled_up(batch: Batch, pad: int) -> Batch:
    fillers = {"encoder_tokens": pad, "encoder_spans": NO_SPAN}
    wide = {
        name: functional.pad(batch.inputs[name], (0, LENGTH - batch.inputs[name].shape[1]), value=filler)
        for name, filler in fillers.items()
    }
    return Batch({**batch.inputs, **wide}, batch.labels, batch.weights)


def columns(batches: Sequence[Batch]) -> int:
    return sum(batch.inputs["encoder_tokens"].numel() for batch in batches)


def loss(model: Cpm2, batch: Batch) -> torch.Tensor:
    return model(**batch.inputs, labels=batch.labels, weights=batch.weights)


def train(model: Cpm2, optimizer: torch.optim.Optimizer, batches: Sequence[Batch]) -> None:
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        (loss(model, batch) / batch.loss_tokens).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


if __name__ == "__main__":
    main()
