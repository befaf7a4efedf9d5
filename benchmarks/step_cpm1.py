"""Tokens per second of a GPT-2 pretraining step, against transformers' GPT2LMHeadModel (and litgpt, if installed).

python benchmarks/step_cpm1.py [--out result.json]        (needs transformers)

6 layers x 384 hidden, 6 heads, vocabulary 30,000, fp32, one thread; rows of 256 and of 1,024, 2,048 tokens a step. All
take the same batches and do the arithmetic of transformers' Trainer: fused AdamW, gradients clipped to length 1. Ours
reads them and keeps memory as `hanlin train` does: windows of an indexed corpus, through the loader. transformers'
model has the same weights, and losses and gradient norms must agree before anything is timed; litgpt's GPT has the same
shape, but rotary positions and a head of its own.
matrix_share: the flops of the step's matrix products, over its time, over what products of 1024 x 1024 matrices reach
in the same rounds. loader_share: time to make a batch over time of a step, nothing of which overlaps.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from script import is_installed, read_arguments, report, require
from torch import nn
from turns import LR, Matrices, Turns, as_trained, check_agreement, gradient_length, make_step, take_turns

from hanlin.core.batch import Batch
from hanlin.data.loader import Loader
from hanlin.data.pretraining.indexed_data import written_index
from hanlin.data.pretraining.windows import WindowRequest, open_windows
from hanlin.formats.convert import convert
from hanlin.formats.load import save_base
from hanlin.models.common.text_processor import TextProcessor
from hanlin.models.cpm1 import family
from hanlin.models.cpm1.config import Cpm1Config, shape
from hanlin.models.cpm1.model import Cpm1


@dataclass(frozen=True)
class Rows:
    """What a step reads: `count` rows of `length` tokens."""

    count: int
    length: int

    @property
    def tokens(self) -> int:
        return self.count * self.length


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--step-tokens", type=int, default=2048)
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.0])
    parser.add_argument("--out", type=Path)
    args = read_arguments(parser, "--rounds 1 --layers 1 --hidden 64 --lengths 32 --step-tokens 64")
    require("transformers")
    torch.set_num_threads(1)
    has_litgpt = is_installed("litgpt")
    figures: dict[str, Any] = {"layers": args.layers, "hidden_size": args.hidden, "litgpt": has_litgpt}
    for length in args.lengths:
        for dropout in args.dropout:
            config = shape(args.hidden, args.layers, args.hidden // 64, dropout=dropout, attention_dropout=dropout)
            rows = Rows(args.step_tokens // length, length)
            figures[f"length_{length}_dropout_{dropout:g}"] = compare(config, rows, args.rounds, has_litgpt)
    report(figures, args.out, ["transformers", *(["litgpt"] if has_litgpt else [])])


def compare(config: Cpm1Config, rows: Rows, rounds: int, has_litgpt: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        batches = make_loader(config, rows, Path(folder)).forever()
        batch = next(batches)
        model = make_model(config)
        peer = Peer(make_gpt2(model, config), gpt2_loss)
        check_equal(model, peer, batch)
        step, load = make_step(model), Latest(batches)
        ways: dict[str, Callable[[], object]] = {
            "matrices": Matrices(),
            "loader": load,
            "hanlin": as_trained(lambda: step.run(load.batch)),
            "transformers": lambda: peer.step(load.batch),
        }
        if has_litgpt and not config.dropout:  # it knows no dropout
            other = Peer(make_litgpt(config), litgpt_loss)
            ways["litgpt"] = lambda: other.step(load.batch)
        return tell(take_turns(ways, rounds), config, rows)


class Latest:
    """Keeps the batch that it has read."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches
        self.batch: Batch

    def __call__(self) -> None:
        self.batch = next(self.batches)


def tell(turns: Turns, config: Cpm1Config, rows: Rows) -> dict[str, Any]:
    rate = turns.per_second("matrices", Matrices.flops)
    names = [name for name in turns.seconds if name not in ("matrices", "loader")]
    shares = {name: round(turns.per_second(name, step_flops(config, rows)) / rate, 2) for name in names}
    return {
        "tokens_per_second": {name: turns.per_second(name, rows.tokens) for name in shares},
        **{f"over_{name}": turns.ratio(name, "hanlin") for name in shares if name != "hanlin"},
        "matrix_gflops": round(rate / 1e9, 1),
        "matrix_share": shares,
        "loader_share": round(median(turns.seconds["loader"]) / median(turns.seconds["hanlin"]), 5),
    }


