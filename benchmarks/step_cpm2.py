"""Tokens per second of a CPM-2 training step, against transformers' T5 1.1 of the same shape and weights.

python benchmarks/step_cpm2.py [--out result.json]        (needs transformers)

4 + 4 layers x 512 hidden, 8 heads x 64, ffn 1,280, vocabulary 26,240, fp32, one thread, random ids, dropout 0; both do
what transformers' Trainer does: fused AdamW, gradients clipped to length 1. dense: rows of 512 and 128, all real.
ccpm: 16 samples with CCPM's lengths (deciles of its 21,778 rows), theirs in rows padded to 512 as the original does it,
ours packed into rows of 512, memory kept as `hanlin train` keeps it. The ways take turns, CPU time counts; losses and
gradient norms must agree before anything is timed. A useful token belongs to a sample (padding does not count), on
either side.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from script import read_arguments, report, require
from torch import nn
from turns import LR, as_trained, check_agreement, gradient_length, make_step, take_turns

from hanlin.core.batch import Batch, Sample
from hanlin.data.pack import plan_rows
from hanlin.models.common.encoder_decoder_batch import make_sample
from hanlin.models.cpm2.batch import collate
from hanlin.models.cpm2.config import Cpm2Config
from hanlin.models.cpm2.model import Cpm2

CONFIG = Cpm2Config(hidden_size=512, num_layers=4, num_heads=8, head_dim=64, ffn_size=1280, init_std=0.02)
TINY = replace(CONFIG, hidden_size=32, num_layers=1, num_heads=2, head_dim=16, ffn_size=48)
SOURCE, TARGET = 512, 128
# Tokens that the encoder reads of a CCPM row: the shortest, the deciles 1, 5 and 9, the longest.
CCPM_LENGTHS = {0.0: 36, 0.1: 44, 0.5: 53, 0.9: 80, 1.0: 132}
CCPM_SAMPLES, CCPM_TARGET = 16, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = read_arguments(parser, "--rounds 1")
    require("transformers")
    config = TINY if args.smoke else CONFIG
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    dense = [draw_sample(rng, SOURCE, TARGET) for _ in range(2)]
    lengths = np.interp(rng.random(CCPM_SAMPLES), list(CCPM_LENGTHS), list(CCPM_LENGTHS.values()))
    ccpm = [draw_sample(rng, int(length), CCPM_TARGET) for length in lengths]
    order = np.arange(len(ccpm))
    packed = plan_rows(np.array([sample.length for sample in ccpm]), order, SOURCE)
    figures = {
        "dense": compare(config, dense, [[sample] for sample in dense], args.rounds),
        "ccpm": compare(config, ccpm, [[ccpm[number] for number in row] for row in packed], args.rounds),
    }
    report(figures, args.out, ["transformers"])


def draw_sample(rng: np.random.Generator, source: int, target: int) -> Sample:
    read, tokens, labels = (rng.integers(200, CONFIG.vocab_size, count) for count in (source, target, target))
    return make_sample({"tokens": tokens, "encoder_tokens": read}, labels)


def compare(
    config: Cpm2Config, samples: Sequence[Sample], rows: Sequence[Sequence[Sample]], rounds: int
) -> dict[str, Any]:
    model = Cpm2(config).train()
    model.init_weights(torch.Generator().manual_seed(0))
    peer, batch, padded = Peer(model), collate(rows, SOURCE, 0), pad(samples)
    step = make_step(model)
    check_equal(model, batch, peer, padded)
    turns = take_turns({"t5": lambda: peer.step(padded), "hanlin": as_trained(lambda: step.run(batch))}, rounds)
    tokens = int(batch.inputs["lengths"].sum())
    return {
        "useful_tokens": tokens,
        "rows": {"t5": len(samples), "hanlin": len(rows)},
        "tokens_per_second": {way: turns.per_second(way, tokens) for way in turns.seconds},
        "ratio": turns.ratio("t5", "hanlin"),
    }


def pad(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """A row for each sample, the encoder's of 512."""
    batch = collate([[sample] for sample in samples], SOURCE, 0)
    read = batch.inputs["encoder_tokens"]
    fill = (0, SOURCE - read.shape[1])
    return {
        "input_ids": nn.functional.pad(read, fill),
        "attention_mask": nn.functional.pad((batch.inputs["encoder_spans"] >= 0).long(), fill),
        "decoder_input_ids": batch.inputs["tokens"],
        "labels": batch.labels,
    }


def check_equal(model: Cpm2, batch: Batch, peer: Peer, padded: dict[str, torch.Tensor]) -> None:
    loss = model(**batch.inputs, labels=batch.labels, weights=batch.weights) / batch.loss_tokens
    loss.backward()
    losses = loss.item(), peer.backward(padded)
    check_agreement([losses, (gradient_length(model.parameters()), gradient_length(peer.model.parameters()))])
    for one in (model, peer.model):
        one.zero_grad()


class Peer:
    """transformers' T5 with the weights of ours, in the loop of its Trainer."""

    def __init__(self, ours: Cpm2) -> None:
        from transformers import T5Config, T5ForConditionalGeneration  # pyright: ignore[reportMissingImports]

        own = ours.config
        config = T5Config(
            vocab_size=own.vocab_size, d_model=own.hidden_size, d_kv=own.head_dim, d_ff=own.ffn_size,
            num_layers=own.num_layers, num_heads=own.num_heads, dropout_rate=0.0, use_cache=False,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False,
        )  # fmt: skip
        self.model = T5ForConditionalGeneration(config).train()
        # transformers 5 ties the head to the embedding whatever the configuration says.
        self.model.lm_head.weight = nn.Parameter(self.model.lm_head.weight.detach().clone())
        weights = {name: weight.detach().clone() for name, weight in renamed(ours)}
        left_out, surplus = self.model.load_state_dict(weights, strict=False)
        assert not surplus, surplus
        assert all("embed_tokens" in name for name in left_out), left_out  # both are the shared table
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, weight_decay=0.0, fused=True)

    def step(self, padded: dict[str, torch.Tensor]) -> None:
        self.backward(padded)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.model.zero_grad()

    def backward(self, padded: dict[str, torch.Tensor]) -> float:
        loss = self.model(**padded).loss
        loss.backward()
        return loss.item()


def renamed(ours: Cpm2) -> Iterator[tuple[str, torch.Tensor]]:
    """Our weights by transformers' names."""
    linears = {"query": "q", "key": "k", "value": "v", "output": "o", "gate": "wi_0", "up": "wi_1", "down": "wo"}
    parts = {
        "encoder_blocks": {"attention": "0.SelfAttention", "ffn": "1.DenseReluDense"},
        "decoder_blocks": {
            "attention": "0.SelfAttention", "cross_attention": "1.EncDecAttention", "ffn": "2.DenseReluDense",
        },
    }  # fmt: skip
    tops = {
        "embedding": "shared", "head": "lm_head", "encoder_norm": "encoder.final_layer_norm",
        "decoder_norm": "decoder.final_layer_norm",
        "encoder_bias": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "decoder_bias": "decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    }  # fmt: skip
    for name, weight in ours.named_parameters():
        stack, *rest = name.removesuffix(".weight").split(".")
        if not rest:
            yield f"{tops[stack]}.weight", weight
            continue
        number, part, last = rest
        place = parts[stack][part]
        inner = f"{place[0]}.layer_norm" if last == "norm" else f"{place}.{linears[last]}"
        yield f"{stack[:7]}.block.{number}.layer.{inner}.weight", weight


if __name__ == "__main__":
    main()