def step_flops(config: Cpm1Config, rows: Rows) -> float:
    """Of the matrix products, forward and backward; attention looks back only, so half its square counts."""
    hidden, inner = config.hidden_size, config.num_heads * config.head_dim
    per_layer = 4 * hidden * inner + 2 * hidden * config.ffn_size + rows.length * inner
    return 6 * rows.tokens * (config.num_layers * per_layer + hidden * config.vocab_size)


# --- ours ---


def make_loader(config: Cpm1Config, rows: Rows, folder: Path) -> Loader:
    """CorpusWindows of an indexed corpus of random documents."""
    rng = np.random.default_rng(0)
    with written_index(folder / "corpus", "mmap", config.vocab_size) as writer:
        for size in rng.integers(50, 800, 1000).tolist():
            writer.add(rng.integers(0, config.vocab_size, size))
            writer.end_document()
    samples: Any = TextProcessor(Ids(config.vocab_size), config)  # pyright: ignore[reportArgumentType]
    wanted = WindowRequest("1,0,0", "train", rows.length, seed=0)
    windows = open_windows([folder / "corpus"], samples, wanted, config.vocab_size, folder)
    return Loader(windows, samples, max_length=rows.length, batch_size=rows.count, shuffle=False, pack=False)


@dataclass(frozen=True)
class Ids:
    """All that windows of ids ask of a vocabulary."""

    vocab_size: int
    fingerprint: str = ""

    def find(self, token: str) -> int:
        return 0


def make_model(config: Cpm1Config) -> Cpm1:
    model = Cpm1(config)
    model.init_weights(torch.Generator().manual_seed(0))
    return model.train()


# --- the others ---


class Peer:
    """Another program's model in the loop of transformers' Trainer."""

    def __init__(self, model: Any, loss: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        self.model, self.loss = model.train(), loss
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)

    def step(self, batch: Batch) -> None:
        self.backward(batch)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.model.zero_grad()

    def backward(self, batch: Batch) -> float:
        loss = self.loss(self.model, batch.inputs["tokens"], batch.labels)
        loss.backward()
        return loss.item()


def make_gpt2(model: Cpm1, config: Cpm1Config) -> Any:
    """transformers' model with the weights of ours."""
    from transformers import GPT2LMHeadModel  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as folder:
        base, hub = Path(folder) / "base", Path(folder) / "hub"
        save_base(base, family, config, {name: weight.detach() for name, weight in model.named_parameters()})
        convert(base, family, None, "huggingface", hub)
        return GPT2LMHeadModel.from_pretrained(
            hub, dtype=torch.float32, attn_implementation="sdpa",
            resid_pdrop=config.dropout, embd_pdrop=config.dropout, attn_pdrop=config.attention_dropout,
        )  # fmt: skip


def make_litgpt(config: Cpm1Config) -> Any:
    from litgpt import GPT, Config  # pyright: ignore[reportMissingImports]

    return GPT(
        Config(
            block_size=config.max_length, n_layer=config.num_layers, n_embd=config.hidden_size,
            n_head=config.num_heads, vocab_size=config.vocab_size, padded_vocab_size=config.vocab_size, bias=True,
            intermediate_size=config.ffn_size, rotary_percentage=1.0, parallel_residual=False,
            norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP", gelu_approximate="tanh", lm_head_bias=False,
        )
    )  # fmt: skip


def gpt2_loss(model: Any, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    # Our labels stand at the position that predicts them; where they are given so, it does not shift them.
    return model(tokens, labels=labels, shift_labels=labels, use_cache=False).loss


def litgpt_loss(model: Any, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    from litgpt.utils import chunked_cross_entropy  # pyright: ignore[reportMissingImports]

    return chunked_cross_entropy(model(tokens), labels)


def check_equal(model: Cpm1, peer: Peer, batch: Batch) -> None:
    """The loss and the length of the gradient, without dropout."""
    loss = model.eval()(**batch.inputs, labels=batch.labels, weights=batch.weights) / batch.loss_tokens
    loss.backward()
    peer.model.eval()
    losses = loss.item(), peer.backward(batch)
    check_agreement([losses, (gradient_length(model.parameters()), gradient_length(peer.model.parameters()))])
    for one in (model, peer.model):
        one.zero_grad()
        one.train()


if __name__ == "__main__":
    main()
